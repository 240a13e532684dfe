"""The forward process of a clean latent, x_t = alpha x0 + sigma eps, repeatable: the noise comes from a seed.

Along a path of levels the noise eps stays the same, as it does along a sampler's trajectory, so that neighbouring levels show
the same state with more or less of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError
from .gaussian import GaussianManifold
from .states import Levels

__all__ = ["Decided", "decided", "noise_levels", "noised", "noised_path"]


def noise_levels(high: float = 100.0, low: float = 0.01, steps: int = 49) -> tuple[float, ...]:
    """Noise levels sigma / alpha, falling by equal factors from `high` to `low`, rounded to three digits.

    Raises: InputError unless high > low > 0 and there are at least two steps.
    """
    if not math.inf > high > low > 0 or steps < 2:
        raise InputError(f"noise levels fall from high to low > 0 in 2 steps or more, they are {high}, {low}, {steps}")
    factor = (low / high) ** (1 / (steps - 1))
    return tuple(float(f"{high * factor**step:.3g}") for step in range(steps))


def noised(x0: Tensor, alpha: float, sigma: float, seed: int = 0) -> Tensor:
    """alpha x0 + sigma eps with eps ~ N(0, I) from the seed: (n, ...), float32, on the device of `x0`."""
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return alpha * x0.float() + sigma * eps.to(x0.device)


def noised_path(x0: Tensor, alphas: Levels, sigmas: Levels, seed: int = 0) -> Tensor:
    """The same noise at every level (L,): (L, n, ...), float32. Raises: InputError if the lists differ in length."""
    a, s = (torch.as_tensor(one, dtype=torch.float64).tolist() for one in (alphas, sigmas))
    if len(a) != len(s):
        raise InputError(f"alphas and sigmas must be of one length, they have {len(a)} and {len(s)}")
    return torch.stack([noised(x0, alpha, sigma, seed) for alpha, sigma in zip(a, s, strict=True)])


@dataclass(frozen=True)
class Decided:
    """How far a noise level has decided the eigen-directions, for Gaussian data.

    Attributes
        shares: (k,) share of its final value that x0_hat has reached along each, 1 / sqrt(1 + (sigma / alpha)^2 / lambda_k).
        count: directions that have reached one half.
        variance: share of the total variance that those directions hold.
    """

    shares: Tensor
    count: int
    variance: float


def decided(manifold: GaussianManifold, alpha: float, sigma: float) -> Decided:
    """What is decided at a noise level; see `GaussianManifold.emergence` for the level of each direction.

    Raises: InputError unless alpha > 0 and sigma >= 0.

    Source: Wang & Vastola, arXiv 2303.02490.
    """
    a, s = float(alpha), float(sigma)
    if not (a > 0 and s >= 0 and math.isfinite(a + s)):
        raise InputError(f"alpha must be above 0 and sigma at least 0, they are {a} and {s}")
    eigvals = manifold.eigvals.double().clamp_min(0)
    noise = (s / a) ** 2
    shares = (eigvals / (eigvals + noise)).sqrt() if noise else torch.ones_like(eigvals)
    half = shares >= 0.5
    total = manifold.total_variance
    return Decided(shares, int(half.sum()), float(eigvals[half].sum()) / total if total else 1.0)
