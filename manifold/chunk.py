"""Rows in several parts, seen as one matrix: what waits for a product may lie where it came from, and is not copied."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import reduce
from itertools import accumulate

import torch
from torch import Tensor

from .precision import without_autocast

__all__ = ["Chunk"]


class Chunk:
    """Parts (n_i, d) of floating-point types, one below the other, all on one device.

    Arguments
        parts: at least one, each with at least one row. They are read, never written.
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._parts = parts
        self._ends = list(accumulate(len(part) for part in parts))
        self.dtype = reduce(torch.promote_types, (part.dtype for part in parts))
        self.device = parts[0].device
        self.shape = (self._ends[-1], parts[0].shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    @without_autocast  # which takes no half precision in `torch.cat`
    def read(self, top: int, stop: int, left: int = 0, right: int | None = None) -> Tensor:
        """Rows from `top` to before `stop`, of columns from `left` to before `right`: a view of a part where one has them
        all, and else a copy of a type that holds them.
        """
        number = bisect_right(self._ends, top)
        pieces = []
        while True:
            part, end = self._parts[number], self._ends[number]
            first = end - len(part)
            pieces.append(part[top - first : min(stop, end) - first, left:right])
            if stop <= end:
                break
            top = end
            number += 1
        if len(pieces) == 1:
            return pieces[0]
        wide = reduce(torch.promote_types, (piece.dtype for piece in pieces))
        return torch.cat([piece.to(wide) for piece in pieces])

    @without_autocast
    def select(self, rows: Sequence[int]) -> Tensor:
        """Rows by number, as a copy (m, d) of the widest type."""
        return torch.cat([self.read(row, row + 1).to(self.dtype) for row in rows])

    def to(self, device: torch.device) -> Chunk:
        """The same rows on another device."""
        return Chunk([part.to(device) for part in self._parts])

    def tensor(self) -> Tensor:
        """All rows, (n, d), of the widest type."""
        return self.read(0, len(self))
