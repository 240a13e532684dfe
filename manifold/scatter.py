"""Scatter matrices: sums of outer products of centred rows, upper triangle only.

The triangle below the diagonal is never read; what it holds is of no meaning until `mirror`.

Rows are centred on their way into the operands of the product, a few at a time, so that whatever happens to a value
happens while it is in cache: at d = 3072 a pass of all rows through memory costs a fiftieth of the product.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from .chunk import Chunk
from .errors import NonFiniteError
from .precision import without_autocast

__all__ = [
    "Scratch", "add_outer", "add_rows", "add_scatter", "column_mean", "column_squares", "copy_rows", "mirror",
    "out_of_range_exponent",
]  # fmt: skip

# Values in an elementwise step. They stay in cache, and torch (grain 32,768) leaves them to one thread: memory is the
# limit, and threads of torch's that wait would keep those of the product from running.
_BLOCK = 30_000
_ROWS = 4096  # rows multiplied at a time on the CPU: bounds the memory of the operands
_PANEL = 4096  # matrix rows multiplied at a time: bounds the memory of the product
_WIDEST = 8192  # columns that dsyrk takes at once: OpenBLAS 0.3 crashes in it at 16,384 with several threads
_TILE = 1024
_STRIP = 64  # rows of a triangle added at once: what they hold below the diagonal is added in vain
_SAMPLE = 256  # rows whose mean the others are centred on: it lies a sixteenth of a deviation from that of all
_SAFE_MAX = 1e15  # rows between the two have deviations whose squares and sums of squares are in the range of float32
_SAFE_MIN = 1e-3


class Scratch:
    """Memory for products and their operands, allocated once: to touch fresh pages costs as much as the work."""

    def __init__(self) -> None:
        self._memory: dict[str, np.ndarray] = {}

    def matrix(self, name: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """A row-major (rows, columns) matrix on the CPU; it is valid until the next call with the same name."""
        wanted = np.float64 if dtype == torch.float64 else np.float32
        memory = self._memory.get(name)
        if memory is None or memory.size < rows * columns or memory.dtype != wanted:
            memory = self._memory[name] = np.zeros(rows * columns, dtype=wanted)
        return torch.from_numpy(memory[: rows * columns].reshape(rows, columns))


def column_mean(rows: Chunk) -> Tensor:
    """Mean of the rows (n, d) of any floating-point type, (d,) float64, summed in float64."""
    return _column_sums(rows, None) / len(rows)


def column_squares(rows: Chunk, mean: Tensor) -> Tensor:
    """Sum over the rows of (x - mean)^2, (d,) float64."""
    return _column_sums(rows, mean)


def _column_sums(rows: Chunk, mean: Tensor | None) -> Tensor:
    """Sum of the rows, or of the squares of their deviations from a mean."""
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    step = _block_rows(rows)
    for top in range(0, len(rows), step):
        wide = _widened(rows.read(top, min(top + step, len(rows))), torch.float64)
        total.add_(wide.sum(0) if mean is None else (wide - mean).square_().sum(0))
    return total


def _widened(block: Tensor, dtype: torch.dtype) -> Tensor:
    """The block in a type at least as wide; the same memory if it has that type. By way of float32, which is quicker."""
    return block.float().to(dtype) if block.element_size() == 2 else block.to(dtype)


def add_rows(scatter: Tensor, rows: Chunk, peak: float, dtype: torch.dtype, scratch: Scratch) -> Tensor:
    """Add (rows - mean)^T (rows - mean) to the upper triangle of `scatter`, and return the mean, (d,) float64.

    The rows are centred near their mean, on that of a sample; their sums are taken on the way, and what lies between the two
    is accounted for. A pass of its own for the mean would cost a tenth of the product.

    Arguments
        scatter: (d, d) float64, contiguous, changed in place.
        rows: (n, d) of floating-point types, as they came.
        peak: largest modulus among the rows. Rows of extreme size are scaled by a power of two, so that no square leaves
            the range of `dtype`.
        dtype: type of the products, float32 or float64.
        scratch: memory for products and operands on the CPU.

    Raises: NonFiniteError if values are too large for any product.
    """
    if peak == 0.0:
        return torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    wide = torch.float64 if torch.float64 in (rows.dtype, dtype) else torch.float32
    exponent = max(out_of_range_exponent(peak), -500 if wide == torch.float64 else -126)  # 2^-exponent is in its range
    operands = _Operands(rows, wide, exponent)
    alpha = math.ldexp(1.0, 2 * exponent)
    if scatter.device.type != "cpu":
        centred = torch.empty(rows.shape, dtype=dtype, device=rows.device)
        operands.into(centred, 0, 0, summed=True)
        _add_rows_by_matmul(scatter, centred, alpha)
    elif dtype == torch.float64 and scatter.shape[1] <= _WIDEST:
        _add_rows_in_place(scatter, operands, alpha, scratch)
    else:
        _add_rows_by_panels(scatter, operands, dtype, alpha, scratch)
    mean = operands.sums / len(rows)
    left_over = mean - operands.center.double()
    if bool(left_over.any()):
        add_outer(scatter, -float(len(rows)), left_over)
    return mean


def out_of_range_exponent(peak: float) -> int:
    """Exponent of the power of two that brings values of this largest modulus to between 1/2 and 1; 0 if that is not needed.

    It is not where float32 holds the squares of their deviations, and sums of these.

    Raises: NonFiniteError if float64 does not.
    """
    if peak == 0.0 or _SAFE_MIN < peak < _SAFE_MAX:
        return 0
    exponent = math.frexp(peak)[1]
    if exponent > 500:
        raise NonFiniteError(
            f"values must stay below 1e150, the largest is {peak:.3g}; divide the data by a constant first"
        )
    return exponent


class _Operands:
    """Rows about a point near their mean, scaled by a power of two; a part at a time. And their sums."""

    def __init__(self, rows: Chunk, wide: torch.dtype, exponent: int) -> None:
        self.rows, self._wide, self._exponent = rows, wide, exponent
        self.center = _sample_mean(rows).to(wide)
        self.sums = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)

    def into(self, out: Tensor, top: int, left: int, *, summed: bool) -> None:
        """Fill `out` (m, c) with rows from `top` on and columns from `left` on; `summed` adds them to the sums."""
        right = left + out.shape[1]
        center, sums = self.center[left:right], self.sums[left:right]
        step = _block_rows(out)
        for start in range(0, len(out), step):
            target = out[start : start + step]
            source = self.rows.read(top + start, top + start + len(target), left, right)
            narrow = out.dtype == torch.float32 == self._wide and self._exponent == 0
            wide = target.copy_(source) if narrow else _widened(source, self._wide)
            if summed:
                sums.add_(wide.double().sum(0))
            if narrow:
                target.sub_(center)
            elif self._exponent == 0 and out.dtype == self._wide:
                torch.sub(wide, center, out=target)
            else:
                target.copy_((wide - center).mul_(math.ldexp(1.0, -self._exponent)))


def _sample_mean(rows: Chunk) -> Tensor:
    """Mean of some rows, drawn at random: rows at equal distances would meet a cycle in them."""
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:_SAMPLE].sort().values
    return _column_sums(Chunk([rows.select(drawn.tolist())]), None) / len(drawn)


def _add_rows_in_place(scatter: Tensor, operands: _Operands, alpha: float, scratch: Scratch) -> None:
    from scipy.linalg.blas import dsyrk

    n, d = operands.rows.shape
    for top in range(0, n, _ROWS):
        left = scratch.matrix("left", min(_ROWS, n - top), d, torch.float64)
        operands.into(left, top, 0, summed=True)
        # The row-major upper triangle is the column-major lower one.
        dsyrk(alpha, left.numpy().T, beta=1.0, c=scatter.numpy().T, lower=1, overwrite_c=1)


def _add_rows_by_panels(
    scatter: Tensor, operands: _Operands, dtype: torch.dtype, alpha: float, scratch: Scratch
) -> None:
    """Sum the products of all rows in `dtype`, then add them to the float64 triangle; a panel of columns at a time."""
    from scipy.linalg import blas

    syrk, gemm = (blas.dsyrk, blas.dgemm) if dtype == torch.float64 else (blas.ssyrk, blas.sgemm)
    n, d = operands.rows.shape
    for start in range(0, d, _PANEL):
        stop = min(start + _PANEL, d)
        corner = scratch.matrix("corner", stop - start, stop - start, dtype)
        beside = scratch.matrix("beside", stop - start, d - stop, dtype)
        for top in range(0, n, _ROWS):
            beta, height = float(top > 0), min(_ROWS, n - top)
            left = scratch.matrix("left", height, stop - start, dtype)
            operands.into(left, top, start, summed=True)
            syrk(1.0, left.numpy().T, beta=beta, c=corner.numpy().T, lower=1, overwrite_c=1)
            if stop < d:
                right = scratch.matrix("right", height, d - stop, dtype)
                operands.into(right, top, stop, summed=False)
                c = beside.numpy().T
                gemm(1.0, right.numpy().T, left.numpy().T, trans_b=1, beta=beta, c=c, overwrite_c=1)
        _add_triangle(scatter[start:stop, start:stop], corner, alpha)
        if stop < d:
            _add_block(scatter[start:stop, stop:], beside, alpha)


@without_autocast
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
    for start in range(0, len(scatter), _STRIP):
        _add_block(scatter[start : start + _STRIP, start:], other[start : start + _STRIP, start:], alpha)


def _add_block(scatter: Tensor, other: Tensor, alpha: float) -> None:
    if scatter.device.type != "cpu" or alpha != 1.0:
        scatter.add_(other, alpha=alpha)
    else:  # NumPy widens a few values at a time, torch all of them first
        np.add(scatter.numpy(), other.numpy(), out=scatter.numpy())


def copy_rows(source: Tensor, target: Tensor) -> None:
    """Copy rows into others of the same shape, at least as wide."""
    if source.device.type == "cpu" == target.device.type and source.dtype == target.dtype:
        np.copyto(
            _bytes(target), _bytes(source)
        )  # torch's threads, waiting, would keep those of the product from running
        return
    step = _block_rows(target)
    for rows, room in zip(source.split(step), target.split(step), strict=True):
        room.copy_(rows)


def _bytes(rows: Tensor) -> np.ndarray:
    """Rows of any floating-point type, bfloat16 among them, as integers of their width."""
    return rows.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()]).numpy()


def _block_rows(matrix: Tensor | Chunk) -> int:
    """How many rows an elementwise step takes at once."""
    return max(1, _BLOCK // matrix.shape[1]) if matrix.device.type == "cpu" else _PANEL


def add_outer(scatter: Tensor, weight: float, vector: Tensor) -> None:
    """Add weight * vector vector^T to the upper triangle of `scatter`; vector (d,) float64."""
    if scatter.device.type == "cpu":
        from scipy.linalg.blas import dsyr

        dsyr(weight, vector.numpy(), a=scatter.numpy().T, lower=1, overwrite_a=1)
        return
    for start in range(0, len(scatter), _PANEL):
        stop = start + _PANEL
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
