"""How likely each image of a collection is under the collection's own Gaussian: what stands out comes last.

The density is that of the leading directions with an isotropic tail,

    log p(x) = log N(x; mu, U_r diag(lambda_r) U_r^T + tail (I - U_r U_r^T)),   tail = (trace - sum lambda_r) / (d - r)

because the trailing eigenvalues of a collection with few images are zero, or too small to divide by. A low value is far from
the mean, in units of what is usual along each direction; it says that an image is unusual, not that it is wrong.
In a collection of few images a strange one bends a direction toward itself and looks usual; a smaller `k` shows it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from manifold.covariance import LowRankCovariance
from manifold.errors import InputError
from manifold.gaussian import GaussianManifold

from .coordinates import rank_for
from .progress import Progress, silent
from .statistics import load_manifold
from .workspace import Workspace

__all__ = ["log_likelihoods"]

_BATCH_BYTES = 64 * 2**20
_LEAST_SHARE = 1e-6
"""Of the largest variance, below which one is rounding."""


def log_likelihoods(workspace: str | Path | Workspace, *, k: int | None = None, progress: Progress = silent) -> Tensor:
    """log p of every row, in nats.

    Arguments
        workspace: its folder, encoded and fitted; or opened.
        k: leading directions; see `index.coordinates.rank_for` for how many unless given.
        progress: told of ("likelihood", rows done, rows in all).

    Returns: (n,) float64, in the order of the rows.

    Raises: InputError (no complete workspace, k out of range, no variance left); NotFittedError; MismatchError; FormatError.

    Cost: one pass over the latents, 2 n d k multiply-adds.
    """
    opened = workspace if isinstance(workspace, Workspace) else Workspace.open(workspace)
    opened.require_complete()
    model = _leading(load_manifold(opened), k)
    store = opened.latents
    found = torch.empty(len(store), dtype=torch.float64)
    done = 0
    progress("likelihood", 0, len(store))
    for batch in store.batches(max(1, _BATCH_BYTES // (4 * store.d))):
        found[done : done + len(batch)] = model.log_prob(torch.from_numpy(batch).float()).double()
        done += len(batch)
        progress("likelihood", done, len(store))
    return found


def _leading(fitted: GaussianManifold, asked: int | None) -> GaussianManifold:
    """The manifold with its leading directions and one variance for all others."""
    model = fitted.covariance
    if not isinstance(model, LowRankCovariance):
        return fitted
    varying = int((model.eigvals > _LEAST_SHARE * model.eigvals[0]).sum())
    rank = rank_for(fitted, asked)
    if asked is None and varying <= rank < fitted.d:
        rank = max(1, varying // 2)  # a few images vary in fewer directions than usually stand for the whole
    kept, tail = model.eigvals[:rank], _tail(model, rank)
    if float(kept[-1]) <= 0 or (rank < fitted.d and tail <= 0):
        remedy = "ask for fewer" if rank > 1 else "add images with manifold add"
        raise InputError(f"the leading {rank} directions hold all of the variance, so no density exists; {remedy}")
    return GaussianManifold(
        LowRankCovariance(model.mean, kept, model.eigvecs[:, :rank], torch.tensor(tail, dtype=kept.dtype)),
        shape=fitted.shape,
        count=fitted.count,
    )


def _tail(model: LowRankCovariance, rank: int) -> float:
    """Variance along each direction beyond the leading `rank`."""
    beyond = float(model.eigvals[rank:].double().sum()) + (model.d - model.k) * float(model.tail_var)
    return beyond / max(model.d - rank, 1)
