"""Nearest neighbours within one collection: every row's k nearest other rows, exact.

Used where whole neighbour lists are compared or drawn, not to answer queries; that is what the index is for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from manifold.errors import InputError, NonFiniteError, ShapeError
from manifold.precision import without_autocast
from manifold.rows import as_rows, largest_modulus

from .exhaustive import PRODUCT_ROUNDING
from .progress import Progress, silent

__all__ = ["NeighbourLists", "exact_neighbours"]

_MARGIN = 16
"""Candidates beyond k that float32 products select; where rounding might decide who is among the k, more are taken."""
_BLOCK_BYTES = 64 * 2**20
_TOGETHER = 64
"""Rows whose candidates are ranked at once."""


@dataclass(frozen=True)
class NeighbourLists:
    """The k nearest other rows of every row, nearest first."""

    ids: np.ndarray
    """(n, k) int64 row numbers."""
    distances: np.ndarray
    """(n, k) float64, rising."""


@without_autocast
def exact_neighbours(rows: Tensor | np.ndarray, k: int, *, progress: Progress = silent) -> NeighbourLists:
    """The k nearest other rows of every row, by Euclidean distance; ties go to the lower row number.

    Rows of unit length are thereby ranked by cosine too: |a - b|^2 = 2 - 2 a.b.

    Arguments
        rows: (n, d) of a floating-point type. k: 1 to n - 1.
        progress: told of ("neighbours", rows done, rows in all).

    Raises: ShapeError; InputError for k out of range, or numbers that are not floating point; NonFiniteError naming the row.

    Cost: n^2 d multiply-adds in float32; 64 MiB of distances at a time. Candidates, as many as rounding leaves in question,
        are ranked in float64 from the differences themselves, so lists are exact also among rows that nearly coincide.
    """
    if rows.ndim != 2:
        raise ShapeError(f"rows must be (n, d), they are {tuple(rows.shape)}")
    points = as_rows(rows, rows.shape[1])
    points = points if points.dtype == torch.float64 else points.float()
    n = len(points)
    if not 1 <= k < n:
        raise InputError(f"k must lie between 1 and {n - 1}, one less than the {n} rows, it is {k}")
    finite = points.isfinite().all(1)
    if not bool(finite.all()):
        raise NonFiniteError(f"row {int(finite.int().argmin())} has NaN or infinity")
    centred = points - points.mean(0)  # distances stay, and the products lose less to a shared offset
    # Brought near 1, so that no square leaves float32: which rows are candidates does not depend on the scale.
    centred = (centred / (largest_modulus(centred.contiguous()) or 1.0)).float()
    squared = centred.square().sum(1)
    off = PRODUCT_ROUNDING * (squared + squared.max())  # of any distance from each row
    wanted = min(k + _MARGIN, n - 1)
    ids, distances = np.empty((n, k), dtype=np.int64), np.empty((n, k))
    block = max(1, _BLOCK_BYTES // (4 * n))
    progress("neighbours", 0, n)
    for start in range(0, n, block):
        stop = min(start + block, n)
        scores = torch.addmm(squared, centred[start:stop], centred.T, alpha=-2)
        own = torch.arange(stop - start)
        scores[own, own + start] = torch.inf
        nearest, candidates = scores.topk(wanted, largest=False)
        reach = nearest[:, k - 1] + 2 * off[start:stop]
        told = (nearest[:, -1] > reach) | (wanted == n - 1)
        for part in range(0, stop - start, _TOGETHER):
            # In the order of their numbers, so that a stable sort by distance breaks ties by number.
            chosen = candidates[part : part + _TOGETHER].sort(1).values
            here = torch.arange(start + part, start + part + len(chosen))
            ids[here], distances[here] = _ranked(points, here, chosen, k)
        for row in (~told).nonzero()[:, 0].tolist():
            chosen = (scores[row] <= reach[row]).nonzero()[:, 0]
            here = torch.tensor([start + row])
            ids[here], distances[here] = _ranked(points, here, chosen[None], k)
        progress("neighbours", stop, n)
    return NeighbourLists(ids, distances)


def _ranked(points: Tensor, rows: Tensor, chosen: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest to each row of those chosen for it, (m, c), rising: numbers and distances."""
    apart = points[rows, None].double() - points[chosen].double()
    exact, order = apart.square_().sum(2).sort(dim=1, stable=True)
    return chosen.gather(1, order[:, :k]).numpy(), exact[:, :k].sqrt().numpy()
