"""Embedding a workspace's images with CLIP: the same images, in the same order, one file for each shard of latents.

The images are read again from their collection (see `index.originals`), cut as they were for the latents. A run that is
killed continues with the first file that is missing.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from index.images import Decoded, decode_stream
from index.originals import Originals, open_originals
from index.progress import Progress, silent
from index.workspace import Workspace, writing
from manifold.errors import InputError, MismatchError
from manifold.files import atomic_path, sha256_file

from .model import ClipModel, open_clip_model
from .store import ClipCard, ClipSpec, ClipStore, card_path, embeddings_file, index_file, metadata_file

__all__ = ["embed_workspace"]


def embed_workspace(
    workspace: str | Path,
    clip: str | ClipModel,
    images: Sequence[str | Path] = (),
    *,
    image_column: str | None = None,
    device: str | None = None,
    batch_size: int = 64,
    workers: int = 1,
    progress: Progress = silent,
) -> ClipStore:
    """Embed a workspace's images with a CLIP model, and index the embeddings; continue where an earlier run was stopped.

    Arguments
        workspace: its folder; encoding must be complete.
        clip: a model as `open_clip_model` names it, or an opened one.
        images: the collections that were encoded; looked for beside the workspace and in the working folder unless given.
        image_column: column with the images, for tables that have several.
        device: where the model runs; CUDA if there is one.
        batch_size: images per forward pass. workers: decoding processes; 0 decodes in this process.
        progress: told of ("clip", images done, images in all).

    Returns: the embeddings, opened.

    Raises: InputError (workspace, collection, model); MismatchError if the collection is not the one that was encoded, or
        the workspace holds embeddings of another model; MissingExtraError; StorageError.

    Cost: one forward pass an image; one shard's embeddings and a few chunks of decoded images in memory. The index takes
        2 d bytes an image in memory.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    opened = Workspace.open(workspace)
    opened.require_complete()
    originals = open_originals(opened, images, image_column=image_column)
    model = open_clip_model(clip, device=device) if isinstance(clip, str) else clip
    with writing(opened.root):
        card = _begin(opened, model.spec)
        shards = opened.latents.shards
        count, done = len(shards), sum(card.rows)
        known = opened.latents.metadata(["image_path", "key", "caption", "label"])
        progress("clip", done, opened.manifest.count)
        stream = _pictures(opened, originals, model.spec.image_size, card.crop, done, workers)
        with closing(stream):
            for number in range(len(card.files), count):
                first, stop = done, done + shards[number].rows
                parts = []
                while done < stop:
                    pixels = torch.from_numpy(np.stack(list(islice(stream, min(batch_size, stop - done)))))
                    parts.append(model.encode_images(pixels.permute(0, 3, 1, 2)).numpy().astype(np.float16))
                    done += len(pixels)
                    progress("clip", done, opened.manifest.count)
                card = _commit(opened, card, number, np.concatenate(parts), known.slice(first, stop - first))
        if card.index_sha256 is None:
            _index(opened.root, card)
            card = replace(card, index_sha256=sha256_file(index_file(opened.root)))
            card.write(card_path(opened.root))
    return ClipStore.open(opened)


def _begin(workspace: Workspace, spec: ClipSpec) -> ClipCard:
    """The card to continue, or a new one."""
    path = card_path(workspace.root)
    folder = Path(spec.id).expanduser()
    if folder.exists():
        spec = replace(spec, id=Path(os.path.relpath(folder.resolve(), workspace.root.resolve())).as_posix())
    latents = workspace.latents_checksum
    if path.is_file():
        card = ClipCard.read(path)
        if replace(card.spec, id=spec.id) != spec or card.latents_sha256 != latents:
            raise MismatchError(
                f"{path.parent} holds embeddings of {card.spec.id}, or of other latents; delete that folder to embed with "
                f"{spec.id}"
            )
        return card
    return ClipCard(spec, workspace.manifest.recipe.crop, latents)


def _pictures(
    workspace: Workspace, originals: Originals, size: int, crop: str, first_row: int, workers: int
) -> Generator[np.ndarray, None, None]:
    """The images of the rows from `first_row` on, (size, size, 3) uint8 each.

    Raises: MismatchError if an image that was encoded cannot be read any more.
    """
    if first_row == len(originals):
        return
    for items in decode_stream(originals, size, crop, start=first_row, workers=workers):
        for item in items:
            if not isinstance(item, Decoded):
                raise MismatchError(
                    f"{item.image_path} was usable when {workspace.root} was encoded, now it is not ({item.reason}); "
                    "restore the collection, or encode it again into a new folder"
                )
            yield item.pixels


def _commit(workspace: Workspace, card: ClipCard, number: int, rows: np.ndarray, about: pa.Table) -> ClipCard:
    """Write the embeddings and metadata of a shard; the card that names them comes last."""
    count = len(workspace.latents.shards)
    path = embeddings_file(workspace.root, number, count)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, rows, allow_pickle=False)
    with atomic_path(metadata_file(workspace.root, number, count)) as temporary:
        pq.write_table(about, temporary)
    card = card.with_file(sha256_file(path), len(rows))
    card.write(card_path(workspace.root))
    return card


def _index(root: Path, card: ClipCard) -> None:
    """Index the embeddings as they are: float16 codes are the numbers at rest, and between unit vectors
    |a - b|^2 = 2 - 2 cos ranks as the cosine does.
    """
    from index import faiss_io

    d = card.spec.d
    index = faiss_io.new_index(np.zeros(d, dtype=np.float32), np.eye(d, dtype=np.float32), "SQfp16")
    for number in range(len(card.files)):
        rows = np.load(embeddings_file(root, number, len(card.files)), allow_pickle=False).astype(np.float32)
        index.add(rows)
    with atomic_path(index_file(root)) as path:
        faiss_io.write_index(index, path)
