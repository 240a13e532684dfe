"""Count and mean of each class, exact and mergeable in a few numbers a class, however many dimensions there are.

A covariance for each class takes d x d numbers a class (`ClassMoments`), which few machines hold for a thousand classes.
Means take d, and with the covariance of all rows they give the covariance within classes, pooled over them: what a
Gaussian for each class needs when it cannot have a covariance of its own (`manifold.class_gaussians`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from .errors import FormatError, MismatchError, NonFiniteError
from .files import load_tensors, save_tensors
from .rows import as_labels, as_rows, first_bad_row

__all__ = ["ClassMeans"]

_FORMAT = "manifold.class_means.1"


class ClassMeans:
    """Number of rows and sum of rows for every label met.

    Sums are float64 and taken row by row, so no bit depends on batches. For float16 rows below 16 in modulus they are even
    exact, up to 33 million rows, and then no bit depends on the order of rows or of merges.

    Arguments
        d: number of values in a row.

    Cost: O(n d); 8 d bytes a class.
    """

    def __init__(self, d: int) -> None:
        self.d = d
        self._counts: dict[int, int] = {}
        self._sums: dict[int, Tensor] = {}

    @property
    def labels(self) -> tuple[int, ...]:
        """The labels met so far, ascending."""
        return tuple(sorted(self._counts))

    @property
    def count(self) -> int:
        """Number of rows taken in."""
        return sum(self._counts.values())

    @property
    def counts(self) -> Tensor:
        """Rows of each class, in the order of `labels`, (c,) int64."""
        return torch.tensor([self._counts[label] for label in self.labels], dtype=torch.int64)

    @property
    def means(self) -> Tensor:
        """Mean of each class, in the order of `labels`, (c, d) float64."""
        if not self._sums:
            return torch.zeros(0, self.d, dtype=torch.float64)
        return torch.stack([self._sums[label] / self._counts[label] for label in self.labels])

    def update(self, batch: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> None:
        """Take in rows with their labels.

        Arguments
            batch: (n, d) or (n, ...), as for `Moments`.
            labels: (n,) integers.

        Raises: ShapeError if the numbers differ; InputError for labels that are not integers; NonFiniteError naming the
            row; nothing is taken in then.
        """
        rows = as_rows(batch, self.d)
        keys = as_labels(labels, len(rows))
        bad = first_bad_row(rows)
        if bad is not None:
            raise NonFiniteError(f"rows must be finite, row {bad} of this batch holds NaN or infinity; remove it")
        for label in np.unique(keys).tolist():
            chosen = torch.from_numpy(np.flatnonzero(keys == label))
            total = self._sums.setdefault(label, torch.zeros(self.d, dtype=torch.float64))
            for part in chosen.split(256):  # index_add_ goes row by row
                total[None].index_add_(0, torch.zeros_like(part), rows[part].cpu().double())
            self._counts[label] = self._counts.get(label, 0) + len(chosen)

    def merge(self, other: ClassMeans) -> None:
        """Take in the rows of another, class by class. Raises: MismatchError if the rows differ in length."""
        if other.d != self.d:
            raise MismatchError(f"both must describe rows of one length, they have d = {self.d} and d = {other.d}")
        for label in other.labels:
            total = self._sums.setdefault(label, torch.zeros(self.d, dtype=torch.float64))
            total += other._sums[label]
            self._counts[label] = self._counts.get(label, 0) + other._counts[label]

    def save(self, path: Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write `labels` (c,), `counts` (c,) and `sums` (c, d) to a safetensors file, atomically."""
        sums = [self._sums[label] for label in self.labels]
        tensors = {
            "labels": torch.tensor(self.labels, dtype=torch.int64),
            "counts": self.counts,
            "sums": torch.stack(sums) if sums else torch.zeros(0, self.d, dtype=torch.float64),
        }
        save_tensors(Path(path), tensors, {**(metadata or {}), "format": _FORMAT})

    @classmethod
    def load(cls, path: Path) -> tuple[Self, dict[str, str]]:
        """Read what `save` wrote; returns the means and the caller's metadata.

        Raises: FileNotFoundError; FormatError if the file is damaged or holds something else.
        """
        tensors, metadata = load_tensors(Path(path))
        if metadata.pop("format", None) != _FORMAT:
            raise FormatError(f"{path} does not hold means of classes ({_FORMAT}); fit again to make them")
        found = cls(tensors["sums"].shape[1])
        for label, count, total in zip(
            tensors["labels"].tolist(), tensors["counts"].tolist(), tensors["sums"], strict=True
        ):
            found._counts[label], found._sums[label] = count, total.clone()
        return found, metadata
