"""Training images in memory: small squares and their labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from index.images import Decoded, decode_stream, open_images
from index.progress import Progress, silent
from manifold.errors import InputError

__all__ = ["TrainingImages", "load_training_images"]


@dataclass(frozen=True)
class TrainingImages:
    """A labelled collection, decoded."""

    pixels: Tensor
    """(n, 3, size, size) uint8 RGB."""
    labels: Tensor
    """(n,) int64, 0 to classes - 1."""

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.labels.max()) + 1

    def chosen(self, rows: Tensor) -> Tensor:
        """Images by number, n of them and then their n mirror images: float32 in [-1, 1]."""
        pixels = self.pixels[rows % len(self.labels)].float() / 127.5 - 1
        return torch.where((rows >= len(self.labels))[:, None, None, None], pixels.flip(-1), pixels)

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` images drawn with replacement, half of them mirrored: float32 in [-1, 1], and their labels."""
        rows = torch.randint(len(self.labels), (count,), generator=generator)
        mirrored = torch.rand(count, generator=generator) < 0.5
        return self.chosen(rows + mirrored * len(self.labels)), self.labels[rows]


def load_training_images(data: str | Path, size: int, *, progress: Progress = silent) -> TrainingImages:
    """Decode a labelled collection to squares of `size` pixels, leaving out what cannot be decoded.

    Raises: InputError if the collection has no labels, or none of its images can be used; what `open_images` raises.

    Cost: 3 size^2 bytes an image in memory.
    """
    source = open_images(data)
    pixels: list[np.ndarray] = []
    labels: list[int] = []
    for items in decode_stream(source, size, workers=1):
        for item in items:
            if not isinstance(item, Decoded):
                continue
            if item.label is None:
                raise InputError(
                    f"{data} has no labels, but the demo model is class-conditional; give a collection with a column `label`"
                )
            pixels.append(item.pixels.copy())
            labels.append(item.label)
        progress("decode", len(pixels), len(source))
    if not pixels:
        raise InputError(f"none of the images of {data} can be decoded")
    return TrainingImages(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))
