"""Scatter matrices: sums of outer products of centred rows, upper triangle only.

The triangle below the diagonal is never read; what it holds is of no meaning until `mirror`.

Rows are centred on their way into the operands of the product, a few at a time, so that whatever happens to a value
happens while it is in cache: at d = 3072 a pass of all rows through memory costs a fiftieth of the product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from torch import Tensor

from .errors import NonFiniteError

__all__ = ["Scratch", "add_outer", "add_rows", "add_scatter", "column_mean", "column_squares", "mirror"]

# Values in an elementwise step. They stay in cache, and torch (grain 32,768) leaves them to one thread: memory is the
# limit here, and threads that wait for each other would keep those of the product from running.
_BLOCK = 30_000
_ROWS = 1024  # rows multiplied at a time on the CPU: bounds the memory of the operands
_PANEL = 4096  # matrix rows multiplied at a time in float32: bounds the memory of the product
_TILE = 1024
_SUMS = 16  # parts that column sums are taken in
_SAFE_MAX = 1e15  # rows between the two have deviations whose squares and sums of squares are in the range of float32
_SAFE_MIN = 1e-3


class Scratch:
    """Memory for products and their operands, allocated once: to touch fresh pages costs as much as the work."""

    def __init__(self) -> None:
        self._memory: dict[str, np.ndarray] = {}

    def matrix(self, name: str, rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A row-major (rows, columns) matrix on the CPU; it is valid until the next call with the same name."""
        wanted = np.float64 if dtype == torch.float64 else np.float32
        memory = self._memory.get(name)
        if memory is None or memory.size < rows * columns or memory.dtype != wanted:
            memory = self._memory[name] = np.empty(rows * columns, dtype=wanted)
        return torch.from_numpy(memory[: rows * columns].reshape(rows, columns))


def column_mean(rows: Tensor) -> Tensor:
    """Mean of the rows (n, d) of any floating-point type, (d,) float64, summed in float64.

    Raises: NonFiniteError if the sum leaves the range of float64.
    """
    mean = _column_sums(rows, None) / len(rows)
    if not bool(mean.isfinite().all()):
        raise NonFiniteError("the sum of the rows exceeds the range of float64; divide the data by a constant first")
    return mean


def column_squares(rows: Tensor, mean: Tensor) -> Tensor:
    """Sum over the rows of (x - mean)^2, (d,) float64."""
    return _column_sums(rows, mean)


