"""Means over trajectories, with how far to trust them: the percentile bootstrap."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError

__all__ = ["Interval", "bootstrap_mean", "bootstrap_weights"]


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


def bootstrap_mean(values: Tensor, *, draws: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean over the last axis and the central `level` of the means of resampled trajectories.

    Arguments
        values: (..., n), one number a trajectory. NaN in any of them gives NaN there.
        draws: resamples. level: in (0, 1). seed: of the resamples.

    Returns: Interval with parts (...), float64.

    Raises: InputError for a level out of range, no trajectory or no draw.

    Cost: one product of (draws, n) by (n, ...). Source: Efron, The Jackknife, the Bootstrap (1982), percentile method.
    """
    if not 0 < level < 1:
        raise InputError(f"the level of an interval must lie between 0 and 1, it is {level}")
    values = values.double()
    weights = bootstrap_weights(values.shape[-1], draws, seed).to(values.device)
    means = values @ weights.T / values.shape[-1]
    tail = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64, device=values.device)
    low, high = means.quantile(tail, dim=-1)
    return Interval(values.mean(-1), low, high)
