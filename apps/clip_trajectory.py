"""`manifold clip-trajectory`: how early CLIP recognises the image that a generation will end with.

Generations of a pipeline are recorded. The predicted target of every step is decoded, embedded by CLIP and searched with; so
is the finished image. What the two lists share is set beside two nulls: lists drawn at random, and the lists of the other
generations' finished images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Group
from rich.table import Table
from torch import Tensor

from index.clip import ClipModel, ClipSearcher, TrajectoryOverlap, trajectory_overlap
from index.encoders import Encoder
from index.encoders.opening import choose_device
from index.progress import Progress, silent
from index.search import Searcher
from manifold.errors import InputError, MismatchError
from manifold.recording import record

from .pipelines import conditions, open_pipeline, require_steps

__all__ = ["ClipTrajectories", "follow_clip"]

_AT_ONCE = 64


@dataclass(frozen=True)
class ClipTrajectories:
    """Recorded generations in CLIP's eyes."""

    clip: str
    k: int
    rows: int
    """Images of the collection."""
    seeds: int
    noise: np.ndarray
    """(steps,) sigma / alpha of each step, falling."""
    overlap: TrajectoryOverlap

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: means over the generations, step by step."""
        found = self.overlap
        each = {
            "to_final": found.to_final,
            "to_others": found.to_others,
            "between_spaces": found.between_spaces,
            "cosine_to_final": found.cosine_to_final,
        }
        steps: list[dict[str, float | None]] = []
        for step, noise in enumerate(self.noise):
            means = {name: None if values is None else float(values[step].mean()) for name, values in each.items()}
            steps.append({"step": step, "noise": float(noise), **means})
        about = {"clip": self.clip, "k": self.k, "rows": self.rows, "seeds": self.seeds, "chance": found.chance}
        return {**about, "steps": steps}

    def table(self, lines: int = 10) -> Group:
        """For people: `lines` steps, spread over the generation."""
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("step", "noise", "its own end", "others' ends", "latent search", "cosine"):
            table.add_column(name, justify="right")
        steps = self.to_dict()["steps"]
        for number in np.unique(np.linspace(0, len(steps) - 1, lines).round().astype(int)):
            one = steps[number]
            shares = (one["to_final"], one["to_others"], one["between_spaces"])
            table.add_row(str(number), f"{one['noise']:.3g}", *map(_share, shares), f"{one['cosine_to_final']:.3f}")
        return Group(
            f"{self.seeds} generations among {self.rows:,} images, by {self.clip}\n",
            f"Of the predicted image's {self.k} CLIP neighbours, the share that is also nearest to the finished image,",
            "to those of the other generations, and among the neighbours that the latent search names;",
            f"by chance {self.overlap.chance:.2%}. Last, the cosine of predicted and finished image.\n",
            table,
        )


def follow_clip(
    workspace: str | Path,
    model: str | None = None,
    *,
    seeds: int = 40,
    steps: int = 25,
    k: int = 10,
    prompts: Sequence[str] = (),
    clip: str | ClipModel | None = None,
    device: str | None = None,
    encoder: str | None = None,
    progress: Progress = silent,
) -> ClipTrajectories:
    """Record generations and follow their CLIP neighbours.

    Arguments
        workspace: its folder, encoded by the model's autoencoder, indexed, and embedded by `manifold clip`.
        model: folder or hub id of a diffusers pipeline that takes class labels or prompts; the one that ships unless given.
        seeds: generations; classes or prompts take turns. steps: of the sampler. k: neighbours.
        clip: where the CLIP model lies now, if it moved, or an opened one. device: where both models run.
        encoder: where the workspace's encoder lies now, if it moved.
        progress: told of ("decode", images done, images in all).

    Raises: InputError (options, pipeline); MismatchError if the pipeline's latents are not of the workspace's shape; all of
        `ClipSearcher.open` and `Searcher.open`.

    Cost: seeds * steps evaluations of the network, as many decodings, and as many forward passes of CLIP.
    """
    if seeds < 2 or steps < 1:
        raise InputError(f"seeds must be at least 2 and steps at least 1, they are {seeds} and {steps}")
    device = choose_device(device)
    by_clip, by_latent = ClipSearcher.open(workspace, clip, device=device), Searcher.open(workspace)
    opened = by_latent.workspace
    # What is missing is said before anything is painted.
    by_clip.model  # noqa: B018
    decoder = opened.encoder(encoder)
    pipeline = open_pipeline(model, device)
    require_steps(pipeline.scheduler, steps)
    run = record(
        pipeline,
        **conditions(pipeline, range(seeds), prompts),
        generator=[torch.Generator().manual_seed(seed) for seed in range(seeds)],
        num_inference_steps=steps,
        output_type="latent",
    )
    if tuple(run.x_t.shape[2:]) != opened.latents.shape:
        raise MismatchError(
            f"the model's latents are {tuple(run.x_t.shape[2:])}, the workspace's {opened.latents.shape}; encode a "
            "collection with this model's autoencoder at its image size"
        )
    usable = [step for step in range(len(run.alphas)) if float(run.alphas[step]) > 0]
    images = []
    for done, step in enumerate(usable):
        progress("decode", done * seeds, len(usable) * seeds)
        images.append(_decoded(decoder, run.x0_hat[step]))
    progress("decode", len(usable) * seeds, len(usable) * seeds)
    latent_ids = [
        by_latent.search(
            run.x_t[step], float(run.alphas[step]), float(run.sigmas[step]), "target", k, x0_hat=run.x0_hat[step]
        ).ids
        for step in usable
    ]
    overlap = trajectory_overlap(
        by_clip, np.stack(images), k, final=_decoded(decoder, run.x_t[-1]), latent_ids=np.stack(latent_ids)
    )
    noise = (run.sigmas[usable] / run.alphas[usable]).numpy()
    return ClipTrajectories(by_clip.store.card.spec.id, k, len(by_clip.store), seeds, noise, overlap)


def _decoded(decoder: Encoder, latents: Tensor) -> np.ndarray:
    """(n, H, W, 3) uint8."""
    return np.concatenate(
        [decoder.decode(part.float()).permute(0, 2, 3, 1).numpy() for part in latents.split(_AT_ONCE)]
    )


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
