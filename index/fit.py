"""From latents at rest to statistics at rest: one streaming pass for the moments, one eigendecomposition.

The moments are exact and are kept, with the checksums of the shards they cover: a killed pass resumes at the shard where it
last saved, and a workspace that has grown needs only its new shards read.
"""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from typing import Literal

from manifold.covariance import LowRankCovariance, fit_lowrank, fit_stationary
from manifold.cross_spectrum import CrossSpectrum
from manifold.diagnostics import diagnose, verdict
from manifold.errors import FormatError, InputError, ManifoldWarning, NonFiniteError, NotFittedError
from manifold.gaussian import GaussianManifold
from manifold.moments import Moments, Precision
from manifold.reproducibility import split_half
from manifold.selection import fit_auto

from .progress import Progress, silent
from .statistics import covers_other_latents, load_manifold
from .workspace import Workspace, writing

__all__ = ["Model", "fit_workspace", "judge_workspace", "refit_workspace"]

Model = Literal["auto", "full", "lowrank", "stationary"]

_FULL_UP_TO = 4096
_LOWRANK = 1024
_MOMENTS_UP_TO = 16_384
"""Above, the d x d matrix of the moments takes more than 2 GiB, and a low-rank model comes straight from the latents."""
_SAVE_EVERY_S = 60.0
_BATCH_BYTES = 32 * 2**20


def fit_workspace(
    workspace: str | Path,
    *,
    model: Model | None = None,
    rank: int | None = None,
    precision: Precision = "fast",
    progress: Progress = silent,
) -> GaussianManifold:
    """Estimate mean and covariance of a workspace's latents, and save them.

    Arguments
        workspace: its folder; encoding must be complete.
        model: `full` (all eigenpairs), `lowrank` (the leading ones and an isotropic tail), `stationary` (translation
            invariant, for few images), or `auto`, which compares them and their shrinkages on rows left out and says why
            in the manifold's metadata. `full` up to d = 4,096 and `lowrank` above, unless given.
        rank: eigenpairs of `lowrank`, 1 to d; 1,024 unless given. Asking for a rank asks for `lowrank`.
        precision: `fast` (float32 products, float64 sums) or `exact` (float64); see `manifold.Moments`.
        progress: told of ("fit", rows done, rows in all).

    Returns: the fitted manifold, as saved in WS/stats.

    Raises: InputError if the workspace is not there or not complete, or model and rank do not fit; NonFiniteError naming
        the row if a latent has NaN or infinity; FormatError if a file is damaged; StorageError.

    Cost: n d^2 multiply-adds for the moments, O(d^3) for the eigendecomposition; about 20 d^2 bytes of memory. Above
    d = 16,384 a low-rank model takes ten passes and no d x d matrix, and no moments are kept; `stationary` takes
    O(n d log d) and no such matrix either; `auto` takes a few fits.
    """
    root = Path(workspace)
    if rank is not None and model not in (None, "lowrank"):
        raise InputError(f"a rank belongs to the model lowrank, not to {model}; leave one of the two out")
    Workspace.open(root).require_complete()
    with writing(root):
        opened = Workspace.open(root)
        recipe = opened.manifest.recipe
        shape = recipe.encoder.latent_shape
        metadata = {
            "encoder": json.dumps(recipe.encoder.to_dict(), sort_keys=True),
            "collection": recipe.source,
            "shards": json.dumps(_checksums(opened)),
            "fit": json.dumps({"model": model, "rank": rank, "precision": precision}),
        }
        store = opened.latents
        if model == "stationary":
            fitted = GaussianManifold(
                fit_stationary(CrossSpectrum.of(store, shape)), shape=shape, count=len(store), metadata=metadata
            )
        elif model == "auto":
            selection = fit_auto(store, shape)
            metadata["selection"] = selection.reason
            fitted = GaussianManifold(selection.model, shape=shape, count=len(store), metadata=metadata)
        elif store.d > _MOMENTS_UP_TO:
            if model == "full":
                raise InputError(
                    f"a full model of d = {store.d:,} values does not fit into memory; fit --model lowrank"
                )
            covariance = fit_lowrank(store, min(_rank(store.d, model, rank), len(store) - 1))
            fitted = GaussianManifold(covariance, shape=shape, count=len(store), metadata=metadata)
        else:
            moments = _stream_moments(opened, precision, progress)
            kept = _rank(store.d, model, rank)
            fitted = GaussianManifold.from_moments(moments, rank=kept, shape=shape, metadata=metadata)
        fitted.save(opened.stats_path)
    return fitted


def refit_workspace(workspace: str | Path, *, progress: Progress = silent) -> GaussianManifold:
    """Bring statistics up to the latents, as they were asked for when they were fitted.

    What was added is all that is read: the moments go on where they stopped, so they end with the bytes of one pass over
    all latents. After a removal the pass begins anew.

    Raises: NotFittedError if the workspace was never fitted; all of `fit_workspace`.
    """
    opened = Workspace.open(workspace)
    try:
        earlier = GaussianManifold.load(opened.stats_path)
    except FileNotFoundError as error:
        raise NotFittedError(f"{opened.root} has no statistics yet; run: manifold fit {opened.root}") from error
    if not covers_other_latents(opened, earlier.metadata):
        return earlier
    return fit_workspace(workspace, **json.loads(earlier.metadata.get("fit", "{}")), progress=progress)


def judge_workspace(workspace: str | Path) -> str:
    """Say in one sentence whether a fitted workspace has latents enough, and for how many directions.

    Two halves of the latents are fitted apart; directions count as far as the halves agree on them.

    Raises: NotFittedError if the workspace is not fitted; InputError with fewer than four latents.

    Cost: one pass over the latents and two eigendecompositions.
    """
    opened = Workspace.open(workspace)
    fitted = load_manifold(opened)
    if not isinstance(fitted.covariance, LowRankCovariance):
        return f"{fitted.count:,} rows went into the stationary model, which needs only a few hundred."
    return verdict(diagnose(fitted.covariance, len(opened.latents), split=split_half(opened.latents)))


def _rank(d: int, model: Model | None, asked: int | None) -> int:
    """Eigenpairs to keep of d; keeping all of them is the full model."""
    if asked is not None:
        return asked
    if model == "full" or (model is None and d <= _FULL_UP_TO):
        return d
    return min(_LOWRANK, d)


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
