"""Latents of the training images under a finished encoder, kept on disk as long as it stays the same."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manifold.files import load_tensors, save_tensors

from .images import TrainingImages

__all__ = ["Latents", "encode_latents"]


@dataclass(frozen=True)
class Latents:
    """Scaled posteriors of every image, then of its mirror image."""

    means: Tensor
    """(2 n, 4, 8, 8) float16."""
    widths: Tensor
    """(2 n, 4, 8, 8) float16 standard deviations."""

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """One latent of each posterior of `rows`, float32."""
        noise = torch.randn((len(rows), *self.means.shape[1:]), generator=generator)
        return self.means[rows].float() + self.widths[rows].float() * noise


def encode_latents(vae: Any, images: TrainingImages, path: Path, batch: int = 500) -> Latents:
    """Latents of all images, read from `path` if this encoder made them of these images, and else written to it."""
    config, device = vae.config, next(vae.parameters()).device
    state = {
        "scaling_factor": repr(config.scaling_factor),
        "shift_factor": repr(config.shift_factor),
        "encoder": _checksum(*vae.encoder.parameters(), *vae.quant_conv.parameters()),
        "images": _checksum(images.pixels),
    }
    if path.is_file():
        tensors, metadata = load_tensors(path)
        if metadata == state:
            return Latents(tensors["means"], tensors["widths"])
    means, widths = [], []
    with torch.inference_mode():
        for rows in torch.arange(2 * len(images.labels)).split(batch):
            posterior = vae.encode(images.chosen(rows).to(device)).latent_dist
            means.append(((posterior.mean - config.shift_factor) * config.scaling_factor).half().cpu())
            widths.append((posterior.std * config.scaling_factor).half().cpu())
    latents = Latents(torch.cat(means), torch.cat(widths))
    save_tensors(path, {"means": latents.means, "widths": latents.widths}, state)
    return latents


def _checksum(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
