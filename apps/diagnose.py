"""`manifold fit --plots`: everything that a fit says of itself, as pictures and as numbers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from index.fit import WatchedRows
from index.progress import Progress, silent
from index.statistics import load_manifold
from index.workspace import Workspace
from manifold.covariance import LowRankCovariance
from manifold.diagnostics import diagnose, verdict
from manifold.errors import InputError
from manifold.files import write_json
from manifold.reproducibility import FEWEST_ROWS, convergence, passes_over, split_half

from .diagnostic_plots import plot_convergence, plot_power, plot_reproducible
from .plots import plot_spectrum

__all__ = ["draw_diagnostics", "require_drawable"]

_PARTS = (16, 8, 4, 2, 1)
"""Convergence is drawn from one latent in so many."""
_FEWEST_TO_CONVERGE = _PARTS[0] * FEWEST_ROWS
_MOST_COMPARED = 256
_NO_DIRECTIONS = "these plots are of a spectrum with directions, and this model is stationary; fit another --model"


def require_drawable(workspace: str | Path, model: str | None) -> None:
    """Say before a fit of `model`, not after it, that there will be nothing to draw.

    Raises: InputError.
    """
    if model == "stationary":
        raise InputError(_NO_DIRECTIONS)
    count = len(Workspace.open(workspace).latents)
    if count < FEWEST_ROWS:
        raise InputError(f"plots of a fit need at least {FEWEST_ROWS} images, {workspace} has {count}; encode more")


def draw_diagnostics(workspace: str | Path, folder: str | Path, *, progress: Progress = silent) -> str:
    """Write spectrum.png, reproducible.png, power.png, convergence.png and diagnostics.json into a folder.

    Convergence is left out with fewer than 64 latents, and power of latents of a single place, such as embeddings.

    Arguments
        workspace: its folder, fitted.
        folder: made if it is not there.
        progress: told of ("judge", rows done, rows to do).

    Returns: the verdict, as `judge_workspace` gives it.

    Raises: NotFittedError if the workspace is not fitted; InputError for a stationary model, which has no directions to
        compare; StorageError.

    Cost: four passes over the latents and seven eigendecompositions up to d = 4,096; above, up to seventy passes.
    """
    opened, folder = Workspace.open(workspace), Path(folder)
    fitted = load_manifold(opened)
    count = len(opened.latents)
    if not isinstance(fitted.covariance, LowRankCovariance):
        raise InputError(_NO_DIRECTIONS)
    converging = count >= _FEWEST_TO_CONVERGE
    passes = passes_over(fitted.d)
    rows = WatchedRows(opened.latents, passes + (max(2, 5 * passes // 2) if converging else 0), progress)
    split = split_half(rows)
    points = convergence(rows, _compared(count, fitted.d), shape=fitted.shape, one_in=_PARTS) if converging else ()
    rows.finish()
    found = diagnose(fitted.covariance, count, shape=fitted.shape, split=split)
    name = opened.manifest.recipe.source
    plot_spectrum(fitted, found, folder / "spectrum.png", name)
    plot_reproducible(split, folder / "reproducible.png", name)
    if found.channel_variance is not None and found.radial_power is not None and len(found.radial_power.frequency) > 1:
        plot_power(
            found.channel_variance.numpy(), found.radial_power, folder / "power.png", name,
            colours=opened.manifest.recipe.encoder.kind == "pixels",
        )  # fmt: skip
    if points:
        plot_convergence(points, folder / "convergence.png", name)
    numbers = {"fit": _plain(asdict(found)), "convergence": [_plain(asdict(point)) for point in points]}
    write_json(folder / "diagnostics.json", numbers)
    return verdict(found)


def _compared(count: int, d: int) -> int:
    """Leading directions whose settling is drawn: equally many of each part, and not all of space, which every part spans."""
    return max(1, min(_MOST_COMPARED, d // 2, count // _PARTS[0] - 1))


def _plain(value: Any) -> Any:
    """Tensors as lists, whatever they lie in."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
