"""How far two spaces agree on who is near to whom, from their neighbour lists alone.

    overlap(i, k)    = |A_k(i) & B_k(i)| / k           shared neighbours of row i; by chance k / (n - 1)
    alignment(k)     = |E_A & E_B| / |E_A | E_B|       E: pairs that are in each other's list of k

The mean overlap is what Huh et al. (The Platonic Representation Hypothesis, arXiv 2405.07987) call mutual nearest-neighbour
alignment. The second number is stricter: a hub, which is in many lists and has few in its own, makes no pairs. Both stay the
same under any transformation of a space that keeps the order of distances. A measured overlap means nothing without its
null, which is had by pairing each row of one space with a random row of the other.
"""

from __future__ import annotations

import numpy as np

from manifold.errors import InputError, ShapeError

__all__ = ["alignment", "mutual_pairs", "neighbour_overlap", "shuffled_lists"]

_BLOCK_ENTRIES = 2**24


def neighbour_overlap(a: np.ndarray, b: np.ndarray, k: int) -> np.ndarray:
    """Share of each row's k nearest in one space that are among its k nearest in the other.

    Arguments
        a, b: (n, K) row numbers, nearest first, no row twice in a list. k: 1 to K.

    Returns: (n,) float64, 0 to 1.

    Raises: ShapeError; InputError for k out of range.

    Cost: n k^2 comparisons; exact.
    """
    _require(a, b, k)
    shared = np.empty(len(a))
    rows = max(1, _BLOCK_ENTRIES // k**2)
    for start in range(0, len(a), rows):
        here = slice(start, start + rows)
        shared[here] = (a[here, :k, None] == b[here, None, :k]).sum(axis=(1, 2))
    return shared / k


def mutual_pairs(ids: np.ndarray, k: int) -> np.ndarray:
    """Pairs i < j that are each among the other's k nearest, as sorted numbers i n + j. Raises: as `neighbour_overlap`."""
    _require(ids, ids, k)
    n = len(ids)
    own, other = np.repeat(np.arange(n), k), ids[:, :k].ravel()
    forward, backward = own * n + other, other * n + own
    return np.intersect1d(forward[own < other], backward[own > other])


def alignment(a: np.ndarray, b: np.ndarray, k: int) -> float:
    """Mutual pairs of both spaces over mutual pairs of either, 0 to 1; 0 if there are none. Arguments as above."""
    _require(a, b, k)
    pairs_a, pairs_b = mutual_pairs(a, k), mutual_pairs(b, k)
    both = len(np.intersect1d(pairs_a, pairs_b, assume_unique=True))
    either = len(pairs_a) + len(pairs_b) - both
    return both / either if either else 0.0


def shuffled_lists(ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The lists of the same space after its rows were dealt out anew: (n, K), same graph, other names."""
    order = rng.permutation(len(ids))
    name = np.argsort(order)
    return name[ids[order]]


def _require(a: np.ndarray, b: np.ndarray, k: int) -> None:
    if a.ndim != 2 or a.shape != b.shape:
        raise ShapeError(f"two sets of lists must both be (n, K), they are {a.shape} and {b.shape}")
    if not 1 <= k <= a.shape[1]:
        raise InputError(f"k must lie between 1 and the {a.shape[1]} neighbours listed, it is {k}")
