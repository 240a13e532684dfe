"""Data as a mixture of Gaussians: the denoiser of clustered data, in closed form.

    p(x_t) = sum_j pi_j N(x_t; alpha mu_j, alpha^2 Sigma_j + sigma^2 I)
    r_j    = softmax_j(log pi_j + log N_j(x_t)),     x0_hat = sum_j r_j x0_hat_j

with x0_hat_j the Wiener filter of component j. Responsibilities are formed from logarithms summed in float64, so they are
finite at every noise level: they go to the weights pi as sigma grows, and to one component as it vanishes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from .covariance import CovarianceModel, fit_covariance
from .errors import InputError, MismatchError, NotFittedError
from .gaussian import GaussianManifold
from .moments import Moments
from .states import Level, flat_states, level_pair, like, safe_ratio

__all__ = ["GaussianMixture"]


class GaussianMixture:
    """J Gaussians with their weights.

    Arguments
        components: covariance models (with their means) or manifolds, of one dimension.
        weights: (J,) positive; brought to sum 1. Equal by default.
        shape: (C, H, W) of a latent, where known.

    Raises: InputError for no components or wrong weights; MismatchError if their dimensions differ.

    Source: arXiv 2412.09726 (Gaussian mixture scores).
    """

    def __init__(
        self,
        components: Sequence[CovarianceModel | GaussianManifold],
        weights: Tensor | Sequence[float] | None = None,
        *,
        shape: tuple[int, int, int] | None = None,
    ) -> None:
        if not components:
            raise InputError("a mixture needs at least one component, none came")
        self.components = tuple(one.covariance if isinstance(one, GaussianManifold) else one for one in components)
        dimensions = {one.d for one in self.components}
        if len(dimensions) > 1:
            raise MismatchError(f"the components must have one dimension, they have {sorted(dimensions)}")
        reference = self.components[0].mean
        given = torch.ones(len(components)) if weights is None else torch.as_tensor(weights, dtype=torch.float64)
        given = given.to(reference.device, torch.float64)
        if given.shape != (len(components),) or not bool((given > 0).all() & given.isfinite().all()):
            raise InputError(f"weights must be {len(components)} positive numbers, they are {given.tolist()}")
        self.weights = given / given.sum()
        self.shape = shape

    @classmethod
    def from_moments(
        cls,
        moments: Sequence[Moments],
        *,
        rank: int | None = None,
        shrinkage: float = 0.0,
        shape: tuple[int, int, int] | None = None,
    ) -> Self:
        """One component per class, from its moments; weights are the shares of rows.

        Arguments
            moments: one a class, at least two rows each.
            rank: eigenpairs to keep; all by default.
            shrinkage: toward equal variances, for classes with fewer rows than dimensions; see `fit_covariance`.

        Raises: NotFittedError naming the class with fewer than two rows; InputError.
        """
        for number, one in enumerate(moments):
            if one.count < 2:
                raise NotFittedError(
                    f"class {number} has {one.count} rows, a covariance needs at least 2; leave it out"
                )
        components = [
            fit_covariance(one, "full" if rank is None else "lowrank", rank, shrinkage=shrinkage) for one in moments
        ]
        return cls(components, [float(one.count) for one in moments], shape=shape)

    @property
    def d(self) -> int:
        """Values per latent."""
        return self.components[0].d

    def responsibilities(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """p(j | x_t), (n, J) float64.

        Arguments
            x_t: (n, d) or (n, C, H, W).
            alpha, sigma: >= 0, not both 0; number, () or (n,).

        Raises: ShapeError; InputError for a level out of range, or without density (sigma = 0 and a flat direction).

        Cost: two products of (n, d) by (d, k) for each component.
        """
        return self.log_responsibilities(x_t, alpha, sigma).exp()

    def log_responsibilities(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """log p(j | x_t), (n, J) float64; where the responsibility itself would be 0, this still tells by how much."""
        return self._log_joint(x_t, alpha, sigma)[0].log_softmax(1)

    def log_prob(self, x_t: Tensor, alpha: Level = 1.0, sigma: Level = 0.0) -> Tensor:
        """log p(x_t) in nats, (n,) float64. Raises, Cost: as `responsibilities`."""
        return self._log_joint(x_t, alpha, sigma)[0].logsumexp(1)

    def denoise(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """Posterior mean of x0: the components' Wiener filters, weighted by their responsibilities.

        Returns: of the shape, dtype and device of `x_t`. Raises: as `responsibilities`.

        Cost: three products of (n, d) by (d, k) for each component, J n d values in memory; exact.
        """
        log_joint, _, targets = self._log_joint(x_t, alpha, sigma, targets=True)
        return self._weighted(log_joint, targets, x_t)

    def score(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """Gradient of log p(x_t): the components' scores, weighted by their responsibilities. As `denoise`."""
        log_joint, solutions, _ = self._log_joint(x_t, alpha, sigma)
        return -self._weighted(log_joint, solutions, x_t)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws of x0, (n, C, H, W) where the shape is known, else (n, d)."""
        chosen = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        reference = self.components[0].mean
        drawn = torch.empty(n, self.d, dtype=reference.dtype, device=reference.device)
        for number, component in enumerate(self.components):
            place = (chosen == number).nonzero()[:, 0]
            drawn[place] = component.sample(len(place), generator)
        return drawn if self.shape is None else drawn.view(n, *self.shape)

    def _weighted(self, log_joint: Tensor, parts: list[Tensor], x_t: Tensor) -> Tensor:
        shares = log_joint.softmax(1)
        total = torch.zeros_like(parts[0])
        for number, part in enumerate(parts):
            total.addcmul_(shares[:, number, None].to(part), part)
        return like(total, x_t)

    def _log_joint(
        self, x_t: Tensor, alpha: Level, sigma: Level, targets: bool = False
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """log pi_j + log N_j (n, J) float64, (alpha^2 Sigma_j + sigma^2)^-1 y_j, and x0_hat_j if asked for."""
        logs: list[Tensor] = []
        solutions: list[Tensor] = []
        predicted: list[Tensor] = []
        for component in self.components:
            x = flat_states(x_t, self.d, component.mean, self.shape)
            a, s = level_pair(alpha, sigma, len(x), component.mean)
            if float(component.trace(lambda v, a=a, s=s: (a**2 * v + s**2 == 0).to(v)).max()) > 0:  # type: ignore[misc]
                raise InputError("at sigma = 0 a direction without variance has no density; use sigma > 0")
            y = x - a * component.mean
            solved, *target = _filtered(component, y, a, s, targets)
            square = (y.double() * solved.double()).sum(1)
            log_det = component.trace(lambda v, a=a, s=s: (a**2 * v + s**2).log()).double()  # type: ignore[misc]
            logs.append(-0.5 * (square + log_det + self.d * math.log(2 * math.pi)))
            solutions.append(solved)
            predicted.extend(component.mean + one for one in target)
        return torch.stack(logs, 1) + self.weights.log(), solutions, predicted


def _filtered(component: CovarianceModel, y: Tensor, a: Tensor, s: Tensor, targets: bool) -> Tensor:
    """(alpha^2 Sigma + sigma^2)^-1 y and, if asked for, the deviation of x0_hat: (1 or 2, n, d)."""

    def gains(v: Tensor) -> Tensor:
        noisy = (a**2 * v + s**2).expand(len(a), len(v))
        parts = [1 / noisy, safe_ratio(a * v, noisy)] if targets else [1 / noisy]
        return torch.stack(parts)

    return component.apply(gains, y)
