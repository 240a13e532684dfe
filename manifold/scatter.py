"""Scatter matrices: sums of outer products of centred rows, upper triangle only.

The triangle below the diagonal is never read; what it holds is of no meaning until `mirror`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from .errors import NonFiniteError

__all__ = ["Scratch", "add_outer", "add_rows", "add_scatter", "center", "mirror"]

# Values in an elementwise step. They stay in cache, and torch (grain 32,768) leaves them to one thread: memory is the
# limit here, and threads that wait for each other would keep those of the product from running.
_BLOCK = 30_000
_STRIPE = 2048  # columns centred at a time
_PANEL = 4096  # matrix rows multiplied at a time in float32: bounds the memory of the product
_TILE = 1024
_SAFE_MAX = 1e15  # values between the two have squares and sums of squares inside the range of float32
_SAFE_MIN = 1e-12


class Scratch:
    """Float32 memory for products and their operands, allocated once: to touch fresh pages costs as much as the work."""

    def __init__(self) -> None:
        self._memory: dict[str, np.ndarray] = {}

    def matrix(self, name: str, rows: int, columns: int) -> np.ndarray:
        """A column-major (rows, columns) matrix; it is valid until the next call with the same name."""
        memory = self._memory.get(name)
        if memory is None or memory.size < rows * columns:
            memory = self._memory[name] = np.empty(rows * columns, dtype=np.float32)
        return memory[: rows * columns].reshape((rows, columns), order="F")

    def columns(self, name: str, rows: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Columns start to stop of row-major rows, as a column-major matrix with a row for each; a copy unless all."""
        if stop - start == rows.shape[1]:
            return rows.T
        copied = self.matrix(name, stop - start, len(rows))
        copied.T[:] = rows[:, start:stop]
        return copied


