"""Near-duplicates of a collection: groups of images whose latents nearly coincide.

Two rows are near-duplicates if their latents lie within a threshold; groups are the connected components over such pairs, so
the ends of a long chain may lie further apart. The search is exact. A projection shortens distances, so pairs that are too
far apart in the index's eigen-coordinates are left out, first by the leading coordinate alone, along which rows are sorted
and spread most; what remains is measured on the latents in float64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from manifold.errors import InputError

from .latents import LatentStore
from .progress import Progress, silent
from .search import Searcher

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["DEFAULT_SHARE", "Duplicates", "default_threshold", "find_duplicates"]

DEFAULT_SHARE = 0.1
"""The threshold unless given, as a share of the root mean square distance of two rows of the collection."""
_BATCH_BYTES = 64 * 2**20
_BLOCK, _TILE = 1024, 8192
_MEASURED_AT_ONCE = 4096
_LARGEST = 1e100
"""Thresholds beyond have no square in float64."""
_ROUNDING = 1e-4
"""Of float32 coordinates, as a share of the longest row: no pair is left out for it."""


@dataclass(frozen=True)
class Duplicates:
    """Groups of near-duplicates, largest first, then by their first row."""

    threshold: float
    """Distance between latents up to which two rows are joined."""
    typical_distance: float
    """Root mean square distance of two rows of the collection, sqrt(2 trace of the covariance), to judge it by."""
    groups: tuple[np.ndarray, ...]
    """Row numbers of each group, rising."""
    distances: tuple[np.ndarray, ...]
    """Distance of each of these rows from the first of its group."""
    store: LatentStore

    @property
    def surplus(self) -> int:
        """Rows beyond one of each group."""
        return sum(len(group) - 1 for group in self.groups)

    def table(self) -> pa.Table:
        """One row for each member: `group` (from 0), `row`, `distance` to the group's first, and all metadata."""
        import pyarrow as pa

        sizes = [len(group) for group in self.groups]
        rows = np.concatenate([*self.groups, np.empty(0, dtype=np.int64)]).astype(np.int64)
        distances = np.concatenate([*self.distances, np.empty(0)])
        about = self.store.metadata().take(pa.array(rows))
        columns = {
            "group": pa.array(np.repeat(np.arange(len(sizes)), sizes), pa.int64()),
            "row": pa.array(rows),
            "distance": pa.array(distances),
        }
        names = [*columns, *about.column_names]
        return pa.table([*columns.values(), *about.columns], names=names)


def default_threshold(total_variance: float) -> float:
    """A tenth of the root mean square distance of two rows: 0.1 sqrt(2 trace). Such pairs share 99 % of their variance.

    It is taken from all pairs, not from nearest neighbours, so that many duplicates do not make it small. On photographs as
    pixels of 64 px it finds nearly all copies compressed again, reduced to half the size or 5 % brighter, few of those with
    an edge cut off; among the 50,000 CIFAR-10 training images it joins none, 0.15 joins one pair, wrongly, and 0.2 finds 92
    groups, with the same object seen twice among them and plain skies too.
    """
    return DEFAULT_SHARE * sqrt(2 * total_variance)


def find_duplicates(
    workspace: str | Path, *, threshold: float | None = None, progress: Progress = silent
) -> Duplicates:
    """Find groups of near-duplicates.

    Arguments
        workspace: its folder, encoded, fitted and indexed.
        threshold: largest distance between two latents that joins them, 0 for equal latents; see `default_threshold`.
        progress: told of ("project", rows done, rows in all), then ("compare", rows done, rows in all).

    Raises: InputError for a threshold below 0; all of `Searcher.open`.

    Cost: one pass over the latents, with k d multiply-adds a row, and the k coordinates in memory (4 bytes each); then k for
        each pair of rows whose leading coordinates lie within the threshold, and a look at both latents for the few that
        remain. Exact.
    """
    from .faiss_io import basis

    searcher = Searcher.open(workspace)
    store = searcher.workspace.latents
    variance = searcher.manifold.total_variance
    reach = default_threshold(variance) if threshold is None else float(threshold)
    if not 0 <= reach <= _LARGEST:
        raise InputError(f"the threshold must be a distance between 0 and {_LARGEST:g}, it is {threshold}")
    mean, vectors = basis(searcher._index.on_cpu)
    first, coordinates, longest = _distinct(store, mean, vectors, progress)
    distinct = np.flatnonzero(first == np.arange(len(store)))
    parents = _Components(len(distinct))
    slack = _ROUNDING * longest
    for left, right in _near(coordinates[distinct], reach + slack, progress):
        _join(parents, store, distinct, left, right, reach)
    roots = distinct[parents.roots(np.searchsorted(distinct, first))]
    groups = _groups(roots)
    distances = tuple(_distances(store, group, np.full(len(group), group[0])) for group in groups)
    return Duplicates(reach, sqrt(2 * variance), groups, distances, store)


