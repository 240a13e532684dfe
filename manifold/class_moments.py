"""Moments of each class and of all rows, in one pass: what class guidance and mixtures are made of.

Every row is multiplied once, within its class; the moments of all rows are the merge of the classes, which is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from .errors import FormatError, InputError, MismatchError, NonFiniteError, NotFittedError, ShapeError
from .files import read_json, write_json
from .moments import Moments, Precision
from .rows import as_rows, first_bad_row

__all__ = ["ClassMoments"]

_CARD = "classes.json"


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
        keys = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
        if keys.shape != (len(rows),):
            raise ShapeError(f"there must be one label a row, there are {len(rows)} rows and labels {keys.shape}")
        if len(rows) == 0:
            return
        if keys.dtype.kind not in "iu":
            raise InputError(f"labels must be integers, they are {keys.dtype}; number the classes first")
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
            self._classes[label].update(rows[chosen])

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

    def save(self, folder: Path, metadata: dict[str, Any] | None = None) -> None:
        """Write one moments file a class and a card, `classes.json`, written last. See `Moments.save`."""
        folder = Path(folder)
        for label in self.labels:
            self._classes[label].save(folder / f"class_{label}.safetensors")
        card = {"d": self.d, "precision": self.precision, "max_classes": self.max_classes, "labels": list(self.labels)}
        write_json(folder / _CARD, {**card, "metadata": metadata or {}})

    @classmethod
    def load(cls, folder: Path, device: torch.device | str | None = None) -> tuple[Self, dict[str, Any]]:
        """Read what `save` wrote; returns the moments and the caller's metadata.

        Raises: FileNotFoundError; FormatError if the card or a class is damaged.
        """
        folder = Path(folder)
        card = read_json(folder / _CARD)
        if not {"d", "precision", "max_classes", "labels", "metadata"} <= set(card):
            raise FormatError(f"{folder / _CARD} is not the card of class moments; fit again to make it")
        found = cls(card["d"], precision=card["precision"], device=device, max_classes=card["max_classes"])
        for label in card["labels"]:
            found._classes[label], _ = Moments.load(folder / f"class_{label}.safetensors", device)
        return found, card["metadata"]
