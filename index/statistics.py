"""A workspace's statistics as it keeps them, checked against its latents."""

from __future__ import annotations

from manifold.errors import MismatchError, NotFittedError
from manifold.gaussian import GaussianManifold

from .workspace import Workspace

__all__ = ["load_manifold"]


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
    return manifold
