"""Coordinates of a whole collection in memory: on the manifold's leading eigenvectors, U^T (x - mu), or on its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from manifold.eigen import descending_eigh
from manifold.errors import InputError
from manifold.gaussian import GaussianManifold
from manifold.precision import without_autocast

from .progress import Progress, silent
from .statistics import load_manifold
from .workspace import Workspace

__all__ = ["eigen_coordinates", "principal_scores", "rank_for"]

_VARIANCE_KEPT = 0.95
_RANKS = (16, 256)
_BATCH_BYTES = 64 * 2**20


def rank_for(manifold: GaussianManifold, asked: int | None = None) -> int:
    """How many leading coordinates stand for the whole: as many as hold 95 % of the variance, between 16 and 256.

    Raises: InputError if `asked`, which is taken as it is, does not lie between 1 and the manifold's k.
    """
    if asked is not None:
        if not 1 <= asked <= manifold.k:
            raise InputError(f"the rank must lie between 1 and the manifold's {manifold.k}, it is {asked}")
        return asked
    share = manifold.eigvals.double().cumsum(0) / manifold.total_variance
    needed = int(torch.searchsorted(share, torch.tensor(_VARIANCE_KEPT, dtype=share.dtype))) + 1
    least, most = _RANKS
    return min(max(needed, least), most, manifold.k)


@without_autocast
def eigen_coordinates(
    workspace: str | Path | Workspace, *, k: int | None = None, progress: Progress = silent
) -> Tensor:
    """Leading eigen-coordinates of every row.

    Arguments
        workspace: its folder, encoded and fitted; or opened.
        k: coordinates; see `rank_for` for how many unless given.
        progress: told of ("project", rows done, rows in all).

    Returns: (n, k) float32, in the order of the rows, largest variance first.

    Raises: InputError (no complete workspace, k out of range); NotFittedError (not fitted, or a stationary model);
        MismatchError; FormatError.

    Cost: one pass over the latents, n d k multiply-adds; n k floats in memory.
    """
    opened = workspace if isinstance(workspace, Workspace) else Workspace.open(workspace)
    opened.require_complete()
    manifold = load_manifold(opened)
    vectors = manifold.eigvecs
    used = vectors[:, : rank_for(manifold, k)].float()
    mean = manifold.mean.float()
    store = opened.latents
    coordinates = torch.empty(len(store), used.shape[1], dtype=torch.float32)
    done = 0
    progress("project", 0, len(store))
    for batch in store.batches(max(1, _BATCH_BYTES // (4 * store.d))):
        coordinates[done : done + len(batch)] = (torch.from_numpy(batch).float() - mean) @ used
        done += len(batch)
        progress("project", done, len(store))
    return coordinates


def principal_scores(rows: Tensor | np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of rows (n, d) on their own leading directions, (n, count), and the variances along them, (count,).

    float64, signs fixed. Cost: n d^2 + d^3 multiply-adds.
    """
    points = torch.as_tensor(rows).double()
    centred = points - points.mean(0)
    eigvals, eigvecs = descending_eigh(centred.T @ centred / len(points))
    return (centred @ eigvecs[:, :count]).numpy(), eigvals[:count].clamp_min(0).numpy()
