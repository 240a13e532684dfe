"""At which noise level a trajectory decides each eigen-direction: the outline first, the details later.

The coefficient of the prediction x0_hat along u_k grows from 0 to its final value, that of the sample. The share reached at
a level is the slope of a regression, over trajectories, of the one on the other: with an intercept, so that it does not
matter if the means of model and manifold differ, and without dividing by coefficients that happen to be near 0. For Gaussian
data every trajectory has the same share

    h_k = alpha lambda_k alpha_0 / sqrt(v_k v_k0),   v = alpha^2 lambda + sigma^2,   (alpha_0, sigma_0) the last level

which for a clean last state is 1 / sqrt(1 + (sigma / alpha)^2 / lambda_k), one half at sigma / alpha = sqrt(3 lambda_k).

Two nulls. Along random directions everything emerges together: what order there is belongs to the eigenvectors. Regressed on
another trajectory's sample the share stays at 0: what is reached belongs to the trajectory.

Source: Wang & Vastola, arXiv 2303.02490 (order of feature emergence).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .bootstrap import bootstrap_weights, interval_tails
from .errors import InputError
from .gaussian import GaussianManifold
from .nulls import derangement, random_directions
from .path_states import flat_path, flat_targets, level_lists
from .states import Levels, safe_ratio

__all__ = ["Emergence", "crossing_level", "measure_emergence"]


@dataclass(frozen=True)
class Emergence:
    """When each direction reaches `share` of its final value, as a noise level sigma / alpha; float64.

    A level is NaN where the share is not crossed between two recorded levels.

    Attributes
        modes: (m,) ranks of the eigenvectors, from 0. eigvals: (m,) their variances.
        noise: (L - 1,) sigma / alpha of the levels at which a prediction was recorded, infinite for pure noise.
        share: of the final value.
        curve, predicted_curve: (L - 1, m) share reached, measured and for Gaussian data.
        level, predicted: (m,) noise level at which the share is reached, measured and for Gaussian data.
        low, high: (m,) 95 % bootstrap interval of `level` over trajectories, from the resamples that cross.
        null_curve, null_level: the same along m random directions; null_predicted: (m,) for Gaussian data.
        permuted_curve: (L - 1, m) along the eigenvectors, with the final values of another trajectory.
        exponent: p of level ~ lambda^p by least squares in logarithms; the prediction is 0.5. NaN with fewer than two levels.
        rank_correlation: Spearman's, between measured and predicted levels.
        null_rank_correlation: the same between the levels of the random directions and those predicted for the modes.
    """

    modes: Tensor
    eigvals: Tensor
    noise: Tensor
    share: float
    curve: Tensor
    predicted_curve: Tensor
    level: Tensor
    predicted: Tensor
    low: Tensor
    high: Tensor
    null_curve: Tensor
    null_level: Tensor
    null_predicted: Tensor
    permuted_curve: Tensor
    exponent: float
    rank_correlation: float
    null_rank_correlation: float


def measure_emergence(
    x_t: Tensor,
    x0_hat: Tensor,
    alphas: Levels,
    sigmas: Levels,
    gaussian: GaussianManifold,
    *,
    modes: int | Sequence[int] = 16,
    share: float = 0.5,
    draws: int = 200,
    generator: torch.Generator | None = None,
) -> Emergence:
    """Measure when recorded predictions decide each direction, beside the closed form and two nulls.

    Arguments
        x_t: (L, n, d) or (L, n, C, H, W), n >= 3; the last is the sample. x0_hat: (L - 1, n, ...).
        alphas, sigmas: (L,), noise falling; see `manifold.path_states`.
        gaussian: of the data, with eigenvectors.
        modes: how many leading eigenvectors (at most k), or which, from 0.
        share: in (0, 1).
        draws: resamples of the bootstrap.
        generator: of the nulls.

    Returns: Emergence.

    Raises: ShapeError; NonFiniteError; NotFittedError for a model without eigenvectors; InputError for fewer than three
        trajectories, or modes or a share out of range.

    Cost: two products of (L n, d) by (d, m), and draws L n m multiply-adds.
    """
    path = flat_path(x_t, least=3)
    targets = flat_targets(x0_hat, path)
    alphas, sigmas = level_lists(alphas, sigmas, len(path), path.device)
    if path.shape[1] < 3:
        raise InputError(f"a regression over trajectories needs at least 3 of them, {path.shape[1]} came")
    if not float(alphas[-1]) > 0:
        raise InputError(
            "the last recorded state must hold signal, its alpha is 0; order the levels from noise to data"
        )
    if not 0 < share < 1:
        raise InputError(f"share must lie between 0 and 1, it is {share}")
    chosen = _chosen(modes, gaussian.k).to(path.device)
    vectors = gaussian.eigvecs.to(path)[:, chosen]
    eigvals = gaussian.eigvals.to(path)[chosen]
    random = random_directions(gaussian.d, len(chosen), generator).to(path)
    mean = gaussian.mean.to(path)
    noise = sigmas[:-1] / alphas[:-1]
    final = (path[-1] - alphas[-1] * mean) / alphas[-1]
    growing = targets - mean
    now, end = growing @ vectors, final @ vectors
    curve = _slopes(now, end)
    level = crossing_level(curve, noise, share)
    counts = bootstrap_weights(path.shape[1], draws).to(path.device)
    resampled = torch.stack([crossing_level(_slopes(now, end, weights), noise, share) for weights in counts])
    tails = torch.tensor(interval_tails(path.shape[1]), dtype=torch.float64, device=path.device)
    low, high = resampled.nanquantile(tails, dim=0)
    predicted_curve = _predicted_curve(eigvals, alphas, sigmas)
    # GaussianManifold.emergence, for a last level that may still hold noise: then the slope is on a noisy end.
    last = alphas[-1] ** 2 * eigvals / (alphas[-1] ** 2 * eigvals + sigmas[-1] ** 2)
    predicted = (eigvals * (last / share**2 - 1)).sqrt()
    null_curve = _slopes(growing @ random, final @ random)
    null_level = crossing_level(null_curve, noise, share)
    permuted = derangement(path.shape[1], generator).to(path.device)
    return Emergence(
        modes=chosen,
        eigvals=eigvals,
        noise=noise,
        share=share,
        curve=curve,
        predicted_curve=predicted_curve,
        level=level,
        predicted=predicted,
        low=low,
        high=high,
        null_curve=null_curve,
        null_level=null_level,
        null_predicted=crossing_level(_random_curve(gaussian, random, alphas, sigmas), noise, share),
        permuted_curve=_slopes(now, end[permuted]),
        exponent=_exponent(eigvals, level),
        rank_correlation=_spearman(predicted, level),
        null_rank_correlation=_spearman(predicted, null_level),
    )


def crossing_level(curve: Tensor, noise: Tensor, share: float) -> Tensor:
    """Noise level at which each curve rises through `share` for good.

    The last crossing counts, so that a curve which wanders early is not taken to have arrived. Between the two levels
    around it the curve is taken as h = 1 / sqrt(1 + (noise / c)^p), which holds exactly for Gaussian data; where a value
    is not inside (0, 1), as a straight line in log noise.

    Arguments
        curve: (L, m). noise: (L,), falling, may begin with infinity. share: in (0, 1).

    Returns: (m,) float64; NaN where a curve does not cross, or crosses from infinite noise or to none.
    """
    above = curve >= share
    # For good: this level and all later ones are above.
    settled = above.flip(0).cummin(0).values.flip(0)
    first = settled.int().argmax(0)
    found = settled.any(0) & (first > 0)
    after = first.clamp_min(1)
    pair = torch.stack([(after - 1), after])
    values = curve.gather(0, pair)
    at = noise[pair].log()
    inside = ((values > 0) & (values < 1)).all(0)
    safe = values.clamp(1e-100, 1 - 1e-15)
    odds = torch.where(inside, (1 / safe.square() - 1).log(), values)
    goal = torch.where(inside, odds.new_tensor(1 / share**2 - 1).log(), odds.new_tensor(share))
    place = (goal - odds[0]) / (odds[1] - odds[0])
    level = (at[0] + place * (at[1] - at[0])).exp()
    return torch.where(found & at.isfinite().all(0), level, torch.full_like(level, torch.nan))


def _chosen(modes: int | Sequence[int], k: int) -> Tensor:
    ranks = (
        torch.arange(max(min(modes, k), 0))
        if isinstance(modes, int)
        else torch.as_tensor(list(modes), dtype=torch.int64)
    )
    if not len(ranks) or int(ranks.min()) < 0 or int(ranks.max()) >= k:
        raise InputError(f"modes must be a number of eigenvectors or their ranks from 0 to {k - 1}, they are {modes}")
    return ranks


def _slopes(now: Tensor, end: Tensor, weights: Tensor | None = None) -> Tensor:
    """Slope of now (L, n, m) on end (n, m) over trajectories with weights (n,): (L, m); NaN where the ends do not vary."""
    share = torch.full((len(end), 1), 1 / len(end), dtype=end.dtype, device=end.device)
    if weights is not None:
        share = (weights / weights.sum())[:, None]
    spread = share * (end - (share * end).sum(0))
    slope = torch.einsum("nm,lnm->lm", spread, now)
    variance = (spread * end).sum(0)
    return slope / torch.where(variance > 0, variance, torch.full_like(variance, torch.nan))


def _predicted_curve(eigvals: Tensor, alphas: Tensor, sigmas: Tensor) -> Tensor:
    a, s = alphas[:, None], sigmas[:, None]
    v = a**2 * eigvals + s**2
    return safe_ratio(a[:-1] * a[-1] * eigvals, (v[:-1] * v[-1]).sqrt())


def _random_curve(gaussian: GaussianManifold, directions: Tensor, alphas: Tensor, sigmas: Tensor) -> Tensor:
    """Slope along directions (d, m) that mix eigenvectors: r^T Cov(x0_hat, x_0) r / r^T Cov(x_0) r, each of m.

    From x_T of variance v_T along every eigenvector, as at the start of generation with the model's own marginal.
    """
    rows = directions.T.to(gaussian.mean)
    a, s = (one.to(gaussian.mean)[:-1, None, None] for one in (alphas, sigmas))
    a_0, s_0 = float(alphas[-1]), float(sigmas[-1])
    # x0_hat = alpha lambda / sqrt(v_t v_T) c_T and x_0 = sqrt(v_0 / v_T) c_T / alpha_0, with c_T of variance v_T.
    together = gaussian.covariance.apply(
        lambda v: safe_ratio(a * v * (a_0**2 * v + s_0**2).sqrt() / a_0, (a**2 * v + s**2).sqrt()), rows
    )
    last = gaussian.covariance.apply(lambda v: (a_0**2 * v + s_0**2) / a_0**2, rows)
    return ((rows * together).sum(2) / (rows * last).sum(1)).to(directions)


def _exponent(eigvals: Tensor, level: Tensor) -> float:
    used = level.isfinite() & (level > 0) & (eigvals > 0)
    x, y = eigvals[used].log(), level[used].log()
    spread = x - x.mean()
    return float((spread * y).sum() / spread.square().sum()) if len(x) > 1 else torch.nan


def _spearman(one: Tensor, two: Tensor) -> float:
    from scipy.stats import spearmanr

    used = one.isfinite() & two.isfinite()
    x, y = (each[used].cpu().numpy() for each in (one, two))
    if len(x) < 3 or (x == x[0]).all() or (y == y[0]).all():
        return torch.nan
    return float(spearmanr(x, y).statistic)
