"""Moments of each class and of all rows, in one pass: what class guidance and mixtures are made of.

Every row is multiplied once, within its class; the moments of all rows are the merge of the classes, which is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from .errors import FormatError, InputError, MismatchError, NonFiniteError, NotFittedError
from .files import load_tensors, save_tensors
from .moments import Moments, Precision
from .rows import as_labels, as_rows, first_bad_row

__all__ = ["ClassMoments"]

_FORMAT = "manifold.class_moments.1"


class ClassMoments:
    """One `Moments` for every label met.

    Arguments
        d: number of values in a row.
        precision: see `Moments`.
        device: see `Moments`.
        max_classes: refuse more labels than this. Each class keeps a (d, d) matrix of its own.

    Cost: as `Moments` for the time; 8 d^2 bytes a class.
    """

    def __init__(
        self,
        d: int,
        *,
        precision: Precision = "fast",
        device: torch.device | str | None = None,
        max_classes: int = 100,
    ) -> None:
        self.d = d
        self.precision: Precision = precision
        self.device = device
        self.max_classes = max_classes
        self._classes: dict[int, Moments] = {}

    @property
    def labels(self) -> tuple[int, ...]:
        """The labels met so far, ascending."""
        return tuple(sorted(self._classes))

    @property
    def count(self) -> int:
        """Number of rows taken in."""
        return sum(moments.count for moments in self._classes.values())

    def __getitem__(self, label: int) -> Moments:
        """The moments of one class. Raises: NotFittedError if no row had that label."""
        if label not in self._classes:
            raise NotFittedError(f"no row has the label {label}; the labels are {', '.join(map(str, self.labels))}")
        return self._classes[label]

    def update(self, batch: Tensor | np.ndarray, labels: Tensor | np.ndarray | Sequence[int]) -> None:
        """Take in rows with their labels; order within a class is kept, so batches do not change any bit.

        Arguments
            batch: (n, d) or (n, ...), as for `Moments`.
            labels: (n,) integers.

        Raises: ShapeError if the numbers differ; InputError for labels that are not integers or too many classes;
            NonFiniteError naming the row; nothing is taken in then.
        """
        rows = as_rows(batch, self.d)
        keys = as_labels(labels, len(rows))
        bad = first_bad_row(rows)
        if bad is not None:
            raise NonFiniteError(
                f"rows must be finite, row {bad} of this batch (row {self.count + bad} of the stream) holds NaN or "
                "infinity; remove it or encode it again"
            )
        met = np.unique(keys).tolist()
        if len({*met, *self._classes}) > self.max_classes:
            raise InputError(
                f"more than {self.max_classes} classes, each with a {self.d} x {self.d} matrix of its own; "
                "raise max_classes if memory allows, or fit without labels"
            )
        for label in met:
            if label not in self._classes:
                self._classes[label] = Moments(self.d, precision=self.precision, device=self.device)
            chosen = torch.from_numpy(np.flatnonzero(keys == label)).to(rows.device)
            self._classes[label].update(rows[chosen], copy=False)  # rows by number are a copy already

    def total(self) -> Moments:
        """Moments of all rows: between classes and within. Raises: NotFittedError if no row came."""
        if not self._classes:
            raise NotFittedError("no row came yet; call update first")
        total = Moments(self.d, precision=self.precision, device=self.device)
        for label in self.labels:
            total.merge(self._classes[label])
        return total

    def within(self) -> Tensor:
        """Covariance of rows about the mean of their own class, pooled with divisor n - classes, (d, d) float64.

        Raises: NotFittedError if there are not more rows than classes.
        """
        freedom = self.count - len(self._classes)
        if freedom < 1:
            raise NotFittedError(
                f"the covariance within classes needs more rows than classes, there are {self.count} rows in "
                f"{len(self._classes)} classes; encode more images"
            )
        pooled = torch.zeros(self.d, self.d, dtype=torch.float64, device=self.device)
        for moments in self._classes.values():
            pooled += moments.covariance(ddof=0) * (moments.count / freedom)
        return pooled

    def merge(self, other: ClassMoments) -> None:
        """Take in the rows of another, class by class. Raises: MismatchError; InputError for too many classes."""
        if other.d != self.d:
            raise MismatchError(f"both must describe rows of one length, they have d = {self.d} and d = {other.d}")
        new = set(other.labels) - set(self.labels)
        if len(self._classes) + len(new) > self.max_classes:
            raise InputError(f"together they have more than {self.max_classes} classes; raise max_classes")
        for label in other.labels:
            if label in new:
                self._classes[label] = Moments(self.d, precision=self.precision, device=self.device)
            self._classes[label].merge(other[label])

    def save(self, path: Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write everything to one safetensors file, atomically: for each label what `Moments.save` writes, `label.name`."""
        tensors = {
            f"{label}.{name}": tensor
            for label in self.labels
            for name, tensor in self._classes[label].tensors().items()
        }
        facts = {"format": _FORMAT, "d": str(self.d), "precision": self.precision, "max_classes": str(self.max_classes)}
        save_tensors(Path(path), tensors, {**(metadata or {}), **facts})

    @classmethod
    def load(cls, path: Path, device: torch.device | str | None = None) -> tuple[Self, dict[str, str]]:
        """Read what `save` wrote; returns the moments and the caller's metadata.

        Raises: FileNotFoundError; FormatError if the file is damaged or holds something else.
        """
        tensors, metadata = load_tensors(Path(path))
        if metadata.pop("format", None) != _FORMAT:
            raise FormatError(f"{path} does not hold moments of classes ({_FORMAT}); fit again to make them")
        precision: Precision = "exact" if metadata.pop("precision") == "exact" else "fast"
        classes = int(metadata.pop("max_classes"))
        found = cls(int(metadata.pop("d")), precision=precision, device=device, max_classes=classes)
        parts: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            label, name = key.split(".")
            parts.setdefault(int(label), {})[name] = tensor
        for number, part in parts.items():
            found._classes[number] = Moments.from_tensors(part, precision, device)
        return found, metadata
