"""What an encoder is to the rest of the project, and what a workspace remembers of it.

Images are uint8 (n, 3, H, W); latents are float32 (n, C, h, w), scaled and shifted as the model's own pipeline feeds them
to its denoiser: z = (raw - shift) * scaling, one number or one per channel.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

from torch import Tensor

__all__ = ["Encoder", "EncoderSpec", "embedding_spec", "image_to_unit", "unit_to_image"]


@dataclass(frozen=True)
class EncoderSpec:
    """Everything that decides an encoder's output."""

    id: str
    """`pixels`, `embeddings`, a hub id, or a local folder (in a manifest, relative to the workspace)."""
    kind: str
    """`pixels`, `embeddings`, or the class of the autoencoder."""
    latent_shape: tuple[int, int, int]
    """(C, h, w)."""
    image_size: int
    """Side of the square images, in pixels; 0 for imported embeddings."""
    revision: str | None = None
    """Commit of the model on the hub."""
    config_hash: str = ""
    """SHA-256 over configuration and weights; empty where there are none."""
    scaling: tuple[float, ...] = (1.0,)
    shift: tuple[float, ...] = (0.0,)
    mode: str = "mode"
    """`mode` of the posterior, or a `sample` of it."""
    dtype: str = "float32"
    """What the model computes in."""
    tile: int | None = None
    """Side of a tile, in pixels."""
    seed: int = 0
    """Of posterior samples."""

    @property
    def d(self) -> int:
        """Values per latent."""
        channels, height, width = self.latent_shape
        return channels * height * width

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            **asdict(self),
            "latent_shape": list(self.latent_shape),
            "scaling": list(self.scaling),
            "shift": list(self.shift),
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """From JSON values. Raises: KeyError, TypeError or ValueError if they are not a spec's."""
        channels, height, width = (int(side) for side in value["latent_shape"])
        tuples = {"scaling": tuple(value["scaling"]), "shift": tuple(value["shift"])}
        return cls(**{**value, **tuples, "latent_shape": (channels, height, width)})


class Encoder(Protocol):
    """Turns images into latents and back."""

    @property
    def spec(self) -> EncoderSpec:
        """What decides the output."""
        ...

    def encode(self, images: Tensor, first_row: int = 0) -> Tensor:
        """Latents of uint8 images.

        Arguments
            images: (n, 3, H, W) uint8 with H = W = spec.image_size.
            first_row: number of the first image in its collection; posterior samples are seeded by row, so that they do
                not depend on how a collection is cut into batches.

        Returns: (n, C, h, w) float32. Raises: ShapeError.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents (n, C, h, w): (n, 3, H, W) uint8 on the CPU. Raises: ShapeError."""
        ...


def embedding_spec(d: int) -> EncoderSpec:
    """The spec of imported vectors with `d` values, whose encoder is not known."""
    return EncoderSpec(id="embeddings", kind="embeddings", latent_shape=(d, 1, 1), image_size=0)


def image_to_unit(images: Tensor) -> Tensor:
    """uint8 in 0 to 255 as float32 in -1 to 1."""
    return images.float() / 127.5 - 1


def unit_to_image(values: Tensor) -> Tensor:
    """Floats in -1 to 1 as uint8 in 0 to 255, rounded, values outside clipped."""
    return ((values.float() + 1) * 127.5).round().clamp(0, 255).byte().cpu()
