"""Which analytic denoiser predicts a trained network best? All of them beside the model that ships with the project.

    python benchmarks/local.py [--images cifar10-train.parquet | --workspace WS] [--rows 5000] [--states 48]

The target is the network's own x0_hat, asked without a class, at noised latents of images that no analytic denoiser has in
its collection. Statistics and collection are the same latents for all. The patch of LS and ELS and the threshold of the
Wiener masks are calibrated for each noise level on other states, against the network, as Kamb and Ganguli do (arXiv
2412.20292).

Printed are the share of the network's variance that is explained, about its mean prediction, and seconds a call; the JSON has
mean squared error, cosine and the explained score as well. The network has seen all the images.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from report import show, write
from torch import Tensor

from index import encode_images
from index.workspace import Workspace
from manifold import (
    ClassMoments,
    Comparison,
    Denoiser,
    DiffusersDenoiser,
    EmpiricalDenoiser,
    GaussianManifold,
    GaussianMixture,
    LocalDenoiser,
    WienerLocalDenoiser,
    compare_denoisers,
)
from manifold.demo_model import MODEL_FOLDER, load_demo_model

LEVELS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""sigma / alpha."""
SIZES = {"LS": (1, 3, 5, 7, 15), "ELS": (1, 3, 5)}
THRESHOLDS = (0.5, 0.2, 0.1, 0.05, 0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("../shared/data/cifar10-train.parquet"))
    parser.add_argument("--workspace", type=Path, help="the images as the model's autoencoder encodes them, labelled")
    parser.add_argument("--rows", type=int, default=5000, help="of the collection")
    parser.add_argument("--states", type=int, default=48, help="compared, and half as many to calibrate on")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wanted = options.rows + options.states + options.states // 2
        root = options.workspace or encoded(Path(folder), options.images, wanted)
        latents, labels = read(root, wanted)
    known, unseen = latents[: options.rows], latents[options.rows :]
    compared, calibration = unseen[: options.states], unseen[options.states :]
    pipeline = load_demo_model()
    network = DiffusersDenoiser(
        pipeline.unet, pipeline.scheduler, conditions={"class_labels": torch.tensor([pipeline.classes])}
    )
    manifold = GaussianManifold.fit(known)
    whole: dict[str, Denoiser] = {
        "Gaussian": manifold,
        "mixture of classes": mixture(known, labels[: options.rows]),
        "empirical": EmpiricalDenoiser(known),
    }
    rows, chosen = [], []
    for ratio in LEVELS:
        level = level_of(ratio)
        best = {name: calibrated(family, calibration, network, level) for name, family in families(known, manifold)}
        chosen.append([ratio, *(setting for setting, _ in best.values())])
        denoisers = {**whole, **{name: denoiser for name, (_, denoiser) in best.items()}}
        rows += compare(denoisers, compared, network, level, seed=1)
        print(f"sigma/alpha {ratio:g} done", flush=True)
    table(rows, len(known), len(compared))
    show("calibrated: edge of the patch, threshold of the masks", ["sigma/alpha", "LS", "ELS", "Wiener"], chosen)
    write(
        "local",
        {"rows": len(known), "states": len(compared), "compared": [asdict(row) for row in rows], "calibrated": chosen},
    )


def encoded(folder: Path, images: Path, rows: int) -> Path:
    few = folder / "images.parquet"
    pq.write_table(pq.read_table(images).slice(0, rows), few)
    encode_images(few, folder / "ws", encoder=str(MODEL_FOLDER / "vae"), size=32)
    return folder / "ws"


def read(root: Path, rows: int) -> tuple[Tensor, np.ndarray]:
    """The first latents of a workspace as images, and their labels."""
    store = Workspace.open(root).latents
    latents = torch.from_numpy(store.read(range(rows))).float().view(rows, *store.shape)
    return latents, np.array(store.metadata(["label"])["label"].to_pylist()[:rows], dtype=np.int64)


def mixture(latents: Tensor, labels: np.ndarray) -> GaussianMixture:
    """A Gaussian for each label, shrunk: a class has hardly more rows than dimensions."""
    moments = ClassMoments(latents[0].numel())
    moments.update(latents, labels)
    return GaussianMixture.from_moments([moments[label] for label in moments.labels], shrinkage=0.02)


def level_of(ratio: float) -> tuple[float, float]:
    """(alpha, sigma) of flow matching, the model's own coordinates."""
    return 1 / (1 + ratio), ratio / (1 + ratio)


def families(known: Tensor, manifold: GaussianManifold) -> list[tuple[str, Mapping[float, Denoiser]]]:
    """Local denoisers by name and setting, in float32."""
    single = torch.float32
    return [
        ("LS", {size: LocalDenoiser(known, size, equivariant=False, dtype=single) for size in SIZES["LS"]}),
        ("ELS", {size: LocalDenoiser(known, size, dtype=single) for size in SIZES["ELS"]}),
        (
            "Wiener",
            {share: WienerLocalDenoiser(known, manifold, threshold=share, dtype=single) for share in THRESHOLDS},
        ),
    ]


def calibrated(
    family: Mapping[float, Denoiser], x0: Tensor, network: Denoiser, level: tuple[float, float]
) -> tuple[float, Denoiser]:
    """The setting whose predictions come nearest to the network's."""
    found = compare({str(setting): one for setting, one in family.items()}, x0, network, level, seed=2)
    best = min(range(len(found)), key=lambda number: found[number].mse)
    return list(family.items())[best]


def compare(
    denoisers: Mapping[str, Denoiser], x0: Tensor, network: Denoiser, level: tuple[float, float], seed: int
) -> list[Comparison]:
    generator = torch.Generator().manual_seed(seed)
    return compare_denoisers(denoisers, x0, [level[0]], [level[1]], reference=network, generator=generator)


def table(rows: list[Comparison], known: int, states: int) -> None:
    names = list(dict.fromkeys(row.name for row in rows))
    cells = []
    for name in names:
        own = [row for row in rows if row.name == name]
        cells.append([name, *(f"{row.explained_denoiser:.3f}" for row in own), f"{own[-1].seconds:.3g}"])
    levels = [f"{ratio:g}" for ratio in LEVELS]
    show(
        f"share of the network's x0_hat explained, by sigma / alpha; {states} states, collection of {known:,}",
        ["denoiser", *levels, "seconds"],
        cells,
    )


if __name__ == "__main__":
    main()
