"""From streamed moments to a covariance model."""

from __future__ import annotations

from typing import Literal

import torch

from manifold.eigen import descending_eigh
from manifold.errors import InputError, NotFittedError
from manifold.moments import Moments

from .full import FullCovariance
from .lowrank import LowRankCovariance

__all__ = ["DEFAULT_RANK", "fit_covariance"]

DEFAULT_RANK = 256


def fit_covariance(
    moments: Moments,
    model: Literal["full", "lowrank"] = "full",
    rank: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> LowRankCovariance:
    """Covariance model of the rows seen so far (divisor n - 1).

    Arguments
        moments: at least two rows.
        model: "full" for all d eigenpairs, "lowrank" for the leading `rank` and an isotropic tail.
        rank: number of eigenpairs of "lowrank", 256 (or d, if smaller) by default.
        dtype: type of the model's tensors. The eigenproblem is solved in float64; float32 is what latents come in,
            halves the file, and keeps the eigenvectors orthonormal to 1e-6.

    Returns: the model, on the device of the moments.

    Raises: InputError; NotFittedError if fewer than two rows came.
    """
    if moments.count < 2:
        raise NotFittedError(f"a covariance needs at least 2 rows, {moments.count} came; encode more images")
    if model not in ("full", "lowrank"):
        raise InputError(f'model must be "full" or "lowrank", it is {model!r}')
    if rank is not None and not 1 <= rank <= moments.d:
        raise InputError(f"rank must lie between 1 and d = {moments.d}, it is {rank}")
    covariance = moments.covariance()
    total = float(covariance.diagonal().sum())
    eigvals, eigvecs = descending_eigh(covariance)
    mean = moments.mean.to(dtype)
    if model == "full":
        return FullCovariance(mean, eigvals.to(dtype), eigvecs.to(dtype), count=moments.count)
    k = min(DEFAULT_RANK, moments.d) if rank is None else rank
    tail_var = max(total - float(eigvals[:k].sum()), 0.0) / (moments.d - k) if k < moments.d else 0.0
    return LowRankCovariance(
        mean, eigvals[:k].to(dtype), eigvecs[:, :k].to(dtype).contiguous(), tail_var, count=moments.count
    )