def _distinct(
    store: LatentStore, mean: np.ndarray, vectors: np.ndarray, progress: Progress
) -> tuple[np.ndarray, np.ndarray, float]:
    """For each row the first row with equal latents; eigen-coordinates (n, k); and the length of the longest row."""
    first = np.empty(len(store), dtype=np.int64)
    coordinates = np.empty((len(store), vectors.shape[1]), dtype=np.float32)
    seen: dict[bytes, int] = {}
    done, longest = 0, 0.0
    progress("project", 0, len(store))
    for batch in store.batches(max(1, _BATCH_BYTES // (4 * store.d))):
        for row in batch + np.float16(0):  # -0 becomes 0
            first[done] = seen.setdefault(hashlib.blake2b(row.tobytes(), digest_size=16).digest(), done)
            done += 1
        deviations = batch.astype(np.float32) - mean
        coordinates[done - len(batch) : done] = deviations @ vectors
        longest = max(longest, float(np.sqrt(np.square(deviations, dtype=np.float64).sum(1).max())))
        progress("project", done, len(store))
    return first, coordinates, longest


def _near(coordinates: np.ndarray, reach: float, progress: Progress) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of rows, each once, among which are all that lie within `reach` in their coordinates."""
    order = np.argsort(coordinates[:, 0], kind="stable")
    leading, lengths = coordinates[order, 0], np.square(coordinates[order], dtype=np.float64).sum(1)
    rounding = 1e-5 * float(lengths.max(initial=0.0))
    progress("compare", 0, len(order))
    for low in range(0, len(order), _BLOCK):
        high = min(low + _BLOCK, len(order))
        block = coordinates[order[low:high]]
        stop = int(np.searchsorted(leading, float(leading[high - 1]) + reach, side="right"))
        for start in range(low, stop, _TILE):
            end = min(start + _TILE, stop)
            products = block @ coordinates[order[start:end]].T
            squared = lengths[low:high, None] + lengths[None, start:end] - 2 * products
            left, right = np.nonzero(squared <= reach**2 + rounding)
            later = right + start > left + low
            if later.any():
                yield order[left[later] + low], order[right[later] + start]
        progress("compare", high, len(order))


def _join(
    parents: _Components, store: LatentStore, distinct: np.ndarray, left: np.ndarray, right: np.ndarray, reach: float
) -> None:
    """Join the pairs that lie within `reach`; those whose ends are connected already need no measuring."""
    for low in range(0, len(left), _MEASURED_AT_ONCE):
        a, b = left[low : low + _MEASURED_AT_ONCE], right[low : low + _MEASURED_AT_ONCE]
        apart = parents.roots(a) != parents.roots(b)
        a, b = a[apart], b[apart]
        near = _distances(store, distinct[a], distinct[b]) <= reach
        parents.join(a[near], b[near])


def _distances(store: LatentStore, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Distances between the latents of pairs of rows, float64."""
    found = np.empty(len(left))
    size = max(1, _BATCH_BYTES // (16 * store.d))
    for low in range(0, len(left), size):
        pairs = slice(low, low + size)
        difference = store.read(left[pairs]).astype(np.float64) - store.read(right[pairs])
        found[pairs] = np.sqrt(np.square(difference).sum(axis=1))
    return found


def _groups(roots: np.ndarray) -> tuple[np.ndarray, ...]:
    """Row numbers with equal roots, where there are at least two."""
    order = np.argsort(roots, kind="stable")
    cuts = np.flatnonzero(np.diff(roots[order])) + 1
    groups = [group for group in np.split(order, cuts) if len(group) > 1]
    return tuple(sorted(groups, key=lambda group: (-len(group), int(group[0]))))


class _Components:
    """Connected components that grow by joining: a forest of parents, the smallest number its root."""

    def __init__(self, count: int) -> None:
        self._parents = np.arange(count, dtype=np.int64)

    def roots(self, numbers: np.ndarray) -> np.ndarray:
        """The root of each number's component."""
        roots = self._parents[numbers]
        while True:
            above = self._parents[roots]
            if (above == roots).all():
                self._parents[numbers] = roots
                return roots
            roots = above

    def join(self, left: np.ndarray, right: np.ndarray) -> None:
        """Make one component of the two of each pair."""
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            pair = self.roots(np.array([a, b]))
            self._parents[pair.max()] = pair.min()
