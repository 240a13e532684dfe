"""`manifold search`: from a picture or a row of the collection to its neighbours, noised on the way if asked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from index.encode import encode_one
from index.filters import Where, parse_where
from index.images import RejectedImage
from index.search import Question, Searcher
from index.workspace import Workspace
from manifold.errors import InputError
from manifold.schedule import NoiseSchedule

from .plain_text import counted, plain
from .sheet import Panel, draw_sheet, save_sheet

if TYPE_CHECKING:
    from index.encoders import Encoder

__all__ = [
    "Answer", "caption_or_label", "neighbours_table", "noise_level", "of_query_image", "save_answer", "search_workspace",
]  # fmt: skip

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """One search: what was asked, and the neighbours found."""

    name: str
    """Of the query."""
    question: str
    alpha: float
    sigma: float
    seed: int
    score_name: str
    rows: list[dict[str, Any]]
    """Metadata of the neighbours with `row` and the score, best first."""
    clean: Tensor
    """(1, C, H, W) latent of the query."""
    noisy: Tensor
    """(1, C, H, W) state that was searched from."""
    target: Tensor
    """(1, C, H, W) predicted target of that state."""
    where: tuple[str, ...] = ()
    """Conditions on the metadata that the neighbours meet."""
    among: int | None = None
    """Rows that meet the conditions; None without any."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without the latents."""
        names = ("name", "question", "alpha", "sigma", "seed", "score_name", "where", "among")
        return {**{name: getattr(self, name) for name in names}, "neighbours": self.rows}

    def table(self) -> Table:
        """For people."""
        return neighbours_table(self.rows, self.score_name, ".4g")