def center(rows: Tensor) -> Tensor:
    """Subtract the mean of the rows in place; returns that mean, (d,) float64.

    The mean is summed in float64. From float32 rows it is taken off in two float32 parts, so that rows 1000 standard
    deviations from zero lose nothing but the rounding of the result.
    """
    d = rows.shape[1]
    width, height = (_STRIPE, _BLOCK // _STRIPE) if rows.device.type == "cpu" else (d, len(rows))
    mean = torch.zeros(d, dtype=torch.float64, device=rows.device)
    for left in range(0, d, width):
        stripe = rows[:, left : left + width]
        total = mean[left : left + width]
        for start in range(0, len(rows), height):
            total += stripe[start : start + height].double().sum(0)
        total /= len(rows)
        high = total.to(rows.dtype)
        low = (total - high.double()).to(rows.dtype)
        for start in range(0, len(rows), height):
            stripe[start : start + height].sub_(high).sub_(low)
    if not bool(mean.isfinite().all()):
        raise NonFiniteError("the sum of the rows exceeds the range of float64; divide the data by a constant first")
    return mean


def add_rows(scatter: Tensor, rows: Tensor, dtype: torch.dtype, scratch: Scratch) -> None:
    """Add rows^T rows to the upper triangle of `scatter`.

    Arguments
        scatter: (d, d) float64, contiguous, changed in place.
        rows: (n, d) centred rows, float32 or float64; may be scaled in place.
        dtype: type of the products, float32 or float64. Rows of extreme size are scaled by a power of two first, so
            that no square leaves the range of that type.
        scratch: memory for float32 products on the CPU.
    """
    peak = _peak(rows)
    if peak == 0.0:
        return
    alpha = 1.0
    if not _SAFE_MIN < peak < _SAFE_MAX:
        exponent = math.frexp(peak)[1]
        if exponent > 500:
            raise NonFiniteError(
                f"deviations from the mean must stay below 1e150, the largest is {peak:.3g}; "
                "divide the data by a constant first"
            )
        rows.copy_(torch.ldexp(rows, torch.tensor(-exponent, device=rows.device)))
        alpha = math.ldexp(1.0, 2 * exponent)
    rows = rows.to(dtype)
    if scatter.device.type != "cpu":
        _add_rows_by_matmul(scatter, rows, alpha)
    elif dtype == torch.float64:
        from scipy.linalg.blas import dsyrk

        # The row-major upper triangle is the column-major lower one.
        dsyrk(alpha, rows.numpy().T, beta=1.0, c=scatter.numpy().T, lower=1, overwrite_c=1)
    else:
        _add_rows_by_blas(scatter, rows.numpy(), alpha, scratch)


def _peak(rows: Tensor) -> float:
    """Largest modulus. On the CPU from BLAS, whose threads the product needs next; torch's own would still be awake."""
    if rows.device.type != "cpu":
        return float(rows.abs().amax())
    from scipy.linalg.blas import idamax, isamax

    flat = rows.numpy().reshape(-1)
    return abs(float(flat[(isamax if rows.dtype == torch.float32 else idamax)(flat)]))


def _add_rows_by_blas(scatter: Tensor, rows: np.ndarray, alpha: float, scratch: Scratch) -> None:
    from scipy.linalg.blas import sgemm, ssyrk

    d = len(scatter)
    for start in range(0, d, _PANEL):
        stop = min(start + _PANEL, d)
        left = scratch.columns("left", rows, start, stop)
        out = scratch.matrix("product", stop - start, stop - start)
        product = ssyrk(1.0, left, lower=1, beta=0.0, c=out, overwrite_c=1)
        _add_triangle(scatter[start:stop, start:stop], torch.from_numpy(product.T), alpha)
        if stop < d:
            right = scratch.columns("right", rows, stop, d)
            out = scratch.matrix("product", d - stop, stop - start)
            product = sgemm(1.0, right, left, trans_b=1, beta=0.0, c=out, overwrite_c=1)
            below, block = torch.from_numpy(product.T), scatter[start:stop, stop:]
            for first, last in _row_blocks(block):
                block[first:last].add_(below[first:last], alpha=alpha)


def _add_rows_by_matmul(scatter: Tensor, rows: Tensor, alpha: float) -> None:
    with _full_float32():
        for start in range(0, len(scatter), _PANEL):
            stop = min(start + _PANEL, len(scatter))
            scatter[start:stop, start:].add_(rows[:, start:stop].T @ rows[:, start:], alpha=alpha)


@contextmanager
def _full_float32() -> Iterator[None]:
    """Matrix products with all 24 bits, whatever the caller's setting."""
    backend = torch.backends.cuda.matmul
    name, value = ("fp32_precision", "ieee") if hasattr(backend, "fp32_precision") else ("allow_tf32", False)
    before = getattr(backend, name)
    setattr(backend, name, value)
    try:
        yield
    finally:
        setattr(backend, name, before)


def add_scatter(scatter: Tensor, other: Tensor) -> None:
    """Add the upper triangle of `other`, of any floating-point type, to that of `scatter`; (d, d) each."""
    _add_triangle(scatter, other, 1.0)


def _add_triangle(scatter: Tensor, other: Tensor, alpha: float) -> None:
    for start, stop in _row_blocks(scatter):
        scatter[start:stop, start:].add_(other[start:stop, start:], alpha=alpha)


def _row_blocks(matrix: Tensor) -> Iterator[tuple[int, int]]:
    """Rows first to last of blocks that an elementwise step takes at once."""
    step = max(1, _BLOCK // matrix.shape[1]) if matrix.device.type == "cpu" else _PANEL
    for start in range(0, len(matrix), step):
        yield start, start + step


def add_outer(scatter: Tensor, weight: float, vector: Tensor) -> None:
    """Add weight * vector vector^T to the upper triangle of `scatter`; vector (d,) float64."""
    for start, stop in _row_blocks(scatter):
        scatter[start:stop, start:].addr_(vector[start:stop], vector[start:], alpha=weight)


def mirror(scatter: Tensor) -> Tensor:
    """Copy the upper triangle to the lower one, in place; returns the matrix, now exactly symmetric."""
    d = len(scatter)
    for start in range(0, d, _TILE):
        stop = min(start + _TILE, d)
        block = scatter[start:stop, start:stop]
        block.copy_(block.triu() + block.triu(1).T)
        for right in range(stop, d, _TILE):
            end = min(right + _TILE, d)
            scatter[right:end, start:stop] = scatter[start:stop, right:end].T
    return scatter
