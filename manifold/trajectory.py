"""Whole trajectories of a Gaussian probability flow, and the plane in which they turn.

Every point of a trajectory is a filter of the same coordinates u = V^T (x_s - alpha_s mu) / sqrt(v_s), which would be white
noise if the model were true:

    x_t    = alpha_t mu + V diag(sqrt(v_t)) u                     v = alpha^2 lambda + sigma^2
    x0_hat = mu + V diag(alpha_t lambda / sqrt(v_t)) u

The 2 L filters are so much alike that far fewer products with V make all of them: see `manifold.filter_bank`.

Measured trajectories of a pipeline, to lay beside these, come from `record` (see `manifold.recording`).

Source: Wang & Vastola, arXiv 2303.02490 (rotation in the plane of x_0 and x_T) and arXiv 2412.09726.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .covariance import CovarianceModel
from .errors import InputError, ShapeError
from .filter_bank import filter_bank
from .recording import Recording, record
from .states import safe_ratio, safe_root

__all__ = ["Recording", "Rotation", "Trajectory", "record", "rotation", "sensitivity", "trajectory"]


@dataclass(frozen=True)
class Trajectory:
    """States and predicted targets at L levels: `x_t` and `x0_hat`, each (L, n, d) or (L, n, C, H, W)."""

    x_t: Tensor
    x0_hat: Tensor


@dataclass(frozen=True)
class Rotation:
    """How nearly trajectories turn in the plane of their two ends.

    A fit by two dimensions is almost automatic for a smooth path, so print a null beside any measured number; this is the
    prediction for a Gaussian.

    Attributes
        plane: (n, 2, d) orthonormal; the first along x_T, the second toward x_0.
        angle: (n,) between x_0 and x_T, radians.
        residual: (L, n) |x_t - (alpha_t x_0 + sigma_t x_T)| / |x_t|.
        outside: (n,) share of the trajectory's squared norm outside the plane.
    """

    plane: Tensor
    angle: Tensor
    residual: Tensor
    outside: Tensor


def trajectory(
    covariance: CovarianceModel, deviation: Tensor, a_s: Tensor, s_s: Tensor, alphas: Tensor, sigmas: Tensor
) -> Trajectory:
    """x_t and x0_hat at levels (L,), from deviations (n, d) at the level a_s, s_s of shape (1,) or (n, 1).

    Raises: ShapeError if the levels are not two lists of one length.

    Cost: as `filter_bank` of 2 L filters, in time and memory: 2 L n d values, and for 50 levels commonly a fifth (float32) to
        two fifths (float64) of that on the way.
    """
    if alphas.ndim != 1 or alphas.shape != sigmas.shape:
        raise ShapeError(
            f"alphas and sigmas must be two lists of one length, they are {tuple(alphas.shape)} and {tuple(sigmas.shape)}"
        )
    a_t, s_t = (one.to(deviation.device, torch.float64)[:, None] for one in (alphas, sigmas))

    def filters(v: Tensor) -> Tensor:
        now = safe_root(a_t**2 * v + s_t**2)
        return torch.cat([now, safe_ratio(a_t * v, now)])

    def start(v: Tensor) -> Tensor:
        before = safe_root(a_s**2 * v + s_s**2)
        return safe_ratio(torch.ones_like(before), before)

    shares = torch.cat([a_t[:, 0], torch.ones_like(a_t[:, 0])])
    return Trajectory(*filter_bank(covariance, filters, start, deviation, shares).chunk(2))


def sensitivity(covariance: CovarianceModel, a_s: Tensor, s_s: Tensor, a_t: Tensor, s_t: Tensor) -> Tensor:
    """Change of the state at level t along each eigenvector, per unit of change at level s: sqrt(v_t / v_s)."""
    v = covariance.eigvals
    return safe_root(safe_ratio(a_t**2 * v + s_t**2, a_s**2 * v + s_s**2))


def rotation(covariance: CovarianceModel, noise: Tensor, levels: int = 33) -> Rotation:
    """The plane of (x_0, x_T) for trajectories from pure noise (n, d), on the variance-preserving circle.

    alpha_t = cos(theta), sigma_t = sin(theta), theta from pi / 2 (pure noise) to 0.

    Raises: InputError for fewer than two levels, one of which would be noise and end at once.
    """
    if levels < 2:
        raise InputError(f"a trajectory has two ends, so at least 2 levels, it got {levels}")
    theta = torch.linspace(math.pi / 2, 0, levels, dtype=noise.dtype, device=noise.device)
    alphas, sigmas = theta.cos(), theta.sin()
    alphas[0], sigmas[0] = 0, 1
    one = torch.ones(1, dtype=noise.dtype, device=noise.device)
    path = trajectory(covariance, noise, 0 * one, one, alphas, sigmas).x_t
    x0 = path[-1]
    first = safe_ratio(noise, noise.norm(dim=1, keepdim=True))
    along = (x0 * first).sum(1, keepdim=True)
    rest = x0 - along * first
    height = rest.norm(dim=1, keepdim=True)
    plane = torch.stack([first, safe_ratio(rest, height)], 1)
    inside = torch.einsum("nid,lnd->lni", plane, path).square().sum((0, 2))
    chord = path - (alphas[:, None, None] * x0 + sigmas[:, None, None] * noise)
    return Rotation(
        plane=plane,
        angle=torch.atan2(height, along).squeeze(1),
        residual=safe_ratio(chord.norm(dim=2), path.norm(dim=2)),
        outside=(1 - inside / path.square().sum((0, 2))).clamp_min(0),
    )