def neighbours_table(rows: list[dict[str, Any]], score_name: str, digits: str) -> Table:
    """Neighbours, best first; a column of which nothing is known is left out."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("rank", "row", score_name):
        table.add_column(name, justify="right")
    columns = [[str(rank) for rank in range(1, len(rows) + 1)], [str(row["row"]) for row in rows]]
    columns.append([f"{row[score_name]:{digits}}" for row in rows])
    words = {
        "image": [plain(row["image_path"] or "") for row in rows],
        "caption or label": [plain(caption_or_label(row)) for row in rows],
    }
    for name, cells in words.items():
        if any(cells):
            table.add_column(name, overflow="fold")
            columns.append(cells)
    for line in zip(*columns, strict=True):
        table.add_row(*line)
    return table


def caption_or_label(row: dict[str, Any]) -> str:
    """What the metadata say that a row shows, if anything."""
    return row["caption"] or ("" if row["label"] is None else f"label {row['label']}")


def noise_level(sigma: float, timestep: float | None, scheduler: str | None) -> tuple[float, float]:
    """alpha and sigma from what a user gave: a sigma with alpha = 1, or a timestep of a scheduler, in its own coordinates.

    Raises: InputError if both or half of the second are given, or sigma is no noise level.
    """
    if (timestep is None) != (scheduler is None):
        raise InputError("--timestep and --scheduler belong together: a timestep means a noise level of one scheduler")
    if timestep is None or scheduler is None:
        if not 0 <= sigma < math.inf:
            raise InputError(f"--sigma must be finite and at least 0, it is {sigma:g}")
        return 1.0, sigma
    if sigma:
        raise InputError("give the noise level either as --sigma or as --timestep with --scheduler, not both")
    alpha, noise = NoiseSchedule.from_scheduler(scheduler).levels(timestep)
    return float(alpha), float(noise)


def search_workspace(
    workspace: str | Path,
    query: str | Path | None = None,
    *,
    row: int | None = None,
    sigma: float = 0.0,
    timestep: float | None = None,
    scheduler: str | None = None,
    seed: int = 0,
    question: Question = "endpoint",
    k: int = 10,
    where: Where = (),
    encoder: str | None = None,
) -> Answer:
    """Search a workspace from one picture, or from one of its own rows, noised to a level.

    Arguments
        workspace: its folder. query: an image file. row: a row number, instead of an image.
        sigma: noise level with alpha = 1. timestep, scheduler: or a timestep of the diffusers scheduler in a folder.
        seed: of the noise. question, k, where: see `Searcher.search`.
        encoder: where the workspace's encoder lies now, if it has moved.

    Raises: InputError if neither or both of query and row are given, or the image cannot be used; all of `Searcher.open`
        and `Searcher.search`.
    """
    if (query is None) == (row is None):
        raise InputError("name an image to search with, or a row of the collection with --row, one of the two")
    if not 0 <= seed < 2**63:
        raise InputError(f"the seed must lie between 0 and 2^63 - 1, it is {seed}")
    alpha, level = noise_level(sigma, timestep, scheduler)
    searcher = Searcher.open(workspace)
    store = searcher.workspace.latents
    if row is not None:
        if not 0 <= row < len(store):
            raise InputError(f"row {row} is not in {workspace}, whose rows are numbered 0 to {len(store) - 1}")
        name = f"row {row}"
        latent = torch.from_numpy(store.read([row])).float()
    else:
        assert query is not None
        name = Path(query).name
        recipe, opened = searcher.workspace.manifest.recipe, searcher.workspace.encoder(encoder)
        latent = of_query_image(Path(query), lambda data: encode_one(data, recipe, opened))
    clean = latent.view(1, *store.shape)
    generator = torch.Generator().manual_seed(seed)
    noisy = alpha * clean + level * torch.randn(clean.shape, generator=generator, dtype=torch.float32)
    hits = searcher.search(noisy, alpha, level, question, k, where)
    target = searcher.predict(noisy, alpha, level)
    return Answer(name, question, alpha, level, seed, hits.score_name, hits.rows(), clean, noisy, target,
                  tuple(map(str, parse_where(where))), hits.among)  # fmt: skip


def save_answer(answer: Answer, workspace: str | Path, path: str | Path, *, encoder: str | None = None) -> None:
    """Write a contact sheet of an answer: query, noisy state, predicted target, neighbours; all decoded.

    Raises: InputError if the encoder cannot be opened; StorageError.
    """
    opened = Workspace.open(workspace)
    decoder, store = opened.encoder(encoder), opened.latents
    neighbours = torch.from_numpy(store.read([row["row"] for row in answer.rows])).float().view(-1, *store.shape)
    query = [Panel(_picture(decoder, answer.clean), "query", answer.name)]
    if answer.sigma > 0:
        # A noisy latent leaves the range of images; at the root mean square of the query it can be looked at.
        shown = answer.noisy * float(answer.clean.norm() / answer.noisy.norm())
        query.append(Panel(_picture(decoder, shown), "noised", f"alpha {answer.alpha:.3g}, sigma {answer.sigma:.3g}"))
        query.append(Panel(_picture(decoder, answer.target), "predicted target", "closed form, in one step"))
    found = [
        Panel(pixels, f"{rank}. {_label(row)}", _score(answer.score_name, row))
        for rank, (row, pixels) in enumerate(zip(answer.rows, _pictures(decoder, neighbours), strict=True), 1)
    ]
    asked = {
        "source": "Which images could this state have come from?",
        "target": "What is this state heading to now?",
        "endpoint": "What will the final image be near to?",
    }[answer.question]
    those = (f"{answer.among:,} of " if answer.where else "") + counted(len(store), "image")
    about = ", ".join([opened.manifest.recipe.source, those, *answer.where, f"noise seed {answer.seed}"])
    save_sheet(draw_sheet(asked, about, query, found), Path(path))


def of_query_image(path: Path, make: Callable[[bytes], T]) -> T:
    """What is made of an image file to search with. Raises: InputError if it cannot be read or used."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the query image {path} ({error.strerror}); check the path") from error
    try:
        return make(data)
    except RejectedImage as rejected:
        raise InputError(f"the query image {path} cannot be used: {rejected}; choose another") from rejected


def _pictures(decoder: Encoder, latents: Tensor) -> np.ndarray:
    return decoder.decode(latents).permute(0, 2, 3, 1).numpy()


def _picture(decoder: Encoder, latent: Tensor) -> np.ndarray:
    return _pictures(decoder, latent)[0]


def _label(row: dict[str, Any]) -> str:
    if row.get("caption"):
        return str(row["caption"])
    name = Path(row["image_path"]).name if row.get("image_path") else f"row {row['row']}"
    return name + ("" if row.get("label") is None else f", label {row['label']}")


def _score(name: str, row: dict[str, Any]) -> str:
    if name == "distance":
        return f"distance {row[name]:.3g}"
    return f"{row[name]:.1%} probable" if row[name] >= 0.001 else "under 0.1% probable"
