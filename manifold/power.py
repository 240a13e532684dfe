"""Variance by channel and by spatial frequency, from a covariance model alone.

The power of channel c at frequency f is the variance of that Fourier coefficient (orthonormal transform),

    P_c(f) = sum_k (lambda_k - tail) |F u_k,c (f)|^2 + tail

so the sum over all frequencies is the variance of the channel's values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .covariance import CovarianceModel, LowRankCovariance, StationaryCovariance
from .errors import InputError, ShapeError

__all__ = ["RadialPower", "channel_variance", "frequency_power", "radial_power"]

_BATCH_VALUES = 2**24


def frequency_power(model: CovarianceModel, shape: tuple[int, int, int]) -> Tensor:
    """Variance of every channel at every spatial frequency.

    Arguments
        model: low-rank, full or stationary.
        shape: (C, H, W) of a latent.

    Returns: (C, H, W) float64, frequencies in the order of torch.fft.fft2.

    Raises: ShapeError; InputError for a model of another kind.

    Cost: one transform an eigenvector.
    """
    if math.prod(shape) != model.d:
        raise ShapeError(f"a latent of shape {tuple(shape)} has {math.prod(shape)} values, the model has {model.d}")
    if isinstance(model, StationaryCovariance):
        if model.shape != tuple(shape):
            raise ShapeError(f"the stationary model is of shape {model.shape}, not {tuple(shape)}; use `resized`")
        half = model.power().double()
        width = shape[2]
        mirrored = half[:, (-torch.arange(shape[1])) % shape[1]][:, :, 1 : (width + 1) // 2].flip(2)
        return torch.cat([half, mirrored], dim=2)
    if not isinstance(model, LowRankCovariance):
        raise InputError(f"the power spectrum needs a low-rank, full or stationary model, not {type(model).__name__}")
    tail = float(model.tail_var) if model.k < model.d else 0.0
    power = torch.full(shape, tail, dtype=torch.float64, device=model.mean.device)
    step = max(1, _BATCH_VALUES // model.d)
    for start in range(0, model.k, step):
        vectors = model.eigvecs[:, start : start + step].T.reshape(-1, *shape)
        waves = torch.fft.fft2(vectors, norm="ortho").abs().square().double()
        power += torch.tensordot(model.eigvals[start : start + step].double() - tail, waves, dims=1)
    return power


def channel_variance(model: CovarianceModel, shape: tuple[int, int, int]) -> Tensor:
    """Mean variance of the values of each channel, (C,) float64. Raises as `frequency_power`."""
    return frequency_power(model, shape).mean((1, 2))


@dataclass(frozen=True)
class RadialPower:
    """Power averaged over rings of spatial frequency.

    Attributes
        frequency: (r,) mean frequency of each ring, in cycles a latent pixel, from 0 to about 0.7.
        power: (C, r) mean variance of a coefficient in the ring.
        coefficients: (r,) number of coefficients in the ring.
    """

    frequency: Tensor
    power: Tensor
    coefficients: Tensor


def radial_power(model: CovarianceModel, shape: tuple[int, int, int]) -> RadialPower:
    """Power in rings one step of the longer side wide, the zero frequency on its own. Raises as `frequency_power`."""
    power = frequency_power(model, shape)
    _, height, width = shape
    device = power.device
    vertical = torch.fft.fftfreq(height, dtype=torch.float64, device=device)
    horizontal = torch.fft.fftfreq(width, dtype=torch.float64, device=device)
    radius = (vertical[:, None].square() + horizontal.square()).sqrt().flatten()
    ring = (radius * max(height, width)).round().long()
    _, ring = ring.unique(return_inverse=True)
    coefficients = ring.bincount()
    total = torch.zeros(shape[0], len(coefficients), dtype=torch.float64, device=device)
    total.index_add_(1, ring, power.flatten(1))
    return RadialPower(ring.bincount(radius) / coefficients, total / coefficients, coefficients)
