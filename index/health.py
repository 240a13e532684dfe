"""What a collection holds that its owner may not want: inputs that could not be used, and the same picture more than once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from manifold.errors import InputError

from .coordinates import eigen_coordinates
from .neighbours import exact_neighbours
from .progress import Progress, silent
from .statistics import load_manifold
from .workspace import Workspace

__all__ = ["Duplicates", "near_duplicates", "reason_counts"]

_NEAREST = 8


def reason_counts(rejects: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many inputs were rejected for each reason, most frequent first. `rejects`: from `index.shards.read_rejects`."""
    counted = Counter(str(reject["reason"]) for reject in rejects)
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))


@dataclass(frozen=True)
class Duplicates:
    """Pairs of rows that nearly coincide, nearest first.

    Attributes
        pairs: (m, 2) row numbers, the lower first.
        distances: (m,) between their latents. relative: (m,) the same over `typical`.
        typical: root mean square distance of two images of the collection, sqrt(2 trace).
    """

    pairs: np.ndarray
    distances: np.ndarray
    relative: np.ndarray
    typical: float


def near_duplicates(
    workspace: str | Path | Workspace, threshold: float = 0.1, *, progress: Progress = silent
) -> Duplicates:
    """Pairs of images whose latents lie closer than a share of the usual distance.

    Arguments
        workspace: its folder, encoded and fitted; or opened.
        threshold: the share, above 0 and below 1; copies that were compressed anew lie below about 0.1.
        progress: told of ("project" | "neighbours", rows done, rows in all).

    Returns: Duplicates. Of a group of more than 9 copies not every pair is listed, but every member.

    Raises: InputError (no complete workspace, threshold out of range); NotFittedError; MismatchError; FormatError.

    Cost: n^2 multiply-adds a leading coordinate; exact, because a distance between coordinates is never longer than that
        between the latents.
    """
    if not 0 < threshold < 1:
        raise InputError(f"the threshold is a share of the usual distance, above 0 and below 1; it is {threshold}")
    opened = workspace if isinstance(workspace, Workspace) else Workspace.open(workspace)
    typical = math.sqrt(2 * load_manifold(opened).total_variance)
    coordinates = eigen_coordinates(opened, progress=progress)
    store = opened.latents
    lists = exact_neighbours(coordinates, min(_NEAREST, len(store) - 1), progress=progress)
    rows, places = np.nonzero(lists.distances <= threshold * typical)
    candidates = np.stack([rows, lists.ids[rows, places]], axis=1)
    candidates = np.unique(np.sort(candidates, axis=1), axis=0)
    distances = np.empty(len(candidates))
    for number, (first, second) in enumerate(candidates):
        a, b = store.read([first, second]).astype(np.float64)
        distances[number] = np.linalg.norm(a - b)
    kept = distances <= threshold * typical
    order = np.lexsort((candidates[kept][:, 0], distances[kept]))
    pairs, near = candidates[kept][order], distances[kept][order]
    return Duplicates(pairs, near, near / typical, typical)
