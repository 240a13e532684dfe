"""Shrinkage of a full covariance toward the stationary one, and the blend itself for a low-rank one as well.

    Sigma = (1 - w) S + w T,  mean = (1 - w) mean_S + w mean_T

S is the sample covariance, T the stationary model. In coordinates whitened by T this is (1 - w) A + w I, so one
eigendecomposition of A scores every w on rows left out; only the chosen blend is decomposed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from manifold.cross_spectrum import CrossSpectrum
from manifold.eigen import descending_eigh
from manifold.errors import InputError, MismatchError
from manifold.moments import Moments
from manifold.rows import RowStore, as_rows

from .fit import fit_covariance
from .fit_stationary import fit_stationary
from .full import FullCovariance
from .stationary import StationaryCovariance

__all__ = ["BlendScore", "blend_with_stationary", "score_blends"]

WEIGHTS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
_BATCH_VALUES = 2**22


@dataclass(frozen=True)
class BlendScore:
    """Mean log-likelihood, in nats a row, of rows left out, for one weight of the stationary model."""

    weight: float
    log_likelihood: float


def score_blends(
    train: RowStore, held_out: RowStore, target: StationaryCovariance, weights: tuple[float, ...] = WEIGHTS
) -> list[BlendScore]:
    """Score every weight on rows left out; w = 1 is the stationary model itself.

    Arguments
        train: rows of the sample covariance, at least two.
        held_out: rows to score.
        target: stationary model fitted on `train`.
        weights: shares of the stationary model, in [0, 1].

    Returns: one score a weight, in the order given; minus infinity where the blend has a direction without variance.

    Cost: O(n d^2 + d^3) for more rows than dimensions, O(n^2 d) for fewer.
    """
    wide = target.to(dtype=torch.float64)
    mean, eigvals, eigvecs = _whitened_eigenpairs(train, wide)
    d, rank, n = target.d, eigvals.numel(), len(held_out)
    log_det = float(wide.log_det())
    first, second, square = torch.zeros_like(mean), torch.zeros_like(eigvals), 0.0
    for rows in _whitened(held_out, wide):
        first += rows.sum(0) / n
        second += (rows @ eigvecs).square().sum(0) / n
        square += float(rows.square().sum()) / n
    along_first, along_mean = first @ eigvecs, mean @ eigvecs
    scores = []
    for weight in weights:
        share = 1 - weight  # rows are taken about share * mean
        projected = second - 2 * share * along_first * along_mean + (share * along_mean).square()
        whole = square - 2 * share * float(first @ mean) + share**2 * float(mean @ mean)
        kept = weight + share * eigvals
        score = -math.inf
        if float(kept.min()) > 0 and (weight > 0 or rank == d):
            misfit = float((projected / kept).sum())
            inside = float(kept.log().sum())
            if rank < d:
                misfit += (whole - float(projected.sum())) / weight
                inside += (d - rank) * math.log(weight)
            score = -0.5 * (misfit + inside + log_det + d * math.log(2 * math.pi))
        scores.append(BlendScore(weight, score))
    return scores


def blend_with_stationary(
    moments: Moments,
    spectrum: CrossSpectrum,
    weight: float,
    *,
    rank: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> FullCovariance:
    """The blend with a given weight of the stationary model, decomposed.

    Arguments
        moments: of the rows.
        spectrum: cross-spectrum of the same rows.
        weight: w in [0, 1]; `score_blends` finds one, `score_lowrank_blends` for a rank.
        rank: blend the low-rank model of so many eigenpairs, instead of the whole sample covariance.
        dtype: type of the model's tensors.

    Raises: InputError; MismatchError if the two describe different rows.

    Cost: O(d^3).
    """
    if not 0.0 <= weight <= 1.0:
        raise InputError(f"the weight of the stationary model must lie between 0 and 1, it is {weight}")
    if moments.d != spectrum.d or moments.count != spectrum.count:
        raise MismatchError(
            f"moments of {moments.count} rows of {moments.d} values and a cross-spectrum of {spectrum.count} of "
            f"{spectrum.d} must be of the same rows; compute both from one store"
        )
    target = fit_stationary(spectrum, dtype=torch.float64)
    if rank is None:
        blend = moments.covariance().mul_(1 - weight)
    else:
        low = fit_covariance(moments, "lowrank", rank, dtype=torch.float64)
        blend = (low.eigvecs * ((1 - weight) * (low.eigvals - low.tail_var))) @ low.eigvecs.T
        blend.diagonal().add_((1 - weight) * low.tail_var)
    for start in range(0, target.d, 256):
        rows = torch.zeros(min(256, target.d - start), target.d, dtype=torch.float64, device=target.mean.device)
        rows[:, start:].fill_diagonal_(1.0)
        blend[start : start + 256] += (weight * target.apply(lambda variance: variance, rows)).to(blend.device)
    eigvals, eigvecs = descending_eigh((blend + blend.T) / 2)
    mean = (1 - weight) * moments.mean + weight * target.mean.to(moments.mean.device)
    return FullCovariance(mean.to(dtype), eigvals.to(dtype), eigvecs.to(dtype), count=moments.count)


def _whitened(store: RowStore, target: StationaryCovariance) -> Iterator[Tensor]:
    for batch in store.batches(max(1, _BATCH_VALUES // store.d)):
        rows = as_rows(batch, store.d).to(target.mean.device).double()
        yield target.apply(torch.rsqrt, rows - target.mean)


def _whitened_eigenpairs(store: RowStore, target: StationaryCovariance) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (d,), eigenvalues (r,) and eigenvectors (d, r) of the whitened sample covariance, r = min(n - 1, d)."""
    n, d = len(store), store.d
    if n > d:
        moments = Moments(d, precision="exact", device=target.mean.device)
        for rows in _whitened(store, target):
            moments.update(rows)
        return moments.mean, *descending_eigh(moments.covariance())
    rows = torch.cat(list(_whitened(store, target)))
    mean = rows.mean(0)
    rows -= mean
    eigvals, coordinates = descending_eigh(rows @ rows.T / (n - 1))
    kept = eigvals[: n - 1] > 1e-12 * eigvals[0]
    eigvals, coordinates = eigvals[: n - 1][kept], coordinates[:, : n - 1][:, kept]
    return mean, eigvals, rows.T @ coordinates / (eigvals * (n - 1)).sqrt()
