"""Removing images from a workspace: from latents, metadata, rejects, statistics and index.

Shards that lose rows are written again under new numbers, the later ones renamed to follow, and one write of the manifest
changes over from the old files to the new; then the old are deleted. So a process killed anywhere leaves the images either
all in or all out, and the same command finishes the rest. Statistics are fitted again from what is left, not subtracted:
they end with the bits they would have had if the images had never been there. Nothing of a removed image stays in these
files but for sums over many: an index keeps its basis and its quantiser's ranges until it is built again.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from manifold.errors import FormatError, InputError, ManifoldWarning
from manifold.files import atomic_path, is_utf8, sha256_file
from manifold.gaussian import GaussianManifold
from manifold.selection import FEWEST_ROWS

from .latents import Shard, latents_file, metadata_file
from .progress import Progress, silent
from .refresh import is_behind, refresh_workspace
from .shards import counted_rejects, remove_uncommitted, write_rejects
from .workspace import Workspace, writing

__all__ = ["Removed", "remove_images"]

_BATCH_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Removed:
    """What a removal did."""

    workspace: Workspace
    rows: int
    """Latents removed; 0 if an earlier, killed removal was finished only."""
    rejects: int
    """Entries removed from the list of rejects: `add_images` will try these images again."""
    missing: tuple[str, ...]
    """Keys asked for that are not there; only where a killed removal, which may have removed them, was finished."""


def remove_images(workspace: str | Path, keys: str | Sequence[str] = (), *, progress: Progress = silent) -> Removed:
    """Remove images by key, and bring statistics and index up to what is left.

    Arguments
        workspace: its folder, completely encoded.
        keys: of rows or rejects, one or several; all rows of a key that several have. Without any, a removal that was killed
            is finished.
        progress: told of ("remove", shards done, shards in all), then of "fit" and "index".

    Returns: the workspace, opened again, and what was done. Rows are numbered anew without gaps.

    Raises: InputError if a key is not there, or if no image or too few for the statistics would be left (then nothing is
        removed), or if there is nothing to finish; FormatError if a file that is read differs from its checksum (then nothing
        is removed either); StorageError.

    Warns: ManifoldWarning if the folder holds more that was made from the images, such as maps or CLIP embeddings.

    Cost: the shards from the first that loses a row on are linked or copied, for a moment beside the old ones; one pass over
        all latents for the statistics, one for the index.
    """
    root = Path(workspace)
    keys = [keys] if isinstance(keys, str) else keys
    Workspace.open(root).require_complete()
    with writing(root):
        opened = Workspace.open(root)
        unfinished = remove_uncommitted(opened) > 0 or is_behind(opened)
        if keys:
            shards = opened.manifest.shards
            _require_undamaged([(metadata_file(root, one.number), one.metadata_sha256) for one in shards])
        gone, left, missing = _selected(opened, keys)
        if missing and not unfinished:
            others = f" and {len(missing) - 1:,} others" if len(missing) > 1 else ""
            raise InputError(
                f"{root} has no image with the key {missing[0]!r}{others}; nothing was removed, "
                "keys are names in the collection without their extension"
            )
        if not keys and not unfinished:
            raise InputError("name the keys of the images to remove, as the metadata show them")
        _require_enough(opened, int((~gone).sum()))
        before = opened.manifest
        if len(missing) < len(set(keys)):
            shards = _rewritten(opened, gone, progress)
            rejects = before.rejects - len(left)
            write_rejects(opened, left, shorter=True)
            opened.commit(shards=shards, rejects=len(left), removed=before.removed + int(gone.sum()) + rejects)
            remove_uncommitted(opened)
    refresh_workspace(root, progress=progress)
    _warn_of_derived(root)
    rows = before.count - opened.manifest.count
    return Removed(Workspace.open(root), rows, before.rejects - opened.manifest.rejects, missing)


def _require_undamaged(files: Sequence[tuple[Path, str]]) -> None:
    """What a removal reads, to write it again, gets new checksums: damage would be hidden, or the wrong image removed."""
    for path, checksum in files:
        if not path.is_file() or sha256_file(path) != checksum:
            what = "damaged" if path.is_file() else "missing"
            raise FormatError(f"{path} is {what}, so nothing was removed; restore it from a backup or encode again")


def _warn_of_derived(root: Path) -> None:
    ours = {"latents", "metadata", "stats", "index"}
    found = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name not in ours)
    if found:
        warnings.warn(
            f"{', '.join(found)} in {root} may still hold something of the removed images; delete it and make it again",
            ManifoldWarning,
            stacklevel=3,
        )


def _selected(workspace: Workspace, keys: Sequence[str]) -> tuple[np.ndarray, list[dict[str, Any]], tuple[str, ...]]:
    """Which rows go, (n,) bool; the rejects that stay; and the keys that neither has."""
    import pyarrow as pa
    import pyarrow.compute as pc

    asked = list(dict.fromkeys(keys))
    possible = [key for key in asked if is_utf8(key)]  # no row has another, and pyarrow takes none
    column = workspace.latents.metadata(["key"]).column("key")
    gone = pc.is_in(column, pa.array(possible, pa.string())).to_numpy(zero_copy_only=False)
    if gone.all():
        raise InputError(f"no image would be left in {workspace.root}; delete the folder instead")
    rejects = counted_rejects(workspace)
    found = {*pc.filter(column, pa.array(gone)).to_pylist(), *(reject["key"] for reject in rejects)}
    left = [reject for reject in rejects if reject["key"] not in set(asked)]
    return gone, left, tuple(key for key in asked if key not in found)


def _require_enough(workspace: Workspace, left: int) -> None:
    """Refuse what would leave too few images to fit again as before; then nothing would be searched, and nothing cleared."""
    if left >= FEWEST_ROWS or not workspace.stats_path.is_file():  # enough for any model, and nothing need be read
        return
    asked = json.loads(GaussianManifold.load(workspace.stats_path).metadata.get("fit", "{}")).get("model")
    needed = FEWEST_ROWS if asked == "auto" else 2
    if left < needed:
        raise InputError(
            f"{left} images would be left in {workspace.root}, its statistics need {needed}; nothing was removed, delete the "
            f"folder instead{', or fit it without --model auto first' if asked == 'auto' and left > 1 else ''}"
        )


def _rewritten(workspace: Workspace, gone: np.ndarray, progress: Progress) -> tuple[Shard, ...]:
    """Write the shards that follow from dropping rows; those before the first that loses one stay as they are."""
    shards = workspace.manifest.shards
    stops = np.cumsum([shard.rows for shard in shards])
    losses = [int(gone[stop - shard.rows : stop].sum()) for shard, stop in zip(shards, stops, strict=True)]
    if not any(losses):
        return shards
    first = next(place for place, loss in enumerate(losses) if loss)
    _require_undamaged([
        (latents_file(workspace.root, shard.number), shard.latents_sha256)
        for shard, loss in zip(shards, losses, strict=True) if 0 < loss < shard.rows
    ])  # fmt: skip
    made = list(shards[:first])
    number = _free_numbers(shards, first)
    for place in range(first, len(shards)):
        shard, stop = shards[place], int(stops[place])
        if losses[place] == 0:
            made.append(_linked(workspace.root, shard, number))
        elif losses[place] < shard.rows:
            made.append(_without(workspace, place, gone[stop - shard.rows : stop], stop - shard.rows, number))
        number += losses[place] < shard.rows
        progress("remove", place + 1 - first, len(shards) - first)
    return tuple(made)


def _free_numbers(shards: Sequence[Shard], first: int) -> int:
    """Where as many unused numbers in a row begin as there are shards from `first` on, above those before it.

    File names keep the order of the rows, as tools that read the folder by name expect. Numbers do not grow without end: a
    later removal finds those that an earlier one left.
    """
    used = {shard.number for shard in shards}
    number = shards[first - 1].number + 1 if first else 0
    while any(number + place in used for place in range(len(shards) - first)):
        number += 1
    return number


def _linked(root: Path, shard: Shard, number: int) -> Shard:
    """The shard under another number, by a hard link where the file system has them."""
    for file in (latents_file, metadata_file):
        with atomic_path(file(root, number)) as path:
            try:
                os.link(file(root, shard.number), path)
            except OSError:
                shutil.copyfile(file(root, shard.number), path)
    return Shard(shard.rows, shard.latents_sha256, shard.metadata_sha256, number)


def _without(workspace: Workspace, place: int, gone: np.ndarray, start: int, number: int) -> Shard:
    """Shard number `place`, which begins at row `start`, written without the rows that are gone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    root, store = workspace.root, workspace.latents
    kept = np.flatnonzero(~gone)
    source = metadata_file(root, workspace.manifest.shards[place].number)
    with atomic_path(latents_file(root, number)) as path, path.open("wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (len(kept), store.d)}
        np.lib.format.write_array_header_1_0(file, header)
        rows = max(1, _BATCH_BYTES // (2 * store.d))
        for low in range(0, len(kept), rows):
            file.write(np.ascontiguousarray(store.read(start + kept[low : low + rows])).data)
    with atomic_path(metadata_file(root, number)) as path:
        pq.write_table(pq.read_table(source).filter(pa.array(~gone)), path)
    return Shard(len(kept), sha256_file(latents_file(root, number)), sha256_file(metadata_file(root, number)), number)
