"""One component of a mixture as it meets noisy states: its density first, its filters once the others are known too.

With y = x_t - alpha mu, c = U^T y and v = alpha^2 lambda + sigma^2,

    log N = -1/2 (sum_k c_k^2 / v_k + (|y|^2 - |c|^2) / v_tail + log det + d log 2 pi)

needs the coordinates alone, one product with U. A filter of y enters the mixture multiplied by the responsibility, and the
filters of all components are summed as they are made: one more product each. What a filter does outside the span of U is a
multiple of y, and summed for all components at once. A model without eigenvectors (stationary) is applied whole.

States come about the mixture's own mean, so that what components have in common does not cost digits. Where the density
depends on the last digits of |y|^2 - |c|^2 all the same, as under little noise with a small tail, it is taken in float64, for
those states alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .covariance import CovarianceModel, LowRankCovariance, SpectralFunction

__all__ = ["CentredComponent", "SeenComponent"]

_ROUGH = 1e-6
"""How far |y|^2 - |c|^2 may be off, as a share of |y|^2, with eigenvectors that are orthonormal to float32."""
_TOLERATED = 0.05
"""Nats that this may cost; the error is commonly ten times less."""


class CentredComponent:
    """A component about the mean of its mixture.

    Arguments
        model: covariance.
        offset: (d,) mean of the component, less that of the mixture.
    """

    def __init__(self, model: CovarianceModel, offset: Tensor) -> None:
        self.model, self.offset = model, offset
        self.low_rank = model if isinstance(model, LowRankCovariance) else None
        if isinstance(model, LowRankCovariance):
            self.coordinates = offset @ model.eigvecs
            tail = model.tail_var[None] if model.k < model.d else model.eigvals[:0]
            self.variances = torch.cat([model.eigvals, tail]).double()
            self.directions = torch.ones_like(self.variances)
            self.directions[model.k :] = model.d - model.k


class SeenComponent:
    """A component and the states that it is asked about.

    Arguments
        component: the component.
        x: (n, d) states less a times the mean of the mixture. a, s: their level, (1,) or (n, 1).
        length: (n,) float64, |x - a offset|^2.
    """

    def __init__(self, component: CentredComponent, x: Tensor, a: Tensor, s: Tensor, length: Tensor) -> None:
        self._component, self._x, self._a, self._s, self._length = component, x, a, s, length
        self._coordinates = None
        if component.low_rank is not None:
            self._coordinates = x @ component.low_rank.eigvecs - a * component.coordinates

    def log_density(self) -> Tensor:
        """log N(x_t; alpha mu, alpha^2 Sigma + sigma^2), (n,) float64."""

        def noisy(v: Tensor) -> Tensor:
            return self._a.double() ** 2 * v.double() + self._s.double() ** 2

        one = self._component
        if one.low_rank is None or self._coordinates is None:
            square = one.model.quadratic(lambda v: (1 / noisy(v)).to(v), self._deviation())
            log_det = one.model.trace(lambda v: noisy(v).log())
        else:
            energy = self._coordinates.double().square()
            if one.low_rank.k < one.low_rank.d:
                rest = self._length - energy.sum(1)
                energy = torch.cat([energy, rest.clamp_min(0)[:, None]], 1)
            variances = noisy(one.variances)
            square, log_det = (energy / variances).sum(1), (one.directions * variances.log()).sum(-1)
            if one.low_rank.k < one.low_rank.d:
                unsure = (_ROUGH * self._length > 2 * _TOLERATED * variances[..., -1]).nonzero()[:, 0]
                if len(unsure):
                    exact = one.low_rank.quadratic(lambda v: 1 / _of_rows(noisy(v), unsure), self._deviation()[unsure])
                    square = square.index_copy(0, unsure, exact)
        return -0.5 * (square + log_det + one.model.d * math.log(2 * math.pi))

    def outside(self, f: SpectralFunction) -> Tensor:
        """Gain of the directions outside the span of U, (1,) or (n, 1); 0 if there are none."""
        model = self._component.low_rank
        if model is None or model.k == model.d:
            return torch.zeros_like(self._a + self._s)
        return f(model.tail_var[None])

    def inside(self, f: SpectralFunction, shares: Tensor) -> Tensor:
        """shares (V diag(f(lambda)) V^T - outside) y, (n, d), with shares (n, 1)."""
        model = self._component.low_rank
        if model is None or self._coordinates is None:
            return shares * self._component.model.apply(f, self._deviation())
        gains = shares * (f(model.eigvals) - self.outside(f))
        return (gains * self._coordinates) @ model.eigvecs.T

    def _deviation(self) -> Tensor:
        return self._x - self._a * self._component.offset


def _of_rows(values: Tensor, rows: Tensor) -> Tensor:
    """What (m,), the same for all states, or (n, m) holds for some of them."""
    return values[rows] if values.ndim == 2 else values
