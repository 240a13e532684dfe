"""The gallery: images that the demo model painted, as latents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from manifold.files import load_tensors

from .weights import MODEL_FOLDER

__all__ = ["Gallery", "load_gallery"]


@dataclass(frozen=True)
class Gallery:
    """Painted images."""

    latents: Tensor
    """(n, C, H, W) float16, scaled as the network sees them and as a workspace stores them."""
    labels: Tensor
    """(n,) int64: the class each was asked for."""
    recipe: dict[str, str]
    """How they were painted: steps, scheduler, guidance_scale, seed."""


def load_gallery(path: str | Path = MODEL_FOLDER / "gallery.safetensors") -> Gallery:
    """The shipped gallery: 4,096 images, classes in turn.

    Raises: FileNotFoundError; FormatError if the file is damaged.
    """
    tensors, recipe = load_tensors(Path(path))
    return Gallery(tensors["latents"], tensors["labels"].long(), recipe)
