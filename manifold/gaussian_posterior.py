"""p(x0 | x_t) for Gaussian data: a Gaussian with the denoiser as its mean.

    covariance = V diag(lambda sigma^2 / (alpha^2 lambda + sigma^2)) V^T

It does not depend on x_t, only on the level.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .covariance import CovarianceModel
from .states import safe_ratio, safe_root

__all__ = ["GaussianPosterior"]


class GaussianPosterior:
    """The Gaussian p(x0 | x_t) of n states.

    Attributes
        mean: x0_hat, of the shape and type of the states.

    Source: arXiv 2412.09726; any text on Gaussian conditioning.
    """

    def __init__(self, covariance: CovarianceModel, mean: Tensor, a: Tensor, s: Tensor) -> None:
        self.mean = mean
        self._covariance, self._a, self._s = covariance, a, s

    def _variance(self, v: Tensor) -> Tensor:
        return safe_ratio(v * self._s**2, self._a**2 * v + self._s**2)

    @property
    def eigvals(self) -> Tensor:
        """Variances along the explicit eigenvectors, (k,), or (n, k) where each row has its own level."""
        return self._variance(self._covariance.eigvals)

    @property
    def total_variance(self) -> Tensor:
        """Expected squared distance of x0 from the mean: () or (n,), all d directions."""
        return self._covariance.trace(self._variance)

    def sample(self, draws: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws of x0 given x_t, (draws, n, ...). Cost: two products of (n, d) by (d, k) each."""
        flat = self.mean.flatten(1)
        reference = self._covariance.mean
        drawn = []
        for _ in range(draws):
            white = torch.randn(flat.shape, generator=generator, dtype=reference.dtype, device=reference.device)
            drawn.append(self._covariance.apply(lambda v: safe_root(self._variance(v)), white).to(flat) + flat)
        stacked = torch.stack(drawn) if drawn else flat.new_empty(0, *flat.shape)
        return stacked.reshape(draws, *self.mean.shape)
