"""Recorded trajectories as the analyses take them: flat, in float64, with their levels.

A recording of a sampler is x_t (L, n, d) or (L, n, C, H, W) at L levels alphas, sigmas, from the noisiest to the last, and
x0_hat (L - 1, ...), the prediction that led from each level to the next. All states are on the scale
x_t = alpha x0 + sigma eps, so a sampler that scales its states otherwise is recorded after scaling back.

`manifold.recording.Recording` lists the levels at which the network was asked, L - 1 of them. The last state's level is then
taken to be (1, 0), a clean latent, where most samplers end; one that stops short of it is given all L levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import InputError, NonFiniteError, ShapeError
from .gaussian import GaussianManifold
from .states import Levels
from .trajectory import Trajectory

__all__ = ["closed_form", "flat_path", "flat_targets", "level_lists", "variance_preserving"]


def flat_path(path: Tensor, name: str = "x_t", *, least: int = 1) -> Tensor:
    """The recording as (L, n, d) float64, on its own device.

    Raises: ShapeError unless it is (L, n, d) or (L, n, C, H, W) with at least `least` levels and one trajectory;
        NonFiniteError naming the first level with NaN or infinity.
    """
    if path.ndim not in (3, 5) or len(path) < least or path.shape[1] < 1:
        raise ShapeError(
            f"{name} must be (levels, n, d) or (levels, n, C, H, W) with at least {least} levels and one trajectory, "
            f"it is {tuple(path.shape)}"
        )
    flat = path.flatten(2).double()
    finite = flat.isfinite().all(2).all(1)
    if not bool(finite.all()):
        raise NonFiniteError(f"{name} has NaN or infinity at level {int(finite.int().argmin())}; record it again")
    return flat


def flat_targets(x0_hat: Tensor, path: Tensor) -> Tensor:
    """Predictions made on the way, (L - 1, n, d) float64, beside the flat path (L, n, d).

    Raises: ShapeError unless they fit; NonFiniteError as `flat_path`.
    """
    targets = flat_path(x0_hat, "x0_hat")
    if targets.shape != (len(path) - 1, *path.shape[1:]):
        raise ShapeError(
            f"x0_hat must be one level shorter than x_t and like it otherwise, they are {tuple(targets.shape)} and "
            f"{tuple(path.shape)} when flat"
        )
    return targets


def level_lists(
    alphas: Levels, sigmas: Levels, length: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Both lists of levels as (L,) float64; a list of L - 1 ends at the clean latent, (1, 0).

    Raises: ShapeError; InputError for a level that is negative or not finite.
    """
    pair = [torch.as_tensor(one, dtype=torch.float64, device=device) for one in (alphas, sigmas)]
    if pair[0].shape == pair[1].shape == (length - 1,):
        pair = [torch.cat([one, one.new_tensor([end])]) for one, end in zip(pair, (1.0, 0.0), strict=True)]
    for name, one in zip(("alphas", "sigmas"), pair, strict=True):
        if one.shape != (length,):
            raise ShapeError(
                f"{name} must hold one number for each of the {length} levels of x_t, it has shape {tuple(one.shape)}"
            )
        if not bool(((one >= 0) & one.isfinite()).all()):
            raise InputError(f"{name} must be finite and at least 0, the lowest is {float(one.min())}")
    return pair[0], pair[1]


def variance_preserving(path: Tensor, alphas: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """States and levels divided by sqrt(alpha^2 + sigma^2), so that noise and unit-variance signal have one size.

    The shape of a path is asked for on this scale: in variance-exploding coordinates it is nearly a straight line, along
    the noise, whatever the sampler did.

    Raises: InputError naming a level with alpha = sigma = 0.
    """
    scale = torch.hypot(alphas, sigmas)
    if not bool((scale > 0).all()):
        raise InputError(f"alpha and sigma must not both be 0, they are at level {int((scale > 0).int().argmin())}")
    return path / scale[:, None, None], alphas / scale, sigmas / scale


def closed_form(gaussian: GaussianManifold, x_T: Tensor, alphas: Tensor, sigmas: Tensor) -> Trajectory:
    """The Gaussian probability flow from the recording's own first states: x_t and x0_hat, (L, n, d) float64.

    Raises: ShapeError if the states do not have the manifold's d values.
    """
    path = gaussian.trajectory(x_T, float(alphas[0]), float(sigmas[0]), alphas, sigmas)
    return Trajectory(path.x_t.double(), path.x0_hat.double())
