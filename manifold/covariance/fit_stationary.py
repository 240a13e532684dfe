"""From a streamed cross-spectrum to the stationary model, with smoothing chosen by cross-validation.

Neighbouring frequencies have nearly the same matrix, once its size, which falls steeply, is divided out. So the raw
matrices are divided by their mean power, averaged over neighbours with a Gaussian weight, and given their power back.
The width of that weight is chosen among a few by the likelihood of rows left out: four folds, each scored by the model
of the other three. All of it needs only the folds' cross-spectra, none of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from manifold.cross_spectrum import FOLDS, CrossSpectrum
from manifold.errors import InputError, NotFittedError

from .stationary import StationaryCovariance, whole_plane

__all__ = ["SMOOTHINGS", "fit_stationary"]

SMOOTHINGS = (0.0, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
_FLOOR = 1e-6  # of each frequency's mean power, so that a channel that is constant still has a likelihood


def fit_stationary(
    spectrum: CrossSpectrum,
    *,
    smoothing: float | Literal["auto"] = "auto",
    dtype: torch.dtype = torch.float32,
) -> StationaryCovariance:
    """Stationary model of the images seen so far.

    Arguments
        spectrum: at least two images; at least eight for "auto".
        smoothing: standard deviation of the weight over neighbours, in steps of the frequency grid; 0 for none.
        dtype: type of the model's tensors, float32 or float64. Sums and decompositions are float64.

    Returns: the model, on the device of the cross-spectrum.

    Raises: InputError; NotFittedError if too few images came.

    Cost: O(C^3 H W) a candidate.
    """
    needed = 2 * FOLDS if smoothing == "auto" else 2
    if spectrum.count < needed:
        raise NotFittedError(
            f"a stationary model needs at least {needed} images here, {spectrum.count} came; encode more images"
        )
    width = spectrum.shape[2]
    if smoothing == "auto":
        smoothing = choose_smoothing(spectrum)
    elif smoothing < 0:
        raise InputError(f"smoothing must not be negative, it is {smoothing}")
    matrices = smooth(spectrum.matrices(), width, smoothing) * (spectrum.count / (spectrum.count - 1))
    return StationaryCovariance(spectrum.mean().to(dtype), matrices, width, count=spectrum.count)


def choose_smoothing(spectrum: CrossSpectrum, candidates: Sequence[float] = SMOOTHINGS) -> float:
    """The candidate under which rows left out are likeliest, over four folds."""
    width = spectrum.shape[2]
    scores = dict.fromkeys(candidates, 0.0)
    for fold in range(FOLDS):
        others = tuple(other for other in range(FOLDS) if other != fold)
        mean = spectrum.mean(others)
        train, held_out = spectrum.matrices(others, mean), spectrum.matrices((fold,), mean)
        for candidate in candidates:
            scores[candidate] += _log_likelihood(smooth(train, width, candidate), held_out, width)
    return max(scores, key=lambda candidate: scores[candidate])


def smooth(matrices: Tensor, width: int, smoothing: float) -> Tensor:
    """Average over neighbouring frequencies with a Gaussian weight, each matrix's mean power kept.

    Arguments
        matrices: (H, W // 2 + 1, C, C) complex.
        width: W.
        smoothing: standard deviation of the weight, in grid steps.
    """
    power = matrices.diagonal(dim1=-2, dim2=-1).real.mean(-1)[..., None, None]
    power = power.clamp_min(float(power.max()) * 1e-12)
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    if smoothing > 0:
        whole = whole_plane(matrices / power, width)
        rows, columns = (_circular_weight(size, smoothing).to(whole) for size in whole.shape[:2])
        whole = torch.einsum("hy,yxij->hxij", rows, whole)
        matrices = torch.einsum("wx,hxij->hwij", columns[: width // 2 + 1], whole)
        # The average of unit-power matrices over neighbours keeps its trace where the power is not zero.
        matrices = matrices * power
    return (1 - _FLOOR) * matrices + _FLOOR * power * identity


def _circular_weight(size: int, smoothing: float) -> Tensor:
    """(size, size) rows of Gaussian weights on a circle, each summing to one."""
    steps = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
    weight = torch.exp(-0.5 * (steps / smoothing) ** 2)
    weight /= weight.sum()
    places = torch.arange(size)
    return weight[(places[:, None] - places) % size]


def _log_likelihood(model: Tensor, data: Tensor, width: int) -> float:
    """Gaussian log-likelihood of data with cross-spectrum `data`, up to what does not depend on the model."""
    factor, failed = torch.linalg.cholesky_ex(model)
    if bool(failed.any()):
        return -math.inf
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).real.log().sum(-1)
    misfit = torch.cholesky_solve(data, factor).diagonal(dim1=-2, dim2=-1).real.sum(-1)
    weight = torch.full_like(log_det, 2.0)  # a frequency outside the first and the middle column stands for two
    weight[:, 0] = 1.0
    if width % 2 == 0:
        weight[:, -1] = 1.0
    return -0.5 * float((weight * (log_det + misfit)).sum())
