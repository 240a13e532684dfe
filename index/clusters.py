"""Groups of images that lie together in the leading eigen-coordinates: k-means, seeded, for colouring a map.

Natural images form no separate clouds there; the groups cut one cloud into parts, no more.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from manifold.errors import InputError

__all__ = ["cluster_rows"]

_DIRECTIONS = 32


def cluster_rows(coordinates: Tensor | np.ndarray, groups: int = 8, *, seed: int = 0) -> np.ndarray:
    """Assign every row to one of the groups, the largest numbered 0.

    Arguments
        coordinates: (n, k), of which the leading 32 are used. groups: 1 to n. seed: of the starting centres.

    Returns: (n,) int64.

    Raises: InputError if there are more groups than rows.

    Cost: some thirty passes of n x groups x 32 multiply-adds.
    """
    from scipy.cluster.vq import kmeans2

    rows = torch.as_tensor(coordinates).detach().double().numpy()[:, :_DIRECTIONS]
    if not 1 <= groups <= len(rows):
        raise InputError(f"the groups must number 1 to {len(rows)}, one for each row at most, they are {groups}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an empty group is no fault here,
        warnings.simplefilter("ignore", RuntimeWarning)  # nor are points that are all equal
        _, labels = kmeans2(rows, groups, iter=30, minit="++", rng=np.random.default_rng(seed))
    sizes = np.bincount(labels, minlength=groups)
    rank = np.empty(groups, dtype=np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(groups)
    return rank[labels]
