"""From latents at rest to statistics at rest: one streaming pass for the moments, one eigendecomposition.

The moments are exact and are kept, with the checksums of the shards they cover: a killed pass resumes at the shard where it
last saved, and a workspace that has grown needs only its new shards read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from manifold.covariance import LowRankCovariance, default_rank, fit_lowrank, fit_stationary
from manifold.cross_spectrum import CrossSpectrum
from manifold.diagnostics import diagnose, verdict
from manifold.errors import InputError, NotFittedError
from manifold.gaussian import GaussianManifold
from manifold.moments import Moments, Precision
from manifold.precision import without_autocast
from manifold.reproducibility import FEWEST_ROWS, passes_over, split_half
from manifold.resolution import warn_unresolved
from manifold.selection import fit_auto

from .latents import LatentStore
from .progress import Progress, silent
from .statistics import covers_other_latents, load_manifold
from .streaming import stream_statistics
from .workspace import Workspace, writing

__all__ = ["Model", "WatchedRows", "fit_workspace", "judge_workspace", "refit_workspace"]

Model = Literal["auto", "full", "lowrank", "stationary"]

_LOWRANK = 1024
_MOMENTS_UP_TO = 16_384
"""Above, the d x d matrix of the moments takes more than 2 GiB, and a low-rank model comes straight from the latents."""
_LOOKED_AT = 512
"""Rows that are read again where variances lie below what the precision resolves."""


@without_autocast
def fit_workspace(
    workspace: str | Path,
    *,
    model: Model | None = None,
    rank: int | None = None,
    precision: Precision = "fast",
    class_covariances: bool | None = None,
    progress: Progress = silent,
) -> GaussianManifold:
    """Estimate mean and covariance of a workspace's latents, and save them.

    Arguments
        workspace: its folder; encoding must be complete.
        model: `full` (all eigenpairs), `lowrank` (the leading ones and an isotropic tail), `stationary` (translation
            invariant, for few images), or `auto`, which compares them and their shrinkages on rows left out and says why
            in the manifold's metadata. Unless given `full` up to d = 4,096, and `lowrank` above or with few images.
        rank: eigenpairs to keep, 1 to d; n images have no more than n - 1. Unless given, 1,024 if `model` is `lowrank`, else
            as `manifold.covariance.default_rank` says. Giving a rank means `lowrank`.
        precision: `fast` (float32 products, float64 sums) or `exact` (float64); see `manifold.Moments`.
        class_covariances: where images have labels, whether each class gets a covariance of its own; unless given,
            where all of them take at most 256 MiB. Counts and means of classes are kept in any case: see
            `load_class_statistics`.
        progress: told of ("fit", rows done, rows in all).

    Returns: the fitted manifold, as saved in WS/stats.

    Warns: ManifoldWarning if directions with some variance have less of it than the precision resolves.

    Raises: InputError if the workspace is not there or not complete, model and rank do not fit, or all latents are equal;
        NonFiniteError naming the row if a latent has NaN or infinity; FormatError if a file is damaged; StorageError.

    Cost: n d^2 multiply-adds for the moments, as many again for covariances of classes, O(d^3) for the eigendecomposition;
    about 20 d^2 bytes of memory, 8 d^2 more a class. Above d = 1,024 a low-rank model of at most d / 2 images takes n^2 d and
    no d x d matrix. Above d = 16,384 a low-rank model takes ten passes and no d x d matrix, and no moments are kept;
    `stationary` takes O(n d log d) and no such matrix either; `auto` takes a few fits.
    """
    root = Path(workspace)
    if model not in (None, *get_args(Model)):
        raise InputError(f"the model must be one of {', '.join(get_args(Model))}, it is {model!r}")
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
            "fit": json.dumps(_asked(model, rank, precision, class_covariances)),
        }
        store = opened.latents
        if model == "full" and store.d > _MOMENTS_UP_TO:
            raise InputError(f"a full model of d = {store.d:,} values does not fit into memory; fit --model lowrank")
        moments = stream_statistics(
            opened,
            moments=model not in ("stationary", "auto") and store.d <= _MOMENTS_UP_TO,
            precision=precision,
            class_covariances=class_covariances,
            progress=progress,
        )
        if model == "stationary":
            fitted = GaussianManifold(
                fit_stationary(CrossSpectrum.of(store, shape)), shape=shape, count=len(store), metadata=metadata
            )
        elif model == "auto":
            selection = fit_auto(store, shape)
            metadata["selection"] = selection.reason
            fitted = GaussianManifold(selection.model, shape=shape, count=len(store), metadata=metadata)
        elif moments is None:
            covariance = fit_lowrank(store, min(_rank(store, model, rank), len(store) - 1))
            fitted = GaussianManifold(covariance, shape=shape, count=len(store), metadata=metadata)
        else:
            kept = _rank(store, model, rank)
            fitted = GaussianManifold.from_moments(moments, rank=kept, shape=shape, metadata=metadata)
            _warn_unresolved(moments, fitted, opened)
        if fitted.total_variance == 0:
            raise InputError(
                f"all {len(store):,} latents of {root} are equal, so there is no manifold; encode other images"
            )
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


def judge_workspace(workspace: str | Path, *, progress: Progress = silent) -> str:
    """Say in one sentence whether a fitted workspace has latents enough, and for how many directions.

    Two halves of the latents are fitted apart; directions count as far as the halves agree on them.

    Arguments
        workspace: its folder, fitted.
        progress: told of ("judge", rows done, rows to do).

    Raises: NotFittedError if the workspace is not fitted.

    Cost: two passes over the latents and two eigendecompositions up to d = 4,096; above, up to twenty passes.
    """
    opened = Workspace.open(workspace)
    fitted = load_manifold(opened)
    if not isinstance(fitted.covariance, LowRankCovariance):
        return f"{fitted.count:,} rows went into the stationary model, which needs only a few hundred."
    if len(opened.latents) < FEWEST_ROWS:
        return f"{len(opened.latents)} latents are too few to say anything of their spectrum; encode more images."
    rows = WatchedRows(opened.latents, passes_over(opened.latents.d), progress)
    split = split_half(rows)
    rows.finish()
    return verdict(diagnose(fitted.covariance, len(opened.latents), split=split))


class WatchedRows:
    """A store that tells how far so many passes over it have come, as ("judge", rows done, rows to do)."""

    def __init__(self, store: LatentStore, passes: int, progress: Progress) -> None:
        self._store, self._progress = store, progress
        self._done, self._total = 0, passes * len(store)

    @property
    def d(self) -> int:
        """Values in a row."""
        return self._store.d

    def __len__(self) -> int:
        return len(self._store)

    def batches(self, rows: int) -> Iterator[np.ndarray]:
        """All rows in order, at most `rows` at a time."""
        for batch in self._store.batches(rows):
            yield batch
            self._done = min(self._done + len(batch), self._total)
            self._progress("judge", self._done, self._total)

    def finish(self) -> None:
        """Fewer passes may have been enough."""
        self._progress("judge", self._total, self._total)


def _asked(
    model: Model | None, rank: int | None, precision: Precision, class_covariances: bool | None
) -> dict[str, Any]:
    """How the fit was asked for, so that it can be repeated."""
    asked: dict[str, Any] = {"model": model, "rank": rank, "precision": precision}
    return asked if class_covariances is None else {**asked, "class_covariances": class_covariances}


def _warn_unresolved(moments: Moments, fitted: GaussianManifold, workspace: Workspace) -> None:
    """Warn of directions whose variance the precision does not resolve, looking at some rows again."""
    if isinstance(fitted.covariance, LowRankCovariance):
        rows = np.linspace(0, len(workspace.latents) - 1, min(len(workspace.latents), _LOOKED_AT)).astype(np.int64)
        warn_unresolved(moments, fitted.covariance, workspace.latents.read(rows))


def _rank(store: LatentStore, model: Model | None, asked: int | None) -> int:
    """Eigenpairs to keep of d; keeping all of them is the full model."""
    if asked is not None:
        return asked
    if model == "full":
        return store.d
    return default_rank(len(store), store.d) if model is None else min(_LOWRANK, store.d)


def _checksums(workspace: Workspace) -> list[str]:
    return [shard.latents_sha256 for shard in workspace.manifest.shards]
