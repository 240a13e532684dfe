"""The map of a collection as a picture: thumbnails where there is room, and beside them a dot for every image.

The map is divided into cells of one thumbnail. Each cell that has images shows the one nearest to its middle, so that the
pictures do not cover each other and crowded places do not hide sparse ones; how crowded a place is, the dots tell. Where
images have labels, dots and frames wear their colours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from index.projection import ImageMap
from index.workspace import Workspace
from manifold.errors import InputError

from .sheet import save_sheet

__all__ = ["chosen_thumbnails", "draw_map", "plot_map"]

_Colour = tuple[int, int, int]
_INK, _FAINT, _PAPER, _LINE = (28, 30, 34), (110, 114, 122), (255, 255, 255), (222, 224, 228)
_PLAIN = (120, 126, 136)
_COLOURS = (
    (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189),
    (140, 86, 75), (227, 119, 194), (90, 90, 90), (188, 189, 34), (23, 190, 207),
)  # fmt: skip
"""Ten that can be told apart (Tableau's); more labels than these are drawn without colour."""
_WIDTH, _HEIGHT, _CELL = 1800, 1300, 44
_MARGIN, _HEADING, _SIDE = 36, 92, 380
_MAP = (_CELL, 2 * _CELL, 31 * _CELL, 29 * _CELL)
_DOTS = (_WIDTH - _SIDE - _MARGIN // 2, _HEADING + 34, _WIDTH - _MARGIN, _HEADING + 34 + 330)
_ALONE = (_MARGIN + 6, _MAP[1], _WIDTH - _MARGIN - 6, _MAP[3] - _CELL)
"""Boxes in pixels: left, top, right, bottom. The last is of dots without thumbnails and legend."""
_AT_ONCE = 64


@dataclass(frozen=True)
class _Thumbnail:
    row: int
    x: int
    y: int


def plot_map(
    workspace: str | Path, image_map: ImageMap, path: Path | None = None, *, encoder: str | None = None
) -> tuple[Path, int]:
    """Draw the map of a workspace, with images decoded from its latents, and write it as PNG.

    Arguments
        workspace: its folder. image_map: of the same workspace. path: beside the table unless given.
        encoder: where the workspace's encoder lies now, if it moved.

    Returns: the picture's path, and the number of thumbnails in it.

    Raises: InputError if the encoder cannot be opened; StorageError.

    Cost: one decoding for each thumbnail, some hundreds; for an autoencoder of 512 pixels a GPU is welcome.
    """
    opened = Workspace.open(workspace)
    path = path or image_map.path.with_suffix(".png")
    store = opened.latents
    pictures: Callable[[np.ndarray], np.ndarray] | None = None
    if opened.manifest.recipe.encoder.kind != "embeddings":
        decoder = opened.encoder(encoder)

        def decode(rows: np.ndarray) -> np.ndarray:
            latents = torch.from_numpy(store.read(rows)).float().view(-1, *store.shape)
            return decoder.decode(latents).permute(0, 2, 3, 1).numpy()

        pictures = decode
    seen = {"latent": "latent space", "clip": "CLIP embeddings"}[image_map.space]
    how = {"umap": f"UMAP, seed {image_map.seed}", "pca": "the two leading directions"}[image_map.method]
    about = f"{opened.manifest.recipe.source}, {len(store):,} images, {seen} by {how}"
    picture, shown = draw_map(image_map.points, image_map.labels, about, pictures, plane=image_map.method == "pca")
    save_sheet(picture, path)
    return path, shown


def draw_map(
    points: np.ndarray,
    labels: np.ndarray,
    about: str,
    pictures: Callable[[np.ndarray], np.ndarray] | None,
    *,
    plane: bool = False,
) -> tuple[Image.Image, int]:
    """Draw a map.

    Arguments
        points: (n, 2). labels: (n,) floats, NaN where unknown. about: the line under the heading.
        pictures: rows (m,) to their images (m, h, w, 3) uint8; only dots without it.
        plane: whether the axes are directions of their own, to be named and drawn to one scale.

    Returns: the picture, and the number of thumbnails in it.
    """
    if points.ndim != 2 or points.shape[1] != 2 or len(labels) != len(points):
        raise InputError(f"a map needs points (n, 2) and as many labels, it got {points.shape} and {labels.shape}")
    colours, legend = _colours(labels)
    sheet = Image.new("RGB", (_WIDTH, _HEIGHT), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN // 2), "Map of the collection", _INK, ImageFont.load_default(28))
    draw.text((_MARGIN, _MARGIN + 18), about, _FAINT, ImageFont.load_default(17))
    bare = pictures is None
    inner = _ALONE if bare and not legend else (_MAP[0] + 1, _MAP[1] + 1, _MAP[2] - 1, _MAP[3] - (_CELL if bare else 1))
    places = _places(points, inner, same_scale=plane)
    shown = chosen_thumbnails(places) if pictures is not None else []
    for start in range(0, len(shown), _AT_ONCE):
        part = shown[start : start + _AT_ONCE]
        assert pictures is not None
        for one, pixels in zip(part, pictures(np.array([one.row for one in part])), strict=True):
            _paste(sheet, draw, one, pixels, colours[one.row] if legend else _LINE)
    if shown:
        _side(sheet, draw, _places(points, _DOTS, same_scale=plane), colours, legend, plane)
    else:
        _dots(sheet, places, colours, 5)
        _legend(draw, legend, _HEADING)
        draw.text((_MARGIN, _HEIGHT - 40), _axes(plane), _FAINT, ImageFont.load_default(17))
    return sheet, len(shown)


def chosen_thumbnails(places: np.ndarray) -> list[_Thumbnail]:
    """For each cell with images, the one nearest to its middle, drawn at the middle; row by row from the top left."""
    cells = np.floor(places / _CELL).astype(np.int64)
    middles = (cells + 0.5) * _CELL
    order = np.lexsort((np.arange(len(places)), ((places - middles) ** 2).sum(1), cells[:, 0], cells[:, 1]))
    first = np.ones(len(order), dtype=bool)
    first[1:] = (np.diff(cells[order], axis=0) != 0).any(1)
    return [_Thumbnail(int(row), *(int(v) for v in middles[row])) for row in order[first]]


def _places(points: np.ndarray, box: tuple[int, int, int, int], *, same_scale: bool) -> np.ndarray:
    """Points in pixels, (n, 2), y downward; the middle 99.8 % fill the box, the few outside are held at its edge."""
    low, high = np.percentile(points, [0.1, 99.9], axis=0)
    corner, far = np.array(box[:2], dtype=np.float64), np.array(box[2:], dtype=np.float64)
    room = far - corner
    scale = room / np.maximum(high - low, np.finfo(np.float64).tiny)
    centred = (points - (low + high) / 2) * (scale.min() if same_scale else scale) * (1, -1)
    return corner + room / 2 + np.clip(centred, -room / 2, room / 2)


def _paste(sheet: Image.Image, draw: ImageDraw.ImageDraw, one: _Thumbnail, pixels: np.ndarray, frame: _Colour) -> None:
    side = _CELL - 6
    picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS)
    corner = (one.x - side // 2, one.y - side // 2)
    draw.rectangle((corner[0] - 2, corner[1] - 2, corner[0] + side + 1, corner[1] + side + 1), frame)
    sheet.paste(picture, corner)


def _colours(labels: np.ndarray) -> tuple[list[_Colour], dict[int, _Colour]]:
    """A colour for each image, and the legend; empty where labels are missing or too many."""
    known = np.unique(labels[~np.isnan(labels)]).astype(np.int64).tolist()
    if not known or len(known) > len(_COLOURS):
        return [_PLAIN] * len(labels), {}
    legend = dict(zip(known, _COLOURS, strict=False))
    return [_PLAIN if np.isnan(label) else legend[int(label)] for label in labels], legend


def _dots(sheet: Image.Image, places: np.ndarray, colours: list[_Colour], size: int) -> None:
    """Round dots: drawn three times as large, then reduced."""
    low = np.floor(places.min(0)).astype(int) - size
    far = np.ceil(places.max(0)).astype(int) + size
    box = (int(low[0]), int(low[1]), int(far[0]), int(far[1]))
    large = Image.new("RGB", (3 * (box[2] - box[0]), 3 * (box[3] - box[1])), _PAPER)
    draw = ImageDraw.Draw(large)
    for (x, y), colour in zip(3 * (places - low), colours, strict=True):
        draw.ellipse((x - 1.5 * size, y - 1.5 * size, x + 1.5 * size, y + 1.5 * size), colour)
    sheet.paste(large.reduce(3), box[:2])


def _side(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    places: np.ndarray,
    colours: list[_Colour],
    legend: dict[int, _Colour],
    plane: bool,
) -> None:
    """The column on the right: every image as a dot, the legend, and how to read it."""
    left, top, right, bottom = _DOTS
    draw.text((left, top - 32), "Every image", _INK, ImageFont.load_default(19))
    _dots(sheet, places, colours, 4)
    draw.rectangle((left - 6, top - 6, right + 6, bottom + 6), outline=_LINE)
    y = _legend(draw, legend, bottom + 34)
    for line in ("Where many images crowd one place, the", "thumbnail is the one nearest its middle.", _axes(plane)):
        draw.text((left, y), line, _FAINT, ImageFont.load_default(17))
        y += 26


def _axes(plane: bool) -> str:
    return "Across: the first direction. Up: the second." if plane else "Only nearness means something, not the axes."


def _legend(draw: ImageDraw.ImageDraw, legend: dict[int, _Colour], y: int) -> int:
    """Labels in two columns from height y on; returns where they end."""
    left, rows = _DOTS[0], -(-len(legend) // 2)
    for number, (label, colour) in enumerate(legend.items()):
        column, row = divmod(number, rows)
        corner = (left + column * 160, y + row * 30)
        draw.rectangle((corner[0], corner[1] + 3, corner[0] + 15, corner[1] + 18), colour)
        draw.text((corner[0] + 24, corner[1]), f"label {label}", _INK, ImageFont.load_default(17))
    return y + rows * 30 + (16 if legend else 0)
