"""Batches as the statistics take them: flat floating-point rows, checked for NaN and infinity."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import Tensor

from .errors import InputError, ShapeError

__all__ = ["as_rows", "first_bad_row"]

_BLOCK = 1024


def as_rows(batch: Tensor | np.ndarray, d: int) -> Tensor:
    """A batch as an (n, d) tensor of a floating-point type, without a copy where memory order allows.

    Arguments
        batch: (n, d), or (n, ...) with d values a row. A read-only array (a memory map) is shared, never written.
        d: values in a row.

    Raises: ShapeError; InputError for numbers that are not floating point.
    """
    if isinstance(batch, np.ndarray):
        if batch.dtype.kind != "f" or batch.dtype.itemsize > 8:
            raise InputError(f"rows must be float16, float32 or float64, they are {batch.dtype}; convert them first")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
            batch = torch.from_numpy(np.asarray(batch, dtype=batch.dtype.newbyteorder("=")))
    if not batch.is_floating_point():
        raise InputError(f"rows must be of a floating-point type, they are {batch.dtype}; convert them first")
    if batch.ndim < 2 or math.prod(batch.shape[1:]) != d:
        raise ShapeError(f"a batch must be (n, {d}) or (n, ...) with {d} values a row, it is {tuple(batch.shape)}")
    return batch.detach().reshape(len(batch), d)


def first_bad_row(rows: Tensor) -> int | None:
    """Number of the first row of (n, d) with NaN or infinity, None if all are finite."""
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        low, high = block.aminmax()
        if not (math.isfinite(low) and math.isfinite(high)):
            return start + int((~block.isfinite()).any(1).nonzero()[0, 0])
    return None
