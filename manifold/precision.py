"""Statistics keep their digits whatever the caller's settings: autocast is for the layers of networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from .errors import InputError, NonFiniteError

__all__ = ["require_variances_in_range", "require_wide", "without_autocast"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_DEVICES = ("cpu", "cuda")
_RESOLVED = 1e8
"""A spectrum's largest variance must be so much above the least number of its type, that the small ones keep digits too."""


def without_autocast(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function, its matrix products in the type of what it is given also where it is called under `torch.autocast`."""

    @wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        under = next((device for device in _DEVICES if torch.is_autocast_enabled(device)), None)
        if under is None:
            return function(*args, **kwargs)
        with torch.autocast(under, enabled=False):
            return run(*args, **kwargs)  # once more, for the other device

    return run


def require_wide(dtype: torch.dtype | None) -> None:
    """Raises: InputError for a type with fewer digits, or a smaller range, than float32."""
    if dtype not in (None, torch.float32, torch.float64):
        raise InputError(
            f"statistics are kept in float32 or float64, in {dtype} they would overflow; states may be of any type"
        )


def require_variances_in_range(variances: torch.Tensor) -> None:
    """Raises: NonFiniteError for NaN or infinity, which is what a variance too large for its type becomes; InputError for
    variances so small that their type cannot tell them apart.
    """
    if not bool(variances.isfinite().all()):
        raise NonFiniteError(
            f"variances must be finite, in {variances.dtype} they are not; divide the data by a constant first, "
            "or keep the model in float64"
        )
    largest = float(variances.max()) if variances.numel() else 0.0
    if 0 < largest < _RESOLVED * torch.finfo(variances.dtype).tiny:
        raise InputError(
            f"the largest variance is {largest:.2g}, too small for {variances.dtype}; multiply the data by a constant first, "
            "or keep the model in float64"
        )
