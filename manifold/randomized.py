"""Leading eigenpairs of a covariance that is only known through its product with a block of vectors.

Randomised block Lanczos: start from a random block, multiply, keep the part that is new, and solve the small problem in
the space of all blocks so far (Musco and Musco 2015). Every product is one pass over the data, so passes are few and
blocks are wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .eigen import descending_eigh, fix_sign
from .errors import InputError, NonFiniteError
from .precision import without_autocast
from .rows import RowStore, as_rows, first_bad_row, largest_modulus
from .scatter import out_of_range_exponent

__all__ = ["Eigenpairs", "StreamedCovariance", "finite_rows", "leading_eigenpairs"]

_OVERSAMPLE = 32
_MAX_PASSES = 8
_BATCH_VALUES = 2**25


class Eigenpairs(NamedTuple):
    """Eigenvalues (k,) float64, descending, eigenvectors (d, k), and the products with the matrix it took."""

    eigvals: Tensor
    eigvecs: Tensor
    passes: int


@without_autocast
def leading_eigenpairs(
    product: Callable[[Tensor], Tensor],
    d: int,
    k: int,
    *,
    tolerance: float = 1e-4,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Eigenpairs:
    """The k leading eigenpairs of a positive semidefinite (d, d) matrix, given by its products.

    Arguments
        product: (d, m) -> (d, m), the matrix times a block of columns.
        d, k: size and number wanted, 1 <= k <= d.
        tolerance: stop when no leading eigenvalue changed by more than this share of itself in the last pass, or after
            8 passes. Eigenvalues approach from below; the leading half has converged far better than the last.
        dtype, device: of the blocks; eigenvalues are float64.

    Returns: Eigenpairs. Deterministic: the first block comes from a fixed seed.

    Raises: InputError if k is out of range.

    Cost: at most 8 products with k + 32 columns; d (k + 32) values of memory a pass.

    Source: Musco, Musco, Randomized block Krylov methods for stronger and faster approximate SVD (2015), algorithm 2.
    """
    if not 1 <= k <= d:
        raise InputError(f"rank must lie between 1 and d = {d}, it is {k}")
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(d, min(k + _OVERSAMPLE, d), generator=generator, dtype=dtype).to(device)
    block = torch.linalg.qr(block).Q
    blocks: list[Tensor] = []
    small = torch.zeros(0, 0, dtype=torch.float64, device=device)
    before: Tensor | None = None
    while True:
        image = product(block)
        blocks.append(block)
        small = _grow(small, [q.T @ image for q in blocks])
        found = torch.linalg.eigvalsh(small).flip(0)[:k]
        settled = before is not None and bool(((found - before).abs() <= tolerance * found.abs()).all())
        before = found
        room = d - small.shape[0]
        if settled or room == 0 or len(blocks) == _MAX_PASSES:
            break
        for _ in range(2):  # once more: the first sweep leaves round-off of the size of what it removed
            for q in blocks:
                image = image - q @ (q.T @ image)
            image = torch.linalg.qr(image).Q
        block = image[:, :room]
    eigvals, coordinates = descending_eigh(small)
    weights = coordinates[:, :k].to(dtype)
    eigvecs = torch.zeros(d, k, dtype=dtype, device=device)
    start = 0
    for q in blocks:
        eigvecs += q @ weights[start : start + q.shape[1]]
        start += q.shape[1]
    return Eigenpairs(eigvals[:k], fix_sign(eigvecs), len(blocks))


def _grow(small: Tensor, column: list[Tensor]) -> Tensor:
    """The projected matrix with one more block column, symmetric."""
    wide = torch.cat([part.double() for part in column])
    old, new = small.shape[0], wide.shape[1]
    grown = torch.zeros(old + new, old + new, dtype=torch.float64, device=wide.device)
    grown[:old, :old] = small
    grown[:, old:] = wide
    grown[old:, :old] = wide[:old].T
    corner = grown[old:, old:]
    grown[old:, old:] = (corner + corner.T) / 2
    return grown


def finite_rows(store: RowStore, size: int) -> Iterator[Tensor]:
    """All rows in order, (m, d) with m <= `size`. Raises: NonFiniteError naming the row."""
    start = 0
    for batch in store.batches(size):
        rows = as_rows(batch, store.d)
        bad = first_bad_row(rows)
        if bad is not None:
            raise NonFiniteError(f"rows must be finite, row {start + bad} holds NaN or infinity; remove it")
        yield rows
        start += len(rows)


class StreamedCovariance:
    """Covariance of the rows of a store as a product, in memory of the order of d; nothing of size d^2 is formed.

        C q = sum (x - mean) (x - mean)^T q / (n - 1) / unit^2

    Arguments
        store: rows that can be read again and again, at least two.
        device: where the products are taken.

    Attributes
        mean: (d,) float64.
        unit: 1, or for rows whose squares would leave the range of float32 the power of two that they are divided by.
        total_variance: trace of the covariance, that of the rows themselves.

    Raises: InputError if there are fewer than two rows; NonFiniteError naming the row, or if values exceed 1e150.

    Cost: two passes to start with, one a product (4 n d m operations for m columns, float32 with float64 sums).
    """

    def __init__(self, store: RowStore, *, device: torch.device | str = "cpu") -> None:
        self.store = store
        self.device = torch.device(device)
        self._rows = max(1, _BATCH_VALUES // store.d)
        if len(store) < 2:
            raise InputError(f"a covariance needs at least 2 rows, there are {len(store)}; encode more images")
        total, peak = torch.zeros(store.d, dtype=torch.float64, device=self.device), 0.0
        for rows in finite_rows(store, self._rows):
            total += rows.to(self.device).double().sum(0)
            peak = max(peak, largest_modulus(rows))
        self.mean = total / len(store)
        self.unit = math.ldexp(1.0, max(out_of_range_exponent(peak), -500))
        scatter = sum(float(rows.double().square().sum()) for rows in self._centred())
        self.total_variance = scatter / (len(store) - 1) * self.unit**2

    def _centred(self) -> Iterator[Tensor]:
        for batch in self.store.batches(self._rows):
            yield ((as_rows(batch, self.store.d).to(self.device).double() - self.mean) / self.unit).float()

    def __call__(self, block: Tensor) -> Tensor:
        """The covariance in `unit`^2 times a block of columns, (d, m) -> (d, m)."""
        total = torch.zeros(block.shape, dtype=torch.float64, device=block.device)
        for rows in self._centred():
            total += rows.T @ (rows @ block.float())
        return (total / (len(self.store) - 1)).to(block.dtype)
