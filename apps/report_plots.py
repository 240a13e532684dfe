"""Two figures of the report alone: the spectrum of a model's samples on that of the images, and predictions as pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from index.encoders import Encoder
from manifold.gaussian import GaussianManifold

from .figures import (
    AMBER,
    BLUE,
    FAINT,
    GREY,
    Words,
    finish,
    in_our_style,
    legend,
    new_figure,
    plain_log,
    save_figure,
    two_panels,
)
from .report_measure import Targets

__all__ = ["plot_sample_spectrum", "plot_targets", "sample_variances"]


def sample_variances(gaussian: GaussianManifold, samples: Tensor) -> Tensor:
    """Variance of samples (n, ...) along each eigenvector of the images, (k,) float64."""
    flat = samples.flatten(1).double()
    return ((flat - flat.mean(0)) @ gaussian.eigvecs.double()).var(0)


@in_our_style
def plot_sample_spectrum(
    gaussian: GaussianManifold, samples: Tensor, path: Path, name: str = "", *, bare: bool = False
) -> Words:
    """Write as PNG the variance along the images' eigenvectors, of the images and of a model's samples.

    Arguments
        gaussian: of the images, with eigenvectors. samples: (n, ...), n >= 2. path: the file to write. name: of the model.
        bare: without heading, facts and caption, which are returned either way.
    """
    figure, (left, right) = two_panels()
    eigvals = gaussian.eigvals.double().numpy()
    ranks = np.arange(1, len(eigvals) + 1)
    measured = sample_variances(gaussian, samples).numpy()
    flat = gaussian.total_variance / gaussian.d
    shown = eigvals > 1e-9 * eigvals[0]
    left.loglog(
        ranks[shown], measured[shown], ".", color=BLUE, markersize=5, label=f"{len(samples)} samples of the model"
    )
    left.loglog(ranks[shown], eigvals[shown], color=AMBER, linewidth=1.8, label="images (the Gaussian)")
    left.axhline(flat, color=GREY, linestyle=":", linewidth=1.8, label="null: no preferred direction")
    left.set_xlabel("rank of the images' eigenvector")
    left.set_ylabel("variance along it (latent units squared)")
    plain_log(left.xaxis)
    plain_log(left.yaxis)
    legend(left, "lower left")
    total = float(samples.flatten(1).double().var(0).sum())
    right.semilogx(ranks, 100 * measured.cumsum() / total, color=BLUE, linewidth=1.8)
    right.semilogx(ranks, 100 * eigvals.cumsum() / gaussian.total_variance, color=AMBER, linewidth=1.8, linestyle="--")
    right.semilogx(ranks, 100 * ranks / gaussian.d, color=GREY, linestyle=":", linewidth=1.8)
    plain_log(right.xaxis)
    right.set_xlabel("number of leading eigenvectors of the images")
    right.set_ylabel("variance explained (%)")
    right.set_ylim(0, 104)
    facts = (
        f"{gaussian.count or 0:,} images, d = {gaussian.d:,}, "
        f"total variance {gaussian.total_variance:,.4g}, of samples {total:,.4g}"
    )
    caption = (
        "How to read it: dots on the line are directions in which the model paints with the images' own variance; the "
        "scatter of single dots is that of few samples."
    )
    heading = f"Spectrum of images and samples: {name}" if name else "Spectrum of images and samples"
    return finish(figure, path, Words(heading, facts, caption), bare)


@in_our_style
def plot_targets(targets: Targets, encoder: Encoder, path: Path) -> None:
    """Write as PNG what the network and the closed form from the same noise predict, level by level, decoded.

    Arguments
        targets: of a few trajectories. encoder: decodes them. path: the file to write.
    """
    columns = [torch.stack([one, two], 1) for one, two in zip(targets.network, targets.theory, strict=True)]
    columns.append(torch.stack([targets.sample, targets.theory_sample], 1))
    titles = [*(f"σ / α = {float(one):.3g}" for one in targets.noise), "end"]
    n = len(targets.sample)
    size = encoder.spec.image_size
    latents = torch.stack(columns, 2)  # (n, 2, columns, C, H, W)
    images = encoder.decode(latents.flatten(0, 2)).permute(0, 2, 3, 1).numpy()
    images = images.reshape(n, 2, len(columns), size, size, 3)
    height = 2.6 * n + 0.35
    figure = new_figure(9, height)
    outer = figure.add_gridspec(n, 1, left=0.1, right=0.995, top=1 - 0.3 / height, bottom=0.04 / height, hspace=0.07)
    for number in range(n):
        grid = outer[number].subgridspec(2, len(columns), wspace=0.05, hspace=0.05)
        for row, (label, colour) in enumerate((("network", BLUE), ("closed form", AMBER))):
            for column, title in enumerate(titles):
                axis = figure.add_subplot(grid[row, column])
                axis.imshow(images[number, row, column], interpolation="nearest")
                axis.set(xticks=[], yticks=[])
                axis.grid(False)
                axis.spines[:].set_visible(False)
                if column == 0:
                    axis.set_ylabel(label, rotation=0, ha="right", va="center", labelpad=6, color=colour)
                if number == row == 0:
                    axis.set_title(title, fontsize=10, color=FAINT)
    save_figure(figure, path)
