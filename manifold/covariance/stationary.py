"""The translation-invariant model: independent spatial frequencies, channels correlated within each.

The covariance of two values depends on their channels and on the distance between their places only, with opposite
edges taken as neighbours. The Fourier transform then block-diagonalises it: one C x C Hermitian matrix a frequency.
Learned from a few hundred images, applied in O(d log d), and valid at any height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from manifold.errors import FormatError, NotPSDError, ShapeError
from manifold.precision import require_variances_in_range, require_wide, without_autocast

from .base import CovarianceModel, SpectralFunction

__all__ = ["StationaryCovariance", "whole_plane"]


class StationaryCovariance(CovarianceModel):
    """Sigma = F^H diag over frequencies (P(f)) F, F the orthonormal Fourier transform of each channel.

    Arguments
        channel_mean: (C,) mean of each channel; its type, float32 or float64, is the model's.
        spectrum: (H, W // 2 + 1, C, C) complex, Hermitian positive semidefinite, the half plane of the real transform.
            Must be P(-f) = conj P(f) where both are in it. Kept as complex128 whatever the model's type: float32 would
            lose the smallest variances of channels that nearly repeat each other.
        width: W.
        count: number of images the estimate rests on, where known.

    Raises: ShapeError; NonFiniteError for variances that are not finite in the model's type; NotPSDError if a matrix has an
        eigenvalue below -1e-4 of the largest.
    """

    model = "stationary"

    def __init__(self, channel_mean: Tensor, spectrum: Tensor, width: int, *, count: int | None = None) -> None:
        channels = channel_mean.numel()
        if spectrum.ndim != 4 or tuple(spectrum.shape[1:]) != (width // 2 + 1, channels, channels):
            raise ShapeError(
                f"the spectrum of {channels} channels of width {width} must be (H, {width // 2 + 1}, {channels}, "
                f"{channels}), it is {tuple(spectrum.shape)}"
            )
        self.shape = (channels, spectrum.shape[0], width)
        self.spectrum = spectrum.to(torch.complex128)
        self.channel_mean = channel_mean
        self.count = count
        self.mean = channel_mean.repeat_interleave(self.shape[1] * width)
        self._decompose()

    def _decompose(self) -> None:
        """Eigenvalues and bases of all frequencies, in the model's type."""
        values, basis = torch.linalg.eigh(self.spectrum)  # (H, W', C), (H, W', C, C)
        lowest, largest = float(values.min()), float(values.max())
        if lowest < -1e-4 * largest:
            raise NotPSDError(
                f"a cross-spectrum must be positive semidefinite, its lowest eigenvalue is {lowest:.3g} beside a "
                f"largest of {largest:.3g}; estimate it again from the images"
            )
        dtype = self.channel_mean.dtype
        self._basis = basis.to(_complex_type(dtype))
        self._variances = values.clamp_min(0).permute(2, 0, 1).reshape(-1).to(dtype)  # (C H W')
        require_variances_in_range(self._variances)
        self.eigvals = self._variances.repeat_interleave(self._multiplicity()).sort(descending=True).values

    def _multiplicity(self) -> Tensor:
        """How many of the d eigenvalues each stored one stands for: 2 where -f lies outside the half plane."""
        channels, height, width = self.shape
        twice = torch.full((width // 2 + 1,), 2, device=self.spectrum.device)
        twice[0] = 1
        if width % 2 == 0:
            twice[-1] = 1
        return twice.expand(channels, height, -1).reshape(-1)

    @without_autocast
    def apply(self, f: SpectralFunction, y: Tensor) -> Tensor:
        """Transform, filter every frequency, transform back; see `CovarianceModel.apply`.

        Cost: O(n d (log d + C)), exact.
        """
        channels, height, width = self.shape
        waves = torch.fft.rfft2(y.reshape(-1, channels, height, width), norm="ortho")
        waves = torch.einsum("hwcm,nchw->nmhw", self._basis.conj(), waves)
        gains = f(self._variances)
        gains = gains.reshape(*gains.shape[:-1], channels, height, width // 2 + 1)
        filtered = torch.einsum("hwcm,...mhw->...chw", self._basis, gains * waves)
        return torch.fft.irfft2(filtered, s=(height, width), norm="ortho").flatten(-3)

    def trace(self, f: SpectralFunction) -> Tensor:
        """Sum of f over all d eigenvalues, shape (...)."""
        return (f(self._variances) * self._multiplicity().to(self._variances)).sum(-1)

    def power(self) -> Tensor:
        """Variance of each channel at each spatial frequency, (C, H, W // 2 + 1)."""
        return self.spectrum.diagonal(dim1=-2, dim2=-1).real.permute(2, 0, 1)

    def resized(self, height: int, width: int) -> StationaryCovariance:
        """The same statistics for images of another size, the spectrum interpolated linearly between frequencies.

        Density at a frequency in cycles a pixel does not depend on the size of the image, so nothing else changes.
        Interpolation keeps every matrix Hermitian and positive semidefinite. A mean that differs from place to place, as that
        of a class may, becomes the mean of its channels.

        Raises: ShapeError if a size is not positive.
        """
        if height < 1 or width < 1:
            raise ShapeError(f"height and width must be positive, they are {height} and {width}")
        whole = whole_plane(self.spectrum, self.shape[2])
        rows = _between(self.shape[1], height, whole)
        columns = _between(self.shape[2], width, whole)[: width // 2 + 1]
        spectrum = torch.einsum("hy,yxij->hxij", rows, whole)
        spectrum = torch.einsum("wx,hxij->hwij", columns, spectrum)
        channel_mean = self.mean.reshape(self.shape[0], -1).double().mean(1).to(self.mean)
        return StationaryCovariance(channel_mean, spectrum, width, count=self.count)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same model on another device, or in float32 or float64; shared where nothing changes.

        Raises: InputError for another type; NonFiniteError if variances leave its range.
        """
        require_wide(dtype)
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        for name in ("mean", "channel_mean", "eigvals", "_variances"):
            setattr(other, name, getattr(self, name).to(device=device, dtype=dtype))
        other.spectrum, other._basis = self.spectrum.to(device=device), self._basis.to(device=device)
        if other.mean.dtype != self.mean.dtype:
            other._decompose()
        return other

    def tensors(self) -> dict[str, Tensor]:
        """mean, the cross-spectrum (real and imaginary part last), width and, where known, count.

        And the mean of every value, where it is not that of its channel, as in a class of several with one covariance.
        """
        tensors = {
            "mean": self.channel_mean,
            "spectrum": torch.view_as_real(self.spectrum.resolve_conj()),
            "width": torch.tensor(self.shape[2]),
        }
        if self.count is not None:
            tensors["count"] = torch.tensor(self.count)
        if not torch.equal(self.mean, self.channel_mean.repeat_interleave(self.shape[1] * self.shape[2])):
            tensors["value_mean"] = self.mean
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], path: Path) -> StationaryCovariance:
        """Build the model from what `save` wrote. Raises: FormatError naming the file if a tensor is missing."""
        missing = {"mean", "spectrum", "width"} - set(tensors)
        if missing:
            raise FormatError(f"{path} must hold {', '.join(sorted(missing))} and does not; fit again to make it")
        count = int(tensors["count"]) if "count" in tensors else None
        spectrum = torch.view_as_complex(tensors["spectrum"])
        model = cls(tensors["mean"], spectrum, int(tensors["width"]), count=count)
        model.mean = tensors.get("value_mean", model.mean)
        return model


def _complex_type(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype == torch.float64 else torch.complex64


def whole_plane(half: Tensor, width: int) -> Tensor:
    """All frequencies (H, W, ...) from the half plane, by P(-f) = conj P(f)."""
    height = half.shape[0]
    mirrored = half[(-torch.arange(height)) % height][:, 1 : (width + 1) // 2].flip(1).conj()
    return torch.cat([half, mirrored], dim=1)


def _between(old: int, new: int, like: Tensor) -> Tensor:
    """Weights (new, old) that interpolate linearly on the circle of `old` frequencies at `new` frequencies."""
    place = torch.arange(new, dtype=torch.float64) * old / new
    below = place.floor().long()
    share = place - below
    weights = torch.zeros(new, old, dtype=torch.float64)
    weights[torch.arange(new), below % old] += 1 - share
    weights[torch.arange(new), (below + 1) % old] += share
    return weights.to(like)
