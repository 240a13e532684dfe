"""What a network learns first: the demo model's denoiser trained anew, beside analytic ones at every doubling of its steps.

    python benchmarks/learning.py [--images cifar10-train.parquet] [--minutes 10 | --steps 3200] [--rows 49000] [--states 256]

The autoencoder is the one that ships; the denoiser begins with random weights. Asked without a class at noised latents that
neither it nor the analytic denoisers were given. Distances between predictions, and errors to the clean latents, are shares
of the variance of the clean latents. Mixture: a Gaussian for each of ten classes. The null is the last network with its
weights in random order. The last row of each table is the network that ships, which has seen all images, and mirrored ones.

`--keep DIR` leaves the networks there; run again to train them on.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from local import encoded, level_of, mixture, read
from manifold_apps.learning_plot import plot_learning
from manifold_apps.training import denoiser
from manifold_apps.training.card import read_history
from manifold_apps.training.checkpoints import find_checkpoints, open_checkpoint
from manifold_apps.training.latents import Latents
from manifold_apps.training.loop import Trainer
from manifold_apps.training.run import quick_attention
from report import show, write
from torch import Tensor

from index.recall import quartile_levels
from manifold import DiffusersDenoiser, EmpiricalDenoiser, GaussianManifold
from manifold.demo_model import MODEL_FOLDER, load_demo_model
from manifold.learning import Learning, measure_learning
from manifold.nulls import isotropic, shuffled_network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("../shared/data/cifar10-train.parquet"))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--steps", type=int, default=100_000, help="stop at this many, if the time allows as many")
    parser.add_argument("--rows", type=int, default=49_000, help="of the collection")
    parser.add_argument("--states", type=int, default=256)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where the networks are kept")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="write the middle level as a picture too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        wanted = options.rows + options.states
        latents, labels = read(encoded(Path(temporary), options.images, wanted), wanted)
        known, unseen, seen_labels = latents[: options.rows], latents[options.rows :], labels[: options.rows]
        folder = options.keep or Path(temporary)
        train(known, seen_labels, folder, options.steps, options.minutes)
        measure(known, seen_labels, unseen, folder, options.figure)


def train(known: Tensor, labels: np.ndarray, folder: Path, steps: int, minutes: float) -> None:
    """Train the denoiser on latents (n, 4, 8, 8), keeping networks in `folder`."""
    torch.manual_seed(0)
    classes = int(labels.max()) + 1
    data = Latents(known.half(), torch.zeros_like(known).half())
    losses = denoiser.denoiser_losses(data, torch.from_numpy(labels), classes, denoiser.SETTINGS.batch_size)
    network = quick_attention(denoiser.build_denoiser(classes))
    trainer = Trainer(network, losses, folder / "state", denoiser.SETTINGS, "denoiser")
    trainer.run(steps, minutes=minutes, kept_in=folder)


def measure(known: Tensor, labels: np.ndarray, unseen: Tensor, folder: Path, figure: Path | None) -> None:
    manifold = GaussianManifold.fit(known)
    pipeline = load_demo_model()
    no_class = {"class_labels": torch.tensor([pipeline.classes])}
    places = find_checkpoints(folder, "unet")

    def asked(network: Any) -> DiffusersDenoiser:
        return DiffusersDenoiser(network.float().eval(), pipeline.scheduler, conditions=no_class)

    analytic = {
        "Gaussian": manifold,
        "mixture": mixture(known, labels),
        "empirical": EmpiricalDenoiser(known),
        "null: isotropic": isotropic(manifold),
    }
    ratios = quartile_levels(manifold)
    alphas, sigmas = zip(*map(level_of, ratios), strict=True)
    kept = ((step, asked(open_checkpoint(UNet2DModel, path))) for step, path in places.items())
    # Of another run, over mirrored images as well, in steps of as many latents as here.
    seen = read_history(MODEL_FOLDER).denoiser["images"] // denoiser.SETTINGS.batch_size
    ships = seen if seen > max(places) else None
    found = measure_learning(
        chain(kept, [] if ships is None else [(ships, asked(pipeline.unet))]),
        analytic,
        unseen,
        alphas,
        sigmas,
        null=asked(shuffled_network(open_checkpoint(UNet2DModel, places[max(places)]), seed=0)),
        generator=torch.Generator().manual_seed(0),
    )
    figures = []
    for level, ratio in enumerate(ratios):
        figures += told(found, level, ratio, ships)
    write("learning", figures)
    if figure is not None:
        plot_learning(found, figure, "the demo model, trained anew")


def told(found: Learning, level: int, ratio: float, ships: int | None) -> list[dict[str, Any]]:
    """Print the table of one level; returns its rows."""
    assert found.null_distance is not None
    assert found.null_error is not None
    columns = ["steps", *(f"to {name}" for name in found.names), "error"]
    rows: list[list[Any]] = [
        ["null", *found.null_distance[level].mean(1).tolist(), float(found.null_error[level].mean())]
    ]
    for place, step in enumerate(found.stages):
        name = f"{step:,} (ships)" if step == ships else f"{step:,}"
        rows.append([name, *found.distance[place, level].mean(1).tolist(), float(found.error[place, level].mean())])
    show(f"sigma / alpha = {ratio:.3g}: distances and error, shares of the variance", columns, rows)
    errors = zip(found.names, found.analytic_error[level].mean(1).tolist(), strict=True)
    print("error of " + ", ".join(f"{name} {error:.3g}" for name, error in errors))
    return [{"sigma / alpha": ratio, **dict(zip(columns, row, strict=True))} for row in rows]


if __name__ == "__main__":
    main()
