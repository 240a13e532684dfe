"""`manifold fit --drift`: how far the statistics of two collections lie apart."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from index.statistics import load_manifold
from index.workspace import Workspace
from manifold.drift import Drift, drift
from manifold.errors import MismatchError

from .plain_text import counted

__all__ = ["compare_workspaces", "drift_table", "require_comparable"]


def require_comparable(workspace: str | Path, other: str | Path) -> None:
    """Say before the work, not after it, that there is nothing to compare with.

    Raises: InputError; NotFittedError; MismatchError; FormatError.
    """
    if Path(workspace).resolve() == Path(other).resolve():
        return
    d, other_d = Workspace.open(workspace).latents.d, load_manifold(Workspace.open(other)).d
    if d != other_d:
        raise MismatchError(f"{workspace} has latents of {d} values, {other} of {other_d}; compare one kind of latent")


def compare_workspaces(workspace: str | Path, other: str | Path) -> Drift:
    """The drift of workspace `other` from `workspace`, both fitted.

    Raises: NotFittedError; MismatchError if their latents differ in width; FormatError.
    """
    reference, compared = (load_manifold(Workspace.open(path)) for path in (workspace, other))
    return drift(reference.covariance, compared.covariance)


def drift_table(found: Drift) -> Table:
    """The drift as a table of two columns."""
    table = Table(
        show_header=False, box=None, padding=(0, 2, 0, 0), title="drift of the other collection", title_justify="left"
    )
    table.add_column(style="bold")
    table.add_column()
    table.add_row("mean shift", f"{found.mean_shift:.4g}, {found.mean_shift_sigma:.3g} sigma along its direction")
    table.add_row("variance ratio", f"{found.variance_ratio:.4g}")
    if len(found.angles_deg):
        angles = found.angles_deg
        table.add_row(
            "principal angles",
            f"{float(angles[0]):.1f} to {float(angles[-1]):.1f} degrees, leading {counted(len(angles), 'direction')}",
        )
    table.add_row("Fréchet distance", f"{found.frechet:.4g}, of which the means {found.frechet_mean:.4g}")
    return table
