"""Bringing statistics and index up to latents that were added or removed, without building the index again.

Statistics are refitted, which for added latents means to read those alone. The index keeps its own basis: the mean and
eigenvectors it was built with, which lie in its file. Its new rows are projected by them. Neighbours are ranked from the
latents themselves under the refitted statistics, so an older basis changes no distance; it only has to bring the right
candidates, and does so as long as it holds about as much of the new rows' variance as it held of the old ones'. Where it
does not, a warning says so.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from manifold.errors import ManifoldWarning
from manifold.files import TEMPORARY_PREFIX, atomic_path, load_tensors, sha256_file
from manifold.gaussian import GaussianManifold

from .build import build_index, measure_index, plan_workspace
from .card import INDEX_SCHEMA, announce_card, has_card, read_card, write_card
from .costs import INVERTED
from .fit import refit_workspace
from .inverted_file import InvertedLists, write_inverted_file
from .progress import Progress, silent
from .statistics import class_means_path, class_moments_path, load_manifold
from .workspace import Workspace, writing

__all__ = ["is_behind", "refresh_index", "refresh_workspace"]

_SHARE_LOST = 0.05
"""The basis is outgrown when it holds this much less of the added rows' variance than it held of the rows it was made from,
and than a new one would hold. It is made to hold 95 %, so what it misses has then about doubled. The second condition keeps
few rows from raising a false alarm: a basis always holds more of the rows it was made from than of others like them."""
_RECALL_HOLDS = 0.25
"""The recall in the card is measured again once the rows are more or fewer by this share than when it was."""
_BATCH_BYTES = 64 * 2**20


def refresh_workspace(workspace: str | Path, *, progress: Progress = silent) -> None:
    """Bring what a workspace has of statistics and index up to its latents; what it has not stays away.

    Arguments
        workspace: its folder.
        progress: told of ("fit", rows done, rows in all) and ("index", rows done, rows in all).

    Warns: ManifoldWarning if the index's basis is outgrown.

    Raises: InputError (no complete workspace); FormatError; StorageError.

    Cost: after an addition, one pass over the new latents and an eigendecomposition; after a removal, two passes over all.
    """
    opened = Workspace.open(workspace)
    if opened.stats_path.is_file():
        refit_workspace(workspace, progress=progress)
        if has_card(opened):
            refresh_index(workspace, progress=progress)
    _drop_old_moments(opened.root)


def _drop_old_moments(root: Path) -> None:
    """Delete sums that the fit did not go on with, as after another model was chosen: they may hold rows of the latents.

    Those of a fit that was stopped are kept if it can go on with them.
    """
    with writing(root):
        opened = Workspace.open(root)
        present = [shard.latents_sha256 for shard in opened.manifest.shards]
        for path in (opened.moments_path, class_means_path(opened), class_moments_path(opened)):
            if not path.is_file():
                continue
            covered = json.loads(load_tensors(path)[1]["shards"])
            if covered != present and (opened.stats_path.is_file() or covered != present[: len(covered)]):
                path.unlink()


def is_behind(workspace: Workspace) -> bool:
    """Whether statistics or index are of other latents than the workspace has now."""
    from .statistics import covers_other_latents

    if workspace.stats_path.is_file() and covers_other_latents(
        workspace, GaussianManifold.load(workspace.stats_path).metadata
    ):
        return True
    return has_card(workspace) and not _is_current(workspace, read_card(workspace))


def refresh_index(workspace: str | Path, *, progress: Progress = silent) -> dict[str, Any]:
    """Bring a built index up to the latents and the statistics, in its own basis.

    Rows added since are projected and appended. If rows were removed, the index is emptied and filled again, which leaves
    nothing of them in the file. An index that does not belong to its card, or whose card is of another schema, is built
    anew. Inverted lists are copied from file to file, one at a time. The recall in the card is that of the rows it was
    measured among (`recall.count`); it is measured again when their number has changed by more than a quarter.

    Returns: the card, as written to WS/index/image.json.

    Warns: ManifoldWarning if the basis is outgrown: the index's coordinates hold less of the added rows' variance, by more
        than 5 points of 100, than they held of the rows that they were made from, and than coordinates made anew would hold.

    Raises: NotFittedError, MismatchError or FormatError if the statistics are missing, outdated or damaged; StorageError.
    """
    from . import faiss_io

    root = Path(workspace)
    with writing(root):
        opened = Workspace.open(root)
        card = read_card(opened)
        if _is_current(opened, card):
            return card
        manifold = load_manifold(opened)
        sound = (
            opened.index_path.is_file()
            and card["schema"] == INDEX_SCHEMA
            and sha256_file(opened.index_path) == card["index_sha256"]
        )
        if sound:
            start, last = _covered(opened, card), len(opened.latents)
            with atomic_path(opened.index_path) as path:
                mean, vectors = faiss_io.basis(_extended(opened, card["kind"], start, path, progress))
                origin = {
                    "stats_sha256": card["stats_sha256"],
                    "count": card["count"],
                    "variance_kept": card["variance_kept"],
                }
                card = {
                    **card,
                    "count": last,
                    "variance_kept": _share(manifold, vectors),
                    "index_sha256": sha256_file(path),
                    "index_bytes": path.stat().st_size,
                    "stats_sha256": sha256_file(opened.stats_path),
                    "latents_sha256": opened.latents_checksum,
                    "basis": card.get("basis", origin),
                }
                announce_card(opened, card)
            write_card(opened, card)
            if start is not None and start < last:
                _warn_if_outgrown(opened, card, manifold, mean, vectors, start)
    if not sound:
        return build_index(
            root, rank=min(int(card["k"]), manifold.k), kind=card["kind"], memory=2**60, progress=progress
        )
    measured = card.get("recall", {}).get("count")
    if measured is not None and abs(last - measured) > _RECALL_HOLDS * measured:
        return measure_index(root, progress=progress)
    return card


def _is_current(workspace: Workspace, card: dict[str, Any]) -> bool:
    return (
        workspace.index_path.is_file()
        and workspace.stats_path.is_file()
        and card["schema"] == INDEX_SCHEMA
        and card["latents_sha256"] == workspace.latents_checksum
        and card["stats_sha256"] == sha256_file(workspace.stats_path)
        and card["index_sha256"] == sha256_file(workspace.index_path)
    )


def _covered(workspace: Workspace, card: dict[str, Any]) -> int | None:
    """Rows already in the index, if they are the workspace's first; None if some of them are gone."""
    earlier = workspace.before_growth(card["latents_sha256"])
    return None if earlier is None else earlier.manifest.count


