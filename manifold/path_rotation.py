"""How nearly a recorded trajectory turns from its noise to its sample in the plane of the two.

The rotation formula has x_t = alpha_t x_0 + sigma_t x_T with x_T pure noise. A sampler's first and last levels need not be
pure noise and pure signal; with X_T and X_0 the recorded ends, at (alpha_T, sigma_T) and (alpha_0, sigma_0), it becomes

    x_t = a* X_0 + b* X_T,   a* = (alpha_t sigma_T - sigma_t alpha_T) / D,   b* = (sigma_t alpha_0 - alpha_t sigma_0) / D

with D = alpha_0 sigma_T - sigma_0 alpha_T, which is exact at both ends. Beside it stands the best fit of a and b at each
level. Both ends lie in the plane by construction, so a small residual means little by itself: the Gaussian solution from
the same x_T and a random smooth path between the same ends are fitted alike, all on the variance-preserving scale
x_t / sqrt(alpha^2 + sigma^2). Shares and angles do not depend on it, but a smooth path between the ends does.

Source: Wang & Vastola, arXiv 2303.02490, the rotation formula.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError
from .gaussian import GaussianManifold
from .nulls import smooth_path
from .path_states import closed_form, flat_path, level_lists, variance_preserving
from .states import Levels, safe_ratio

__all__ = ["PathRotation", "RotationFit", "measure_path_rotation", "rotation_fit"]


@dataclass(frozen=True)
class RotationFit:
    """One set of trajectories in the planes of their own two ends; each part (L, n) float64.

    Attributes
        signal, noise: coefficients a, b of the best fit x_t ~ a X_0 + b X_T. Where the ends are parallel, a is 0.
        residual: share of |x_t|^2 outside the plane.
        formula_residual: |x_t - a* X_0 - b* X_T|^2 / |x_t|^2, without a fitted number.
        angle: of x_t in the plane, from X_T toward X_0, radians.
        formula_angle: of a* X_0 + b* X_T in the same plane.
    """

    signal: Tensor
    noise: Tensor
    residual: Tensor
    formula_residual: Tensor
    angle: Tensor
    formula_angle: Tensor


@dataclass(frozen=True)
class PathRotation:
    """Recorded trajectories, the Gaussian's from the same x_T, and random smooth paths between the same ends.

    Attributes
        alphas, sigmas: (L,) levels on the variance-preserving scale, alpha^2 + sigma^2 = 1.
        formula_signal, formula_noise: (L,) a* and b*.
        measured, gaussian, null: the fits.
    """

    alphas: Tensor
    sigmas: Tensor
    formula_signal: Tensor
    formula_noise: Tensor
    measured: RotationFit
    gaussian: RotationFit
    null: RotationFit


def rotation_fit(x_t: Tensor, alphas: Levels, sigmas: Levels) -> RotationFit:
    """Fit each level of each trajectory by its two ends.

    Arguments
        x_t: (L, n, d) or (L, n, C, H, W), L >= 3; X_T = x_t[0] and X_0 = x_t[-1].
        alphas, sigmas: (L,).

    Returns: RotationFit.

    Raises: ShapeError; NonFiniteError; InputError if both ends are at one signal-to-noise ratio.

    Cost: 4 L n d multiply-adds; exact, in float64.
    """
    path = flat_path(x_t, least=3)
    alphas, sigmas = level_lists(alphas, sigmas, len(path), path.device)
    a, b = _formula(alphas, sigmas)
    x_T, x_0 = path[0], path[-1]
    radius = x_T.norm(dim=1)
    first = safe_ratio(x_T, radius[:, None].expand_as(x_T))
    along = (x_0 * first).sum(1)
    rest = x_0 - along[:, None] * first
    # Twice is enough: at a small angle one projection leaves round-off along x_T.
    rest = rest - (rest * first).sum(1, keepdim=True) * first
    height = rest.norm(dim=1)
    height = torch.where(height > 1e-12 * x_0.norm(dim=1), height, torch.zeros_like(height))
    second = safe_ratio(rest, height[:, None].expand_as(rest))
    across = torch.stack([(path * first).sum(2), (path * second).sum(2)])
    inside = across[0][..., None] * first + across[1][..., None] * second
    size = path.square().sum(2)
    signal = safe_ratio(across[1], height.expand_as(across[1]))
    turned = a[:, None] * along + b[:, None] * radius, a[:, None] * height
    return RotationFit(
        signal=signal,
        noise=safe_ratio(across[0] - signal * along, radius.expand_as(signal)),
        residual=safe_ratio((path - inside).square().sum(2), size),
        formula_residual=safe_ratio(
            (path - a[:, None, None] * x_0 - b[:, None, None] * x_T).square().sum(2),
            size,
        ),
        angle=torch.atan2(across[1], across[0]),
        formula_angle=torch.atan2(turned[1], turned[0]),
    )


def measure_path_rotation(
    x_t: Tensor,
    alphas: Levels,
    sigmas: Levels,
    gaussian: GaussianManifold,
    *,
    generator: torch.Generator | None = None,
) -> PathRotation:
    """Rotation of recorded trajectories beside the Gaussian's and a random smooth path's.

    Arguments
        x_t, alphas, sigmas: as `rotation_fit`.
        gaussian: of the data.
        generator: of the null.

    Returns: PathRotation. Raises, Cost: as `rotation_fit`, three times.
    """
    path = flat_path(x_t, least=3)
    alphas, sigmas = level_lists(alphas, sigmas, len(path), path.device)
    path, alphas, sigmas = variance_preserving(path, alphas, sigmas)
    a, b = _formula(alphas, sigmas)
    return PathRotation(
        alphas=alphas,
        sigmas=sigmas,
        formula_signal=a,
        formula_noise=b,
        measured=rotation_fit(path, alphas, sigmas),
        gaussian=rotation_fit(closed_form(gaussian, path[0], alphas, sigmas).x_t, alphas, sigmas),
        null=rotation_fit(smooth_path(path, generator), alphas, sigmas),
    )


def _formula(alphas: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
    scale = alphas[-1] * sigmas[0] - sigmas[-1] * alphas[0]
    if not float(scale) > 0:
        raise InputError(
            "a trajectory must end at less noise than it starts, its ends have (alpha, sigma) "
            f"({float(alphas[0]):.4g}, {float(sigmas[0]):.4g}) and ({float(alphas[-1]):.4g}, {float(sigmas[-1]):.4g})"
        )
    return (alphas * sigmas[0] - sigmas * alphas[0]) / scale, (sigmas * alphas[-1] - alphas * sigmas[-1]) / scale
