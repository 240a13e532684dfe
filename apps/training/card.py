"""The model card: data, steps, hardware, losses, and a grid of samples; and the same counts for whoever trains on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from manifold.demo_model.pipeline import ClassConditionalPipeline
from manifold.errors import FormatError, NotFittedError
from manifold.files import atomic_path, read_json, write_json

__all__ = ["History", "last_losses", "read_history", "write_card"]

_HISTORY = "training.json"

_PER_CLASS = 8
_SCALE = 2


@dataclass(frozen=True)
class History:
    """What a finished model has seen: of each network the last line of its log."""

    autoencoder: dict[str, Any]
    """images, squared_error, kl_nats."""
    decoder: dict[str, Any]
    """images, squared_error; of the decoder trained on alone, and empty if it was not."""
    denoiser: dict[str, Any]
    """images, loss."""


def read_history(painter: Path) -> History:
    """The history beside finished weights.

    Raises: NotFittedError if there is none; FormatError if it cannot be read.
    """
    path = painter / _HISTORY
    if not path.is_file():
        raise NotFittedError(f"{painter} holds no {_HISTORY}, so it was not made by manifold train-demo; train anew")
    try:
        return History(**read_json(path))
    except TypeError as error:  # other fields
        raise FormatError(f"{path} cannot be read ({error}); train anew") from error


def last_losses(folder: Path, before: dict[str, Any]) -> dict[str, Any]:
    """The last line of a network's log (steps, images and mean losses); without any, what was known before."""
    path = folder / "losses.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return json.loads(lines[-1]) if lines else before


def write_card(pipeline: ClassConditionalPipeline, painter: Path, history: History, facts: dict[str, Any]) -> None:
    """Write README.md, samples.png and training.json into the pipeline's folder.

    Arguments
        pipeline: in float32.
        painter: its folder, saved.
        history: what the networks have seen.
        facts: data, images, classes, hardware, torch.
    """
    _save(_samples(pipeline), painter / "samples.png")
    seen, alone, painted = history.autoencoder, history.decoder, history.denoiser
    write_json(painter / _HISTORY, asdict(history))
    alone_rows = (
        {
            "decoder": f"{alone['images']:,} images more, encoder frozen, against a critic",
            "its loss": f"squared error {alone['squared_error']:.5f}",
        }
        if alone
        else {"decoder": "not trained on alone"}
    )
    millions = {
        name: sum(value.numel() for value in getattr(pipeline, name).parameters()) / 1e6 for name in ("vae", "unet")
    }
    rows = {
        "data": f"{facts['images']:,} images of {facts['data']}, mirrored at random",
        "autoencoder": f"AutoencoderKL, {millions['vae']:.2f} million parameters, {seen['images']:,} images seen",
        "its losses": f"squared error {seen['squared_error']:.5f} (pixels in [-1, 1]), {seen['kl_nats']:.2f} nats a value",
        **alone_rows,
        "denoiser": f"UNet2DModel, {millions['unet']:.2f} million parameters, {painted['images']:,} latents seen",
        "the denoiser's loss": f"squared error of the velocity {painted['loss']:.4f}",
        "prediction": f"velocity; linear betas 1e-4 to 0.02; label {facts['classes']}, a tenth of those shown, is no class",
        "weights": "power-function average over training, relative width 0.1, stored in float16",
        "hardware": facts["hardware"],
        "torch": facts["torch"],
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    text = f"""---
library_name: diffusers
license: mit
---
# The painter: a small class-conditional latent diffusion model

32 x 32 colours, 4 x 8 x 8 latents, {facts["classes"]} classes. It exists to show the theory of Gaussian diffusion on a
trained model that runs anywhere, offline, in seconds. It is not meant for anything else.

| | |
|---|---|
{table}

Losses are means of the last 100 steps. Made with `manifold train-demo`. Each row below is a class, seeds 0 to
{_PER_CLASS - 1}, not chosen.

![samples, one class a row](samples.png)
"""
    with atomic_path(painter / "README.md") as path:
        path.write_text(text, encoding="utf-8")


def _samples(pipeline: ClassConditionalPipeline) -> np.ndarray:
    """(classes, 8, 32, 32, 3) floats in [0, 1]."""
    labels = [label for label in range(pipeline.classes) for _ in range(_PER_CLASS)]
    seeds = [torch.Generator().manual_seed(seed) for _ in range(pipeline.classes) for seed in range(_PER_CLASS)]
    images = pipeline(labels, generator=seeds, num_inference_steps=50, output_type="np").images
    return images.reshape(pipeline.classes, _PER_CLASS, *images.shape[1:])


def _save(grid: np.ndarray, path: Path) -> None:
    rows, columns, height, width, _ = grid.shape
    sheet = grid.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)
    picture = Image.fromarray((sheet * 255).round().astype(np.uint8))
    with atomic_path(path) as temporary:
        picture.resize((columns * width * _SCALE, rows * height * _SCALE), Image.Resampling.NEAREST).save(
            temporary, format="PNG"
        )
