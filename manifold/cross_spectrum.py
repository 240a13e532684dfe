"""Second moments of images whose statistics do not depend on position: a C x C matrix at every spatial frequency.

With F the orthonormal two-dimensional Fourier transform of an image's channels about the channel means, the
cross-spectrum is P(f) = mean of F(f) F(f)^H. It is Hermitian and positive semidefinite, P(-f) is its conjugate, and
a few hundred images estimate it well, because it has C^2 H W numbers where a covariance has (C H W)^2.

Rows are dealt to four folds by their number, so that smoothing can be chosen by cross-validation without a second look.
"""

from __future__ import annotations

import math
from typing import Self

import numpy as np
import torch
from torch import Tensor

from .errors import MismatchError, NonFiniteError, NotFittedError, ShapeError
from .rows import RowStore, as_rows, first_bad_row

__all__ = ["FOLDS", "CrossSpectrum"]

FOLDS = 4
_BATCH_VALUES = 2**21


class CrossSpectrum:
    """Streaming, mergeable cross-spectrum of images (C, H, W).

    Arguments
        shape: (C, H, W) of a row.
        device: where the sums live and the transforms are taken.

    Raises: ShapeError if a size is not positive.

    Cost: O(n d (log d + C)); memory 4 folds of C^2 H W complex float64 / 2. Transforms in float64.
    """

    def __init__(self, shape: tuple[int, int, int], *, device: torch.device | str = "cpu") -> None:
        if len(shape) != 3 or min(shape) < 1:
            raise ShapeError(f"a stationary model needs the shape (C, H, W) of a latent, it got {tuple(shape)}")
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.device = torch.device(device)
        channels, height, width = self.shape
        size = (FOLDS, height * (width // 2 + 1), channels, channels)
        self._counts = [0] * FOLDS
        self._sums = torch.zeros(FOLDS, channels, dtype=torch.float64, device=self.device)  # of the channel means
        self._products = torch.zeros(size, dtype=torch.complex128, device=self.device)
        self._shift: Tensor | None = None  # a constant near the channel means keeps the zero frequency accurate

    @classmethod
    def of(cls, store: RowStore, shape: tuple[int, int, int], *, device: torch.device | str = "cpu") -> Self:
        """The cross-spectrum of all rows of a store. Raises: ShapeError; NonFiniteError naming the row."""
        spectrum = cls(shape, device=device)
        for batch in store.batches(max(1, _BATCH_VALUES // store.d)):
            spectrum.update(batch)
        return spectrum

    @property
    def d(self) -> int:
        """Values in a row."""
        return math.prod(self.shape)

    @property
    def count(self) -> int:
        """Number of rows taken in."""
        return sum(self._counts)

    def update(self, batch: Tensor | np.ndarray) -> None:
        """Take in rows, (n, d) or (n, C, H, W) of a floating-point type.

        Raises: ShapeError; NonFiniteError naming the row.
        """
        rows = as_rows(batch, self.d)
        bad = first_bad_row(rows)
        if bad is not None:
            raise NonFiniteError(
                f"rows must be finite, row {bad} of this batch (row {self.count + bad} of the stream) holds NaN or "
                "infinity; remove it or encode it again"
            )
        if len(rows) == 0:
            return
        channels, height, width = self.shape
        images = rows.to(self.device).double().reshape(-1, channels, height, width)
        if self._shift is None:
            self._shift = images[0].mean((-2, -1))
        images = images - self._shift[:, None, None]
        start = self.count
        for fold in range(FOLDS):
            mine = images[(fold - start) % FOLDS :: FOLDS]
            if len(mine) == 0:
                continue
            waves = torch.fft.rfft2(mine, norm="ortho").flatten(2).permute(2, 1, 0)  # (F, C, n)
            self._products[fold] += waves @ waves.mH
            self._sums[fold] += mine.mean((-2, -1)).sum(0)
            self._counts[fold] += len(mine)

    def merge(self, other: CrossSpectrum) -> None:
        """Take in the rows of another cross-spectrum of the same shape. Raises: MismatchError."""
        if other.shape != self.shape:
            raise MismatchError(f"both must be of one shape, they are {self.shape} and {other.shape}")
        if other._shift is None:
            return
        if self._shift is None:
            self._shift = other._shift.to(self.device)
        sums, products = other._about(self._shift.to(other.device))
        self._sums += sums.to(self.device)
        self._products += products.to(self.device)
        self._counts = [a + b for a, b in zip(self._counts, other._counts, strict=True)]

    def _about(self, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Sums and products with the deviations taken from another constant."""
        assert self._shift is not None
        delta = self._shift - shift
        counts = torch.tensor(self._counts, dtype=torch.float64, device=self.device)
        products = self._products.clone()
        cross = self._sums[:, :, None] * delta
        moved = cross + cross.mT + counts[:, None, None] * torch.outer(delta, delta)
        products[:, 0] += self._area * moved
        return self._sums + counts[:, None] * delta, products

    @property
    def _area(self) -> int:
        return self.shape[1] * self.shape[2]

    def mean(self, folds: tuple[int, ...] = tuple(range(FOLDS))) -> Tensor:
        """Channel means, (C,) float64. Raises: NotFittedError if the folds are empty."""
        count = sum(self._counts[fold] for fold in folds)
        if count == 0 or self._shift is None:
            raise NotFittedError("a cross-spectrum needs at least one row, none came; call update first")
        return self._shift + sum((self._sums[fold] for fold in folds), torch.zeros_like(self._shift)) / count

    def matrices(self, folds: tuple[int, ...] = tuple(range(FOLDS)), about: Tensor | None = None) -> Tensor:
        """Mean of F(f) F(f)^H over the rows of the folds, deviations from `about` (their own channel means by default).

        Returns: (H, W // 2 + 1, C, C) complex128, the half plane of the real Fourier transform.

        Raises: NotFittedError if the folds are empty.
        """
        centre = self.mean(folds) if about is None else about
        _, products = self._about(centre)
        count = sum(self._counts[fold] for fold in folds)
        channels, height, width = self.shape
        total = sum((products[fold] for fold in folds), torch.zeros_like(products[0])) / count
        return total.reshape(height, width // 2 + 1, channels, channels)
