"""A Gaussian for each class: its own mean, and its own covariance or the one that all classes share.

Where every class cannot have a covariance of its own, all take the covariance within classes,

    S_within = S - sum_c n_c (m_c - m)(m_c - m)^T / (n - 1)

the total without what the class means alone spread. It follows from the fitted model and the means: within the model's own
directions exactly, and outside them the tail gives up its part evenly.

Source: linear discriminant analysis, Fisher (1936); the pooled estimate with the divisor of the total.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .covariance import CovarianceModel, FullCovariance, LowRankCovariance
from .eigen import descending_eigh
from .errors import InputError, MismatchError, NotFittedError
from .gaussian import GaussianManifold
from .mixture import GaussianMixture

__all__ = ["ClassGaussians", "within_classes"]


def within_classes(model: CovarianceModel, counts: Tensor, means: Tensor) -> CovarianceModel:
    """The covariance that is left of a fitted one when the spread of the class means is taken out.

    Arguments
        model: of all rows together. A stationary model has no place for the means of classes, and is returned as it is.
        counts: (c,) rows of each class; together the rows of the model.
        means: (c, d) mean of each class.

    Returns: a model of the same kind and mean. Variances that would come out negative, as they do beyond the model's
        directions by rounding, are zero.

    Raises: MismatchError if the means are of another length; NotFittedError with fewer than two rows.

    Cost: O(k^3 + c d k).
    """
    if means.shape != (len(counts), model.d):
        raise MismatchError(f"there must be {len(counts)} means of {model.d} values, they are {tuple(means.shape)}")
    if not isinstance(model, LowRankCovariance):
        return model
    n = int(counts.sum())
    if n < 2:
        raise NotFittedError(f"a covariance within classes needs at least 2 rows, there are {n}")
    weights = (counts.double() / (n - 1)).sqrt()
    centred = means.double() - (counts.double() @ means.double()) / n
    between = weights[:, None] * centred  # (c, d): S_between = between^T between
    inside = between @ model.eigvecs.double()
    kept = torch.diag(model.eigvals.double()) - inside.T @ inside
    eigvals, turned = descending_eigh(kept)
    eigvecs = (model.eigvecs.double() @ turned).to(model.eigvecs)
    eigvals = eigvals.clamp_min(0).to(model.eigvals)
    if isinstance(model, FullCovariance):
        return FullCovariance(model.mean, eigvals, eigvecs, count=model.count)
    outside = float(between.square().sum() - inside.square().sum())
    tail = float(model.tail_var) - outside / (model.d - model.k) if model.k < model.d else 0.0
    return LowRankCovariance(model.mean, eigvals, eigvecs, max(tail, 0.0), count=model.count)


@dataclass(frozen=True)
class ClassGaussians:
    """The Gaussians of the classes of one collection.

    Attributes
        labels: (c,) ascending.
        counts: (c,) rows of each class.
        means: (c, d) float64.
        pooled: whether all classes share one covariance.
        manifolds: one Gaussian for each label, as `ClassFlow` takes them.
    """

    labels: tuple[int, ...]
    counts: tuple[int, ...]
    means: Tensor
    pooled: bool
    manifolds: Mapping[int, GaussianManifold]

    def mixture(self) -> GaussianMixture:
        """The classes as components, weighted by their rows, in the order of `labels`; `ClassGuidance` takes it."""
        if not self.labels:
            raise InputError("there is no class to make a mixture of")
        components = [self.manifolds[label] for label in self.labels]
        return GaussianMixture(components, [float(count) for count in self.counts], shape=components[0].shape)

    @classmethod
    def sharing(
        cls, everything: GaussianManifold, labels: tuple[int, ...], counts: Tensor, means: Tensor, leave_out: int
    ) -> ClassGaussians:
        """Classes that share the covariance within classes.

        Arguments
            everything: fitted to all rows.
            labels, counts, means: of all groups of rows, as in `ClassMeans`.
            leave_out: label of rows without a class: they count for the covariance but are no class.

        Raises: as `within_classes`.
        """
        shared = within_classes(everything.covariance, counts, means)
        kept = [place for place, label in enumerate(labels) if label != leave_out]
        manifolds = {
            labels[place]: GaussianManifold(
                _moved(shared, means[place]), shape=everything.shape, count=int(counts[place]), metadata={}
            )
            for place in kept
        }
        return cls(tuple(manifolds), tuple(int(counts[place]) for place in kept), means[kept], True, manifolds)


def _moved(model: CovarianceModel, mean: Tensor) -> CovarianceModel:
    """The same covariance about another mean; the eigenvectors are shared, not copied."""
    moved = model.to()
    moved.mean = mean.to(model.mean)
    return moved
