"""States and noise levels as every denoiser takes them.

States are (n, d) or (n, C, H, W) of any floating-point type, and come back in their own shape, type and device. A level is
a pair alpha, sigma: numbers, tensors of shape (), or of shape (n,) with one level for each row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .errors import InputError, ShapeError

__all__ = [
    "Level",
    "Levels",
    "flat_states",
    "level_pair",
    "like",
    "paired_levels",
    "safe_ratio",
    "safe_root",
    "slope_pair",
]

Level = float | Tensor
"""alpha or sigma: a number, a tensor of shape (), or one value per row, (n,)."""

Levels = Tensor | Sequence[float]
"""A list of L values of alpha or sigma, each of which holds for all rows."""


def flat_states(state: Tensor, d: int, reference: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """The states as (n, d), in the type and on the device of `reference`. Raises: ShapeError; InputError for integers and for
    what is no tensor.
    """
    if not isinstance(state, Tensor):
        raise InputError(f"states must be torch tensors, they are {type(state).__name__}; see torch.as_tensor")
    if not state.is_floating_point():
        raise InputError(f"states must be of a floating-point type, they are {state.dtype}; convert them first")
    turned = shape is not None and state.ndim == 4 and tuple(state.shape[1:]) != tuple(shape)
    if state.ndim not in (2, 4) or math.prod(state.shape[1:]) != d or turned:
        wanted = f"(n, {d})" if shape is None else f"(n, {d}) or (n, {', '.join(map(str, shape))})"
        raise ShapeError(f"states must have shape {wanted}, they have {tuple(state.shape)}")
    return state.reshape(len(state), d).to(reference)


def like(flat: Tensor, state: Tensor) -> Tensor:
    """A flat result (n, d) in the shape, type and device of the state it belongs to."""
    return flat.reshape(state.shape).to(state)


def level_pair(alpha: Level, sigma: Level, rows: int, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Both levels as tensors of shape (1,) or (n, 1), which broadcast against spectra and rows alike.

    Raises: ShapeError; InputError if a level is negative, not finite, or so large that its square leaves the range of the
        type computed in, or both are 0 or so small.
    """
    pair = []
    most = (
        1e150 if reference.dtype == torch.float64 else 1e18
    )  # squares of these and of their inverses are in the range
    for name, value in (("alpha", alpha), ("sigma", sigma)):
        level = _number_or_one_each(name, value, rows, reference)
        if not bool(((level >= 0) & (level <= most)).all()):
            if bool(((level >= 0) & level.isfinite()).all()):
                raise InputError(f"{name} must be at most {most:g}, it is {level[..., 0].tolist()}; divide both levels")
            raise InputError(f"{name} must be finite and at least 0, it is {level[..., 0].tolist()}")
        pair.append(level)
    larger = torch.maximum(*pair)
    if bool((larger < 1 / most).any()):
        if bool((larger == 0).any()):
            raise InputError("alpha and sigma must not both be 0")
        raise InputError(f"alpha and sigma must not both be below {1 / most:g}; multiply them by the same number")
    return pair[0], pair[1]


def slope_pair(d_alpha: Level | None, d_sigma: Level | None, rows: int, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of both levels, of any sign, as `level_pair` gives the levels; -1 and 1 where there is none.

    Raises: ShapeError; InputError if one is not finite.
    """
    pair = []
    for name, value, default in (("d_alpha", d_alpha, -1.0), ("d_sigma", d_sigma, 1.0)):
        slope = _number_or_one_each(name, default if value is None else value, rows, reference)
        if not bool(slope.isfinite().all()):
            raise InputError(f"{name} must be finite, it is {slope[..., 0].tolist()}")
        pair.append(slope)
    return pair[0], pair[1]


def _number_or_one_each(name: str, value: Level, rows: int, reference: Tensor) -> Tensor:
    if isinstance(value, np.ndarray):  # in reverse, or of another byte order, torch takes none
        value = np.array(value, dtype=value.dtype.newbyteorder("="), order="C")
    level = torch.as_tensor(value, dtype=reference.dtype, device=reference.device)
    if level.ndim > 1 or (level.ndim == 1 and len(level) != rows):
        raise ShapeError(f"{name} must be a number or ({rows},), it has shape {tuple(level.shape)}")
    return level[..., None]


def paired_levels(alphas: Levels, sigmas: Levels) -> list[tuple[float, float]]:
    """Two lists of levels as pairs of numbers. Raises: InputError if they differ in length."""
    if len(alphas) != len(sigmas):
        raise InputError(f"alphas and sigmas must have one length, they have {len(alphas)} and {len(sigmas)}")
    return list(zip(map(float, alphas), map(float, sigmas), strict=True))


def safe_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, and 0 where both are 0: a direction with neither variance nor noise holds nothing."""
    safe = denominator.where(denominator > 0, torch.ones_like(denominator))
    return (numerator / safe).where(denominator > 0, torch.zeros_like(safe))


def safe_root(value: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0, not infinite: the gain of a direction without variance does not change."""
    some = value > 0
    return value.where(some, torch.ones_like(value)).sqrt().where(some, torch.zeros_like(value))
