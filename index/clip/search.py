"""Search over CLIP embeddings by text, by image, or by a row of the collection.

Rows are those of the workspace, so an answer can be laid beside that of `index.Searcher`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from index.cpu_index import CpuIndex
from index.search import Hits
from manifold.errors import InputError, MismatchError, ShapeError

from .model import ClipModel, open_clip_model
from .store import ClipStore

__all__ = ["ClipSearcher", "resize_images"]

_MARGIN = 16
"""Candidates beyond k, so that the exact ranking decides who is among the k."""


class ClipSearcher:
    """Search over one workspace's CLIP embeddings. Open it with `ClipSearcher.open`."""

    def __init__(self, store: ClipStore, model: ClipModel | None = None, device: str | None = None) -> None:
        self.store = store
        self._index = CpuIndex(store.index())
        self._given, self._device = model, device

    @classmethod
    def open(cls, workspace: str | Path, clip: str | ClipModel | None = None, *, device: str | None = None) -> Self:
        """Open the embeddings of a workspace.

        Arguments
            workspace: its folder.
            clip: the model, or where it lies now if it moved; it is opened when first needed unless given here.

        Raises: what `ClipStore.open` raises, and `open_clip_model` for a model given; MismatchError if that is another one.
        """
        store = ClipStore.open(workspace)
        searcher = cls(store, device=device)
        if clip is not None:
            searcher._given = searcher._checked(open_clip_model(clip, device=device) if isinstance(clip, str) else clip)
        return searcher

    @cached_property
    def model(self) -> ClipModel:
        """The model that made the embeddings. Raises: as `open_clip_model`; MismatchError."""
        if self._given is not None:
            return self._given
        name = self.store.card.spec.id
        beside = self.store.workspace.root / name
        return self._checked(open_clip_model(str(beside) if beside.exists() else name, device=self._device))

    def by_text(self, texts: str | Sequence[str], k: int = 10) -> Hits:
        """Images nearest to each text. Raises: InputError; as `model`."""
        return self.by_vector(self.model.encode_texts([texts] if isinstance(texts, str) else texts), k)

    def by_image(self, images: np.ndarray, k: int = 10) -> Hits:
        """Images nearest to each of `images`, (n, H, W, 3) uint8, square. Raises: ShapeError; InputError; as `model`."""
        return self.by_vector(self.embed(images), k)

    def by_row(self, rows: Sequence[int], k: int = 10) -> Hits:
        """Images nearest to rows of the collection, themselves included. Needs no model. Raises: InputError."""
        ids = np.asarray(rows, dtype=np.int64).reshape(-1)
        outside = ids[(ids < 0) | (ids >= len(self.store))]
        if outside.size:
            raise InputError(f"row {outside[0]} is not in the collection, whose rows are 0 to {len(self.store) - 1}")
        return self.by_vector(torch.from_numpy(self.store.read(ids)), k)

    def embed(self, images: np.ndarray) -> Tensor:
        """Embeddings of square images (n, H, W, 3) uint8, resized to what the model sees: (n, d). Raises: as `by_image`."""
        model = self.model
        pixels = resize_images(images, model.spec.image_size)
        parts = torch.from_numpy(pixels).permute(0, 3, 1, 2).split(64)
        return torch.cat([model.encode_images(part) for part in parts])

    def by_vector(self, vectors: Tensor, k: int = 10) -> Hits:
        """Images nearest to embeddings (n, d) of unit length, by cosine, best first; ties by row number.

        Raises: InputError for k below 1; ShapeError.

        Cost: one scan of the index; exact, but for the float16 in which embeddings are kept.
        """
        if k < 1:
            raise InputError(f"k must be at least 1, it is {k}")
        if vectors.ndim != 2 or vectors.shape[1] != self.store.card.spec.d:
            raise ShapeError(f"vectors must be (n, {self.store.card.spec.d}), they are {tuple(vectors.shape)}")
        k = min(k, len(self.store))
        candidates = self._index.nearest(vectors.numpy(), min(k + _MARGIN, len(self.store)))
        ids, scores = np.empty((len(vectors), k), dtype=np.int64), np.empty((len(vectors), k))
        for number, vector in enumerate(vectors.double().numpy()):
            cosines = self.store.read(candidates[number]).astype(np.float64) @ vector
            order = np.lexsort((candidates[number], -cosines))[:k]
            ids[number], scores[number] = candidates[number][order], cosines[order]
        return Hits(ids, scores, "cosine", self.store.workspace.latents)

    def _checked(self, model: ClipModel) -> ClipModel:
        spec = self.store.card.spec
        if model.spec.weights_sha256 != spec.weights_sha256:
            raise MismatchError(
                f"{model.spec.id} is not the model that made these embeddings, {spec.id} (its weights differ); "
                "name the right one with --clip"
            )
        return model


def resize_images(images: np.ndarray, side: int) -> np.ndarray:
    """Square images (n, H, H, 3) uint8 as (n, side, side, 3), by the filter the decoder uses. Raises: ShapeError."""
    if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3 or images.dtype != np.uint8:
        raise ShapeError(f"images must be square, uint8 (n, H, H, 3), they are {images.dtype} {images.shape}")
    if images.shape[1] == side:
        return np.ascontiguousarray(images)
    return np.stack([np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.LANCZOS)) for one in images])
