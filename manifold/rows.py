"""Rows as the statistics take them: flat, of a floating-point type, checked for NaN and infinity, in batches."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .errors import InputError, ShapeError

__all__ = ["ArrayRows", "RowStore", "RowSubset", "as_labels", "as_rows", "first_bad_row", "largest_modulus"]

_BLOCK = 2**16  # values looked at in a step: they stay in cache
_SIGNED = {2: torch.int16, 4: torch.int32, 8: torch.int64}


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
        if any(stride < 0 for stride in batch.strides):
            batch = batch.copy()  # rows in reverse, which torch does not know
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
            batch = torch.from_numpy(np.asarray(batch, dtype=batch.dtype.newbyteorder("=")))
    if not batch.is_floating_point():
        raise InputError(f"rows must be of a floating-point type, they are {batch.dtype}; convert them first")
    if batch.ndim < 2 or math.prod(batch.shape[1:]) != d:
        raise ShapeError(f"a batch must be (n, {d}) or (n, ...) with {d} values a row, it is {tuple(batch.shape)}")
    return batch.detach().reshape(len(batch), d)


def as_labels(labels: Tensor | np.ndarray | Sequence[int], rows: int) -> np.ndarray:
    """One whole number for each of so many rows, (rows,).

    Raises: ShapeError if there are not as many; InputError if they are not integers.
    """
    keys = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if keys.shape != (rows,):
        raise ShapeError(f"there must be one label a row, there are {rows} rows and labels {keys.shape}")
    if rows and keys.dtype.kind not in "iu":
        raise InputError(f"labels must be integers, they are {keys.dtype}; number the classes first")
    return keys


def largest_modulus(rows: Tensor) -> float:
    """Largest modulus among the values of (n, d), 0 for no rows; infinity or NaN if any value is."""
    if rows.numel() == 0:
        return 0.0
    if rows.device.type != "cpu" or not rows.is_contiguous():
        low, high = rows.aminmax()
        return max(abs(float(low)), abs(float(high)))  # NaN, if there is one, is both
    # Without their sign, floating-point numbers are in the order of their bits, those of infinity and NaN last; unsigned
    # integers are compared several times faster than float16.
    unsigned = np.dtype(f"u{rows.element_size()}")
    bits = rows.view(_SIGNED[rows.element_size()]).numpy().reshape(-1).view(unsigned)
    magnitude = unsigned.type(np.iinfo(unsigned).max >> 1)
    top = max(int((bits[start : start + _BLOCK] & magnitude).max()) for start in range(0, len(bits), _BLOCK))
    return float(torch.tensor(top, dtype=_SIGNED[rows.element_size()]).view(rows.dtype))


def first_bad_row(rows: Tensor) -> int | None:
    """Number of the first row of (n, d) with NaN or infinity, None if all are finite."""
    if math.isfinite(largest_modulus(rows)):
        return None
    return int((~rows.isfinite()).any(1).nonzero()[0, 0])


class RowStore(Protocol):
    """Rows that can be read again and again: a latent store, or `ArrayRows` around an array."""

    @property
    def d(self) -> int:
        """Values in a row."""
        ...

    def __len__(self) -> int: ...

    def batches(self, rows: int) -> Iterator[np.ndarray]:
        """All rows in order, at most `rows` at a time, (<= rows, d)."""
        ...


class ArrayRows:
    """An array or tensor in memory, or a memory map, as a RowStore.

    Arguments
        array: (n, d) or (n, ...), of a floating-point type.
    """

    def __init__(self, array: Tensor | np.ndarray) -> None:
        if isinstance(array, Tensor):
            array = array.detach().cpu()
            array = (array.float() if array.dtype == torch.bfloat16 else array).numpy()  # NumPy has no bfloat16
        self._array = array.reshape(len(array), math.prod(array.shape[1:]))

    @property
    def d(self) -> int:
        """Values in a row."""
        return self._array.shape[1]

    def __len__(self) -> int:
        return len(self._array)

    def batches(self, rows: int) -> Iterator[np.ndarray]:
        """All rows in order, at most `rows` at a time."""
        for start in range(0, len(self._array), rows):
            yield self._array[start : start + rows]


class RowSubset:
    """Some parts of a store that is dealt out into equal parts, without a copy of the rows.

    Of every `parts` consecutive rows each part gets one, drawn anew each time, the same in every run. So every part sees all
    of a sorted collection, and none sees one class alone where classes take turns.

    Arguments
        store: to be dealt out.
        parts: in all. chosen: numbers of the parts to be read, 0 to parts - 1.

    Memory: 2 bytes a row of the store, 8 while they are drawn.
    """

    def __init__(self, store: RowStore, parts: int, chosen: Collection[int]) -> None:
        self._store, self._parts, self._chosen = store, parts, sorted(set(chosen))

    @property
    def d(self) -> int:
        """Values in a row."""
        return self._store.d

    def __len__(self) -> int:
        whole, rest = divmod(len(self._store), self._parts)
        return whole * len(self._chosen) + sum(part < rest for part in self._chosen)

    def batches(self, rows: int) -> Iterator[np.ndarray]:
        """The chosen rows in order, at most `rows` at a time."""
        start = 0
        for batch in self._store.batches(rows):
            wanted = np.isin(self._dealt[start : start + len(batch)], self._chosen)
            start += len(batch)
            if wanted.any():
                yield batch[wanted]

    @cached_property
    def _dealt(self) -> np.ndarray:
        """The part of each row, (len(store),) uint16."""
        draw = np.random.default_rng([self._parts, 0])
        whole, rest = divmod(len(self._store), self._parts)
        turns = draw.permuted(np.tile(np.arange(self._parts, dtype=np.uint16), (whole, 1)), axis=1)
        return np.concatenate([turns.ravel(), draw.permutation(np.arange(rest, dtype=np.uint16))])
