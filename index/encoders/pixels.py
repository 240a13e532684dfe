"""Pixels as latents, for pixel-space models and for looking at plain images: x / 127.5 - 1."""

from __future__ import annotations

from torch import Tensor

from manifold.errors import ShapeError

from .spec import EncoderSpec, image_to_unit, unit_to_image

__all__ = ["PixelEncoder"]


class PixelEncoder:
    """The identity: uint8 images (n, 3, s, s) as float32 in -1 to 1, d = 3 s^2.

    Arguments
        image_size: side s of the images, in pixels.
    """

    def __init__(self, image_size: int) -> None:
        shape = (3, image_size, image_size)
        self.spec = EncoderSpec(id="pixels", kind="pixels", latent_shape=shape, image_size=image_size)

    def encode(self, images: Tensor, first_row: int = 0) -> Tensor:
        """Images as floats; see `Encoder.encode`."""
        require_shape(images, self.spec.latent_shape, "images")
        return image_to_unit(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Floats as images; see `Encoder.decode`."""
        require_shape(latents, self.spec.latent_shape, "latents")
        return unit_to_image(latents)


def require_shape(tensor: Tensor, shape: tuple[int, int, int], what: str) -> None:
    """Raise ShapeError unless `tensor` is a batch of `shape`."""
    if tensor.ndim != 4 or tuple(tensor.shape[1:]) != shape:
        wanted = ", ".join(str(side) for side in shape)
        raise ShapeError(f"{what} must have shape (n, {wanted}), they have {tuple(tensor.shape)}")
