"""A workspace's statistics as it keeps them, checked against its latents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from manifold.class_gaussians import ClassGaussians
from manifold.class_means import ClassMeans
from manifold.class_moments import ClassMoments
from manifold.errors import MismatchError, NotFittedError
from manifold.gaussian import GaussianManifold

from .workspace import Workspace

__all__ = [
    "UNLABELLED",
    "class_means_path",
    "class_moments_path",
    "covers_other_latents",
    "load_class_statistics",
    "load_directions",
    "load_manifold",
]

UNLABELLED = -1
"""Label of rows that have none, as data sets usually write it."""


def class_means_path(workspace: Workspace) -> Path:
    """Where counts and means of classes are kept."""
    return workspace.stats_path.with_name("class_means.safetensors")


def class_moments_path(workspace: Workspace) -> Path:
    """Where moments of each class are kept, if they are."""
    return workspace.stats_path.with_name("class_moments.safetensors")


def load_manifold(workspace: Workspace) -> GaussianManifold:
    """The fitted manifold of a workspace.

    Raises: NotFittedError if there is none; MismatchError if it is of other latents; FormatError if it is damaged.
    """
    try:
        manifold = GaussianManifold.load(workspace.stats_path)
    except FileNotFoundError as error:
        raise NotFittedError(f"{workspace.root} has no statistics yet; run: manifold fit {workspace.root}") from error
    if manifold.d != workspace.latents.d:
        raise MismatchError(
            f"latents have {workspace.latents.d} values a row, the manifold in {workspace.stats_path} has {manifold.d}; "
            f"run: manifold fit {workspace.root}"
        )
    if manifold.count != len(workspace.latents):
        raise MismatchError(
            f"the manifold in {workspace.stats_path} was fitted to {manifold.count} rows, the workspace has "
            f"{len(workspace.latents)}; run: manifold fit {workspace.root}"
        )
    if covers_other_latents(workspace, manifold.metadata):
        raise MismatchError(
            f"the manifold in {workspace.stats_path} was fitted to other latents than the workspace has; "
            f"run: manifold fit {workspace.root}"
        )
    return manifold


def load_directions(workspace: Workspace) -> GaussianManifold:
    """The fitted manifold of a workspace, of a model that has directions: eigenvectors, and at least one.

    Raises: as `load_manifold`; NotFittedError for a model without them.
    """
    manifold = load_manifold(workspace)
    if not manifold.eigvecs.numel():
        raise NotFittedError(f"{workspace.root} has a model without directions; run: manifold fit {workspace.root}")
    return manifold


def load_class_statistics(workspace: str | Path, *, pooled: bool | None = None) -> ClassGaussians:
    """A Gaussian for each label of a fitted workspace, for `GaussianMixture`, `ClassGuidance` and `ClassFlow`.

    Arguments
        workspace: its folder.
        pooled: True lets all classes share the covariance within classes, for which few rows a class are enough; False gives
            each its own. Unless given, each its own where the fit kept them.

    Returns: the classes, without those rows that have no label.

    Raises: NotFittedError if the workspace is not fitted, has no labels, or has no covariances of classes where they are
        asked for, or a class of one row then; MismatchError if the statistics are of other latents; FormatError if they are
        damaged.

    Cost: O(k^3) for a shared covariance, O(d^3) a class for covariances of their own.
    """
    opened = Workspace.open(workspace)
    everything = load_manifold(opened)
    means_path, moments_path = class_means_path(opened), class_moments_path(opened)
    try:
        means, metadata = ClassMeans.load(means_path)
    except FileNotFoundError as error:
        raise NotFittedError(
            f"{opened.root} has no statistics of classes; its images need labels, and then: manifold fit {opened.root}"
        ) from error
    _require_current(opened, means_path, metadata)
    if pooled is None:
        pooled = not moments_path.is_file()
    if pooled:
        return ClassGaussians.sharing(everything, means.labels, means.counts, means.means, UNLABELLED)
    if not moments_path.is_file():
        raise NotFittedError(
            f"{opened.root} keeps no covariance for each class; run: manifold fit {opened.root} --class-covariances"
        )
    moments, metadata = ClassMoments.load(moments_path)
    _require_current(opened, moments_path, metadata)
    labels = tuple(label for label in means.labels if label != UNLABELLED)
    few = [label for label in labels if moments[label].count < 2]
    if few:
        raise NotFittedError(f"class {few[0]} has one row, a covariance needs 2; load the classes with pooled=True")
    kept = [means.labels.index(label) for label in labels]
    shape = everything.shape
    manifolds = {label: GaussianManifold.from_moments(moments[label], shape=shape) for label in labels}
    return ClassGaussians(labels, tuple(means.counts[kept].tolist()), means.means[kept], False, manifolds)


def _require_current(workspace: Workspace, path: Path, metadata: Mapping[str, str]) -> None:
    if covers_other_latents(workspace, metadata):
        raise MismatchError(f"{path} is of other latents than the workspace has; run: manifold fit {workspace.root}")


def covers_other_latents(workspace: Workspace, metadata: Mapping[str, str]) -> bool:
    """Whether statistics say, by the checksums of their shards, that they are not of the workspace's latents as they are."""
    if "shards" not in metadata:
        return False
    return bool(json.loads(metadata["shards"]) != [shard.latents_sha256 for shard in workspace.manifest.shards])
