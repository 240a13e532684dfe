"""Small pictures of a workspace's rows: the image itself where the collection is found again, else the decoded latent.

A workspace names images relative to their collection and does not say where that lies, so that it may be moved; see
`index.originals`. An image is taken from a collection by its address and key, as the row's metadata have them: no path is
ever made from metadata or from a request.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image

from index.images import RejectedImage, decode_image, read_bytes
from index.workspace import Workspace
from manifold.errors import FormatError, InputError

if TYPE_CHECKING:
    from index.encoders import Encoder
    from index.originals import Originals

__all__ = ["Thumbnail", "Thumbnails"]

_JPEG_QUALITY = 85


@dataclass(frozen=True)
class Thumbnail:
    """A small picture of one row."""

    jpeg: bytes
    origin: Literal["image", "latent"]
    """The image of the collection, or what the encoder makes of the stored latent."""


class Thumbnails:
    """Small pictures of a workspace's rows, drawn once and kept.

    Arguments
        workspace: with its latents and metadata.
        originals: from `index.originals.find_originals`. encoder: to decode latents with. Either may be missing.
        side_px: longest side; a smaller image keeps its size.
        kept: how many are kept in memory, each about 10 KiB.
        lock: held while the encoder works and while images are decoded, if others use them too.

    Cost: one image decoded, or one forward pass of the decoder, for a picture not kept.
    """

    def __init__(
        self,
        workspace: Workspace,
        originals: Originals | None,
        encoder: Encoder | None,
        *,
        side_px: int = 256,
        kept: int = 1024,
        lock: Lock | None = None,
    ) -> None:
        self._workspace = workspace
        self._originals = originals
        self._encoder = encoder
        self._side_px = side_px
        self._lock = lock or Lock()
        self.of = lru_cache(maxsize=kept)(self._draw)
        """The picture of a row by its number. Raises: InputError if there is no such row or no way to picture it."""

    def _draw(self, row: int) -> Thumbnail:
        record = self._workspace.latents.rows([row])[0]
        with self._lock:
            pixels = self._image(record)
            if pixels is not None:
                return Thumbnail(_jpeg(pixels, self._side_px), "image")
            if self._encoder is None:
                raise InputError(
                    f"there is no picture of row {row}: its image was not found and no encoder can decode its latent; "
                    "start the server with --images COLLECTION"
                )
            latent = (
                torch.from_numpy(self._workspace.latents.read([row])).float().view(1, *self._workspace.latents.shape)
            )
            pixels = self._encoder.decode(latent)[0].permute(1, 2, 0).numpy()
            return Thumbnail(_jpeg(pixels, self._side_px), "latent")

    def _image(self, record: dict[str, Any]) -> np.ndarray | None:
        """The row's image cut as its latent was, (s, s, 3) uint8; None if it is gone, changed or damaged."""
        if self._originals is None:
            return None
        crop = self._workspace.manifest.recipe.image_crop
        side = (max if crop == "squash" else min)(record["width"], record["height"])
        try:
            ref = self._originals.find(record["image_path"], record["key"])
            if ref is None:
                return None
            return decode_image(read_bytes(ref.data), max(1, min(self._side_px, side)), crop).pixels
        except (RejectedImage, FormatError, OSError):
            # The collection changed while we serve: the latent, which is ours, still shows what the row was.
            return None


def _jpeg(pixels: np.ndarray, side_px: int) -> bytes:
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    with io.BytesIO() as file:
        picture.save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)  # pictures of 32 px need all their colour
        return file.getvalue()
