"""`manifold run`: encode, fit and index in one go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from index.build import build_index
from index.encode import encode_images
from index.fit import fit_workspace
from index.progress import Progress, silent
from index.workspace import Recipe, Workspace
from manifold.errors import InputError

__all__ = ["run_images"]


def run_images(
    images: str | Path,
    workspace: str | Path,
    *,
    rank: int | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Workspace:
    """From images to a searchable workspace; what is done already is not done again.

    Arguments
        images, workspace: see `index.encode_images`.
        rank: of the statistics; see `index.fit_workspace`.
        options: of `index.encode_images`.

    Raises: what those three raise; InputError for an impossible rank before anything is written.
    """

    def check(recipe: Recipe) -> None:
        d = recipe.encoder.d
        if rank is not None and not 1 <= rank <= d:
            raise InputError(f"rank must lie between 1 and d = {d}, it is {rank}; leave it out for the default")

    encode_images(images, workspace, check=check, progress=progress, **options)
    fit_workspace(workspace, rank=rank, progress=progress)
    build_index(workspace, progress=progress)
    return Workspace.open(workspace)
