"""Embedding a workspace's images with CLIP: the same images, in the same order, one file for each shard of latents.

A workspace keeps no images, only where they lie in their collection, so the collection is read again, and must be the one
that was encoded. A run that is killed continues with the first file that is missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from index.build import latents_checksum
from index.images import Decoded, ImageSource, decode_stream, open_images
from index.progress import Progress, silent
from index.shards import read_rejects
from index.workspace import Workspace, writing
from manifold.errors import InputError, MismatchError
from manifold.files import atomic_path, sha256_file

from .model import ClipModel, open_clip_model
from .store import ClipCard, ClipSpec, ClipStore, card_path, embeddings_file, index_file, metadata_file

__all__ = ["embed_workspace", "find_collection"]


def embed_workspace(
    workspace: str | Path,
    clip: str | ClipModel,
    images: str | Path | None = None,
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
        images: the collection that was encoded; looked for beside the workspace and in the working folder unless given.
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
    collection = find_collection(opened, images, image_column=image_column)
    model = open_clip_model(clip, device=device) if isinstance(clip, str) else clip
    with writing(opened.root):
        card = _begin(opened, model.spec)
        shards = opened.latents.shards
        count, done = len(shards), sum(card.rows)
        known = opened.latents.metadata(["image_path", "key", "caption", "label"])
        progress("clip", done, opened.manifest.count)
        for number in range(len(card.files), count):
            about = known.slice(done, shards[number].rows)
            parts = []
            for pixels in _pictures(
                opened, collection, about, done, model.spec.image_size, card.crop, batch_size, workers
            ):
                parts.append(model.encode_images(pixels).numpy().astype(np.float16))
                done += len(pixels)
                progress("clip", done, opened.manifest.count)
            rows = np.concatenate(parts)
            path = embeddings_file(opened.root, number, count)
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.save(file, rows, allow_pickle=False)
            with atomic_path(metadata_file(opened.root, number, count)) as temporary:
                pq.write_table(about, temporary)
            card = card.with_file(sha256_file(path), len(rows))
            card.write(card_path(opened.root))
        if card.index_sha256 is None:
            _index(opened.root, card)
            card = replace(card, index_sha256=sha256_file(index_file(opened.root)))
            card.write(card_path(opened.root))
    return ClipStore.open(opened)


def find_collection(
    workspace: Workspace, images: str | Path | None = None, *, image_column: str | None = None
) -> ImageSource:
    """The collection that a workspace was encoded from, opened again.

    Raises: InputError if it is not found, or the workspace was imported from embeddings; MismatchError if it is another,
        or has changed.
    """
    recipe = workspace.manifest.recipe
    if recipe.crop == "none":
        raise InputError(f"{workspace.root} was imported from embeddings, so there are no images to embed with CLIP")
    places = (
        [Path(images)] if images is not None else [workspace.root.resolve().parent / recipe.source, Path(recipe.source)]
    )
    found = next((place for place in places if images is not None or place.exists()), None)
    if found is None:
        raise InputError(
            f"the images of {workspace.root} are needed, and {recipe.source} lies neither beside it nor here; "
            "say where with --images"
        )
    collection = open_images(found, image_column=image_column)
    if len(collection) != recipe.inputs or collection.fingerprint() != recipe.fingerprint:
        raise MismatchError(
            f"{found} is not the collection that {workspace.root} was encoded from, or has changed since "
            f"({len(collection):,} images there, {recipe.inputs:,} then); name the right one with --images"
        )
    return collection


def _begin(workspace: Workspace, spec: ClipSpec) -> ClipCard:
    """The card to continue, or a new one."""
    path = card_path(workspace.root)
    folder = Path(spec.id).expanduser()
    if folder.exists():
        spec = replace(spec, id=Path(os.path.relpath(folder.resolve(), workspace.root.resolve())).as_posix())
    latents = latents_checksum(workspace)
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
    workspace: Workspace,
    collection: ImageSource,
    known: pa.Table,
    first_row: int,
    size: int,
    crop: str,
    batch_size: int,
    workers: int,
) -> Iterator[torch.Tensor]:
    """The images of a shard as uint8 (m, 3, size, size) with m <= batch_size, in order.

    Raises: MismatchError if an image that was encoded cannot be read any more, or has another name.
    """
    rejected = np.array([reject["input"] for reject in read_rejects(workspace)], dtype=np.int64)
    used = np.delete(np.arange(workspace.manifest.recipe.inputs), rejected)
    expected = known["image_path"].to_pylist()
    wanted = iter(zip(used[first_row : first_row + len(expected)].tolist(), expected, strict=True))
    position, name = next(wanted)
    batch: list[np.ndarray] = []
    for items in decode_stream(collection, size, crop, start=position, workers=workers):
        for item in items:
            if item.position != position:
                continue
            if not isinstance(item, Decoded) or item.image_path != name:
                raise MismatchError(
                    f"image {position} of the collection was {name} and usable when {workspace.root} was encoded, "
                    f"now it is {item.image_path}{'' if isinstance(item, Decoded) else f' ({item.reason})'}; "
                    "restore the collection, or encode it again into a new folder"
                )
            batch.append(item.pixels)
            following = next(wanted, None)
            if len(batch) == batch_size or following is None:
                yield torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
                batch = []
            if following is None:
                return
            position, name = following


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
