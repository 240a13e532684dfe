"""Gaussian log-likelihood of rows under a covariance model: the yardstick by which models are compared.

log p(x) = -1/2 (d log 2 pi + log det Sigma + |Sigma^(-1/2) (x - mean)|^2)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .covariance import CovarianceModel, LowRankCovariance
from .gaussian import GaussianManifold
from .rows import RowStore, as_rows

__all__ = ["EigenScore", "mean_log_likelihood"]

_BATCH_VALUES = 2**23


def mean_log_likelihood(model: CovarianceModel, store: RowStore) -> float:
    """Average of log p over the rows of a store, in nats a row, with the model in float64.

    Raises: InputError if the model has a direction without variance; ShapeError.

    Cost: one `apply` of the model for all rows.
    """
    wide = GaussianManifold(model.to(dtype=torch.float64))
    total = 0.0
    for batch in store.batches(max(1, _BATCH_VALUES // store.d)):
        rows = as_rows(batch, store.d).to(wide.mean.device).double()
        total += float(wide.log_prob(rows).sum())
    return total / len(store)


@dataclass(frozen=True)
class EigenScore:
    """Everything that the mean log-likelihood of some rows needs, for any rank and shrinkage of one decomposition.

    Attributes
        eigvals: (r,) variances of the model along its eigenvectors, descending.
        total: trace of the model.
        d: number of dimensions.
        projected: (r,) mean square of the rows' deviations along each eigenvector.
        square: mean squared length of the rows' deviations.
    """

    eigvals: Tensor
    total: float
    d: int
    projected: Tensor
    square: float

    @classmethod
    def of(cls, model: LowRankCovariance, store: RowStore) -> EigenScore:
        """Project the rows of a store on the eigenvectors of a model, once."""
        projected = torch.zeros(model.k, dtype=torch.float64, device=model.mean.device)
        square = 0.0
        for batch in store.batches(max(1, _BATCH_VALUES // store.d)):
            y = (as_rows(batch, store.d).to(model.mean.device).double() - model.mean.double()).to(model.mean.dtype)
            projected += (y @ model.eigvecs).double().square().sum(0)
            square += float(y.double().square().sum())
        eigvals = model.eigvals.double()
        total = float(eigvals.sum()) + (model.d - model.k) * float(model.tail_var)
        return cls(eigvals, total, model.d, projected / len(store), square / len(store))

    def mean_log_likelihood(self, rank: int, shrinkage: float) -> float:
        """In nats a row, keeping `rank` eigenvalues, the rest as a tail, all shrunk toward their mean."""
        average = self.total / self.d
        kept = (1 - shrinkage) * self.eigvals[:rank] + shrinkage * average
        misfit, log_det = float((self.projected[:rank] / kept).sum()), float(kept.log().sum())
        if rank < self.d:
            tail = (1 - shrinkage) * max(self.total - float(self.eigvals[:rank].sum()), 0.0) / (self.d - rank)
            tail += shrinkage * average
            # Round-off of float32 sums is all that a complete decomposition leaves; it is no variance.
            if tail <= 1e-9 * average:
                return -math.inf
            misfit += (self.square - float(self.projected[:rank].sum())) / tail
            log_det += (self.d - rank) * math.log(tail)
        score = -0.5 * (misfit + log_det + self.d * math.log(2 * math.pi))
        return score if math.isfinite(score) else -math.inf
