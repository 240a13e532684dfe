"""Static pictures of a manifold's eigen-structure: the spectrum, and what its leading directions look like."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from manifold.diagnostics import Diagnostics
from manifold.errors import InputError
from manifold.gaussian import GaussianManifold

from .figures import AMBER, BLUE, FAINT, Words, finish, in_our_style, new_figure, save_figure, two_panels

if TYPE_CHECKING:
    from index.encoders import Encoder

__all__ = ["plot_eigenimages", "plot_spectrum"]


@in_our_style
def plot_spectrum(manifold: GaussianManifold, diagnostics: Diagnostics, path: Path, name: str = "") -> None:
    """Write the spectrum as PNG: eigenvalues by rank on the left, variance explained on the right.

    Arguments
        manifold: whose eigenvalues are drawn. diagnostics: of the same manifold. path: the file to write.
        name: of the collection, for the heading.
    """
    figure, (left, right) = two_panels()
    eigvals = manifold.eigvals.double().numpy()
    ranks = np.arange(1, len(eigvals) + 1)
    # As many directions as rows vary in: the others are round-off.
    positive = (eigvals > eigvals[0] * 1e-12) & (ranks < diagnostics.count)
    left.loglog(ranks[positive], eigvals[positive], color=BLUE, linewidth=1.8, label="eigenvalues")
    law = diagnostics.power_law
    if law is not None:
        span = np.array([law.first, law.last])
        middle = np.exp(np.log(eigvals[law.first - 1 : law.last]).mean())
        centre = np.exp(np.log(ranks[law.first - 1 : law.last]).mean())
        line = middle * (span / centre) ** -law.exponent
        label = f"rank$^{{-{law.exponent:.2f}}}$, ranks {law.first} to {law.last}"
        left.loglog(span, line, color=AMBER, linestyle="--", linewidth=1.6, label=label)
    left.set_xlabel("rank of the direction")
    left.set_ylabel("variance (latent units squared)")
    left.legend(frameon=False, loc="lower left")
    cumulative = diagnostics.cumulative.numpy()
    right.semilogx(ranks, 100 * cumulative, color=BLUE, linewidth=1.8)
    for needed in diagnostics.components:
        if needed is not None:
            dot = (needed, 100 * cumulative[needed - 1])
            right.plot(*dot, "o", color=AMBER, markersize=5)
            right.annotate(f"{needed:,}", dot, xytext=(-7, 3), textcoords="offset points", ha="right")
    right.set_xlabel("number of leading directions")
    right.set_ylabel("variance explained (%)")
    right.set_ylim(0, 104)
    words = Words(
        f"Spectrum of {name}" if name else "Spectrum",
        f"n = {diagnostics.count:,} latents, d = {diagnostics.d:,} values each, total variance {diagnostics.trace:,.4g}, "
        f"participation ratio {diagnostics.participation_ratio:.3g}",
        "How to read it: the steeper the fall on the left, the fewer directions hold most of the variance; "
        "the dots count them for 50, 80, 90, 95 and 99 %.",
    )
    finish(figure, path, words)


@in_our_style
def plot_eigenimages(manifold: GaussianManifold, encoder: Encoder, path: Path, *, rows: int = 6) -> None:
    """Write what the leading directions look like as PNG: the mean moved by -3 to +3 standard deviations along each.

    Arguments
        manifold: with eigenvectors and a latent shape. encoder: decodes its latents. path: the file to write.
        rows: number of directions.

    Raises: InputError if the manifold has no latent shape.
    """
    if manifold.shape is None:
        raise InputError("eigen-images need the latent's shape (C, H, W), this manifold has none; fit a workspace")
    steps = (-3, -2, -1, 0, 1, 2, 3)
    rows = min(rows, manifold.k)
    deviations = manifold.eigvals[:rows].sqrt()
    shifts = torch.tensor(steps, dtype=manifold.mean.dtype)
    moved = manifold.mean + torch.einsum("s,r,dr->rsd", shifts, deviations, manifold.eigvecs[:, :rows])
    images = encoder.decode(moved.reshape(-1, *manifold.shape)).permute(0, 2, 3, 1).numpy()
    figure = new_figure(8.6, 1.12 * rows + 1.35)
    axes = figure.subplots(rows, len(steps), squeeze=False)
    for row in range(rows):
        for column, step in enumerate(steps):
            axis = axes[row, column]
            axis.imshow(images[row * len(steps) + column], interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(False)
            for spine in axis.spines.values():
                spine.set_visible(False)
            if row == 0:
                axis.set_title("mean" if step == 0 else f"{step:+d} sd", fontsize=10, color=FAINT)
        share = float(manifold.eigvals[row]) / manifold.total_variance
        label = f"direction {row + 1}\n{share:.1%} of variance"
        axes[row, 0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=8, fontsize=9)
    height = figure.get_size_inches()[1]
    figure.suptitle(
        "What the leading directions do to the mean image", x=0.02, ha="left", fontsize=13, fontweight="bold"
    )
    caption = (
        "How to read it: each row moves the mean along one eigenvector, in steps of its own standard deviation (sd)."
    )
    figure.text(0.02, 0.16 / height, caption, color=FAINT, fontsize=9)
    figure.subplots_adjust(left=0.17, right=0.985, top=1 - 0.75 / height, bottom=0.5 / height, wspace=0.06, hspace=0.06)
    save_figure(figure, path)