def _extended(workspace: Workspace, kind: str, start: int | None, path: Path, progress: Progress) -> Any:
    """Write the index with the rows from `start` on added to `path`; with all rows anew if `start` is None."""
    from . import faiss_io

    store, first = workspace.latents, start or 0
    inverted = kind in INVERTED
    index = (faiss_io.read_index if inverted else faiss_io.read_whole_index)(workspace.index_path)
    if inverted or start is None:
        index = faiss_io.emptied(index)

    def rows() -> Iterator[np.ndarray]:
        done = first
        progress("index", done, len(store))
        for batch in store.batches(max(1, _BATCH_BYTES // (4 * store.d)), first):
            yield faiss_io.eigen_coordinates(index, batch)
            done += len(batch)
            progress("index", done, len(store))

    if inverted:
        storage = faiss_io.storage_of(index)
        encoded = (faiss_io.assign_and_encode(index, coords) for coords in rows())
        header = faiss_io.empty_file(index, len(store))
        old = InvertedLists(workspace.index_path, len(header), storage.nlist, storage.code_size) if first else None
        write_inverted_file(path, header, storage.nlist, encoded, path.with_name(f"{TEMPORARY_PREFIX}codes"), old)
    else:
        for coords in rows():
            faiss_io.take(index, coords)
        faiss_io.write_index(index, path)
    return index


def _share(manifold: GaussianManifold, vectors: np.ndarray) -> float:
    """Share of the fitted variance along the columns of `vectors`."""
    rows = torch.from_numpy(vectors.T.copy()).to(manifold.mean)
    held = (manifold.covariance.apply(lambda variance: variance, rows) * rows).sum()
    return min(float(held) / manifold.total_variance, 1.0) if manifold.total_variance else 1.0


def _warn_if_outgrown(
    workspace: Workspace,
    card: dict[str, Any],
    manifold: GaussianManifold,
    mean: np.ndarray,
    vectors: np.ndarray,
    start: int,
) -> None:
    """Compare what the index's coordinates hold of the rows from `start` on, about its mean."""
    plan = plan_workspace(workspace.root, kind=card["kind"], memory=2**60, recall=card["plan"]["target_recall"])
    fresh = manifold.eigvecs[:, : plan.k].float().numpy()
    store = workspace.latents
    total, held, would_hold = 0.0, 0.0, 0.0
    for batch in store.batches(max(1, _BATCH_BYTES // (4 * store.d)), start):
        rows = batch.astype(np.float32) - mean
        total += float(np.square(rows, dtype=np.float64).sum())
        held += float(np.square(rows @ vectors, dtype=np.float64).sum())
        would_hold += float(np.square(rows @ fresh, dtype=np.float64).sum())
    before = card["basis"]["variance_kept"]
    if total and held / total < min(before, would_hold / total) - _SHARE_LOST:
        warnings.warn(
            f"the index's {card['k']} coordinates hold {held / total:.1%} of the variance of the {len(store) - start:,} "
            f"images added, {before:.1%} of that of the images they were made from, and new ones would hold "
            f"{would_hold / total:.1%}: searches may miss neighbours among the new images, so build it again: "
            f"manifold index {workspace.root}",
            ManifoldWarning,
            stacklevel=4,
        )
