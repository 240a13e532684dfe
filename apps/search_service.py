"""What `manifold serve` does, without HTTP: searches with an image or a latent, records of rows, small pictures.

One search runs at a time: FAISS, BLAS and torch use all cores for one already, and memory stays that of one. So does one
decoding or forward pass of the encoder, beside it. Callers may come from any number of threads; what they get does not
depend on who else is asking.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from index.encode import encode_one
from index.images import RejectedImage
from index.images.decode import MAX_PIXELS
from index.originals import find_originals
from index.search import Searcher
from manifold.errors import InputError, ManifoldWarning, MismatchError, NonFiniteError, ShapeError

from .describe import describe_workspace
from .thumbnails import Thumbnails

if TYPE_CHECKING:
    from index.encoders import Encoder

    from .server_models import ImageQuery, LatentQuery

__all__ = ["Limits", "SearchService"]

_LARGEST_VALUE = 1e6
"""Of a latent: values of any autoencoder are below a hundred, and squares must stay far within float32."""
_RECORD_FIELDS = ("row", "image_path", "key", "width", "height", "caption", "label")
_INFO_FIELDS = ("collection", "rows", "rejects", "d", "encoder", "crop", "spectrum", "index")


@dataclass(frozen=True)
class Limits:
    """What a request may ask of the server."""

    max_body_bytes: int = 20 * 10**6
    """Of a request, counted while it arrives."""
    max_image_pixels: int = 50 * 10**6
    """Of an uploaded image, read from its header before anything is decoded."""
    max_k: int = 1000
    """Neighbours in an answer."""
    max_pending: int = 16
    """Searches under way or waiting; more are told to come back. Bounds memory to this many bodies."""
    body_timeout_s: float = 60.0
    """For a request's body to arrive."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise InputError(f"{name} must be above 0, it is {value}")


