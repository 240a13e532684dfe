"""How flat a trajectory is: the share of its variance in its own first principal components.

Each trajectory is centred on its own mean over the levels and has its own components, so nothing is shared between
trajectories. A share near 1 in two components is almost automatic for any smooth path; so the Gaussian solution from the
same noise, and random smooth paths of the same ends, length and pace, are measured alike. All are taken on the
variance-preserving scale, x_t / sqrt(alpha^2 + sigma^2): otherwise the size of the noise alone decides.

Source: Wang & Vastola, arXiv 2303.02490 (trajectories are low-dimensional).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError, ShapeError
from .gaussian import GaussianManifold
from .nulls import smooth_path
from .path_states import closed_form, flat_path, level_lists, variance_preserving
from .states import Levels

__all__ = ["PathPCA", "measure_path_pca", "path_explained"]


@dataclass(frozen=True)
class PathPCA:
    """Cumulative share of each trajectory's variance in its first 1, 2, ..., m components; each part (n, m) float64.

    Attributes
        measured: of the recorded trajectories.
        gaussian: of the closed form from the same x_T.
        null: of random smooth paths with the same ends, length and pace.
        shuffled: of trajectories recorded with shuffled weights, where given.
    """

    measured: Tensor
    gaussian: Tensor
    null: Tensor
    shuffled: Tensor | None = None


def path_explained(x_t: Tensor, components: int = 2) -> Tensor:
    """Cumulative share of variance in the first components of each trajectory, (n, m) float64.

    Arguments
        x_t: (L, n, d) or (L, n, C, H, W), L >= 2.
        components: at least 1; m is at most min(L - 1, d), beyond which the share is 1.

    Raises: InputError without a component, or naming a trajectory that does not move; ShapeError; NonFiniteError.

    Cost: L^2 d multiply-adds and one eigendecomposition of (L, L) for each trajectory; exact.
    """
    if components < 1:
        raise InputError(f"the number of components must be at least 1, it is {components}")
    path = flat_path(x_t, least=2)
    levels, n, d = path.shape
    found = []
    for number in range(n):
        # Levels are few and dimensions many: the (L, L) matrix of inner products has the same non-zero spectrum.
        centred = path[:, number] - path[:, number].mean(0)
        variances = torch.linalg.eigvalsh(centred @ centred.T).flip(0).clamp_min(0)
        if not float(variances.sum()) > 0:
            raise InputError(f"a trajectory must move to have components, trajectory {number} does not")
        found.append(variances.cumsum(0)[: min(components, levels - 1, d)] / variances.sum())
    return torch.stack(found)


def measure_path_pca(
    x_t: Tensor,
    alphas: Levels,
    sigmas: Levels,
    gaussian: GaussianManifold,
    *,
    components: int = 5,
    shuffled: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> PathPCA:
    """Flatness of recorded trajectories beside the Gaussian's and a random smooth path's.

    Arguments
        x_t: (L, n, d) or (L, n, C, H, W) recorded states; x_t[0] is the noise x_T.
        alphas, sigmas: (L,) levels of `x_t`.
        gaussian: of the data.
        components: m; see `path_explained`.
        shuffled: states recorded with `manifold.nulls.shuffled_network`, at the same levels.
        generator: of the null.

    Returns: PathPCA. Raises: as `path_explained`. Cost: three or four times that of `path_explained`.
    """
    path = flat_path(x_t, least=2)
    alphas, sigmas = level_lists(alphas, sigmas, len(path), path.device)
    if shuffled is not None:
        shuffled = flat_path(shuffled, "shuffled", least=2)
        if len(shuffled) != len(path):
            raise ShapeError(f"shuffled must have the {len(path)} levels of x_t, it has {len(shuffled)}")
        shuffled = variance_preserving(shuffled, alphas, sigmas)[0]
    path, alphas, sigmas = variance_preserving(path, alphas, sigmas)
    return PathPCA(
        measured=path_explained(path, components),
        gaussian=path_explained(closed_form(gaussian, path[0], alphas, sigmas).x_t, components),
        null=path_explained(smooth_path(path, generator), components),
        shuffled=None if shuffled is None else path_explained(shuffled, components),
    )
