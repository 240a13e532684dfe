"""The full covariance, as its complete eigendecomposition: low rank with nothing left over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from manifold.errors import ShapeError

from .lowrank import LowRankCovariance

__all__ = ["FullCovariance"]


class FullCovariance(LowRankCovariance):
    """All d eigenpairs: Sigma = V diag(lambda) V^T. `tail_var` is zero and acts on nothing.

    Arguments
        mean: (d,) mean.
        eigvals: (d,) variances, descending.
        eigvecs: (d, d) orthonormal columns.
        count: number of rows the estimate rests on, where known.

    Raises: ShapeError; NonFiniteError and NotPSDError as for LowRankCovariance.
    """

    model = "full"

    def __init__(self, mean: Tensor, eigvals: Tensor, eigvecs: Tensor, *, count: int | None = None) -> None:
        if eigvals.numel() != mean.numel():
            raise ShapeError(f"a full model needs {mean.numel()} eigenvalues, it got {eigvals.numel()}")
        super().__init__(mean, eigvals, eigvecs, 0.0, count=count)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], path: Path) -> FullCovariance:
        """Build the model from what `save` wrote. Raises: FormatError naming the file if a tensor is missing."""
        found = LowRankCovariance.from_tensors(tensors, path)
        return cls(found.mean, found.eigvals, found.eigvecs, count=found.count)
