"""The probability-flow ODE of any denoiser that has formulas but no closed solution: mixtures, the empirical optimum, guides.

On the circle alpha = cos(theta), sigma = sin(theta), an exponential integrator treats the linear part exactly, so pure noise
(alpha = 0) and no noise are ordinary points:

    x_t = (sigma_t / sigma_s) x_s + (alpha_t - alpha_s sigma_t / sigma_s) x0_hat

with x0_hat that of s (the deterministic DDIM step), then once more with the mean of both ends' (Heun).

Source: DDIM, arXiv 2010.02502; the second order as in DPM-Solver, arXiv 2206.00927, with data prediction.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from .denoiser import Denoiser
from .errors import InputError

__all__ = ["solve_flow"]


def solve_flow(
    denoiser: Denoiser,
    x_s: Tensor,
    alpha_s: float,
    sigma_s: float,
    alpha_t: float,
    sigma_t: float,
    steps: int = 64,
) -> Tensor:
    """The state at level t on the probability flow through x_s, by `steps` steps of second order.

    Arguments
        denoiser: such as a `GaussianMixture`; asked at levels with alpha^2 + sigma^2 = 1.
        x_s: (n, d) or (n, C, H, W) at level s.
        alpha_s, sigma_s, alpha_t, sigma_t: numbers, at least 0; both sigma above 0.
        steps: at least 1; the error falls with its square.

    Returns: x_t, of the shape, dtype and device of `x_s`. Raises: InputError for a level or number of steps out of range.

    Cost: 2 steps evaluations of the denoiser.
    """
    levels = alpha_s, sigma_s, alpha_t, sigma_t
    if steps < 1 or not min(sigma_s, sigma_t) > 0 or min(alpha_s, alpha_t) < 0 or not all(map(math.isfinite, levels)):
        raise InputError(
            f"a flow needs at least 1 step, alpha >= 0 and sigma > 0, both finite, at both ends; they are {steps} steps, "
            f"({alpha_s:g}, {sigma_s:g}) and ({alpha_t:g}, {sigma_t:g})"
        )
    first, last = math.atan2(sigma_s, alpha_s), math.atan2(sigma_t, alpha_t)
    angles = torch.linspace(first, last, steps + 1, dtype=torch.float64).tolist()
    state = x_s.float() if x_s.dtype in (torch.float16, torch.bfloat16) else x_s
    state = state / math.hypot(alpha_s, sigma_s)
    for now, then in itertools.pairwise(angles):
        here: Any = (_cosine(now), math.sin(now))
        there: Any = (_cosine(then), math.sin(then))
        kept = there[1] / here[1]
        gain = there[0] - here[0] * kept
        target = denoiser.denoise(state, *here)
        ahead = denoiser.denoise(kept * state + gain * target, *there)
        state = kept * state + 0.5 * gain * (target + ahead)
    return (state * math.hypot(alpha_t, sigma_t)).to(x_s)


def _cosine(angle: float) -> float:
    """Exactly 0 at pure noise: what divides by alpha must not take a rounding error for a signal."""
    cosine = math.cos(angle)
    return cosine if cosine > 1e-12 else 0.0
