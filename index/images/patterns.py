"""File patterns as shells and webdataset write them: `data-{00000..00012}.tar`, `{train,val}/*.tar`.

Braces hold a list of alternatives or a numeric range, whose numbers keep the padding of its ends; they may be nested
and repeated, the last one runs fastest. A brace without a comma or a range stands for itself.
"""

from __future__ import annotations

import glob
import re
from itertools import pairwise, product
from pathlib import Path

from manifold.errors import InputError

__all__ = ["expand_braces", "is_pattern", "matching_files", "natural_order"]

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")


def is_pattern(text: str) -> bool:
    """Whether a path contains braces or glob characters."""
    return any(character in text for character in "{*?[")


def natural_order(name: str) -> list[tuple[int, int | str]]:
    """A sorting key under which `part_2` comes before `part_10`."""
    return [(0, int(piece)) if piece.isdecimal() else (1, piece) for piece in re.split(r"(\d+)", name) if piece]


def expand_braces(pattern: str) -> list[str]:
    """All texts that a brace pattern stands for, in order.

    >>> expand_braces("d-{08..10}.tar")
    ['d-08.tar', 'd-09.tar', 'd-10.tar']
    """
    begin = pattern.find("{")
    while begin >= 0:
        end, commas = _closing(pattern, begin)
        if end < 0:
            break
        inner = pattern[begin + 1 : end]
        found = _RANGE.fullmatch(inner)
        if found or commas:
            cuts = [begin, *commas, end]
            middles = (
                _numbers(*found.groups())
                if found
                else [text for a, b in pairwise(cuts) for text in expand_braces(pattern[a + 1 : b])]
            )
            return [pattern[:begin] + a + b for a, b in product(middles, expand_braces(pattern[end + 1 :]))]
        begin = pattern.find("{", begin + 1)
    return [pattern]


def _closing(pattern: str, begin: int) -> tuple[int, list[int]]:
    """Where the brace opened at `begin` closes (-1: nowhere), and the commas directly inside it."""
    depth = 0
    commas: list[int] = []
    for place in range(begin, len(pattern)):
        character = pattern[place]
        if character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return place, commas
        elif character == "," and depth == 1:
            commas.append(place)
    return -1, commas


def _numbers(first: str, last: str, step: str | None) -> list[str]:
    low, high = int(first), int(last)
    stride = abs(int(step or 1)) or 1
    padded = any(len(end.lstrip("-")) > 1 and end.lstrip("-")[0] == "0" for end in (first, last))
    width = max(len(first), len(last)) if padded else 0
    numbers = range(low, high + 1, stride) if low <= high else range(low, high - 1, -stride)
    return [f"{number:0{width}d}" for number in numbers]


def matching_files(pattern: str) -> list[Path]:
    """The files that a pattern names: braces in their order, the matches of each glob in natural order.

    Raises: InputError if a file is missing, or a glob matches nothing.
    """
    found: list[Path] = []
    missing: list[str] = []
    names = expand_braces(pattern)
    for name in names:
        matches = sorted(glob.glob(name), key=natural_order) if is_pattern(name) else [name]  # noqa: PTH207
        files = [Path(match) for match in matches if Path(match).is_file()]
        if files:
            found += files
        else:
            missing.append(name)
    if missing:
        count = (
            f"{len(missing):,} of {len(names):,} names in {pattern} match" if len(names) > 1 else f"{pattern} matches"
        )
        raise InputError(f"{count} no file (the first: {missing[0]}); correct the pattern or fetch the missing files")
    return list(dict.fromkeys(found))
