"""`manifold clip-search` and `manifold clip-compare`: answers as tables, JSON and contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from rich.console import Group
from rich.table import Table

from index.clip import ClipSearcher
from index.images import decode_image
from index.spaces import SpaceComparison
from manifold.errors import InputError

from .query import caption_or_label, neighbours_table, of_query_image
from .sheet import Panel, draw_sheet, plan, save_sheet

__all__ = ["ClipAnswer", "comparison_text", "search_clip"]


@dataclass(frozen=True)
class ClipAnswer:
    """One search in CLIP's space."""

    name: str
    """Of the query."""
    clip: str
    rows: list[dict[str, Any]]
    """Metadata of the neighbours with `row` and `cosine`, best first."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"name": self.name, "clip": self.clip, "score_name": "cosine", "neighbours": self.rows}

    def table(self) -> Table:
        """For people."""
        return neighbours_table(self.rows, "cosine", ".4f")


def search_clip(
    workspace: str | Path,
    query: str | Path | None = None,
    *,
    text: str | None = None,
    row: int | None = None,
    k: int = 10,
    clip: str | None = None,
    device: str | None = None,
    encoder: str | None = None,
    sheet: str | Path | None = None,
) -> ClipAnswer:
    """Search CLIP embeddings with an image file, with words, or with a row of the collection.

    Arguments
        workspace: its folder. query, text, row: one of the three. k: neighbours.
        clip: where the model lies now, if it moved. device: where it runs.
        encoder: where the workspace's encoder lies now, if it moved; only the sheet needs it.
        sheet: PNG to write, with the neighbours decoded from their latents.

    Raises: InputError if not exactly one query is given, or the image cannot be used; all of `ClipSearcher.open`.
    """
    if sum(given is not None for given in (query, text, row)) != 1:
        raise InputError("name one thing to search with: an image, words with --text, or a row with --row")
    searcher = ClipSearcher.open(workspace, clip, device=device)
    opened = searcher.store.workspace
    pixels: np.ndarray | None = None
    if text is not None:
        name, hits = text, searcher.by_text(text, k)
    elif row is not None:
        name, hits = f"row {row}", searcher.by_row([row], k)
    else:
        assert query is not None
        name = Path(query).name
        size, crop = searcher.model.spec.image_size, opened.manifest.recipe.image_crop
        pixels = of_query_image(Path(query), lambda data: decode_image(data, size, crop).pixels)
        hits = searcher.by_image(pixels[None], k)
    answer = ClipAnswer(name, searcher.store.card.spec.id, hits.rows())
    if sheet is not None:
        decoder, store = opened.encoder(encoder), opened.latents
        wanted = [found["row"] for found in answer.rows]
        latents = torch.from_numpy(store.read(wanted if row is None else [*wanted, row])).float().view(-1, *store.shape)
        images = list(decoder.decode(latents).permute(0, 2, 3, 1).numpy())
        asked = images.pop() if row is not None else pixels
        panels = [
            Panel(image, f"{rank}. {caption_or_label(found) or found['image_path']}", f"cosine {found['cosine']:.3f}")
            for rank, (found, image) in enumerate(zip(answer.rows, images, strict=True), 1)
        ]
        if asked is None:
            asked = _words_as_picture(name, plan([], panels).cell)
        about = f"{opened.manifest.recipe.source}, {len(store):,} images, by {answer.clip}"
        save_sheet(draw_sheet("Nearest in CLIP's space", about, [Panel(asked, "query", name)], panels), Path(sheet))
    return answer


def comparison_text(found: SpaceComparison) -> Group:
    """A comparison for people: two tables, and how to read them."""
    labelled = found.neighbours[0].same_label_chance is not None
    names = ["k", "overlap", "by chance", "shuffled", "mutual pairs", "shuffled"]
    rows = []
    for one in found.neighbours:
        row = [str(one.k), f"{one.overlap:.4f}", f"{one.chance:.4f}", f"{one.null_mean:.4f} ± {one.null_sd:.4f}"]
        row += [f"{one.mutual:.4f}", f"{one.mutual_null:.4f}"]
        if labelled:
            row += [f"{value:.3f}" for value in (one.same_label_latent, one.same_label_clip, one.same_label_chance)]
        rows.append(tuple(row))
    if labelled:
        names += ["same label: latents", "CLIP", "by chance"]
    told = [(str(one.direction), f"{one.share:.1%}", _r2(one.r2), _r2(one.null_r2)) for one in found.directions]
    return Group(
        f"{found.count:,} images: {found.coordinates} latent eigen-coordinates beside {found.clip}\n",
        "Neighbours shared by the two spaces",
        _table(names, rows),
        f"\nCLIP's directions told by the latents (ridge, {found.train:,} images to fit, {found.test:,} held out)",
        _table(["direction", "of variance", "R² held out", "best of 20 shuffled"], told),
        f"\nall of them together, by their variance: R² {found.told:.3f}",
    )


def _words_as_picture(text: str, side: int) -> np.ndarray:
    """The words on a panel of their own, in lines that fit."""
    panel = Image.new("RGB", (side, side), (240, 242, 245))
    font = ImageFont.load_default(max(13, side // 11))
    draw = ImageDraw.Draw(panel)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer, font) > 0.86 * side:
            lines.append(word)
        else:
            lines[-1] = longer
    draw.multiline_text((side / 2, side / 2), "\n".join(lines), (28, 30, 34), font, anchor="mm", align="center")
    return np.asarray(panel)


def _r2(value: float | None) -> str:
    return "does not vary" if value is None else f"{value:.3f}"


def _table(names: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table
