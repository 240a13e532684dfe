"""The nearest of some rows of a collection, all of them looked at."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from manifold.precision import without_autocast

from .latents import LatentStore

__all__ = ["PRODUCT_ROUNDING", "STATES_TOGETHER", "by_state", "least_bounds", "nearest_rows", "numbered_batches"]

PRODUCT_ROUNDING = 1e-5
"""How far a squared distance from float32 products, |a|^2 - 2 a.b + |b|^2, may be off, as a share of |a|^2 + |b|^2."""
_BATCH_BYTES, _BATCH_ROWS = 32 * 2**20, 8192
STATES_TOGETHER = 1024
"""Of one pass over the latents; with 8,192 rows of a batch 64 MiB of distances."""


def numbered_batches(store: LatentStore, rows: np.ndarray | None = None) -> Iterator[tuple[Tensor, np.ndarray]]:
    """The latents of `rows`, or of all rows, in order: pairs of their numbers (m,) int64 and themselves (m, d) float16."""
    size = min(max(1, _BATCH_BYTES // (2 * store.d)), _BATCH_ROWS)
    if rows is None:
        start = 0
        for batch in store.batches(size):
            yield torch.arange(start, start + len(batch)), batch
            start += len(batch)
        return
    for low in range(0, len(rows), size):
        numbers = rows[low : low + size]
        yield torch.from_numpy(numbers), store.read(numbers)


def least_bounds(earlier: Tensor, upper: Tensor) -> Tensor:
    """The k least upper bounds of distances, (m, k), of those before and those of one more batch, (m, rows)."""
    return torch.cat([earlier, upper], 1).topk(earlier.shape[1], largest=False).values


def by_state(states: Tensor, m: int, *columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Pairs of a state and a row, taken apart by state: for each of m states what every column has of its rows, in order.

    Arguments
        states: (pairs,) numbers of states. columns: (pairs,) each, rows rising within each state.
    """
    order = states.argsort(stable=True)
    counts = states.bincount(minlength=m).tolist()
    return zip(*(column[order].split(counts) for column in columns), strict=True)


@without_autocast
def nearest_rows(
    store: LatentStore,
    rows: np.ndarray,
    mean: Tensor,
    targets: Tensor,
    k: int,
) -> list[np.ndarray]:
    """All rows that may be among the k nearest to each target: candidates to be ranked in float64.

    Arguments
        rows: numbers to choose from, rising, at least k.
        mean: (d,) float32, subtracted on both sides so that a common offset costs no precision.
        targets: (m, d) float64.

    Returns: for each target the numbers of at least k rows, rising. Few more than k, unless rows lie nearer to each other
        than float32 can tell.

    Cost: one pass over the latents of `rows` for every 1,024 targets; m d multiply-adds a row, float32. At most 0.5 GiB.
    """
    found = []
    for part in targets.split(STATES_TOGETHER):
        found += _nearest_rows(store, rows, mean, part, k)
    return found


def _nearest_rows(store: LatentStore, rows: np.ndarray, mean: Tensor, targets: Tensor, k: int) -> list[np.ndarray]:
    at_most = torch.full((len(targets), k), torch.inf, dtype=torch.float64)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    centred = (targets - mean.double()).float()
    lengths = centred.double().square().sum(1, keepdim=True)
    for numbers, batch in numbered_batches(store, rows):
        deviations = torch.from_numpy(batch).float().sub_(mean)
        both = lengths + deviations.double().square().sum(1)
        squared = both - 2 * (centred @ deviations.T).double()
        off = PRODUCT_ROUNDING * both
        at_most = least_bounds(at_most, squared + off)
        least = squared - off
        state, place = (least <= at_most.amax(1, keepdim=True)).nonzero(as_tuple=True)
        found.append((state, numbers[place], least[state, place]))
    states, ids, at_least = (torch.cat(part) for part in zip(*found, strict=True))
    near = at_least <= at_most.amax(1)[states]
    # Numbers rise within each batch, and from one to the next.
    return [part.numpy() for (part,) in by_state(states[near], len(targets), ids[near])]
