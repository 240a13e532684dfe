"""The nearest of some rows of a collection, all of them looked at."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .latents import LatentStore

__all__ = ["SPARE", "nearest_rows", "numbered_batches"]

SPARE = 32
"""Rows beyond k whose distances are taken again in float64: float32 orders neighbours this close only roughly."""
_BATCH_BYTES = 32 * 2**20


def numbered_batches(store: LatentStore, rows: np.ndarray | None = None) -> Iterator[tuple[Tensor, np.ndarray]]:
    """The latents of `rows`, or of all rows, in order: pairs of their numbers (m,) int64 and themselves (m, d) float16."""
    size = max(1, _BATCH_BYTES // (2 * store.d))
    if rows is None:
        start = 0
        for batch in store.batches(size):
            yield torch.arange(start, start + len(batch)), batch
            start += len(batch)
        return
    for low in range(0, len(rows), size):
        numbers = rows[low : low + size]
        yield torch.from_numpy(numbers), store.read(numbers)


def nearest_rows(
    store: LatentStore,
    rows: np.ndarray,
    mean: Tensor,
    targets: Tensor,
    k: int,
) -> np.ndarray:
    """The rows nearest to each target, a few more than k, roughly in order: candidates to be ranked in float64.

    Arguments
        rows: numbers to choose from, rising.
        mean: (d,) float32, subtracted on both sides so that a common offset costs no precision.
        targets: (m, d) float64.

    Returns: (m, min(k + 32, rows)) int64.

    Cost: one pass over the latents of `rows`; m d multiply-adds a row, float32.
    """
    kept = min(k + SPARE, len(rows))
    best = torch.full((len(targets), kept), torch.inf, dtype=torch.float64)
    best_ids = torch.full((len(targets), kept), -1, dtype=torch.int64)
    centred = (targets - mean.double()).float()
    lengths = centred.double().square().sum(1, keepdim=True)
    for numbers, batch in numbered_batches(store, rows):
        deviations = torch.from_numpy(batch).float().sub_(mean)
        squared = lengths - 2 * (centred @ deviations.T).double() + deviations.double().square().sum(1)
        best, chosen = torch.cat([best, squared], 1).topk(kept, largest=False)
        best_ids = torch.cat([best_ids, numbers.expand(len(targets), -1)], 1).gather(1, chosen)
    return best_ids.numpy()
