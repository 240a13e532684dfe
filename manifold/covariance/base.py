"""The interface every covariance model offers: apply a function of its spectrum.

All closed-form quantities of a Gaussian diffusion (denoiser, score, probability-flow solution, likelihood, samples) are
functions f of the covariance Sigma = V diag(lambda) V^T, that is V diag(f(lambda)) V^T. A model therefore exposes its
spectrum and `apply(f, y)`; `manifold.gaussian` needs nothing else. A function f maps variances of shape (m,) to gains of
shape (..., m), so that one call serves one noise level, a level per row, or a list of levels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from manifold.files import save_tensors

__all__ = ["CovarianceModel", "SpectralFunction"]

SpectralFunction = Callable[[Tensor], Tensor]
"""Maps variances (m,) to gains (..., m); leading dimensions broadcast against rows and noise levels."""


class CovarianceModel(ABC):
    """Mean and covariance of flat latents, diagonal in an orthonormal basis.

    Attributes
        mean: (d,) mean.
        eigvals: (k,) variances along the explicit eigenvectors, descending.
        model: name of the kind of model in files.
    """

    model: ClassVar[str]
    mean: Tensor
    eigvals: Tensor

    @property
    def d(self) -> int:
        """Number of dimensions."""
        return self.mean.numel()

    @abstractmethod
    def apply(self, f: SpectralFunction, y: Tensor) -> Tensor:
        """V diag(f(lambda)) V^T y for every row.

        Arguments
            f: gains as a function of variance, (m,) -> (..., m). Gains of shape (m,) act on all rows, (n, m) row by
                row, (L, 1, m) give L results for each row.
            y: (n, d) deviations from the mean, of the model's dtype and device.

        Returns: (..., n, d), the leading dimensions those of the gains broadcast with (n,).
        """

    def quadratic(self, f: SpectralFunction, y: Tensor) -> Tensor:
        """y^T f(Sigma) y for every row, (n,) float64.

        Arguments
            f: gains as a function of variance, (m,) -> (m,) or (n, m). y: as `apply`.
        """
        return (y.double() * self.apply(f, y).double()).sum(1)

    @abstractmethod
    def trace(self, f: SpectralFunction) -> Tensor:
        """Sum over all d eigenvalues of f(lambda), shape (...): `trace(torch.log)` is the log-determinant."""

    @abstractmethod
    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same model on another device, or in float32 or float64.

        Raises: InputError for another type; NonFiniteError if variances leave its range.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps of the model, in the model's own type."""

    def save(self, path: Path, metadata: Mapping[str, Any]) -> None:
        """Write the model and `metadata` to a safetensors file, atomically. See `manifold.covariance.load`."""
        save_tensors(Path(path), self.tensors(), {**metadata, "model": self.model})

    def log_det(self) -> Tensor:
        """Log-determinant of the covariance, in nats; minus infinity if a variance is zero."""
        return self.trace(torch.log)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws from N(mean, Sigma), (n, d)."""
        white = torch.randn(n, self.d, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.apply(lambda variance: variance.clamp_min(0).sqrt(), white)
