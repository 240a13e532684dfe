"""Recorded trajectories along eigenvectors, beside the closed form from the same noise.

    c_k(t) = u_k^T (x_t - alpha_t mu) / sqrt(alpha_t^2 + sigma_t^2)

On the variance-preserving scale a coefficient has about unit size where noise rules and sqrt(lambda_k) where data does.
For Gaussian data c_k(t) = c_k(T) sqrt(v_t / v_T) on that scale, with v = alpha^2 lambda_k + sigma^2.

Source: Wang & Vastola, arXiv 2303.02490 (trajectories in the eigenbasis).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError
from .gaussian import GaussianManifold
from .path_states import closed_form, flat_path, level_lists, variance_preserving
from .states import Levels

__all__ = ["ModePaths", "measure_mode_paths"]


@dataclass(frozen=True)
class ModePaths:
    """Coefficients by level, trajectory and direction, float64.

    Attributes
        modes: (m,) ranks of the eigenvectors, from 0.
        noise: (L,) sigma / alpha of the levels, infinite for pure noise.
        measured, gaussian: (L, n, m) of the recording, and of the closed form from the same x_T.
        agreement: (m,) share of the measured coefficients' sum of squares that the closed form explains,
            1 - |measured - gaussian|^2 / |measured|^2; 1 for Gaussian data, below 0 where it is no help.
    """

    modes: Tensor
    noise: Tensor
    measured: Tensor
    gaussian: Tensor
    agreement: Tensor


def measure_mode_paths(
    x_t: Tensor, alphas: Levels, sigmas: Levels, gaussian: GaussianManifold, modes: Sequence[int] = (0, 1, 2, 5, 10)
) -> ModePaths:
    """Project recorded states and their closed form on eigenvectors.

    Arguments
        x_t: (L, n, d) or (L, n, C, H, W) recorded states; x_t[0] is the noise x_T.
        alphas, sigmas: (L,), or (L - 1,) with a clean last state; see `manifold.path_states`.
        gaussian: of the data, with eigenvectors.
        modes: ranks from 0.

    Raises: ShapeError; NonFiniteError; NotFittedError for a model without eigenvectors; InputError for a rank out of range.

    Cost: two products of (L n, d) by (d, m), and one trajectory in closed form.
    """
    path = flat_path(x_t, least=2)
    alphas, sigmas = level_lists(alphas, sigmas, len(path), path.device)
    chosen = torch.tensor(list(modes), dtype=torch.int64, device=path.device)
    if not len(chosen) or int(chosen.min()) < 0 or int(chosen.max()) >= gaussian.k:
        raise InputError(f"modes must be ranks from 0 to {gaussian.k - 1}, they are {list(modes)}")
    noise = sigmas / alphas
    path, alphas, sigmas = variance_preserving(path, alphas, sigmas)
    theory = closed_form(gaussian, path[0], alphas, sigmas).x_t
    vectors, mean = gaussian.eigvecs.to(path)[:, chosen], gaussian.mean.to(path)

    def coefficients(states: Tensor) -> Tensor:
        return (states - alphas.to(path)[:, None, None] * mean) @ vectors

    measured, predicted = coefficients(path), coefficients(theory.to(path))
    error = (measured - predicted).square().sum((0, 1))
    agreement = 1 - error / measured.square().sum((0, 1)).clamp_min(torch.finfo(path.dtype).tiny)
    return ModePaths(chosen, noise, measured, predicted, agreement)
