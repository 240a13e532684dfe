"""Low rank plus isotropic tail: Sigma = U diag(lambda) U^T + tail_var (I - U U^T).

The tail keeps the variance that k eigenvectors leave out, spread evenly over the other d - k directions, so that the
model stays a proper Gaussian on all of space and its trace is that of the data.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from manifold.errors import FormatError, ManifoldWarning, NotPSDError, ShapeError
from manifold.precision import require_variances_in_range, require_wide, without_autocast

from .base import CovarianceModel, SpectralFunction

__all__ = ["LowRankCovariance"]

_OF_EQUAL_ROWS = 1e-14
"""Standard deviation that rounding gives equal rows, as a share of their largest value: the mean of many is a little off."""


class LowRankCovariance(CovarianceModel):
    """The k leading eigenpairs and one variance for all directions outside their span.

    Arguments
        mean: (d,) mean.
        eigvals: (k,) variances along the columns of `eigvecs`, descending. Negative ones are set to zero, with a
            warning that names the amount if it is more than float32 round-off (1e-6 of the largest).
        eigvecs: (d, k) orthonormal columns.
        tail_var: variance along each of the d - k directions outside their span; not used if k = d.
        count: number of rows the estimate rests on, where known.

    Raises: ShapeError; NonFiniteError for variances that are not finite in the type of `eigvecs`; NotPSDError if one is below
        -1e-4 of the largest.
    """

    model = "lowrank"
    tail_var: Tensor

    def __init__(
        self,
        mean: Tensor,
        eigvals: Tensor,
        eigvecs: Tensor,
        tail_var: Tensor | float = 0.0,
        *,
        count: int | None = None,
    ) -> None:
        if mean.ndim != 1 or eigvecs.ndim != 2 or eigvals.ndim != 1:
            raise ShapeError(
                f"mean must be (d,), eigvals (k,) and eigvecs (d, k), they are {tuple(mean.shape)}, "
                f"{tuple(eigvals.shape)} and {tuple(eigvecs.shape)}"
            )
        if tuple(eigvecs.shape) != (mean.numel(), eigvals.numel()) or eigvals.numel() > mean.numel():
            raise ShapeError(
                f"eigvecs must be ({mean.numel()}, k) with k = {eigvals.numel()} eigenvalues and k <= d, "
                f"it is {tuple(eigvecs.shape)}"
            )
        tail = torch.as_tensor(tail_var, dtype=eigvecs.dtype, device=eigvecs.device).reshape(())
        variances = torch.cat([eigvals.to(eigvecs), tail[None]])
        require_variances_in_range(variances)
        variances = _without_negative(variances, mean)
        self.mean = mean.to(eigvecs)
        self.eigvals = variances[:-1]
        self.eigvecs = eigvecs.contiguous()  # one layout, so that a loaded model gives the same bits
        self.tail_var = variances[-1]
        self.count = count

    @property
    def k(self) -> int:
        """Number of explicit eigenpairs."""
        return self.eigvals.numel()

    @without_autocast
    def apply(self, f: SpectralFunction, y: Tensor) -> Tensor:
        """f(tail_var) y + U ((f(lambda) - f(tail_var)) U^T y); see `CovarianceModel.apply`.

        Cost: two products of (n, d) by (d, k).
        """
        coefficients = y @ self.eigvecs
        if self.k == self.d:
            return (f(self.eigvals) * coefficients) @ self.eigvecs.T
        gains = f(torch.cat([self.eigvals, self.tail_var[None]]))
        tail = gains[..., -1:]
        # In place: at 50 levels a second (..., n, d) tensor would cost as much as the product.
        return (((gains[..., :-1] - tail) * coefficients) @ self.eigvecs.T).addcmul_(tail, y)

    @without_autocast
    def quadratic(self, f: SpectralFunction, y: Tensor) -> Tensor:
        """Sum of f(lambda) c^2 + f(tail_var) |y - U c|^2, c = U^T y; see `CovarianceModel.quadratic`.

        Cost: as `apply`, in float64; d k numbers of memory. The tail may be millions of times smaller than the leading
        variances: |y|^2 - |c|^2 would keep nothing of it.
        """
        wide, eigvecs = y.double(), self.eigvecs.double()
        coefficients = wide @ eigvecs
        if self.k == self.d:
            return (f(self.eigvals.double()) * coefficients.square()).sum(-1)
        gains = f(torch.cat([self.eigvals, self.tail_var[None]]).double())
        rest = (wide - coefficients @ eigvecs.T).square().sum(-1)
        return (gains[..., :-1] * coefficients.square()).sum(-1) + gains[..., -1] * rest

    def trace(self, f: SpectralFunction) -> Tensor:
        """Sum of f(lambda) plus (d - k) f(tail_var), shape (...)."""
        if self.k == self.d:
            return f(self.eigvals).sum(-1)
        gains = f(torch.cat([self.eigvals, self.tail_var[None]]))
        return gains[..., :-1].sum(-1) + (self.d - self.k) * gains[..., -1]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same model on another device, or in float32 or float64; shared where nothing changes.

        Raises: InputError for another type; NonFiniteError if variances leave its range.
        """
        require_wide(dtype)
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        for name in ("mean", "eigvals", "eigvecs", "tail_var"):
            setattr(other, name, getattr(self, name).to(device=device, dtype=dtype))
        if dtype is not None:
            require_variances_in_range(other.eigvals)
        return other

    def tensors(self) -> dict[str, Tensor]:
        """mean, eigvals, eigvecs, tail_var and, where known, count."""
        tensors = {"mean": self.mean, "eigvals": self.eigvals, "eigvecs": self.eigvecs, "tail_var": self.tail_var}
        if self.count is not None:
            tensors["count"] = torch.tensor(self.count)
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], path: Path) -> LowRankCovariance:
        """Build the model from what `save` wrote. Raises: FormatError naming the file if a tensor is missing."""
        missing = {"mean", "eigvals", "eigvecs", "tail_var"} - set(tensors)
        if missing:
            raise FormatError(f"{path} must hold {', '.join(sorted(missing))} and does not; fit again to make it")
        count = int(tensors["count"]) if "count" in tensors else None
        return cls(tensors["mean"], tensors["eigvals"], tensors["eigvecs"], tensors["tail_var"], count=count)


def _without_negative(variances: Tensor, mean: Tensor) -> Tensor:
    """Set negative variances to zero, with a warning if they are more than round-off."""
    lowest, largest = float(variances.min()), float(variances.max())
    if lowest >= 0:
        return variances
    if -lowest <= (_OF_EQUAL_ROWS * float(mean.abs().max())) ** 2:
        return variances.clamp_min(0)
    if -lowest > 1e-4 * largest:
        raise NotPSDError(
            f"variances must not be negative, the lowest is {lowest:.3g} beside a largest of {largest:.3g}; this is "
            'no covariance, or one summed too coarsely: fit again with precision="exact"'
        )
    if -lowest > 1e-6 * largest:
        warnings.warn(
            f"{int((variances < 0).sum())} negative variances down to {lowest:.3g}, beside a largest of "
            f"{largest:.3g}, were set to zero",
            ManifoldWarning,
            stacklevel=3,
        )
    return variances.clamp_min(0)
