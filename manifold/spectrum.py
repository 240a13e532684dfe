"""What the eigenvalues of a covariance say: how variance is spread, how it falls, and where noise begins.

Every number comes with what it assumes. Functions take any covariance model; its tail counts with all its directions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .covariance import CovarianceModel
from .errors import InputError

__all__ = [
    "SHARES",
    "NoiseEdge",
    "PowerLaw",
    "components_for",
    "cumulative_variance",
    "effective_rank",
    "marchenko_pastur_edge",
    "participation_ratio",
    "power_law",
    "power_law_line",
]


SHARES = (0.5, 0.8, 0.9, 0.95, 0.99)
"""Shares of the variance whose number of components is reported everywhere."""


def cumulative_variance(model: CovarianceModel) -> Tensor:
    """Share of the total variance in the leading 1, 2, ..., k directions, (k,) float64."""
    return model.eigvals.double().cumsum(0) / _total(model)


def components_for(model: CovarianceModel, shares: Sequence[float]) -> tuple[int | None, ...]:
    """Smallest number of leading directions with at least each share of the variance.

    Arguments
        model: the covariance.
        shares: in (0, 1].

    Returns: one number a share, None where the explicit eigenpairs do not reach it.
    """
    cumulative = cumulative_variance(model)
    found: list[int | None] = []
    for share in shares:
        if not 0.0 < share <= 1.0:
            raise InputError(f"a share of the variance must lie above 0 and at most at 1, it is {share}")
        reached = (cumulative >= share * (1 - 1e-12)).nonzero()
        found.append(int(reached[0, 0]) + 1 if len(reached) else None)
    return tuple(found)


def participation_ratio(model: CovarianceModel) -> float:
    """(sum lambda)^2 / sum lambda^2: the number of equal directions with the same spread of variance, from 1 to d.

    Where few eigenpairs are kept it is the most that it can be: the tail counts as equal variances.
    """
    total = _total(model)
    return 1 / float(model.trace(lambda variance: (variance.double() / total).square()))


def effective_rank(model: CovarianceModel) -> float:
    """Exponential of the entropy of lambda / sum lambda, from 1 to d.

    Where few eigenpairs are kept it is the most that it can be: the tail counts as equal variances.

    Source: Roy, Vetterli, The effective rank (2007).
    """
    total = _total(model)
    return math.exp(float(model.trace(lambda variance: torch.special.entr(variance.double() / total))))


def _total(model: CovarianceModel) -> float:
    total = float(model.trace(lambda variance: variance.double()))
    if total == 0:
        raise InputError("the rows behind this model are all equal: there is no variance to describe; give others")
    return total


@dataclass(frozen=True)
class PowerLaw:
    """lambda_j ~ j^(-exponent) for ranks first..last.

    Attributes
        exponent: least-squares estimate.
        low, high: its 95 % confidence interval.
        first, last: ranks used, from 1, both included.
        misfit: root mean square deviation of log10 lambda from the line; a power law holds where it is small.
    """

    exponent: float
    low: float
    high: float
    first: int
    last: int
    misfit: float


def power_law(eigvals: Tensor, first: int, last: int) -> PowerLaw:
    """Fit a straight line to log lambda against log rank.

    Ranks are gathered into up to 16 bins of equal width in log rank, one point a bin. So every octave has the same
    say, and the interval rests on points that do not repeat each other, as neighbouring eigenvalues do.

    Arguments
        eigvals: (k,) descending.
        first, last: ranks of the range, from 1, 1 <= first, last <= k, at least 8 of them.

    Returns: the exponent of these eigenvalues. That of the population they were estimated from is lower where rows are few:
        sample eigenvalues spread further than the true ones, and the interval does not allow for it.

    Raises: InputError if the range is out of bounds, too short, or holds a variance that is not positive.
    """
    if not first >= 1 or last > len(eigvals) or last - first < 7:
        raise InputError(
            f"a power law needs at least 8 ranks between 1 and {len(eigvals)}, it got {first} to {last}; "
            "widen the range or keep more eigenpairs"
        )
    values = eigvals[first - 1 : last].double().cpu().numpy()
    if values.min() <= 0:
        raise InputError(f"variances must be positive from rank {first} to {last}, the lowest is {values.min():.3g}")
    x, y = np.log(np.arange(first, last + 1)), np.log(values)
    bins = min(16, max(4, (last - first + 1) // 2))
    place = np.minimum((bins * (x - x[0]) / (x[-1] - x[0])).astype(int), bins - 1)
    used = np.unique(place)
    centre = np.array([x[place == one].mean() for one in used])
    height = np.array([y[place == one].mean() for one in used])
    deviation = centre - centre.mean()
    slope = float(deviation @ height / (deviation @ deviation))
    residual = height - height.mean() - slope * deviation
    from scipy.stats import t

    # Bins differ in how many eigenvalues they hold, so their residuals differ in size: the HC3 estimate allows for it.
    leverage = 1 / len(used) + deviation**2 / float(deviation @ deviation)
    error = float(np.linalg.norm(deviation * residual / (1 - leverage))) / float(deviation @ deviation)
    half = float(t.ppf(0.975, len(used) - 2)) * error
    line = y - (height.mean() + slope * (x - centre.mean()))
    misfit = float(np.sqrt((line**2).mean()) / math.log(10))
    return PowerLaw(-slope, -slope - half, -slope + half, first, last, misfit)


def power_law_line(eigvals: Tensor, law: PowerLaw) -> tuple[tuple[int, int], tuple[float, float]]:
    """The ends of a fitted power law, to be drawn: a line through the geometric mean of the eigenvalues it was fitted to.

    Arguments
        eigvals: those given to `power_law`. law: what it returned.

    Returns: ranks (first, last) and the law's variances there.
    """
    values = eigvals[law.first - 1 : law.last].double().log()
    ranks = torch.arange(law.first, law.last + 1, dtype=torch.float64, device=eigvals.device).log()
    ends = torch.tensor([law.first, law.last], dtype=torch.float64, device=eigvals.device).log()
    heights = (values.mean() - law.exponent * (ends - ranks.mean())).exp().tolist()
    return (law.first, law.last), (heights[0], heights[1])


@dataclass(frozen=True)
class NoiseEdge:
    """Where eigenvalues would end if there were nothing but independent noise of one variance.

    Attributes
        edge: largest eigenvalue of pure noise, noise_var (1 + sqrt(d / n))^2.
        above: number of eigenvalues beyond it.
        noise_var: variance of the noise, from the median eigenvalue; natural images have no flat noise floor, for them
            this is a scale and not a fact.
    """

    edge: float
    above: int
    noise_var: float


def marchenko_pastur_edge(eigvals: Tensor, n: int, d: int) -> NoiseEdge:
    """Upper edge of the Marchenko-Pastur law whose median is the median eigenvalue that is not zero by necessity.

    Arguments
        eigvals: all eigenvalues of a sample covariance, or its min(n - 1, d) leading ones, descending.
        n, d: rows and dimensions.

    Raises: InputError if some of the eigenvalues that rows make non-zero are missing, or with fewer than two rows.

    Source: Gavish, Donoho, The optimal hard threshold for singular values is 4 / sqrt(3) (2014), section III.
    """
    if n < 2:
        raise InputError(f"a sample covariance has at least 2 rows, this has {n}")
    meant = min(n - 1, d)
    if len(eigvals) < meant:
        raise InputError(
            f"the median needs all {meant} eigenvalues, {len(eigvals)} are kept; fit the full model or raise the rank"
        )
    ratio = d / (n - 1)
    median = float(eigvals[:meant].double().median())
    noise_var = median / _marchenko_pastur_median(ratio)
    edge = noise_var * (1 + math.sqrt(ratio)) ** 2
    return NoiseEdge(edge, int((eigvals.double() > edge).sum()), noise_var)


def _marchenko_pastur_median(ratio: float) -> float:
    """Median of the continuous part of the Marchenko-Pastur law of unit variance."""
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2
    # x = middle + half width * cos(angle) takes the square-root ends out of the density.
    angle = (np.arange(200_000) + 0.5) * math.pi / 200_000
    x = (low + high) / 2 - (high - low) / 2 * np.cos(angle)
    mass = np.cumsum(np.sin(angle) ** 2 / np.maximum(x, 1e-300))
    return float(x[np.searchsorted(mass, mass[-1] / 2)])
