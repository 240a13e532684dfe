"""How well the closed form, started from the same noise, follows a recorded trajectory, level by level.

States are compared as deviations from the mean that both share, x_t - alpha mu and x0_hat - mu: a common mean image would
make any two trajectories look alike. The null compares each trajectory with the closed form from another one's noise.

Source: Wang & Vastola, arXiv 2412.09726 (early sampling is Gaussian).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .gaussian import GaussianManifold
from .nulls import derangement
from .path_states import closed_form, flat_path, flat_targets, level_lists
from .states import Levels

__all__ = ["Agreement", "Alignment", "measure_alignment"]


@dataclass(frozen=True)
class Agreement:
    """Recorded against predicted, both about the mean; each part (levels, n) float64.

    Attributes
        cosine: between the two; the prediction for Gaussian data is 1.
        distance: |recorded - predicted| / |predicted - mean|; the prediction for Gaussian data is 0.

    NaN where the closed form is at the mean itself (x0_hat of pure noise).
    """

    cosine: Tensor
    distance: Tensor


@dataclass(frozen=True)
class Alignment:
    """Agreement of recorded states and predictions with the closed form from the same x_T, and from another's.

    Attributes
        alphas, sigmas: (L,) levels.
        state, null_state: (L, n), of x_t.
        target, null_target: (L - 1, n), of x0_hat at the first L - 1 levels.
    """

    alphas: Tensor
    sigmas: Tensor
    state: Agreement
    target: Agreement
    null_state: Agreement
    null_target: Agreement


def measure_alignment(
    x_t: Tensor,
    x0_hat: Tensor,
    alphas: Levels,
    sigmas: Levels,
    gaussian: GaussianManifold,
    *,
    generator: torch.Generator | None = None,
) -> Alignment:
    """Compare recorded x_t and x0_hat with the closed form at every level.

    Arguments
        x_t: (L, n, d) or (L, n, C, H, W), n >= 2.
        x0_hat: (L - 1, n, ...), the predictions made at the first L - 1 levels.
        alphas, sigmas: (L,).
        gaussian: of the data.
        generator: of the permutation in the null.

    Returns: Alignment.

    Raises: ShapeError; NonFiniteError; InputError with fewer than two trajectories or a level out of range.

    Cost: one closed-form trajectory and 6 L n d multiply-adds.
    """
    path = flat_path(x_t, least=2)
    targets = flat_targets(x0_hat, path)
    alphas, sigmas = level_lists(alphas, sigmas, len(path), path.device)
    other = derangement(path.shape[1], generator).to(path.device)
    predicted = closed_form(gaussian, path[0], alphas, sigmas)
    mean = gaussian.mean.to(path)
    centres = alphas[:, None, None] * mean
    state, state_hat = path - centres, predicted.x_t - centres
    target, target_hat = targets - mean, predicted.x0_hat[:-1] - mean
    return Alignment(
        alphas=alphas,
        sigmas=sigmas,
        state=_agreement(state, state_hat),
        target=_agreement(target, target_hat),
        null_state=_agreement(state, state_hat[:, other]),
        null_target=_agreement(target, target_hat[:, other]),
    )


def _agreement(recorded: Tensor, predicted: Tensor) -> Agreement:
    size = predicted.norm(dim=2)
    size = torch.where(size > 0, size, torch.full_like(size, torch.nan))
    return Agreement(
        cosine=(recorded * predicted).sum(2) / (size * recorded.norm(dim=2)),
        distance=(recorded - predicted).norm(dim=2) / size,
    )
