"""Streaming count, mean and scatter matrix of flat latents: exact, mergeable, resumable.

Rows are gathered into chunks of a fixed size, whatever batches they come in. A complete chunk is centred on its own
mean, multiplied by itself with the symmetric rank-k product (half the work of a general one), and joined to the
running moments with the pairwise update of Chan, Golub and LeVeque. Because chunks do not depend on batches, neither
does any bit of the result. Only the upper triangle of the scatter matrix is kept.

On the CPU the product is SciPy's BLAS (`ssyrk`, `dsyrk`); on a CUDA device it is a matrix product over blocks of the
upper triangle, in full float32 whatever TF32 setting is in force.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from .chunk import Chunk
from .errors import FormatError, InputError, MismatchError, NonFiniteError, NotFittedError, ShapeError
from .files import load_tensors, save_tensors
from .rows import as_rows, first_bad_row, largest_modulus
from .scatter import (
    Scratch,
    add_outer,
    add_rows,
    add_scatter,
    column_mean,
    column_squares,
    copy_rows,
    mirror,
    out_of_range_exponent,
)

__all__ = ["Moments", "Precision"]

Precision = Literal["fast", "exact"]

_FORMAT = "manifold.moments.1"
_PRODUCT_TYPE = {"fast": torch.float32, "exact": torch.float64}


class Moments:
    """Count, mean and covariance of rows that arrive in batches.

        S(A u B) = S(A) + S(B) + n_A n_B / (n_A + n_B) (mean_A - mean_B)(mean_A - mean_B)^T

    Precisions. `exact` works in float64 throughout and resolves eigenvalues down to about 1e-14 of the largest. `fast`
    multiplies float32 rows, each chunk centred on its float64 mean, and sums the products in float64: it resolves
    eigenvalues down to about 1e-7 of the largest, whatever the number of rows, in half the time.

    Arguments
        d: number of values in a row.
        precision: "fast" or "exact".
        device: where the scatter matrix lives and the products are taken; the CPU by default.

    Raises: InputError if the scatter matrix cannot fit into the machine's memory.

    Cost: n d^2 multiply-adds, half of a general product's, and little else: see benchmarks/moments.py. Memory: 8 d^2
    bytes, of which the lower half is not touched before `covariance`; a chunk of 16,384 rows of the type they came in, if
    copied; and up to 33,000 d bytes (`exact`: 66,000 d) for the product of a chunk and its operands. Exact, one pass.

    Source: Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample variances (1979).

    >>> moments = Moments(2)
    >>> moments.update(torch.tensor([[0.0, 1.0], [2.0, 5.0]]))
    >>> moments.count, moments.mean.tolist(), moments.covariance().tolist()
    (2, [1.0, 3.0], [[2.0, 4.0], [4.0, 8.0]])
    """

    chunk_rows = 16_384
    """Rows multiplied at once: work of the order of d^2 comes once a chunk, so chunks are long."""

    def __init__(self, d: int, *, precision: Precision = "fast", device: torch.device | str | None = None) -> None:
        if d < 1:
            raise InputError(f"a row must have at least one value, d is {d}")
        if precision not in _PRODUCT_TYPE:
            raise InputError(f'precision must be "fast" or "exact", it is {precision!r}')
        self.device = torch.device("cpu" if device is None else device)
        if self.device.type == "cpu":
            _require_memory(d)
        self.d = d
        self.precision: Precision = precision
        self._done = 0  # rows inside _mean and _scatter
        self._mean = torch.zeros(d, dtype=torch.float64, device=self.device)
        self._scatter = _untouched_zeros(d, self.device)
        self._scratch = Scratch()
        self._parts: list[Tensor] = []  # rows that wait, as they came
        self._waiting = 0  # their number
        self._peak = 0.0  # largest modulus among them
        self._grows = False  # whether the last part lies in the memory for copies, where more may follow it
        self._memory: dict[torch.dtype, Tensor] = {}

    @property
    def count(self) -> int:
        """Number of rows taken in."""
        return self._done + self._waiting

    @property
    def mean(self) -> Tensor:
        """Mean of all rows, (d,) float64. Raises: NotFittedError if there are none."""
        if self.count == 0:
            raise NotFittedError("the mean needs at least one row, none came; call update first")
        if self._waiting == 0:
            return self._mean.clone()
        waiting = column_mean(Chunk(self._parts))
        return self._mean + (waiting - self._mean) * (self._waiting / self.count)

    def update(self, batch: Tensor | np.ndarray, *, copy: bool = True) -> None:
        """Take in a batch of rows; nothing is taken in if any row is refused.

        Arguments
            batch: (n, d) or (n, ...) with d values a row, float16, bfloat16, float32 or float64, any n.
            copy: False spares copying rows that wait for their chunk to be complete: the batch, such as one mapped from a
                file, must then stay as it is until `chunk_rows` more have come or `flush` was called.

        Raises: ShapeError; InputError for numbers that are not floating point; NonFiniteError naming the first row
            with NaN or infinity, or if squares leave the range of float64.
        """
        rows = as_rows(batch, self.d)
        if not len(rows):
            return
        cuts = [0, *range(self.chunk_rows - self._waiting, len(rows), self.chunk_rows), len(rows)]
        peaks = [largest_modulus(rows[start:stop]) for start, stop in pairwise(cuts)]
        if not all(map(math.isfinite, peaks)):
            bad = first_bad_row(rows) or 0
            raise NonFiniteError(
                f"rows must be finite, row {bad} of this batch (row {self.count + bad} of the stream) holds NaN or "
                "infinity; remove it or encode it again"
            )
        out_of_range_exponent(max(peaks))
        for (start, stop), peak in zip(pairwise(cuts), peaks, strict=True):
            self._keep(rows[start:stop], copy=copy)
            self._peak = max(self._peak, peak)
            if self._waiting == self.chunk_rows:
                self.flush()

    def rows_held(self) -> Tensor | None:
        """All rows, (n, d), as they came, as long as none of them has been multiplied; None afterwards.

        They may lie where they were given, so they are not to be written to.
        """
        return Chunk(self._parts).tensor() if self._parts and not self._done else None

    def flush(self) -> None:
        """Take the waiting rows in now, as a short chunk. No rows of the data remain in the object or its file.

        Later updates start a new chunk, so their last bits differ from those of a stream that was not interrupted.
        """
        if self._waiting:
            self._absorb(Chunk(self._parts), self._peak, self.precision)
            self._parts, self._waiting, self._peak = [], 0, 0.0

    def merge(self, other: Moments) -> None:
        """Take in the rows of another accumulator, which stays as it is.

        Joining is float64 arithmetic on finished chunks: parts merged in any order and grouping agree to about 1e-15.
        Whether rows came through one accumulator or several shows in `fast` at the level of its float32 products.

        Raises: MismatchError if the rows differ in length.

        Cost: O(d^2).
        """
        if other.d != self.d:
            raise MismatchError(
                f"both must describe rows of one length, this one has d = {self.d}, the other d = {other.d}; "
                "they come from different encoders or image sizes"
            )
        self.flush()
        if other._done:
            add_scatter(self._scatter, other._scatter.to(self.device))
            self._join(other._mean.to(self.device), other._done)
        if other._waiting:
            self._absorb(Chunk(other._parts).to(self.device), other._peak, other.precision)

    def covariance(self, ddof: int = 1) -> Tensor:
        """Covariance of all rows, sum (x - mean)(x - mean)^T / (n - ddof).

        Returns: (d, d) float64, exactly symmetric, on the accumulator's device. A copy.

        Raises: NotFittedError if there are not more than `ddof` rows.
        """
        self._require_rows(ddof)
        matrix = self._scatter.clone()
        if self._waiting:
            rows = Chunk(self._parts)
            mean = add_rows(matrix, rows, self._peak, _PRODUCT_TYPE[self.precision], self._scratch)
            if self._done:
                add_outer(matrix, self._done * self._waiting / self.count, mean - self._mean)
        matrix /= self.count - ddof
        return mirror(matrix)

    def variance(self, ddof: int = 1) -> Tensor:
        """Diagonal of `covariance`, (d,) float64, without a copy of the matrix.

        Raises: NotFittedError if there are not more than `ddof` rows.
        """
        self._require_rows(ddof)
        total = self._scatter.diagonal().clone()
        if self._waiting:
            rows = Chunk(self._parts)
            mean = column_mean(rows)
            between = self._done * self._waiting / self.count * (mean - self._mean).square()
            total += column_squares(rows, mean) + between
        return total / (self.count - ddof)

    def save(self, path: Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write everything to a safetensors file, atomically; loading and going on equals never having stopped.

        The file holds `count`, `mean`, `scatter` (upper triangle, row by row; empty as long as no row was multiplied) and
        `waiting`: the rows, at most one chunk, that have not been multiplied yet. Call `flush` first to publish statistics
        without any row of the data.

        Cost: 4 d^2 bytes on disk, once rows were multiplied.
        """
        facts = {"format": _FORMAT, "precision": self.precision}
        save_tensors(Path(path), self.tensors(), {**(metadata or {}), **facts})

    @classmethod
    def load(cls, path: Path, device: torch.device | str | None = None) -> tuple[Self, dict[str, str]]:
        """Read what `save` wrote; returns the moments and the caller's metadata.

        Raises: FileNotFoundError; FormatError if the file is damaged or holds something else.
        """
        path = Path(path)
        tensors, metadata = load_tensors(path)
        if metadata.pop("format", None) != _FORMAT:
            raise FormatError(f"{path} does not hold moments ({_FORMAT}); fit again to make them")
        try:
            precision: Precision = "exact" if metadata.pop("precision") == "exact" else "fast"
            return cls.from_tensors(tensors, precision, device), metadata
        except (KeyError, NonFiniteError, ShapeError, RuntimeError) as error:
            raise FormatError(
                f"{path} holds parts that do not make moments ({error}); fit again to make them"
            ) from error

    def tensors(self) -> dict[str, Tensor]:
        """What `save` writes."""
        nothing, multiplied = torch.empty(0, dtype=torch.float64), range(self.d) if self._done else ()
        return {
            "count": torch.tensor(self._done),
            "mean": self._mean,
            "scatter": torch.cat([nothing, *(self._scatter[i, i:].cpu() for i in multiplied)]),
            "waiting": Chunk(self._parts).tensor() if self._parts else torch.empty((0, self.d), dtype=torch.float32),
        }

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], precision: Precision, device: torch.device | str | None = None
    ) -> Self:
        """Moments from what `tensors` gave."""
        moments = cls(tensors["mean"].numel(), precision=precision, device=device)
        moments._done = int(tensors["count"])
        moments._mean = tensors["mean"].to(moments.device)
        start = 0
        for i in range(moments.d if len(tensors["scatter"]) else 0):
            moments._scatter[i, i:] = tensors["scatter"][start : start + moments.d - i]
            start += moments.d - i
        moments.update(tensors["waiting"])
        return moments

    def _keep(self, rows: Tensor, *, copy: bool) -> None:
        """Let rows wait; those copied lie together, so that batches of a few rows become one part."""
        waiting = self._waiting + len(rows)
        if copy or rows.device != self.device:
            room = self._room(rows.dtype)
            copy_rows(rows, room[self._waiting : waiting])
            grows = self._grows and bool(self._parts) and self._parts[-1].dtype == rows.dtype
            begin = self._waiting - (len(self._parts.pop()) if grows else 0)
            rows = room[begin:waiting]
            self._grows = True
        else:
            self._grows = False
        self._parts.append(rows)
        self._waiting = waiting

    def _room(self, dtype: torch.dtype) -> Tensor:
        """Memory for a chunk of rows; it takes none until used."""
        if dtype not in self._memory:
            shape = (self.chunk_rows, self.d)
            if self.device.type == "cpu":  # NumPy asks for large pages, which are quicker to touch
                self._memory[dtype] = torch.from_numpy(np.empty(shape, f"i{dtype.itemsize}")).view(dtype)
            else:
                self._memory[dtype] = torch.empty(shape, dtype=dtype, device=self.device)
        return self._memory[dtype]

    def _require_rows(self, ddof: int) -> None:
        if self.count <= max(ddof, 0):
            raise NotFittedError(
                f"a covariance with ddof = {ddof} needs at least {max(ddof, 0) + 1} rows, {self.count} came; "
                "call update with more"
            )

    def _absorb(self, rows: Chunk, peak: float, precision: Precision) -> None:
        """Join a chunk of rows."""
        self._join(add_rows(self._scatter, rows, peak, _PRODUCT_TYPE[precision], self._scratch), len(rows))

    def _join(self, mean: Tensor, count: int) -> None:
        """Account for the distance between the running mean and that of `count` rows whose scatter is already in."""
        total = self._done + count
        delta = mean - self._mean
        if self._done:
            add_outer(self._scatter, self._done * count / total, delta)
        self._mean = self._mean + delta * (count / total)
        self._done = total


def _untouched_zeros(d: int, device: torch.device) -> Tensor:
    """Zeros (d, d) float64; on the CPU in pages that take no memory until used: below the diagonal nothing ever is."""
    if device.type == "cpu":
        return torch.from_numpy(np.frombuffer(mmap.mmap(-1, 8 * d * d)).reshape(d, d))
    return torch.zeros(d, d, dtype=torch.float64, device=device)


def _require_memory(d: int) -> None:
    """Refuse a matrix larger than the machine's memory before the operating system kills the process for it."""
    needed = 8 * d * d
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > 0.9 * present:
        raise InputError(
            f"second moments of d = {d} values need {needed / 2**30:.0f} GiB, this machine has {present / 2**30:.0f}; "
            "fit a low-rank or a stationary model straight from the batches instead"
        )
