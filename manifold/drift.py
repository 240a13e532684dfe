"""How far two collections' statistics differ.

    W^2 = |mean_A - mean_B|^2 + trace(A) + trace(B) - 2 trace (A^(1/2) B A^(1/2))^(1/2)

is the squared Bures-Wasserstein distance of the two Gaussians: a Fréchet distance (the formula of FID) taken in latent
space instead of a classifier's features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .covariance import CovarianceModel, LowRankCovariance
from .distances import bures_wasserstein
from .errors import InputError

__all__ = ["Drift", "drift", "principal_angles_deg"]


@dataclass(frozen=True)
class Drift:
    """Distance of collection B from collection A.

    Attributes
        mean_shift: length of mean_B - mean_A.
        mean_shift_sigma: the same in standard deviations of A along the direction of the shift.
        variance_ratio: trace of B over trace of A.
        angles_deg: (k,) principal angles between the leading k directions, ascending.
        frechet: squared Bures-Wasserstein distance.
        frechet_mean: the part of it that is the means'.
    """

    mean_shift: float
    mean_shift_sigma: float
    variance_ratio: float
    angles_deg: Tensor
    frechet: float
    frechet_mean: float

    @property
    def bures_wasserstein(self) -> float:
        """The distance itself."""
        return math.sqrt(self.frechet)


def drift(a: CovarianceModel, b: CovarianceModel, k: int = 16) -> Drift:
    """Compare two fitted collections.

    Arguments
        a, b: models of the same kind of latent; a is the reference. Principal angles are for models with
            eigenvectors, low-rank and full; others get none.
        k: leading directions compared, at most.

    Raises: MismatchError if the latents differ in length; InputError if the distance needs a matrix that does not fit, or the
        reference has no variance.

    Cost: that of `bures_wasserstein`.
    """
    squared = bures_wasserstein(a, b)
    if _trace(a) == 0:
        raise InputError("the reference has no variance, so nothing can be measured by it; fit it to rows that differ")
    shift = b.mean.double() - a.mean.double().to(b.mean.device)
    length = float(shift.norm())
    sigma = 0.0
    if length > 0:
        direction = (shift / length)[None].to(a.mean)
        spread = float((direction.double() * a.apply(lambda variance: variance, direction).double()).sum())
        sigma = length / math.sqrt(spread) if spread > 0 else math.inf
    angles = torch.zeros(0, dtype=torch.float64)
    if isinstance(a, LowRankCovariance) and isinstance(b, LowRankCovariance):
        kept = min(k, a.k, b.k)
        angles = principal_angles_deg(a.eigvecs[:, :kept], b.eigvecs[:, :kept].to(a.eigvecs))
    return Drift(
        mean_shift=length,
        mean_shift_sigma=sigma,
        variance_ratio=_trace(b) / _trace(a),
        angles_deg=angles,
        frechet=squared,
        frechet_mean=length**2,
    )


def principal_angles_deg(first: Tensor, second: Tensor) -> Tensor:
    """Principal angles between the spans of two orthonormal (d, k) bases, ascending, (k,) float64, in degrees.

    Small angles come from sines, which keep the digits that cosines lose.

    Source: Bjorck, Golub, Numerical methods for computing angles between linear subspaces (1973).
    """
    first, second = first.double(), second.double()
    inside = first.T @ second
    cosines = torch.linalg.svdvals(inside).clamp(max=1.0)
    sines = torch.linalg.svdvals(second - first @ inside).flip(0).clamp(max=1.0)
    return torch.rad2deg(torch.where(cosines > math.sqrt(0.5), sines.asin(), cosines.acos()))


def _trace(model: CovarianceModel) -> float:
    return float(model.trace(lambda variance: variance.double()))
