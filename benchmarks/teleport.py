"""Does it pay to start a sampler late? DDIM, DPM-Solver++ and UniPC, plain and teleported, at 5 to 25 evaluations.

    python benchmarks/teleport.py [--model FOLDER] [--workspace WS] [--images cifar10-train.parquet] [--seeds 200]

On the shipped model and the same seeds: RMS error from a many-step DDIM run of the same noise, and Fréchet distance in
latent space to other seeds and to the data, beside what chance makes of each. First at equal network evaluations, then for
25 steps of which more and more are left out. Statistics are those of the first 10,000 images as the model's own autoencoder
encodes them, unless a fitted workspace is given, all together and by class; guidance 1 asks the network once a step.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
from manifold_apps.bench_teleport import bench_teleport
from manifold_apps.cli_teleport import sentences
from manifold_apps.teleport_plot import plot_teleport
from manifold_apps.teleport_scores import Run, TeleportBench
from report import OUT, show, write

from index import encode_images, fit_workspace
from manifold.demo_model import MODEL_FOLDER

ROWS = 10_000
PUBLISHED_FID = {5: (12.42, 9.63), 8: (3.62, 2.86)}
"""By evaluations: FID without and with the jump, as arXiv 2412.09726 reports for its own model and best sampler."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, default=MODEL_FOLDER, help="folder of the demo model, or of another pipeline"
    )
    parser.add_argument("--workspace", type=Path, help="fitted workspace of the model's latents, instead of making one")
    parser.add_argument("--images", type=Path, default=Path("../shared/data/cifar10-train.parquet"))
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--starts", type=float, nargs="*", default=[2.7, 1.4, 0.7], help="in sqrt(lambda_1)")
    parser.add_argument("--steps", type=int, nargs="*", default=[25])
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument(
        "--per-class", action=argparse.BooleanOptionalAction, default=True, help="statistics of classes too"
    )
    parser.add_argument("--clip", metavar="MODEL", help="Fréchet distances in the space of this CLIP model too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.workspace or made(Path(folder), options.images, options.model)
        found = bench_teleport(
            root, options.model, seeds=options.seeds, starts=options.starts, steps=options.steps, reference_steps=100,
            guidance_scale=options.guidance_scale, per_class=options.per_class, clip=options.clip,
        )  # fmt: skip
    print_tables(found)
    print_gains(found)
    print("\n" + "\n".join(sentences(found)))
    write("teleport", found.to_dict())
    plot_teleport(found, OUT / "teleport.png")
    print(f"drawn in {OUT / 'teleport.png'}")


def made(folder: Path, images: Path, model: Path) -> Path:
    """A fitted workspace of the first images."""
    few = folder / "images.parquet"
    pq.write_table(pq.read_table(images).slice(0, ROWS), few)
    encode_images(few, folder / "ws", encoder=str(model / "vae"), size=32)
    fit_workspace(folder / "ws")
    return folder / "ws"


def print_tables(found: TeleportBench) -> None:
    columns = [
        "sampler", "moved by", "evaluations", "saved", "start / sqrt(l1)", "error", "of plain", "low", "high", "as plain",
        "Fréchet seeds", "data", "in CLIP", "variance",
    ]  # fmt: skip
    for comparison, counts, title in (
        (
            "evaluations",
            found.facts["evaluations"],
            "at equal evaluations: error over that of the plain run of as many",
        ),
        ("steps", found.facts["steps"], "at a fixed number of steps: error over that of the plain run of all steps"),
    ):
        rows = []
        for sampler in found.facts["samplers"]:
            for count in counts:
                plain = found.plain(sampler, count)
                runs = [run for name in found.facts["statistics"] for run in found.chosen(comparison, sampler, name)]
                same = [run for run in runs if getattr(run, comparison) == count]
                rows += [cells(run) for run in (plain, *same) if run is not None]
        show(title, columns, rows)


def print_gains(found: TeleportBench) -> None:
    """Fréchet distance plain and started late at equal evaluations, beside the gains published for other models."""
    rows = []
    for sampler in found.facts["samplers"]:
        for count in found.facts["evaluations"]:
            plain = found.plain(sampler, count)
            late = [run for name in found.facts["statistics"] if (run := found.gain(sampler, count, name)) is not None]
            assert plain is not None
            published = PUBLISHED_FID.get(count, ("", ""))
            for run in late:
                excess = [one.seeds - found.yardsticks["seeds_reference"] for one in (plain, run)]
                rows.append(
                    [
                        sampler,
                        count,
                        run.statistics,
                        plain.error,
                        run.error,
                        plain.seeds,
                        run.seeds,
                        *excess,
                        *published,
                    ]
                )
    columns = [
        "sampler", "evaluations", "moved by", "error plain", "late", "Fréchet plain", "late", "above reference plain", "late",
        "published FID plain", "late",
    ]  # fmt: skip
    show("Fréchet distance to other seeds at equal evaluations, the start with the least error", columns, rows)


def cells(run: Run) -> list[object]:
    plain = run.ratio is None
    return [
        run.sampler, "plain" if plain else run.statistics, run.evaluations, run.saved,
        "" if plain else run.start_relative, run.error, *(("",) * 3 if plain else (run.ratio, run.ratio_low, run.ratio_high)),
        run.equals_plain or "", run.seeds, run.data, "" if run.clip is None else run.clip, run.variance,
    ]  # fmt: skip


if __name__ == "__main__":
    main()
