"""A workspace's statistics as it keeps them, checked against its latents."""

from __future__ import annotations

import json
from collections.abc import Mapping

from manifold.errors import MismatchError, NotFittedError
from manifold.gaussian import GaussianManifold

from .workspace import Workspace

__all__ = ["covers_other_latents", "load_manifold"]


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


def covers_other_latents(workspace: Workspace, metadata: Mapping[str, str]) -> bool:
    """Whether statistics say, by the checksums of their shards, that they are not of the workspace's latents as they are."""
    if "shards" not in metadata:
        return False
    return bool(json.loads(metadata["shards"]) != [shard.latents_sha256 for shard in workspace.manifest.shards])
