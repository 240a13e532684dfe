"""The contact sheet: a query, its noised state, its predicted target, and the neighbours found, on one picture.

Small images are enlarged by whole factors without smoothing, so that every pixel can be seen as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from manifold.files import atomic_path

from .plain_text import plain

__all__ = ["Layout", "Panel", "draw_groups", "draw_sheet", "save_sheet"]

_INK, _FAINT, _PAPER, _LINE = (28, 30, 34), (110, 114, 122), (255, 255, 255), (222, 224, 228)


@dataclass(frozen=True)
class Panel:
    """One picture and the two lines under it."""

    pixels: np.ndarray
    """(h, w, 3) uint8."""
    title: str
    note: str = ""


@dataclass(frozen=True)
class Layout:
    """Where things are on the sheet, in pixels."""

    cell: int
    """Side of a picture."""
    columns: int
    margin: int = 28
    gap: int = 18
    heading: int = 64
    caption: int = 44
    """Height of the two lines under a picture."""
    section: int = 34
    """Height of a section's heading."""

    def width(self) -> int:
        """Of the whole sheet."""
        return 2 * self.margin + self.columns * self.cell + (self.columns - 1) * self.gap

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Top left of the picture in a row (0 is the query's) and a column."""
        x = self.margin + column * (self.cell + self.gap)
        below = self.section if row == 0 else 2 * self.section
        return x, self.margin + self.heading + below + row * (self.cell + self.caption + self.gap)


def draw_sheet(heading: str, subheading: str, query: Sequence[Panel], neighbours: Sequence[Panel]) -> Image.Image:
    """Draw a sheet: the query's panels in the first row, the neighbours below, best first.

    Arguments
        heading, subheading: what was searched, and how.
        query: one to four panels. neighbours: one to twenty or so panels.
    """
    layout = plan(query, neighbours)
    rows = 1 + -(-len(neighbours) // layout.columns)
    bottom = layout.corner(rows - 1, 0)[1] + layout.cell + layout.caption
    sheet = Image.new("RGB", (layout.width(), bottom + layout.margin), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _head(draw, layout, heading, subheading)
    _rule(draw, layout, "Query", layout.corner(0, 0)[1])
    for column, panel in enumerate(query):
        _panel(sheet, draw, layout, layout.corner(0, column), panel)
    _rule(draw, layout, "Neighbours in the collection, best first", layout.corner(1, 0)[1])
    for number, panel in enumerate(neighbours):
        row, column = divmod(number, layout.columns)
        _panel(sheet, draw, layout, layout.corner(row + 1, column), panel)
    return sheet


def draw_groups(heading: str, subheading: str, groups: Sequence[tuple[str, Sequence[Panel]]]) -> Image.Image:
    """Draw a sheet of groups, each in a row of its own under its title.

    Arguments
        heading, subheading: what the groups are, and how they were found.
        groups: one or more titles with one to six or so panels each.
    """
    widest = max((panels for _, panels in groups), key=len)
    layout = replace(plan([], [panel for _, panels in groups for panel in panels]), columns=max(4, len(widest)))
    step = layout.section + layout.cell + layout.caption + layout.gap
    top = layout.margin + layout.heading
    sheet = Image.new("RGB", (layout.width(), top + len(groups) * step + layout.margin), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _head(draw, layout, heading, subheading)
    for number, (title, panels) in enumerate(groups):
        y = top + layout.section + number * step
        _rule(draw, layout, title, y)
        for column, panel in enumerate(panels):
            _panel(sheet, draw, layout, (layout.corner(0, column)[0], y), panel)
    return sheet


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a sheet as PNG, atomically. Raises: StorageError."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        sheet.save(file, "PNG")


def plan(query: Sequence[Panel], neighbours: Sequence[Panel]) -> Layout:
    """Cells of 160 to 256 pixels, a whole multiple of small pictures; at least four columns, so that headings fit."""
    side = max(max(panel.pixels.shape[:2]) for panel in [*query, *neighbours])
    cell = side * -(-160 // side) if side <= 128 else min(side, 256)
    columns = max(4, len(query), min(5, len(neighbours)))
    return Layout(cell=cell, columns=columns)


def _panel(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, layout: Layout, corner: tuple[int, int], panel: Panel
) -> None:
    x, y = corner
    picture = Image.fromarray(panel.pixels)
    factor = layout.cell / max(picture.size)
    resample = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    picture = picture.resize(size, resample)
    sheet.paste(picture, (x + (layout.cell - size[0]) // 2, y + (layout.cell - size[1]) // 2))
    draw.text((x, y + layout.cell + 5), _cut(draw, panel.title, 14, layout.cell), _INK, _font(14))
    draw.text((x, y + layout.cell + 24), _cut(draw, panel.note, 12, layout.cell), _FAINT, _font(12))


def _head(draw: ImageDraw.ImageDraw, layout: Layout, heading: str, subheading: str) -> None:
    width = layout.width() - 2 * layout.margin
    draw.text((layout.margin, layout.margin), _cut(draw, heading, 24, width), _INK, _font(24))
    draw.text((layout.margin, layout.margin + 34), _cut(draw, subheading, 14, width), _FAINT, _font(14))


def _rule(draw: ImageDraw.ImageDraw, layout: Layout, text: str, y: int) -> None:
    """A line and a title above the pictures that begin at height `y`."""
    x, right = layout.margin, layout.width() - layout.margin
    draw.line([(x, y - layout.section + 4), (right, y - layout.section + 4)], _LINE)
    draw.text((x, y - layout.section + 9), _cut(draw, text, 14, right - x), _FAINT, _font(14))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _cut(draw: ImageDraw.ImageDraw, text: str, size: int, width: int) -> str:
    """The text in one line without control signs, shortened with an ellipsis to fit a width in pixels."""
    text = plain(" ".join(text.split()), width)  # no sign is narrower than a pixel
    if draw.textlength(text, _font(size)) <= width:
        return text
    while text and draw.textlength(text + "…", _font(size)) > width:
        text = text[:-1]
    return text.rstrip() + "…"
