"""How early is it known what a generation will be near to? On fresh generations of the model that ships with the project.

    python benchmarks/anticipation.py [--images ../shared/data/cifar10-train.parquet] [--seeds 120]

Each generation is searched for in the model's own gallery and, if they are at hand, among the images it was trained on. The
figure is the share of the finished latent's true 10 neighbours that a search from the state on the way returns:
`target` is told the network's own prediction, `endpoint` needs no network; beside them plain nearest neighbours of the state
and of the network's prediction, and chance.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from report import show, write

from index import Searcher, build_index, encode_images, fit_workspace, measure_anticipation
from index.deposit import deposit_latents, painted_records
from index.encoders import open_encoder
from manifold import Recording, record
from manifold.demo_model import CLASS_NAMES, load_demo_model, load_gallery

RATIOS = (80.0, 40.0, 20.0, 10.0, 5.0, 2.5, 1.25, 0.6)
FIRST_SEED = 2_000_000
STEPS = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("../shared/data/cifar10-train.parquet"))
    parser.add_argument("--seeds", type=int, default=120)
    options = parser.parse_args()
    run = paint(options.seeds)
    with tempfile.TemporaryDirectory() as folder:
        roots = {"gallery": gallery(Path(folder) / "gallery")}
        if options.images.exists():
            roots[options.images.stem] = encoded(options.images, Path(folder) / "images")
        measured = {name: measure(name, Searcher.open(root), run) for name, root in roots.items()}
    write("anticipation", {"seeds": options.seeds, "steps": STEPS, "collections": measured})


def paint(seeds: int) -> Recording:
    return record(
        load_demo_model(),
        class_labels=[number % len(CLASS_NAMES) for number in range(seeds)],
        generator=[torch.Generator().manual_seed(FIRST_SEED + number) for number in range(seeds)],
        num_inference_steps=STEPS,
        output_type="latent",
    )


def gallery(root: Path) -> Path:
    shipped = load_gallery()
    records = painted_records(shipped.labels.numpy(), CLASS_NAMES)
    encoder = open_encoder("demo-vae", 32).spec
    deposit_latents(shipped.latents, records, root, encoder=encoder, source="gallery")
    fit_workspace(root)
    build_index(root)
    return root


def encoded(images: Path, root: Path) -> Path:
    encode_images(images, root, encoder="demo-vae")
    fit_workspace(root)
    build_index(root)
    return root


def measure(name: str, searcher: Searcher, run: Recording) -> list[list[float]]:
    noise = run.sigmas / run.alphas
    steps = sorted({int((noise / ratio).log().abs().argmin()) for ratio in RATIOS})
    found = measure_anticipation(searcher, run.x_t, run.x0_hat, run.alphas, run.sigmas, steps=steps)
    columns = ["target", "endpoint", "network", "raw", "random"]
    table = [
        [step, float(noise[step]), *(float(found.means[column].mean[number]) for column in columns)]
        for number, step in enumerate(steps)
    ]
    rows = len(searcher.workspace.latents)
    show(
        f"share of the final 10 neighbours known, {run.x_t.shape[1]} generations among {rows:,} latents ({name})",
        ["after step", "sigma/alpha", *columns],
        table,
    )
    return table


if __name__ == "__main__":
    main()
