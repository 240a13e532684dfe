"""The rows farthest out along each eigenvector, at both ends: what a direction means, shown by images that exist."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from manifold.errors import InputError
from manifold.gaussian import GaussianManifold

from .latents import LatentStore
from .progress import Progress, silent

__all__ = ["extreme_rows"]

_BATCH_BYTES = 64 * 2**20


def extreme_rows(
    store: LatentStore,
    manifold: GaussianManifold,
    directions: Sequence[int],
    count: int,
    *,
    progress: Progress = silent,
) -> np.ndarray:
    """Rows of smallest and of largest coordinate u_k^T (x - mu), the farthest first; ties go to the lower row.

    Arguments
        store: latents (n, d). manifold: with eigenvectors. directions: m of them, counted from 0.
        count: rows at each end, at most n.
        progress: told of ("project", rows done, rows in all).

    Returns: (m, 2, count) int64 row numbers, the smallest coordinates first.

    Raises: InputError for a direction that the manifold does not have, or a count below 1; NotFittedError without
        eigenvectors.

    Cost: one pass over the latents, n d m multiply-adds; a batch and m count rows in memory.
    """
    chosen = list(directions)
    if not chosen or min(chosen) < 0 or max(chosen) >= manifold.k:
        raise InputError(f"directions must be ranks from 0 to {manifold.k - 1}, they are {chosen}")
    if count < 1:
        raise InputError(f"count must be at least 1, it is {count}")
    vectors = manifold.eigvecs[:, chosen].double()
    batch_rows = max(1, _BATCH_BYTES // (8 * store.d))
    # Coordinates are kept with their sign turned at the upper end, so that at both the smallest are wanted.
    kept = np.empty((len(chosen), 2, 0))
    ids = np.empty((len(chosen), 2, 0), dtype=np.int64)
    done = 0
    for batch in store.batches(batch_rows):
        rows = torch.from_numpy(batch).to(vectors)
        along = ((rows - manifold.mean.to(vectors)) @ vectors).T.numpy()
        numbers = np.broadcast_to(np.arange(done, done + len(rows)), (len(chosen), 2, len(rows)))
        kept = np.concatenate([kept, np.stack([along, -along], axis=1)], axis=2)
        ids = np.concatenate([ids, numbers], axis=2)
        order = np.argsort(kept, axis=2, kind="stable")[:, :, :count]
        kept, ids = np.take_along_axis(kept, order, 2), np.take_along_axis(ids, order, 2)
        done += len(rows)
        progress("project", done, len(store))
    return ids
