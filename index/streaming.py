"""One pass over the latents for everything that adds up: the moments, and count, mean and moments of each class.

Each of them lies in a file of its own with the checksums of the shards it covers, and goes on from there: what a killed pass
saved is not read again, and a workspace that has grown needs only its new shards. Their bytes do not depend on where they
were stopped, nor on one another: labels change no bit of the moments of all rows.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from manifold.class_means import ClassMeans
from manifold.class_moments import ClassMoments
from manifold.errors import FormatError, InputError, ManifoldWarning, NonFiniteError
from manifold.moments import Moments, Precision

from .progress import Progress
from .statistics import UNLABELLED, class_means_path, class_moments_path
from .workspace import Workspace

__all__ = ["stream_statistics"]

_SAVE_EVERY_S = 60.0
_BATCH_BYTES = 32 * 2**20
_CLASS_COVARIANCES_UP_TO = 256 * 2**20
"""Covariances of classes that take less memory than this, in bytes, are kept without being asked for."""
_CLASS_MEANS_UP_TO = 2**30


@dataclass
class _Part:
    """Something that adds up, its file, and how many of the workspace's shards it holds."""

    path: Path
    sums: Moments | ClassMeans | ClassMoments
    done: int
    changed: bool = False

    def update(self, batch: np.ndarray, labels: np.ndarray | None) -> None:
        if isinstance(self.sums, Moments):
            self.sums.update(batch, copy=False)  # mapped from a file
        elif labels is not None:
            self.sums.update(batch, labels)
        self.changed = True

    def save(self, shards: list[str]) -> None:
        if self.changed:
            self.sums.save(self.path, {"shards": json.dumps(shards)})
            self.changed = False


def stream_statistics(
    workspace: Workspace,
    *,
    moments: bool,
    precision: Precision,
    class_covariances: bool | None,
    progress: Progress,
) -> Moments | None:
    """Bring the files of sums in WS/stats up to the latents.

    Arguments
        workspace: completely encoded.
        moments: whether those of all rows are wanted.
        precision: of products; see `manifold.Moments`.
        class_covariances: whether each class gets moments of its own, where images have labels; unless given, where all
            of them take no more than 256 MiB. Counts and means of classes are kept in any case.
        progress: told of ("fit", rows done, rows in all).

    Returns: the moments of all rows, if wanted.

    Raises: InputError if covariances of classes are asked for and there are no labels; NonFiniteError naming the row.

    Warns: ManifoldWarning if a file is damaged, and then made again; if there are too many labels to be classes.

    Cost: n d^2 multiply-adds for the moments, as many again for covariances of classes, n d for means.
    """
    checksums = [shard.latents_sha256 for shard in workspace.manifest.shards]
    labels = _labels(workspace)
    parts = []
    if moments:
        parts.append(_resumed(workspace.moments_path, lambda: Moments(workspace.latents.d, precision=precision),
                              checksums, precision))  # fmt: skip
    parts += _class_parts(workspace, labels, precision, class_covariances, checksums)
    store, total, saved = workspace.latents, len(workspace.latents), time.monotonic()
    first = min((part.done for part in parts), default=len(checksums))
    start = sum(shard.rows for shard in store.shards[:first])
    if parts:
        progress("fit", start, total)
    for number in range(first, len(checksums)):
        taking = [part for part in parts if part.done <= number]
        stop = start + store.shards[number].rows
        for batch in store.batches(max(1, _BATCH_BYTES // (2 * store.d)), start, stop):
            mine = None if labels is None else labels[start : start + len(batch)]
            for part in taking:
                try:
                    part.update(batch, mine)
                except NonFiniteError as error:
                    raise NonFiniteError(f"{workspace.root}: {error}") from error
            start += len(batch)
            progress("fit", start, total)
        if time.monotonic() - saved > _SAVE_EVERY_S:
            for part in taking:
                part.save(checksums[: number + 1])
            saved = time.monotonic()
    for part in parts:
        part.save(checksums)
    found = parts[0].sums if moments else None
    return found if isinstance(found, Moments) else None


def _labels(workspace: Workspace) -> np.ndarray | None:
    """The label of each row, (n,) int64, UNLABELLED where there is none; None if no row has one."""
    if "label" not in workspace.latents.metadata_columns():
        return None
    column = workspace.latents.metadata(["label"]).column("label")
    if column.null_count == len(column):
        return None
    labels = np.array(column.fill_null(UNLABELLED).to_numpy(), dtype=np.int64)
    return None if (labels == UNLABELLED).all() else labels


def _class_parts(
    workspace: Workspace, labels: np.ndarray | None, precision: Precision, asked: bool | None, checksums: list[str]
) -> list[_Part]:
    """What is kept of classes; files of what is not are deleted, since they would fall behind."""
    d, means, moments = workspace.latents.d, class_means_path(workspace), class_moments_path(workspace)
    classes = 0 if labels is None else len(np.unique(labels))
    if asked and not classes:
        raise InputError(f"{workspace.root} has no labels, so there are no classes; fit without class covariances")
    if 8 * classes * d > _CLASS_MEANS_UP_TO:
        warnings.warn(
            f"{classes:,} different labels of {d:,} values each are more than classes usually are; no statistics of "
            "classes were made",
            ManifoldWarning,
            stacklevel=4,
        )
        classes = 0
    wanted = bool(classes) and (8 * classes * d * d <= _CLASS_COVARIANCES_UP_TO if asked is None else asked)
    parts = []
    if classes:
        parts.append(_resumed(means, lambda: ClassMeans(d), checksums))
    else:
        means.unlink(missing_ok=True)
    if wanted:
        made = lambda: ClassMoments(d, precision=precision, max_classes=classes)  # noqa: E731
        parts.append(_resumed(moments, made, checksums, precision, classes))
    else:
        moments.unlink(missing_ok=True)
    return parts


def _resumed(
    path: Path,
    made: Callable[[], Moments | ClassMeans | ClassMoments],
    checksums: list[str],
    precision: Precision | None = None,
    classes: int | None = None,
) -> _Part:
    """What was saved earlier, if it is of the workspace's first shards and was asked for as now; else a new beginning."""
    fresh = made()
    if path.is_file():
        try:
            sums, metadata = type(fresh).load(path)
        except FormatError as error:
            warnings.warn(f"{error}; they are computed again from the latents", ManifoldWarning, stacklevel=5)
            return _Part(path, fresh, 0)
        covered = json.loads(metadata["shards"])
        as_asked = precision is None or getattr(sums, "precision", None) == precision
        if classes is not None and isinstance(sums, ClassMoments):
            sums.max_classes = classes
        if as_asked and covered == checksums[: len(covered)]:
            return _Part(path, sums, len(covered))
    return _Part(path, fresh, 0)
