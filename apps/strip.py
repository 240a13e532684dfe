"""Rows of pictures along time, as one labelled sheet: how generations go, and where the closed form says they are going.

Small images are enlarged by a whole factor without smoothing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["Row", "draw_strip"]

_INK, _FAINT, _PAPER, _LINE = (28, 30, 34), (110, 114, 122), (255, 255, 255), (222, 224, 228)
_MARGIN, _GAP, _LABEL, _LEAST_CELL = 32, 6, 190, 96
_HEADING, _COLUMN = 84, 26


@dataclass(frozen=True)
class Row:
    """Pictures side by side under one label."""

    label: str
    pixels: np.ndarray
    """(columns, h, w, 3) uint8."""
    note: str = ""
    first_of_group: bool = False
    """Whether a line is drawn above."""


def draw_strip(heading: str, caption: str, columns: Sequence[str], rows: Sequence[Row]) -> Image.Image:
    """Draw rows of pictures with a heading, column names and a caption that says how to read them.

    Arguments
        heading: what is shown. caption: how to read it, one or two sentences.
        columns: their names, from left to right. rows: each with as many pictures as there are columns.
    """
    side = rows[0].pixels.shape[1]
    cell = side * -(-_LEAST_CELL // side)
    space = [_GAP + (2 * _GAP if row.first_of_group and number else 0) for number, row in enumerate(rows)]
    width = 2 * _MARGIN + _LABEL + len(columns) * (cell + _GAP)
    lines = textwrap.wrap(caption, max(40, (width - 2 * _MARGIN) // 7))
    top = _MARGIN + _HEADING - 44 + 20 * len(lines) + _COLUMN
    sheet = Image.new("RGB", (width, top + sum(space) + len(rows) * cell + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN - 8), heading, _INK, _font(24))
    for number, line in enumerate(lines):
        draw.text((_MARGIN, _MARGIN + 28 + 20 * number), line, _FAINT, _font(14))
    for number, name in enumerate(columns):
        draw.text((_MARGIN + _LABEL + number * (cell + _GAP), top - _COLUMN + 4), name, _FAINT, _font(13))
    y = top
    for row, above in zip(rows, space, strict=True):
        y += above
        if row.first_of_group and y > top + _GAP:
            draw.line((_MARGIN, y - 2 * _GAP + 1, width - _MARGIN, y - 2 * _GAP + 1), _LINE)
        draw.text((_MARGIN, y + 4), row.label, _INK, _font(15))
        for number, line in enumerate(textwrap.wrap(row.note, 26)):
            draw.text((_MARGIN, y + 26 + 17 * number), line, _FAINT, _font(13))
        for number, pixels in enumerate(row.pixels):
            picture = Image.fromarray(pixels).resize((cell, cell), Image.Resampling.NEAREST)
            sheet.paste(picture, (_MARGIN + _LABEL + number * (cell + _GAP), y))
        y += cell
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