def _column_sums(rows: Tensor, mean: Tensor | None) -> Tensor:
    """Sum of the rows, or of the squares of their deviations from a mean; of as many parts whatever the threads."""
    parts = rows.split(max(1, -(-len(rows) // _SUMS)))
    sums = torch.zeros(len(parts), rows.shape[1], dtype=torch.float64, device=rows.device)

    def add_up(number: int) -> None:
        total = sums[number]
        for block in parts[number].split(_block_rows(rows)):
            wide = _widened(block, torch.float64)
            total.add_(wide.sum(0) if mean is None else (wide - mean).square_().sum(0))

    _spread(add_up, range(len(parts)), rows.device)
    return sums.sum(0)


def _widened(block: Tensor, dtype: torch.dtype) -> Tensor:
    """The block in a type at least as wide; the same memory if it has that type. By way of float32, which is quicker."""
    return block.float().to(dtype) if block.element_size() == 2 else block.to(dtype)


def _spread(work: Callable[[int], None], numbers: Iterable[int], device: torch.device) -> None:
    """Call `work` for each number, on as many threads as torch has.

    Torch's own threads wait for each other by spinning, beside those of the product; these sleep.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        for number in numbers:
            work(number)
    else:
        list(_threads(threads).map(work, numbers))


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="moments")


def add_rows(scatter: Tensor, rows: Tensor, mean: Tensor, peak: float, dtype: torch.dtype, scratch: Scratch) -> None:
    """Add (rows - mean)^T (rows - mean) to the upper triangle of `scatter`.

    Arguments
        scatter: (d, d) float64, contiguous, changed in place.
        rows: (n, d) of a floating-point type, as it came.
        mean: (d,) float64, of these rows. What its rounding to the type of the rows leaves is accounted for, so that rows
            1000 standard deviations from zero lose nothing but the rounding of the result.
        peak: largest modulus among the rows. Rows of extreme size are scaled by a power of two, so that no square leaves
            the range of `dtype`.
        dtype: type of the products, float32 or float64.
        scratch: memory for products and operands on the CPU.

    Raises: NonFiniteError if values are too large for any product.
    """
    if peak == 0.0:
        return
    exponent = 0
    if not _SAFE_MIN < peak < _SAFE_MAX:
        exponent = max(math.frexp(peak)[1], -126)
        if exponent > 500:
            raise NonFiniteError(
                f"values must stay below 1e150, the largest is {peak:.3g}; divide the data by a constant first"
            )
    wide = torch.float64 if torch.float64 in (rows.dtype, dtype) else torch.float32
    operands = _Operands(rows, mean, wide, exponent)
    alpha = math.ldexp(1.0, 2 * exponent)
    if scatter.device.type != "cpu":
        centred = torch.empty(rows.shape, dtype=dtype, device=rows.device)
        operands.into(centred, 0, 0)
        _add_rows_by_matmul(scatter, centred, alpha)
    elif dtype == torch.float64:
        _add_rows_in_float64(scatter, operands, alpha, scratch)
    else:
        _add_rows_in_float32(scatter, operands, alpha, scratch)
    if bool(operands.left_over.any()):
        add_outer(scatter, -float(len(rows)), operands.left_over)


class _Operands:
    """Rows about `center`, their mean rounded to their type, scaled by a power of two; a part at a time."""

    def __init__(self, rows: Tensor, mean: Tensor, wide: torch.dtype, exponent: int) -> None:
        self.rows, self._wide, self._exponent = rows, wide, exponent
        self._center = mean.to(wide)
        self.left_over = mean - self._center.double()

    def into(self, out: Tensor, top: int, left: int) -> None:
        """Fill `out` (m, c) with rows from `top` on and columns from `left` on."""
        right = left + out.shape[1]
        center = self._center[left:right]
        rows = self.rows[top : top + len(out), left:right]
        share = -(-len(out) // torch.get_num_threads()) if out.device.type == "cpu" else len(out)
        step = min(share, _block_rows(out))

        def fill(start: int) -> None:
            stop = start + share
            for source, target in zip(rows[start:stop].split(step), out[start:stop].split(step), strict=True):
                wide = _widened(source, self._wide)
                if self._exponent == 0 and out.dtype == self._wide:
                    torch.sub(wide, center, out=target)
                else:
                    target.copy_((wide - center).mul_(math.ldexp(1.0, -self._exponent)))

        _spread(fill, range(0, len(out), share), out.device)


def _add_rows_in_float64(scatter: Tensor, operands: _Operands, alpha: float, scratch: Scratch) -> None:
    from scipy.linalg.blas import dsyrk

    n, d = operands.rows.shape
    for top in range(0, n, _ROWS):
        left = scratch.matrix("left", min(_ROWS, n - top), d, torch.float64)
        operands.into(left, top, 0)
        # The row-major upper triangle is the column-major lower one.
        dsyrk(alpha, left.numpy().T, beta=1.0, c=scatter.numpy().T, lower=1, overwrite_c=1)


def _add_rows_in_float32(scatter: Tensor, operands: _Operands, alpha: float, scratch: Scratch) -> None:
    """Sum the products of all rows in float32, then add them to the float64 triangle; a panel of columns at a time."""
    from scipy.linalg.blas import sgemm, ssyrk

    n, d = operands.rows.shape
    for start in range(0, d, _PANEL):
        stop = min(start + _PANEL, d)
        corner = scratch.matrix("corner", stop - start, stop - start)
        beside = scratch.matrix("beside", stop - start, d - stop)
        for top in range(0, n, _ROWS):
            beta, height = float(top > 0), min(_ROWS, n - top)
            left = scratch.matrix("left", height, stop - start)
            operands.into(left, top, start)
            ssyrk(1.0, left.numpy().T, beta=beta, c=corner.numpy().T, lower=1, overwrite_c=1)
            if stop < d:
                right = scratch.matrix("right", height, d - stop)
                operands.into(right, top, stop)
                c = beside.numpy().T
                sgemm(1.0, right.numpy().T, left.numpy().T, trans_b=1, beta=beta, c=c, overwrite_c=1)
        _add_triangle(scatter[start:stop, start:stop], corner, alpha)
        if stop < d:
            _add_block(scatter[start:stop, stop:], beside, alpha)


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
    step = _block_rows(scatter)

    def add(start: int) -> None:
        for first in range(start, min(start + 16 * step, len(scatter)), step):
            scatter[first : first + step, first:].add_(other[first : first + step, first:], alpha=alpha)

    _spread(add, range(0, len(scatter), 16 * step), scatter.device)


def _add_block(scatter: Tensor, other: Tensor, alpha: float) -> None:
    step = _block_rows(scatter)

    def add(start: int) -> None:
        stop = start + 16 * step
        for ours, theirs in zip(scatter[start:stop].split(step), other[start:stop].split(step), strict=True):
            ours.add_(theirs, alpha=alpha)

    _spread(add, range(0, len(scatter), 16 * step), scatter.device)


def _block_rows(matrix: Tensor) -> int:
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