class SearchService:
    """One open workspace, ready to be asked from many threads. Make it with `SearchService.open`."""

    def __init__(self, searcher: Searcher, encoder: Encoder | None, thumbnails: Thumbnails, info: dict[str, Any],
                 limits: Limits, lock: Lock) -> None:  # fmt: skip
        self.limits = limits
        self.info = info
        """JSON values of the `Info` model."""
        self.rows = len(searcher.workspace.latents)
        self._searcher = searcher
        self._manifest = searcher.workspace.stamp
        self._encoder = encoder
        self._thumbnails = thumbnails
        self._search_lock = Lock()
        self._picture_lock = lock

    @property
    def outdated(self) -> bool:
        """Whether images were added to the workspace or removed since it was opened; row numbers mean others then."""
        return self._searcher.workspace.stamp != self._manifest

    @classmethod
    def open(
        cls,
        workspace: str | Path,
        *,
        limits: Limits | None = None,
        images: str | Path | None = None,
        encoder: str | None = None,
        thumbnail_px: int = 256,
    ) -> Self:
        """Open a workspace that is indexed.

        Arguments
            workspace: its folder. limits: of requests.
            images: where a collection lies, see `find_originals`. encoder: where the encoder lies now, if it moved.
            thumbnail_px: longest side of a thumbnail, at least 1.

        Raises: all of `Searcher.open` and `find_originals`; InputError for thumbnails without a pixel; InputError or
            MismatchError if the `encoder` named cannot be used. An encoder that is not named and cannot be opened is warned
            of: latents can still be searched with.
        """
        if thumbnail_px < 1:
            raise InputError(f"thumbnail_px must be at least 1, it is {thumbnail_px}")
        limits = limits or Limits()
        searcher = Searcher.open(workspace)
        opened = searcher.workspace
        originals = find_originals(opened, images)
        found: Encoder | None = None
        try:
            if encoder is not None or opened.manifest.recipe.encoder.image_size:
                found = opened.encoder(encoder)
        except (InputError, MismatchError) as error:
            if encoder is not None:
                raise
            warnings.warn(f"images cannot be searched with, only latents: {error}", ManifoldWarning, stacklevel=2)
        lock = Lock()
        thumbnails = Thumbnails(opened, originals, found, side_px=thumbnail_px, lock=lock)
        described = describe_workspace(opened)
        info = {
            **{name: described[name] for name in _INFO_FIELDS},
            "name": opened.root.resolve().name,
            "latent_shape": opened.latents.shape,
            "accepts_images": found is not None,
            "pictures": "images" if originals is not None else "latents" if found is not None else "none",
            "limits": {name: getattr(limits, name) for name in ("max_body_bytes", "max_image_pixels", "max_k")},
        }
        return cls(searcher, found, thumbnails, info, limits, lock)

    def by_image(self, data: bytes, query: ImageQuery) -> dict[str, Any]:
        """Search with the bytes of an image file, noised as `manifold search` does. JSON values of `SearchAnswer`.

        Raises: InputError if the image cannot be used or is larger than the limit, k is, or no encoder is at hand.
        """
        self._require_k(query.k)
        if self._encoder is None:
            raise InputError(
                "this server has no encoder for its collection, so it cannot search with images; send a latent as JSON"
            )
        with self._picture_lock:
            clean = self._encode(data, self._encoder)
        generator = torch.Generator().manual_seed(query.seed)
        noise = torch.randn(clean.shape, generator=generator, dtype=torch.float32)
        return self._search(query.alpha * clean + query.sigma * noise, query, query.seed)

    def by_latent(self, query: LatentQuery) -> dict[str, Any]:
        """Search with a state as it stands. JSON values of `SearchAnswer`.

        Raises: ShapeError, NonFiniteError; InputError if k is above the limit.
        """
        self._require_k(query.k)
        x0_hat = None if query.x0_hat is None else self._state(query.x0_hat, "x0_hat")
        return self._search(self._state(query.latent), query, None, x0_hat)

    def record(self, row: int) -> dict[str, Any]:
        """What is known of a row, JSON values of `Record`. Raises: InputError if there is no such row."""
        return _record(self._searcher.workspace.latents.rows([row])[0])

    def thumbnail(self, row: int) -> tuple[bytes, str]:
        """JPEG of a row, and what it was made from; see `Thumbnails.of`. Raises: InputError if there is none."""
        drawn = self._thumbnails.of(row)
        return drawn.jpeg, drawn.origin

    def _search(
        self, x_t: Tensor, query: ImageQuery | LatentQuery, seed: int | None, x0_hat: Tensor | None = None
    ) -> dict[str, Any]:
        with self._search_lock:
            hits = self._searcher.search(
                x_t, query.alpha, query.sigma, query.question, query.k, query.where, x0_hat=x0_hat
            )
        return {
            "question": query.question,
            "alpha": query.alpha,
            "sigma": query.sigma,
            "seed": seed,
            "score_name": hits.score_name,
            "among": hits.among,
            "neighbours": [{**_record(row), "score": row[hits.score_name]} for row in hits.rows()],
        }

    def _encode(self, data: bytes, encoder: Encoder) -> Tensor:
        limit = self.limits.max_image_pixels
        try:
            return encode_one(data, self._searcher.workspace.manifest.recipe, encoder, max_pixels=limit)
        except RejectedImage as rejected:
            if rejected.reason == "decompression bomb":
                raise InputError(
                    f"the image has more than {min(limit, MAX_PIXELS):,} pixels, the limit; reduce it"
                ) from rejected
            raise InputError(f"the image cannot be used: {rejected}; send another") from rejected

    def _state(self, latent: Any, name: str = "latent") -> Tensor:
        store = self._searcher.workspace.latents
        shape = " x ".join(map(str, store.shape))
        try:
            values = np.asarray(latent, dtype=np.float64)
        except ValueError as error:
            raise ShapeError(f"{name} must be {store.d} numbers or {shape}, its rows have different lengths") from error
        if values.shape not in ((store.d,), tuple(store.shape)):
            came = " x ".join(map(str, values.shape))
            raise ShapeError(
                f"{name} must be {store.d} numbers or {shape}, it is {came}; encode with the collection's encoder"
            )
        flat = values.reshape(-1)
        unusable = ~(np.abs(flat) <= _LARGEST_VALUE)
        if unusable.any():
            place = int(unusable.argmax())
            raise NonFiniteError(
                f"{name} must be finite numbers of at most {_LARGEST_VALUE:g} in size, number {place} is {flat[place]}"
            )
        return torch.from_numpy(flat).float().view(1, *store.shape)

    def _require_k(self, k: int) -> None:
        if k > self.limits.max_k:
            raise InputError(f"k must be at most {self.limits.max_k}, it is {k}; ask for fewer neighbours")


def _record(row: dict[str, Any]) -> dict[str, Any]:
    return {**{name: row.get(name) for name in _RECORD_FIELDS}, "thumbnail": f"/thumbnails/{row['row']}"}
