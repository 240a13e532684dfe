"""`manifold duplicates`: groups of near-duplicates as a table, JSON, parquet and a contact sheet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table

from index.duplicates import Duplicates
from index.workspace import Workspace
from manifold.errors import InputError
from manifold.files import atomic_path

from .plain_text import counted, plain
from .sheet import Panel, draw_groups, save_sheet

if TYPE_CHECKING:
    import numpy as np

__all__ = ["duplicates_summary", "duplicates_table", "save_duplicates", "save_duplicates_sheet", "to_dict"]

_SHEET_GROUPS, _SHEET_COLUMNS = 20, 6


def to_dict(found: Duplicates) -> dict[str, Any]:
    """As JSON values: threshold and groups, each a list of its members."""
    groups: list[list[dict[str, Any]]] = [[] for _ in found.groups]
    for record in found.table().to_pylist():
        groups[record.pop("group")].append(record)
    return {"threshold": found.threshold, "typical_distance": found.typical_distance, "groups": groups}


def duplicates_summary(found: Duplicates) -> str:
    """One sentence."""
    scale = (
        f"distance up to {found.threshold:.4g}, {found.threshold / found.typical_distance:.1%} of two rows' typical one"
    )
    if not found.groups:
        return f"no near-duplicates ({scale})"
    members = sum(len(group) for group in found.groups)
    return (
        f"{counted(len(found.groups), 'group')} with {members:,} of {len(found.store):,} images, "
        f"{found.surplus:,} of them to spare if one of each group stays ({scale})"
    )


def duplicates_table(found: Duplicates, most: int = 20) -> Table:
    """The largest groups: size, furthest distance from the first member, and the first few members."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("group", "images", "furthest"):
        table.add_column(name, justify="right")
    table.add_column("keys", justify="left", overflow="fold")
    for number, (group, distances) in enumerate(zip(found.groups[:most], found.distances, strict=False)):
        shown = [plain(record["key"]) for record in found.store.rows(group[:5])]
        more = f" and {len(group) - 5:,} more" if len(group) > 5 else ""
        table.add_row(str(number), f"{len(group):,}", f"{distances.max():.4g}", ", ".join(shown) + more)
    return table


def save_duplicates(found: Duplicates, path: Path) -> None:
    """Write `Duplicates.table` as parquet, atomically. Raises: StorageError."""
    import pyarrow.parquet as pq

    with atomic_path(path) as temporary:
        pq.write_table(found.table(), temporary)


def save_duplicates_sheet(found: Duplicates, workspace: str | Path, path: Path, *, encoder: str | None = None) -> None:
    """Write a contact sheet of the largest groups, up to twenty, with up to six images each, decoded from their latents.

    Raises: InputError if there are no groups, or the encoder cannot be opened; StorageError.
    """
    if not found.groups:
        raise InputError(f"there are no near-duplicates to draw; ask for a --threshold above {found.threshold:.4g}")
    decoder = Workspace.open(workspace).encoder(encoder)
    store = found.store
    drawn = []
    for number, (group, distances) in enumerate(zip(found.groups[:_SHEET_GROUPS], found.distances, strict=False)):
        shown = group[:_SHEET_COLUMNS]
        latents = torch.from_numpy(store.read(shown)).float().view(-1, *store.shape)
        pictures: np.ndarray = decoder.decode(latents).permute(0, 2, 3, 1).numpy()
        panels = [
            Panel(picture, record["key"], f"row {record['row']}, distance {distance:.3g}")
            for picture, record, distance in zip(pictures, store.rows(shown), distances, strict=False)
        ]
        more = f", the first {_SHEET_COLUMNS} of them" if len(group) > _SHEET_COLUMNS else ""
        drawn.append((f"Group {number}: {len(group):,} images{more}", panels))
    rest = len(found.groups) - len(drawn)
    heading = "Near-duplicates" if rest == 0 else f"Near-duplicates, the {len(drawn)} largest groups"
    save_sheet(draw_groups(heading, duplicates_summary(found), drawn), path)
