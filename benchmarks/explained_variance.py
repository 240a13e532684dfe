"""What of a trained denoiser, and of its score, analytic ones explain at each noise level, with many images to fit.

    python benchmarks/explained_variance.py [--images cifar10-train.parquet | --workspace WS] [--rows 49000] [--states 256]

The network is the model that ships with the project, asked without a class, at noised latents of images left out of every
analytic denoiser's collection (the network has seen them). Mixture: a Gaussian for each of ten classes; empirical: every
image of the collection. `null: mean` answers with the network's mean prediction whatever the state: it explains nothing of
the denoiser and much of the score, which is mostly noise.

Published, for the Gaussian beside a network for CIFAR-10 pixels: 0.94 of the denoiser at sigma 5 and 0.91 at sigma 2, with
3.5e-4 and 4.3e-3 of the score left unexplained. These levels are 0.337 and 0.135 of sqrt(lambda_1) there; the column
`sigma / sqrt(l1)` finds them here.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from local import encoded, level_of, mixture, read
from report import show, write

from manifold import DiffusersDenoiser, EmpiricalDenoiser, GaussianManifold, compare_denoisers
from manifold.demo_model import load_demo_model

RELATIVE = (2.7, 1.35, 0.675, 0.337, 0.135, 0.0675, 0.0337)
"""sigma / alpha in sqrt(lambda_1): 40, 20, 10, 5, 2, 1 and 0.5 in CIFAR-10's pixels."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("../shared/data/cifar10-train.parquet"))
    parser.add_argument("--workspace", type=Path, help="the images as the model's autoencoder encodes them, labelled")
    parser.add_argument("--rows", type=int, default=49_000, help="of the collection")
    parser.add_argument("--states", type=int, default=256)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wanted = options.rows + options.states
        root = options.workspace or encoded(Path(folder), options.images, wanted)
        latents, labels = read(root, wanted)
    known, unseen = latents[: options.rows], latents[options.rows :]
    manifold = GaussianManifold.fit(known)
    scale = float(manifold.eigvals[0]) ** 0.5
    pipeline = load_demo_model()
    network = DiffusersDenoiser(
        pipeline.unet, pipeline.scheduler, conditions={"class_labels": torch.tensor([pipeline.classes])}
    )
    denoisers = {
        "Gaussian": manifold,
        "mixture": mixture(known, labels[: options.rows]),
        "empirical": EmpiricalDenoiser(known),
    }
    names = [*denoisers, "null: mean"]
    found, table = [], []
    for relative in RELATIVE:
        alpha, sigma = level_of(relative * scale)
        rows = compare_denoisers(
            denoisers,
            unseen,
            [alpha],
            [sigma],
            reference=network,
            generator=torch.Generator().manual_seed(0),
            null=True,
        )
        by_name = {row.name: row for row in rows}
        found += rows
        table.append(
            [
                sigma / alpha / scale,
                sigma / alpha,
                *(by_name[name].explained_denoiser for name in names),
                *(1 - by_name[name].explained_score for name in names),
            ]
        )
    show(
        f"share of the network's denoiser explained, and of its score left unexplained; {len(unseen)} states, "
        f"{len(known):,} images, lambda_1 {scale**2:.1f}",
        ["sigma / sqrt(l1)", "sigma/alpha", *names, *(f"score, {name}" for name in names)],
        table,
    )
    write("explained_variance", {"lambda_1": scale**2, "compared": [asdict(row) for row in found]})


if __name__ == "__main__":
    main()
