"""From latents at rest to statistics at rest: one streaming pass for the moments, one eigendecomposition.

The moments are exact and are kept, with the checksums of the shards they cover: a killed pass resumes at the shard where it
last saved, and a workspace that has grown needs only its new shards read.
"""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path

from manifold.errors import FormatError, ManifoldWarning, NonFiniteError
from manifold.gaussian import GaussianManifold
from manifold.moments import Moments, Precision

from .progress import Progress, silent
from .workspace import Workspace, writing

__all__ = ["fit_workspace"]

_SAVE_EVERY_S = 60.0
_BATCH_BYTES = 32 * 2**20


def fit_workspace(
    workspace: str | Path,
    *,
    rank: int | None = None,
    precision: Precision = "fast",
    progress: Progress = silent,
) -> GaussianManifold:
    """Estimate mean and covariance of a workspace's latents, and save them with their eigenpairs.

    Arguments
        workspace: its folder; encoding must be complete.
        rank: eigenpairs to keep, 1 to d; the rest of the variance becomes an isotropic tail. All of them up to
            d = 4,096, and 1,024 above, unless given.
        precision: `fast` (float32 products, float64 sums) or `exact` (float64); see `manifold.Moments`.
        progress: told of ("fit", rows done, rows in all).

    Returns: the fitted manifold, as saved in WS/stats.

    Raises: InputError if the workspace is not there or not complete, or the rank is out of range; NonFiniteError naming
        the row if a latent has NaN or infinity; FormatError if a file is damaged; StorageError.

    Cost: n d^2 multiply-adds for the moments, O(d^3) for the eigendecomposition; about 20 d^2 bytes of memory.
    """
    root = Path(workspace)
    Workspace.open(root).require_complete()
    with writing(root):
        opened = Workspace.open(root)
        moments = _stream_moments(opened, precision, progress)
        recipe = opened.manifest.recipe
        metadata = {
            "encoder": json.dumps(recipe.encoder.to_dict(), sort_keys=True),
            "collection": recipe.source,
            "shards": json.dumps(_checksums(opened)),
        }
        manifold = GaussianManifold.from_moments(
            moments, rank=rank, shape=recipe.encoder.latent_shape, metadata=metadata
        )
        manifold.save(opened.stats_path)
    return manifold


def _stream_moments(workspace: Workspace, precision: Precision, progress: Progress) -> Moments:
    store, path = workspace.latents, workspace.moments_path
    checksums = _checksums(workspace)
    moments, done = _resume(workspace, precision)
    total, saved = len(store), time.monotonic()
    changed = False
    progress("fit", moments.count, total)
    for number in range(done, len(store.shards)):
        start = moments.count
        for batch in store.batches(max(1, _BATCH_BYTES // (2 * store.d)), start, start + store.shards[number].rows):
            try:
                moments.update(batch)
            except NonFiniteError as error:
                raise NonFiniteError(f"{workspace.root}: {error}") from error
            progress("fit", moments.count, total)
        changed = True
        if time.monotonic() - saved > _SAVE_EVERY_S:
            moments.save(path, {"shards": json.dumps(checksums[: number + 1])})
            saved, changed = time.monotonic(), False
    if changed:
        moments.save(path, {"shards": json.dumps(checksums)})
    return moments


def _resume(workspace: Workspace, precision: Precision) -> tuple[Moments, int]:
    """Moments saved earlier and the number of shards in them, if they are of this workspace's first shards."""
    checksums = _checksums(workspace)
    if workspace.moments_path.is_file():
        try:
            moments, metadata = Moments.load(workspace.moments_path)
        except FormatError as error:
            warnings.warn(f"{error}; they are computed again from the latents", ManifoldWarning, stacklevel=4)
            return Moments(workspace.latents.d, precision=precision), 0
        covered = json.loads(metadata["shards"])
        if moments.precision == precision and covered == checksums[: len(covered)]:
            return moments, len(covered)
    return Moments(workspace.latents.d, precision=precision), 0


def _checksums(workspace: Workspace) -> list[str]:
    return [shard.latents_sha256 for shard in workspace.manifest.shards]
