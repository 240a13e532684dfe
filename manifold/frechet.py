"""Fréchet distance of two sets of latents, and what chance makes of it.

    F = |mean_x - mean_y|^2 + tr A + tr B - 2 tr (A^1/2 B A^1/2)^1/2,      A, B the covariances of the sets

the squared Bures-Wasserstein distance of the Gaussians fitted to both: FID's formula, taken in latent space. With centred
rows X (n, d) and Y (m, d) the last trace is the sum of the singular values of X Y^T / sqrt((n - 1)(m - 1)), so covariances
without full rank (n < d) need no jitter.

Two sets of one distribution are not at distance 0: of n white rows each they are at 2 d / n + d (d + 1) / (2 n), to first
order in d / n. So figures compare only at equal n, and `split_frechet` says what to expect of equals: the distances of
random halves of one set.

Source: Heusel et al., GANs Trained by a Two Time-Scale Update Rule (arXiv 1706.08500); the bias: Chong & Forsyth,
Effectively Unbiased FID (arXiv 1911.07023).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .covariance import CovarianceModel
from .errors import InputError, NonFiniteError, NotFittedError, ShapeError

__all__ = ["frechet_distance", "split_frechet"]


def frechet_distance(x: Tensor, y: Tensor | CovarianceModel) -> float:
    """Squared Fréchet distance of latents x from latents y, or from a Gaussian.

    Arguments
        x: (n, d) or (n, C, H, W), at least two rows; covariances have divisor n - 1.
        y: (m, d) or (m, C, H, W), or a covariance model with its mean.

    Returns: a number that is not negative; round-off below zero is taken as zero.

    Raises: ShapeError if the lengths of rows differ; NotFittedError with fewer than two rows; NonFiniteError.

    Cost: exact, in float64. O(d n^2) for n, m <= d, O(d^3 + n d^2) above.
    """
    mean, root = _centred(x)
    if isinstance(y, CovarianceModel):
        model = y.to(mean.device, torch.float64)
        _require_length(mean, model.d)
        cross = torch.linalg.svdvals(model.apply(lambda variance: variance.clamp_min(0).sqrt(), root)).sum()
        other, total = model.mean, model.trace(lambda variance: variance.double())
    else:
        other, second = _centred(y)
        _require_length(mean, second.shape[1])
        cross, total = torch.linalg.svdvals(root @ second.T).sum(), second.square().sum()
    squared = (mean - other).square().sum() + root.square().sum() + total - 2 * cross
    return max(float(squared), 0.0)


def split_frechet(x: Tensor, splits: int = 20, seed: int = 0) -> Tensor:
    """Squared Fréchet distances between random halves of one set: what n / 2 rows of one distribution give by chance.

    Arguments
        x: (n, d) or (n, C, H, W), n at least 4; of an odd number one row is left out of each split.
        splits: random splits. seed: of the splits.

    Returns: (splits,) float64.

    Raises: NotFittedError with fewer than four rows; InputError without a split.
    """
    if len(x) < 4:
        raise NotFittedError(f"halves need at least 2 rows each, there are {len(x)} in all; use more seeds")
    if splits < 1:
        raise InputError(f"there must be at least one split, splits is {splits}")
    draw = torch.Generator().manual_seed(seed)
    half = len(x) // 2
    found = []
    for _ in range(splits):
        order = torch.randperm(len(x), generator=draw).to(x.device)
        found.append(frechet_distance(x[order[:half]], x[order[half : 2 * half]]))
    return torch.tensor(found, dtype=torch.float64)


def _centred(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,), and R of at most d rows with R^T R the covariance."""
    rows = x.detach().flatten(1).double()
    if len(rows) < 2:
        raise NotFittedError(f"a covariance needs at least 2 latents, there are {len(rows)}")
    mean = rows.mean(0)
    if not bool(mean.isfinite().all()):
        raise NonFiniteError("latents must be finite, some hold NaN or infinity; leave them out")
    root = (rows - mean) / math.sqrt(len(rows) - 1)
    if len(root) > root.shape[1]:
        root = torch.linalg.qr(root, mode="r").R
    return mean, root


def _require_length(mean: Tensor, d: int) -> None:
    if len(mean) != d:
        raise ShapeError(f"both must be latents of one length, they have {len(mean)} and {d} values")
