"""Rows by their exact distance: all measured in float32, those that may be among the nearest again in float64."""

from __future__ import annotations

from math import sqrt

import numpy as np
import torch

from .faiss_io import HalfRows
from .latents import LatentStore

__all__ = ["Ranking"]

_ROUGH = 1e-5
"""How far a distance in float32 may be off, as a share of itself and of the target's length."""


class Ranking:
    """Ranks rows of a store. Several threads may use it, each in a room of its own; rooms are kept for the next search.

    Memory: 2 d bytes, for each thread, of every row ranked at once.
    """

    def __init__(self, store: LatentStore) -> None:
        self._store = store
        self._rooms: list[HalfRows] = []

    def nearest(self, target: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest to a target of some rows, ties by row number, with their distances in float64.

        Arguments
            target: (d,) float64. rows: (m,) int64, rising, m >= k.

        Returns: (k,) int64 numbers and (k,) float64 distances. Neither depends on which other rows there were.
        """
        try:
            room = self._rooms.pop()  # another thread may take the last one between a look and this
        except IndexError:
            room = HalfRows(len(rows), self._store.d)
        if len(room.rows) < len(rows):
            room = HalfRows(len(rows), self._store.d)
        self._store.read_into(rows, room.rows[: len(rows)])
        rough, places = room.by_distance(target.astype(np.float32), len(rows))
        # Distances rise, and each may be off by _ROUGH: up to this one a row may still be nearer than the k-th.
        reach = ((1 + _ROUGH) * float(rough[k - 1]) + 2 * _ROUGH * sqrt(target @ target)) / (1 - _ROUGH)
        places = places[: rough.searchsorted(np.float32(reach), side="right")]
        near = torch.from_numpy(room.rows[places])
        self._rooms.append(room)
        away = near.float().double().numpy()  # by way of float32, which is exact, and quicker
        away -= target
        distances = np.sqrt(np.einsum("ij,ij->i", away, away))
        numbers = rows[places]
        order = np.lexsort((numbers, distances))[:k]
        return numbers[order], distances[order]
