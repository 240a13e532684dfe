"""`manifold demo`: the whole story on the model that ships with the project, ending in pictures to look at.

measure    the gallery's latents: mean, covariance, spectrum
predict    where fresh generations are heading, by the closed form and by the network
retrieve   from their early states, the pictures of the gallery that their ends will be near to
use        start the sampler late, from the state that the closed form says it would reach
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from index.anticipation import Anticipation, measure_anticipation
from index.build import build_index
from index.deposit import deposit_latents, painted_records
from index.encoders import Encoder, open_encoder
from index.fit import fit_workspace
from index.progress import Progress, each_step, silent
from index.search import Searcher
from manifold.demo_model import CLASS_NAMES, ClassConditionalPipeline, load_demo_model, load_gallery
from manifold.diagnostics import diagnose
from manifold.gaussian import GaussianManifold
from manifold.recording import Recording, record
from manifold.teleport import teleport

from .plots import plot_eigenimages, plot_spectrum
from .prediction_plots import plot_anticipation
from .sheet import save_sheet
from .strip import Row, draw_strip

__all__ = ["Picture", "run_demo"]

_GUIDANCE = 3.0
_STEPS = 25
_CLASS_RANK = 64
"""Eigenpairs of a class, which has some 400 images."""
_FRESH_SEED = 1_000_000
"""Seeds from here on belong to fresh generations; those of the gallery are 0 to 4,095."""
_RECORDED = 60
_SHOWN = (0, 1, 7, 8)
"""Fresh generations that are drawn, by number; number i is of class i modulo 10."""
_RATIOS = (40.0, 20.0, 10.0, 5.0, 2.5, 1.0, 0.5)
"""Noise levels of the pictures, sigma / alpha."""
_EARLY = 20.0
"""sigma / alpha of the states that are searched from."""
_SKIPPED = (0.3, 0.5, 0.7)


@dataclass(frozen=True)
class Picture:
    """A picture the demo wrote, and what to look at in it."""

    path: Path
    what: str


def run_demo(folder: str | Path, *, progress: Progress = silent) -> list[Picture]:
    """Measure the shipped gallery, paint fresh images, predict and retrieve from their early states, teleport.

    Arguments
        folder: to make, or of an earlier demo; `workspace/` and the pictures go into it.
        progress: told of every stage.

    Returns: the pictures, in the order to look at them.

    Raises: what deposit_latents, fit_workspace, build_index and record raise.

    Cost: about a minute on two cores.
    """
    root = Path(folder)
    encoder = open_encoder("demo-vae", 32)
    gallery = load_gallery()
    made = deposit_latents(
        gallery.latents,
        painted_records(gallery.labels.numpy(), CLASS_NAMES),
        root / "workspace",
        encoder=encoder.spec,
        source="the demo model's gallery",
        progress=progress,
    )
    manifold = fit_workspace(made.root, progress=progress)
    build_index(made.root, progress=progress)
    pictures = [Picture(root / "spectrum.png", "how variance is spread: few directions hold most of it")]
    numbers = diagnose(manifold.covariance, len(made.latents), shape=manifold.shape)
    plot_spectrum(manifold, numbers, pictures[0].path, "the demo model's gallery")
    pictures.append(Picture(root / "directions.png", "the leading directions: light, then gradients, then detail"))
    plot_eigenimages(manifold, encoder, pictures[1].path)

    of_class = [
        GaussianManifold.fit(gallery.latents[gallery.labels == label].float(), rank=_CLASS_RANK)
        for label in range(len(CLASS_NAMES))
    ]
    pipeline = load_demo_model()
    fresh = record(pipeline, **_options(_RECORDED), callback_on_step_end=each_step(progress, "paint", _STEPS))
    pictures.append(
        Picture(root / "outline-first.png", "fresh images being decided, beside the closed form's prediction")
    )
    save_sheet(_outline_sheet(fresh, of_class, encoder), pictures[-1].path)

    searcher = Searcher.open(made.root)
    steps = [_step_near(fresh, ratio) for ratio in _RATIOS]
    anticipated = measure_anticipation(
        searcher, fresh.x_t, fresh.x0_hat, fresh.alphas, fresh.sigmas, steps=steps, progress=progress
    )
    pictures.append(Picture(root / "retrieval.png", "from an early state, what the finished image will be near to"))
    save_sheet(_retrieval_sheet(fresh, searcher, anticipated, encoder), pictures[-1].path)
    pictures.append(Picture(root / "anticipation.png", "how many of the final neighbours are known, and when"))
    plot_anticipation(anticipated, pictures[-1].path, "demo model, its own gallery")

    pictures.append(
        Picture(root / "teleport.png", "the sampler started late, from where the closed form says it would be")
    )
    save_sheet(_teleport_sheet(pipeline, of_class, encoder, progress), pictures[-1].path)
    return pictures


def _options(count: int) -> dict[str, Any]:
    """Classes in turn, a seed of its own for each image."""
    return {
        "class_labels": [number % len(CLASS_NAMES) for number in range(count)],
        "generator": [torch.Generator().manual_seed(_FRESH_SEED + number) for number in range(count)],
        "num_inference_steps": _STEPS,
        "guidance_scale": _GUIDANCE,
        "output_type": "latent",
    }


def _step_near(recording: Recording, ratio: float) -> int:
    """The recorded step whose noise is nearest to sigma / alpha = ratio, on a logarithmic scale."""
    return int((recording.sigmas / recording.alphas / ratio).log().abs().argmin())


def _outline_sheet(fresh: Recording, of_class: list[GaussianManifold], encoder: Encoder) -> Any:
    steps = [_step_near(fresh, ratio) for ratio in _RATIOS]
    names = [f"noise {fresh.sigmas[step] / fresh.alphas[step]:.2g}" for step in steps] + ["finished"]
    rows = []
    for number in _SHOWN:
        final = fresh.x_t[-1, number]
        theory = [
            of_class[number % len(CLASS_NAMES)].denoise(
                fresh.x_t[step, number : number + 1], float(fresh.alphas[step]), float(fresh.sigmas[step])
            )[0]
            for step in steps
        ]
        states = [fresh.x_t[step, number] * (final.norm() / fresh.x_t[step, number].norm()) for step in steps]
        network = [fresh.x0_hat[step, number] for step in steps]
        for label, note, latents in (
            ("noisy state", f"seed {_FRESH_SEED + number}, {CLASS_NAMES[number % 10]}", states),
            ("closed form", "x0_hat from mean and covariance of the class", theory),
            ("network", "its own x0_hat", network),
        ):
            rows.append(Row(label, _decode(encoder, torch.stack([*latents, final])), note, label == "noisy state"))
    caption = (
        "Each group is one fresh generation, from noise on the left to the finished image on the right; the noise is "
        "sigma / alpha. As long as it is large, two products with a matrix predict what the network predicts: light and "
        "outline first. The details are where they part."
    )
    return draw_strip("Outline first, details later", caption, names, rows)


def _retrieval_sheet(fresh: Recording, searcher: Searcher, anticipated: Anticipation, encoder: Encoder) -> Any:
    step = _step_near(fresh, _EARLY)
    alpha, sigma = float(fresh.alphas[step]), float(fresh.sigmas[step])
    count, rows = 8, []
    for number in _SHOWN:
        state, told = fresh.x_t[step, number : number + 1], fresh.x0_hat[step, number : number + 1]
        final = fresh.x_t[-1, number]
        early = searcher.search(state, alpha, sigma, "target", count, x0_hat=told).ids[0]
        late = anticipated.true_ids[number][:count]
        found = len(set(early.tolist()) & set(late.tolist()))
        shown = state[0] * (final.norm() / state.norm())
        name = CLASS_NAMES[number % 10]
        rows.append(
            Row(
                "from the noise",
                _decode(encoder, _with(searcher, shown, early)),
                f"{name}, step {step} of {_STEPS}",
                True,
            )
        )
        rows.append(
            Row("when finished", _decode(encoder, _with(searcher, final, late)), f"{found} of {count} were known")
        )
    caption = (
        f"The query is the state after {step} of {_STEPS} steps (noise {sigma / alpha:.2g}); below it the image that it "
        "became. To the right the nearest images of the gallery: as searched from the noise, and as they are in the end."
    )
    return draw_strip(
        "Retrieved before it is painted", caption, ["query", *(f"{n}." for n in range(1, count + 1))], rows
    )


def _with(searcher: Searcher, first: Tensor, ids: np.ndarray) -> Tensor:
    store = searcher.workspace.latents
    return torch.cat([first[None], torch.from_numpy(store.read(ids)).float().view(-1, *store.shape)])


def _teleport_sheet(
    pipeline: ClassConditionalPipeline, of_class: list[GaussianManifold], encoder: Encoder, progress: Progress
) -> Any:
    rows = [
        Row(
            "all steps",
            _decode(encoder, pipeline(**_options(len(of_class))).images),
            f"{_STEPS} evaluations of the network",
        )
    ]
    for done, skip in enumerate(_SKIPPED):
        progress("teleport", done, len(_SKIPPED))
        moved = teleport(pipeline, of_class, skip=skip, **_options(len(of_class)))
        alpha, sigma = moved.start_level
        note = f"{moved.evaluations} evaluations, noise {sigma / alpha:.2g}"
        rows.append(Row(f"{skip:.0%} skipped", _decode(encoder, moved.output.images), note))
    progress("teleport", len(_SKIPPED), len(_SKIPPED))
    caption = (
        "The same seeds in every row. The first steps are replaced by one closed-form step with the statistics of the class: "
        "little changes until the sampler starts below the noise at which the first modes are decided."
    )
    return draw_strip("Teleportation: the first steps skipped", caption, list(CLASS_NAMES), rows)


def _decode(encoder: Encoder, latents: Tensor) -> np.ndarray:
    return encoder.decode(latents).permute(0, 2, 3, 1).numpy()
