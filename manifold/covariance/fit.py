"""From streamed moments, or straight from the rows, to full and low-rank models."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from manifold.eigen import descending_eigh, principal_directions
from manifold.errors import InputError, NotFittedError
from manifold.moments import Moments
from manifold.precision import require_wide
from manifold.randomized import StreamedCovariance, finite_rows, leading_eigenpairs
from manifold.rows import RowStore

from .full import FullCovariance
from .lowrank import LowRankCovariance
from .shrinkage import oas_intensity

__all__ = ["DEFAULT_RANK", "DENSE_LIMIT", "default_rank", "fit_covariance", "fit_lowrank"]

DEFAULT_RANK = 256
DENSE_LIMIT = 4096
"""Up to here all eigenpairs cost seconds, and the leading ones are exact."""
_RANK_ABOVE = 1024
_DENSE_QUICK = 1024  # up to here a decomposition takes a tenth of a second, however few the rows
_FEW_VALUES = 2**26  # rows that take 512 MiB in float64


def default_rank(n: int, d: int) -> int:
    """Eigenpairs worth keeping of n rows of d values: all up to d = 4,096, 1,024 above, or those that few rows have, n - 1.

    Few are at most d / 2, with d above 1,024.
    """
    most = d if d <= DENSE_LIMIT else _RANK_ABOVE
    return min(most, n - 1) if _few(n, d) else most


def fit_covariance(
    moments: Moments,
    model: Literal["full", "lowrank"] = "full",
    rank: int | None = None,
    *,
    shrinkage: float | Literal["oas"] = 0.0,
    dtype: torch.dtype = torch.float32,
) -> LowRankCovariance:
    """Covariance model of the rows seen so far (divisor n - 1).

    Shrinkage replaces every variance lambda by (1 - a) lambda + a trace / d, that of the discarded directions too.

    Arguments
        moments: at least two rows.
        model: "full" for all d eigenpairs, "lowrank" for the leading `rank` and an isotropic tail.
        rank: number of eigenpairs of "lowrank", 256 (or d, if smaller) by default; above d = 1,024 no more than the rows
            have, n - 1, where they are at most d / 2.
        shrinkage: the intensity a in [0, 1], or "oas" for the estimate that needs no second look at the rows;
            `ledoit_wolf_intensity` computes another one.
        dtype: type of the model's tensors. The eigenproblem is solved in float64; float32 is what latents come in,
            halves the file, and keeps the eigenvectors orthonormal to 1e-6.

    Returns: the model, on the device of the moments.

    Raises: InputError; NotFittedError if fewer than two rows came; NonFiniteError if variances leave the range of `dtype`.

    Cost: O(d^3) for "full". "lowrank" takes O(n^2 d), exact, above d = 1,024 as long as the moments hold all their rows and
    these are at most d / 2; else O(d^3), exact, up to d = 4096 or with rank above d / 8; else O(d^2 k) by a randomised block
    method, see `leading_eigenpairs` for its accuracy.
    """
    require_wide(dtype)
    if moments.count < 2:
        raise NotFittedError(f"a covariance needs at least 2 rows, {moments.count} came; encode more images")
    if model not in ("full", "lowrank"):
        raise InputError(f'model must be "full" or "lowrank", it is {model!r}')
    d = moments.d
    k = (d if model == "full" else min(DEFAULT_RANK, d)) if rank is None else rank
    if not 1 <= k <= d:
        raise InputError(f"rank must lie between 1 and d = {d}, it is {k}")
    intensity = oas_intensity(moments) if shrinkage == "oas" else shrinkage
    if model == "lowrank" and _few(moments.count, d) and (rows := moments.rows_held()) is not None:
        return _of_few_rows(rows.to(torch.float64, copy=True), k, intensity, dtype)
    covariance = moments.covariance()
    total = float(covariance.diagonal().sum())
    if model == "full" or d <= DENSE_LIMIT or k > d // 8:
        eigvals, eigvecs = descending_eigh(covariance)
    else:
        eigvals, eigvecs, _ = leading_eigenpairs(
            lambda block: covariance @ block, d, k, dtype=torch.float64, device=covariance.device
        )
    if model == "full":
        eigvals[moments.count - 1 :] = (
            0  # rows vary in n - 1 directions at most: beyond them is round-off, of either sign
        )
        shrunk = _shrink(eigvals, total / d, intensity)
        return FullCovariance(moments.mean.to(dtype), shrunk.to(dtype), eigvecs.to(dtype), count=moments.count)
    return _with_tail(moments.mean, eigvals[:k], eigvecs[:, :k], total, intensity, dtype, moments.count)


def fit_lowrank(
    store: RowStore,
    rank: int = DEFAULT_RANK,
    *,
    shrinkage: float = 0.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> LowRankCovariance:
    """Low-rank model straight from the rows, where a d x d matrix does not fit.

    Arguments
        store: at least two rows that can be read again and again.
        rank: number of eigenpairs; at most min(n - 1, d) are kept.
        shrinkage: intensity in [0, 1]; see `fit_covariance`.
        dtype: type of the model's tensors.
        device: where the products are taken and the model lives.

    Raises: InputError; NonFiniteError naming the row, or if variances leave the range of `dtype`.

    Cost: at most ten passes over the rows; memory of 8 d (rank + 32) values. Eigenvalues approach from below, to 1e-4
    of themselves or better (benchmarks/lowrank.py: the leading 64 of 256 at d = 65,536). Above d = 1,024, rows of 2^26 values
    in all, and at most d / 2, are read once and decomposed exactly, in O(n^2 d).
    """
    require_wide(dtype)
    if not 1 <= rank <= store.d:
        raise InputError(f"rank must lie between 1 and d = {store.d}, it is {rank}")
    if _few(len(store), store.d):
        rows = [part.to(device) for part in finite_rows(store, len(store))]
        return _of_few_rows(torch.cat(rows).double(), rank, shrinkage, dtype)
    covariance = StreamedCovariance(store, device=device)
    k = min(rank, len(store) - 1)
    eigvals, eigvecs, _ = leading_eigenpairs(covariance, store.d, k, device=device)
    eigvals *= covariance.unit**2
    return _with_tail(covariance.mean, eigvals, eigvecs, covariance.total_variance, shrinkage, dtype, len(store))


def _few(n: int, d: int) -> bool:
    """Whether rows are so few that their own products are quicker than those of their values."""
    return d > _DENSE_QUICK and 1 < n <= d // 2 and n * d <= _FEW_VALUES


def _of_few_rows(rows: Tensor, rank: int, intensity: float, dtype: torch.dtype) -> LowRankCovariance:
    """The model of all rows, (n, d) float64, which are written to."""
    n = len(rows)
    mean = rows.mean(0)
    rows -= mean
    total = float(rows.square().sum()) / (n - 1)
    scatter, eigvecs = principal_directions(rows, min(rank, n - 1))
    return _with_tail(mean, scatter / (n - 1), eigvecs, total, intensity, dtype, n)


def _with_tail(
    mean: Tensor, eigvals: Tensor, eigvecs: Tensor, total: float, intensity: float, dtype: torch.dtype, count: int
) -> LowRankCovariance:
    d, k = eigvecs.shape
    # Rows vary in n - 1 directions at most: beyond them what is left of the total is round-off.
    tail_var = max(total - float(eigvals.sum()), 0.0) / (d - k) if k < min(count - 1, d) else 0.0
    shrunk = _shrink(eigvals, total / d, intensity)
    tail_var = (1 - intensity) * tail_var + intensity * total / d if k < d else 0.0
    return LowRankCovariance(mean.to(dtype), shrunk.to(dtype), eigvecs.to(dtype).contiguous(), tail_var, count=count)


def _shrink(eigvals: Tensor, average: float, intensity: float) -> Tensor:
    if not 0.0 <= intensity <= 1.0:
        raise InputError(f"shrinkage must lie between 0 and 1, it is {intensity}")
    return eigvals if intensity == 0.0 else (1 - intensity) * eigvals.clamp_min(0) + intensity * average
