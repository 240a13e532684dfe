"""Expectation-maximisation for low-rank mixtures, started with k-means.

The components live in the span of the collection's leading eigenvectors, with full covariances there; outside it they
share the collection's mean and its tail variance. No eigenvalue may fall below that tail variance, which counts as 1e-6 of
the largest eigenvalue if it is less, as with fewer rows than directions. That is the maximum-likelihood solution under this
constraint, so the likelihood rises with every step and a component cannot collapse onto a point.

Source: Dempster, Laird, Rubin (1977); k-means++: Arthur, Vassilvitskii (2007).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .covariance import LowRankCovariance
from .eigen import descending_eigh
from .errors import InputError, NotFittedError
from .gaussian import GaussianManifold
from .mixture import GaussianMixture
from .rows import as_rows

__all__ = ["MixtureFit", "fit_mixture"]

_STARTS = 8
"""One k-means++ start in about 18 ends in a worse optimum, and EM cannot leave it."""
_LLOYD_STEPS = 20
_LEAST_SHARE = 1e-6


@dataclass(frozen=True)
class MixtureFit:
    """Result of `fit_mixture`.

    Attributes
        mixture: the components.
        log_likelihood: mean log p(x0) per row after each step, in nats, within the span of the eigenvectors.
        raised: number of eigenvalues that stand on the lower limit, over all components.
        converged: whether the last step gained less than `tolerance`.
    """

    mixture: GaussianMixture
    log_likelihood: list[float]
    raised: int
    converged: bool


def fit_mixture(
    latents: Tensor | np.ndarray,
    components: int,
    *,
    rank: int | None = None,
    steps: int = 100,
    tolerance: float = 1e-4,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> MixtureFit:
    """Fit a mixture of low-rank Gaussians.

    Arguments
        latents: (N, d) or (N, C, H, W).
        components: J, at most N / 2.
        rank: directions in which components may differ; all up to 256 by default.
        steps: at most so many of EM.
        tolerance: gain in nats per row below which it stops.
        generator: of the start; one with seed 0 unless given.
        dtype: type of the components, float32 or float64.

    Raises: InputError; NotFittedError if a component is left with fewer than two rows; NonFiniteError if variances leave
        the range of `dtype`.

    Cost: one pass for the eigenvectors, 160 steps of k-means with N J r each, then N J r^2 a step in float64; N r values in
        memory.
    """
    flat = as_rows(latents, math.prod(latents.shape[1:]))
    shape = (int(latents.shape[1]), int(latents.shape[2]), int(latents.shape[3])) if latents.ndim == 4 else None
    if not 1 <= components <= len(flat) // 2:
        raise InputError(f"components must lie between 1 and half of the {len(flat)} rows, it is {components}")
    if steps < 1:
        raise InputError(f"steps must be at least 1, it is {steps}")
    if rank is None:
        rank = min(256, flat.shape[1])
    whole = GaussianManifold.fit(flat, rank=rank, dtype=dtype)
    basis, mean = whole.eigvecs.double(), whole.mean.double()
    points = torch.cat([(part.to(mean) - mean) @ basis for part in flat.split(4096)])
    lowest = max(float(whole.tail_var), _LEAST_SHARE * float(whole.eigvals[0]))
    if lowest == 0:
        raise InputError(
            f"all rows are equal, or their variances too small for {dtype}: there is nothing to fit a mixture to; give rows "
            "that differ, or multiply them by a constant first"
        )
    shares = _best_kmeans(points, components, generator or torch.Generator().manual_seed(0))
    history: list[float] = []
    converged = False
    for _ in range(steps):
        weights, means, spectra, raised = _maximise(points, shares, lowest)
        logs = _log_joint(points, weights, means, spectra)
        history.append(float(logs.logsumexp(1).mean()))
        shares = logs.softmax(1)
        if len(history) > 1 and history[-1] - history[-2] < tolerance:
            converged = True
            break
    models = [
        LowRankCovariance(
            (mean + basis @ center).to(whole.mean),
            values.to(whole.mean),
            (basis @ vectors).to(whole.mean),
            lowest,
        )
        for center, (values, vectors) in zip(means, spectra, strict=True)
    ]
    return MixtureFit(GaussianMixture(models, weights, shape=shape), history, raised, converged)


def _best_kmeans(points: Tensor, components: int, generator: torch.Generator) -> Tensor:
    """Memberships of the best of several starts; returns (N, J), each row one-hot."""
    starts = 1 if components == 1 else _STARTS
    found = [_kmeans(points, components, generator) for _ in range(starts)]
    nearest = min(found, key=lambda start: start[0])[1]
    return torch.nn.functional.one_hot(nearest, components).double()


def _kmeans(points: Tensor, components: int, generator: torch.Generator) -> tuple[float, Tensor]:
    """k-means++ and Lloyd's steps; the sum of squares about the centers, and the nearest center of each point, (N,)."""
    first = torch.randint(len(points), (1,), generator=generator)
    centers = points[first]
    for _ in range(components - 1):
        away = torch.cdist(points, centers).square().amin(1)
        if float(away.sum()) == 0:
            raise InputError(f"the rows take fewer than {components} different values; ask for fewer components")
        centers = torch.cat([centers, points[torch.multinomial(away, 1, generator=generator)]])
    for _ in range(_LLOYD_STEPS):
        away, nearest = torch.cdist(points, centers).min(1)
        counts = torch.bincount(nearest, minlength=components)
        moved = torch.zeros_like(centers).index_add_(0, nearest, points) / counts.clamp_min(1)[:, None]
        centers = torch.where(counts[:, None] > 0, moved, centers)
    return float(away.square().sum()), nearest


def _maximise(
    points: Tensor, shares: Tensor, lowest: float
) -> tuple[Tensor, list[Tensor], list[tuple[Tensor, Tensor]], int]:
    """Weights, means, and eigenpairs of every component; how many eigenvalues were raised to the limit."""
    counts = shares.sum(0)
    if bool((counts < 2).any()):
        raise NotFittedError(
            f"component {int(counts.argmin())} of {len(counts)} is left with {float(counts.min()):.2g} rows; ask for "
            "fewer components or another seed"
        )
    means, spectra, raised = [], [], 0
    for share, count in zip(shares.T, counts, strict=True):
        center = share @ points / count
        deviation = points - center
        values, vectors = descending_eigh((share[:, None] * deviation).T @ deviation / count)
        raised += int((values < lowest).sum())
        means.append(center)
        spectra.append((values.clamp_min(lowest), vectors))
    return counts / counts.sum(), means, spectra, raised


def _log_joint(points: Tensor, weights: Tensor, means: list[Tensor], spectra: list[tuple[Tensor, Tensor]]) -> Tensor:
    logs = []
    for weight, center, (values, vectors) in zip(weights, means, spectra, strict=True):
        white = (points - center) @ vectors / values.sqrt()
        logs.append(
            weight.log() - 0.5 * (white.square().sum(1) + values.log().sum() + len(values) * math.log(2 * math.pi))
        )
    return torch.stack(logs, 1)
