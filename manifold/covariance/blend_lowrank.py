"""Shrinkage of a low-rank model toward the stationary one, scored without any d x d matrix.

    Sigma = (1 - w) L + w T,  mean = (1 - w) mean_L + w mean_T

With L = U D U^T + t (I - U U^T), the isotropic part joins the stationary one: B = w T + (1 - w) t I has w P(f) + (1 - w) t I
at every frequency, and Sigma = B + (1 - w) U (D - t) U^T is a stationary covariance with k directions added. Determinant and
inverse follow from k x k matrices (Sylvester, Woodbury), so a weight costs a pass of Fourier transforms.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from manifold.errors import InputError, MismatchError
from manifold.rows import RowStore, as_rows

from .blend import BlendScore
from .lowrank import LowRankCovariance
from .stationary import StationaryCovariance

__all__ = ["score_lowrank_blends"]

WEIGHTS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Not nearer to 1: what is almost the stationary model should be it."""
_BATCH_VALUES = 2**22


def score_lowrank_blends(
    model: LowRankCovariance, held_out: RowStore, target: StationaryCovariance, weights: tuple[float, ...] = WEIGHTS
) -> list[BlendScore]:
    """Score every weight of the stationary model on rows left out.

    Arguments
        model: low-rank, of fewer than d eigenpairs.
        held_out: rows to score.
        target: stationary model of the same rows as the low-rank one.
        weights: shares of the stationary model, in (0, 1].

    Returns: one score a weight, in the order given, in nats a row.

    Raises: InputError for a weight out of range; MismatchError if the models differ in dimension.

    Cost: for each weight O((n + k) d log d + n d k).
    """
    if model.d != target.d:
        raise MismatchError(f"both models must be of one dimension, they have d = {model.d} and d = {target.d}")
    low, wide = model.to(dtype=torch.float64), target.to(dtype=torch.float64)
    return [BlendScore(weight, _score(low, held_out, wide, weight)) for weight in weights]


def _score(low: LowRankCovariance, held_out: RowStore, target: StationaryCovariance, weight: float) -> float:
    if not 0.0 < weight <= 1.0:
        raise InputError(f"the weight of the stationary model must lie above 0 and at most at 1, it is {weight}")
    share, tail = 1 - weight, float(low.tail_var)
    channels = target.shape[0]
    eye = torch.eye(channels, dtype=target.spectrum.dtype, device=target.spectrum.device)
    base = StationaryCovariance(
        target.channel_mean, weight * target.spectrum + share * tail * eye, target.shape[2], count=target.count
    )
    added = (share * (low.eigvals - tail)).clamp_min(0).sqrt()
    vectors = added[:, None] * base.apply(torch.rsqrt, low.eigvecs.T.contiguous())  # (k, d), B^-1/2 U C^1/2
    inner = torch.eye(low.k, dtype=torch.float64, device=vectors.device) + vectors @ vectors.T
    factor = torch.linalg.cholesky(inner)
    log_det = float(base.log_det()) + 2 * float(factor.diagonal().log().sum())
    mean = share * low.mean + weight * target.mean
    misfit = sum(_misfit(rows, mean, base, vectors, factor) for rows in held_out.batches(_BATCH_VALUES // low.d + 1))
    score = -0.5 * (misfit / len(held_out) + log_det + low.d * math.log(2 * math.pi))
    return score if math.isfinite(score) else -math.inf


def _misfit(batch: np.ndarray, mean: Tensor, base: StationaryCovariance, vectors: Tensor, factor: Tensor) -> float:
    rows = as_rows(batch, len(mean)).to(mean.device).double()
    white = base.apply(torch.rsqrt, rows - mean)
    explained = torch.linalg.solve_triangular(factor, vectors @ white.T, upper=False)
    return float(white.square().sum() - explained.square().sum())
