"""Small pictures of a workspace's rows: the image itself where the collection is found again, else the decoded latent.

A workspace names images relative to their collection and does not say where that lies, so that it may be moved. The
collection is looked for beside the workspace and in the current folder, or taken where the user says it is. It counts as
found only if its listing has the fingerprint that the workspace remembers; then row and image belong together by number,
and the image's own address must be the one in the row's metadata. No path is ever made from metadata or from a request.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image

from index.images import RejectedImage, decode_image, open_images, read_bytes
from index.images.decode import Crop
from index.shards import read_rejects
from index.workspace import Workspace
from manifold.errors import FormatError, InputError, MismatchError

if TYPE_CHECKING:
    from index.encoders import Encoder
    from index.images import ImageSource

__all__ = ["Thumbnail", "Thumbnails", "find_collection"]

_JPEG_QUALITY = 85


@dataclass(frozen=True)
class Thumbnail:
    """A small picture of one row."""

    jpeg: bytes
    origin: Literal["image", "latent"]
    """The image of the collection, or what the encoder makes of the stored latent."""


def find_collection(workspace: Workspace, images: str | Path | None = None) -> ImageSource | None:
    """The collection that a workspace was made from, or None if it is not where it was likely to be.

    Arguments
        workspace: whose images are wanted.
        images: where they lie; otherwise a folder or file of the remembered name is looked for beside the workspace and in
            the current folder.

    Raises: InputError if `images` cannot be opened, or the workspace was made from embeddings; MismatchError if its listing
        differs from the remembered one; FormatError if a container in it is damaged.

    Cost: one listing of the collection.
    """
    recipe = workspace.manifest.recipe
    if not recipe.encoder.image_size:
        if images is not None:
            raise InputError(
                f"{workspace.root} was made from embeddings, which name no images to show; leave out --images"
            )
        return None
    if images is not None:
        collection = open_images(images)
        if collection.fingerprint() != recipe.fingerprint:
            raise MismatchError(
                f"{images} is not the collection that {workspace.root} was made from, or has changed since "
                f"(names or sizes of its files differ); give the place where {recipe.source} lies now"
            )
        return collection
    name = Path(recipe.source).name
    for folder in (workspace.root.resolve().parent, Path.cwd()):
        try:
            collection = open_images(folder / name)
        except (InputError, FormatError):  # nothing there, or something else under that name: not this collection
            continue
        if collection.fingerprint() == recipe.fingerprint:
            return collection
    return None


class Thumbnails:
    """Small pictures of a workspace's rows, drawn once and kept.

    Arguments
        workspace: with its latents and metadata.
        collection: from `find_collection`. encoder: to decode latents with. Either may be missing.
        side_px: longest side; a smaller image keeps its size.
        kept: how many are kept in memory, each about 10 KiB.
        lock: held while the encoder works and while images are decoded, if others use them too.

    Cost: one image decoded, or one forward pass of the decoder, for a picture not kept.
    """

    def __init__(
        self,
        workspace: Workspace,
        collection: ImageSource | None,
        encoder: Encoder | None,
        *,
        side_px: int = 256,
        kept: int = 1024,
        lock: Lock | None = None,
    ) -> None:
        self._workspace = workspace
        self._collection = collection
        self._encoder = encoder
        self._side_px = side_px
        self._lock = lock or Lock()
        rejected = np.array([reject["input"] for reject in read_rejects(workspace)], dtype=np.int64)
        self._accepted_before = rejected - np.arange(len(rejected))
        self.of = lru_cache(maxsize=kept)(self._draw)
        """The picture of a row by its number. Raises: InputError if there is no such row or no way to picture it."""

    def _draw(self, row: int) -> Thumbnail:
        record = self._workspace.latents.rows([row])[0]
        with self._lock:
            pixels = self._image(row, record["image_path"], record["width"], record["height"])
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

    def _image(self, row: int, image_path: str | None, width: int, height: int) -> np.ndarray | None:
        """The row's image cut as its latent was, (s, s, 3) uint8; None if it is gone, changed or damaged."""
        if self._collection is None:
            return None
        crop: Crop = "squash" if self._workspace.manifest.recipe.crop == "squash" else "center"
        side = max(width, height) if crop == "squash" else min(width, height)
        try:
            ref = next(self._collection.refs(self._input(row)))
            if ref.image_path != image_path:
                return None
            return decode_image(read_bytes(ref.data), max(1, min(self._side_px, side)), crop).pixels
        except (StopIteration, RejectedImage, FormatError, OSError):
            # The collection changed while we serve: the latent, which is ours, still shows what the row was.
            return None

    def _input(self, row: int) -> int:
        """Number of the row's image in the collection: rejected images have numbers there and no rows here."""
        return row + int(np.searchsorted(self._accepted_before, row, side="right"))


def _jpeg(pixels: np.ndarray, side_px: int) -> bytes:
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    with io.BytesIO() as file:
        picture.save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)  # pictures of 32 px need all their colour
        return file.getvalue()
