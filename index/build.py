"""Building the index of a workspace: coordinates on the manifold's own eigenvectors, small enough to scan.

Neighbours are found among k leading coordinates, then ranked exactly from the latents themselves, so the coordinates need
only bring the right candidates, and k and their precision may be small.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from manifold.files import atomic_path, sha256_file, write_json
from manifold.gaussian import GaussianManifold

from .coordinates import rank_for
from .progress import Progress, silent
from .statistics import load_manifold
from .workspace import Workspace, writing

__all__ = ["INDEX_SCHEMA", "build_index", "latents_checksum"]

INDEX_SCHEMA = 1
_IN_MEMORY_BYTES = 2**30
_BATCH_BYTES = 64 * 2**20


def build_index(workspace: str | Path, *, rank: int | None = None, progress: Progress = silent) -> dict[str, Any]:
    """Build the index of a workspace and write it with its card.

    Arguments
        workspace: its folder, encoded and fitted.
        rank: eigen-coordinates to keep, 1 to the manifold's k; as many as hold 95 % of the variance, between 16 and 256,
            unless given.
        progress: told of ("index", rows done, rows in all).

    Returns: the card, as written to WS/index/image.json.

    Raises: InputError (no complete workspace, rank out of range); NotFittedError if statistics are missing; MismatchError
        if they are of other latents; FormatError; StorageError.

    Cost: one pass over the latents; the coordinates in memory: 4 bytes each up to 1 GiB in all, then 2, then 1.
    """
    root = Path(workspace)
    Workspace.open(root).require_complete()
    with writing(root):
        opened = Workspace.open(root)
        manifold = load_manifold(opened)
        store = opened.latents
        k = rank_for(manifold, rank)
        kind = _kind(len(store), k)
        index = _fill(opened, manifold, k, kind, progress)
        from . import faiss_io

        with atomic_path(opened.index_path) as path:
            faiss_io.write_index(index, path)
        card = {
            "schema": INDEX_SCHEMA,
            "kind": kind,
            "metric": "L2 between eigen-coordinates, then exact L2 between latents",
            "count": len(store),
            "d": store.d,
            "k": k,
            "variance_kept": float(manifold.eigvals[:k].sum()) / manifold.total_variance,
            "index_sha256": sha256_file(opened.index_path),
            "index_bytes": opened.index_path.stat().st_size,
            "stats_sha256": sha256_file(opened.stats_path),
            "latents_sha256": latents_checksum(opened),
            "encoder": opened.manifest.recipe.encoder.id,
            "faiss": faiss_io.version(),
        }
        write_json(opened.index_card_path, card)
    return card


def latents_checksum(workspace: Workspace) -> str:
    """One SHA-256 for all latents, from those of the shards."""
    return hashlib.sha256("".join(shard.latents_sha256 for shard in workspace.manifest.shards).encode()).hexdigest()


def _kind(count: int, k: int) -> str:
    """The finest quantiser whose coordinates stay within a gigabyte; beyond that one byte each."""
    sizes = {"Flat": 4, "SQfp16": 2, "SQ8": 1}
    fitting = [kind for kind, size in sizes.items() if size * count * k <= _IN_MEMORY_BYTES]
    return fitting[0] if fitting else "SQ8"


def _fill(workspace: Workspace, manifold: GaussianManifold, k: int, kind: str, progress: Progress) -> Any:
    from . import faiss_io

    store = workspace.latents
    index = faiss_io.new_index(manifold.mean.float().numpy(), manifold.eigvecs[:, :k].float().numpy(), kind)
    rows = max(1, _BATCH_BYTES // (4 * store.d))
    if not index.is_trained:
        spread = np.linspace(0, len(store) - 1, min(len(store), rows), dtype=np.int64)
        index.train(store.read(spread).astype(np.float32))
    progress("index", 0, len(store))
    for batch in store.batches(rows):
        index.add(batch.astype(np.float32))
        progress("index", index.ntotal, len(store))
    return index
