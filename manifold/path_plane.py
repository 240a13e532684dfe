"""A trajectory drawn in the plane in which it is flattest: its own first two principal components.

Centred on its own mean over the levels, as in `path_pca`, and on the variance-preserving scale x_t / sqrt(alpha^2 + sigma^2).
The Gaussian solution from the same noise and a random smooth path between the same ends are projected onto the recorded
trajectory's plane, not their own: what they do outside it is not seen.

Source: Wang & Vastola, arXiv 2303.02490 (trajectories are low-dimensional).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError
from .gaussian import GaussianManifold
from .nulls import smooth_path
from .path_states import closed_form, flat_path, level_lists, variance_preserving
from .states import Levels

__all__ = ["PathPlane", "measure_path_plane"]


@dataclass(frozen=True)
class PathPlane:
    """Coordinates along a trajectory's first and second component; each part (L, n, 2) float64, latent units.

    Attributes
        measured: of the recorded trajectories: they move toward larger first coordinates, and their largest second one is
            positive.
        gaussian: of the closed form from the same x_T, in the same planes.
        null: of random smooth paths with the same ends, length and pace, in the same planes.
    """

    measured: Tensor
    gaussian: Tensor
    null: Tensor


def measure_path_plane(
    x_t: Tensor,
    alphas: Levels,
    sigmas: Levels,
    gaussian: GaussianManifold,
    *,
    generator: torch.Generator | None = None,
) -> PathPlane:
    """Recorded trajectories in their own planes, with the Gaussian's and a random smooth path's.

    Arguments
        x_t: (L, n, d) or (L, n, C, H, W) recorded states, L >= 3 and d >= 2; x_t[0] is the noise x_T.
        alphas, sigmas: (L,) levels of `x_t`.
        gaussian: of the data.
        generator: of the null.

    Returns: PathPlane.

    Raises: ShapeError; NonFiniteError; InputError for levels out of range.

    Cost: one singular value decomposition (L, d) for each trajectory; exact, in float64.
    """
    path = flat_path(x_t, least=3)
    if path.shape[2] < 2:
        raise InputError("a plane needs states of at least 2 values, they have 1")
    alphas, sigmas = level_lists(alphas, sigmas, len(path), path.device)
    path, alphas, sigmas = variance_preserving(path, alphas, sigmas)
    center = path.mean(0)
    planes = torch.stack([_plane(path[:, number] - center[number]) for number in range(path.shape[1])])

    def seen(states: Tensor) -> Tensor:
        return torch.einsum("lnd,nkd->lnk", states - center, planes)

    return PathPlane(
        measured=seen(path),
        gaussian=seen(closed_form(gaussian, path[0], alphas, sigmas).x_t),
        null=seen(smooth_path(path, generator)),
    )


def _plane(centred: Tensor) -> Tensor:
    """The first two components (2, d) of one trajectory (L, d), with their signs fixed."""
    _, _, components = torch.linalg.svd(centred, full_matrices=False)
    first, second = components[0], components[1]
    if float((centred[-1] - centred[0]) @ first) < 0:
        first = -first
    heights = centred @ second
    if float(heights[heights.abs().argmax()]) < 0:
        second = -second
    return torch.stack([first, second])
