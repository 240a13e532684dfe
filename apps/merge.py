"""`manifold merge-stats`: the moments of several collections as those of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from index.workspace import Workspace
from manifold.errors import NotFittedError
from manifold.merging import merge_moments
from manifold.moments import Moments

__all__ = ["merge_statistics"]


def merge_statistics(workspaces: Sequence[str | Path], output: str | Path) -> Moments:
    """Merge the moments of workspaces, or moments files, and write them to a file that `Moments.load` reads.

    Raises: InputError with fewer than two; NotFittedError if a workspace has no moments; MismatchError if they come from
        different encoders; FormatError if a file is damaged; StorageError.
    """
    merged, metadata = merge_moments([_moments_file(Path(path)) for path in workspaces])
    merged.save(Path(output), metadata)
    return merged


def _moments_file(path: Path) -> Path:
    if path.is_file():
        return path
    opened = Workspace.open(path)
    if not opened.moments_path.is_file():
        raise NotFittedError(f"{path} has no moments yet; run: manifold fit {path}")
    return opened.moments_path
