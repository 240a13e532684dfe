"""Means over trajectories, with how far to trust them: the percentile bootstrap, expanded where they are few."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError

__all__ = ["Interval", "bootstrap_mean", "bootstrap_weights", "interval_tails"]


@dataclass(frozen=True)
class Interval:
    """A mean over trajectories and its bootstrap interval: `mean`, `low`, `high`, each of the shape of one trajectory."""

    mean: Tensor
    low: Tensor
    high: Tensor


def bootstrap_weights(n: int, draws: int, seed: int = 0) -> Tensor:
    """How often each of n trajectories is in each resample, (draws, n) float64; every row sums to n."""
    if n < 1 or draws < 1:
        raise InputError(f"a bootstrap needs at least one trajectory and one draw, it got {n} and {draws}")
    drawn = torch.randint(n, (draws, n), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(draws, n, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(draws, n, dtype=torch.float64))


def interval_tails(n: int, level: float = 0.95) -> tuple[float, float]:
    """The quantiles of resampled means of n >= 2 trajectories that an interval lies between.

    (1 - level) / 2 on either side would be too narrow where n is small: resampled means spread as sqrt((n - 1) / n) and
    normally, means about the truth by Student's t. So the tails are those beyond sqrt(n / (n - 1)) t(n - 1) of a normal.

    Source: Hesterberg, What teachers should know about the bootstrap, The American Statistician 69 (2015), on expanded
    percentiles.
    """
    from scipy.stats import norm, t

    tail = float(norm.cdf(((n / (n - 1)) ** 0.5) * t.ppf((1 - level) / 2, n - 1)))
    return tail, 1 - tail


def bootstrap_mean(values: Tensor, *, draws: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean over the last axis and an interval that covers the true mean with probability `level`, from resampled means.

    Arguments
        values: (..., n), one number a trajectory. NaN in any of them gives NaN there.
        draws: resamples. level: in (0, 1). seed: of the resamples.

    Returns: Interval with parts (...), float64. Its ends are means of resamples, so they stay within the values' range: of
        2, 3 or 4 normal values they cover the mean in 50, 75 and 87 % of cases at most. Of a single one they are NaN.

    Raises: InputError for a level out of range, no trajectory or no draw.

    Cost: one product of (draws, n) by (n, ...). Source: Efron, The Jackknife, the Bootstrap (1982), percentile method; for
    its tails see `interval_tails`.
    """
    if not 0 < level < 1:
        raise InputError(f"the level of an interval must lie between 0 and 1, it is {level}")
    values = values.double()
    weights = bootstrap_weights(values.shape[-1], draws, seed).to(values.device)
    means = values @ weights.T / values.shape[-1]
    if values.shape[-1] == 1:
        return Interval(values.mean(-1), *torch.full((2, *values.shape[:-1]), torch.nan).to(values))
    tails = torch.tensor(interval_tails(values.shape[-1], level), dtype=torch.float64, device=values.device)
    low, high = means.quantile(tails, dim=-1)
    return Interval(values.mean(-1), low, high)
