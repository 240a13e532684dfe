"""Adding images to a workspace: what is new is encoded, and nothing else is done again.

An image is known by its key. New images are encoded by the recipe in the manifest into shards of their own, the moments go
on where they stopped, and the index is extended in its own basis (see `index.refresh`). A killed run leaves whole shards;
the same command goes on after them.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from manifold.errors import InputError, MismatchError

from .encode import encode_into, import_into, worker_count
from .images import EmbeddingSource, ImageSource, open_collection
from .images.sources import ImageRef
from .progress import Progress, silent
from .refresh import refresh_workspace
from .shards import ShardWriter, read_rejects, remove_uncommitted
from .workspace import Addition, Workspace, writing

__all__ = ["Added", "add_images"]


@dataclass(frozen=True)
class Added:
    """What an addition did."""

    workspace: Workspace
    rows: int
    """Images encoded now."""
    rejects: int
    """New images that cannot be used."""
    known: int
    """Images whose key the workspace had already, as a row or as a reject."""


def add_images(
    images: str | Path,
    workspace: str | Path,
    *,
    image_column: str | None = None,
    prefix: str = "",
    encoder: str | None = None,
    workers: int | None = None,
    max_rejects: float = 0.05,
    progress: Progress = silent,
) -> Added:
    """Encode what is new in a collection, and bring the statistics and the index up to it.

    Arguments
        images: a collection as `encode_images` takes it: the first one, grown, or another.
        workspace: its folder, completely encoded.
        image_column: column with the images, for tables that have several.
        prefix: put before the keys of this collection, to tell them from equal keys of another.
        encoder: where the workspace's encoder lies now, if it has moved.
        workers: decoding processes; one less than the cores unless given, 0 decodes in this process.
        max_rejects: stop when more than this share of the new images, 0 to 1, cannot be used.
        progress: told of ("encode", new images done, new images in all), then of "fit" and "index".

    Returns: the workspace, opened again, and what was done. Statistics and index are those of all its images: searches give
        what they would give had all been encoded at once. What was not fitted or not indexed stays so.

    Raises: InputError (no such collection, an incomplete workspace); MismatchError (embeddings for an encoder's workspace, or
        of another width); TooManyRejectsError; NonFiniteError; StorageError; all of `Workspace.encoder`.

    Warns: ManifoldWarning if the new images differ so much that the index should be built again; see `refresh_index`.

    Cost: listing the collection, encoding what is new, and `refresh_workspace`. The keys of all rows in memory.
    """
    if not 0 <= max_rejects <= 1:
        raise InputError(f"max_rejects is a share from 0 to 1, got {max_rejects}")
    worker_count(workers)
    root = Path(workspace)
    Workspace.open(root).require_complete()
    collection = open_collection(images, image_column=image_column)
    with writing(root):
        opened = Workspace.open(root)
        remove_uncommitted(opened)
        _require_kind(opened, collection)
        known = _known_keys(opened)
        before = opened.manifest
        fingerprint = collection.fingerprint()
        words = ["manifold", "add", "WS", collection.name, *(["--prefix", prefix] if prefix else [])]
        words += ["--image-column", image_column] if image_column else []
        addition = Addition(collection.name, fingerprint, 0, shlex.join(words), image_column)
        with ShardWriter(opened, _account(opened, addition)) as writer:
            if isinstance(collection, EmbeddingSource):
                new, total = _new_rows(collection, known, prefix), len(collection)
                fresh = _count(_new_rows(collection, known, prefix))
                if fresh:
                    done = before.next_input
                    import_into(writer, new, done, done + fresh, progress)
            else:
                selected = _NewImages(collection, known, prefix)
                total, fresh = len(collection), len(selected)
                if fresh:
                    encode_into(
                        opened, writer, selected, opened.encoder(encoder), offset=before.next_input, workers=workers,
                        max_rejects=max_rejects, progress=progress,
                    )  # fmt: skip
            if fresh:
                writer.finish(before.next_input + fresh)
        manifest = opened.manifest
    refresh_workspace(root, progress=progress)
    rows, rejects = manifest.count - before.count, manifest.rejects - before.rejects
    return Added(Workspace.open(root), rows, rejects, total - fresh)


class _NewImages:
    """The images of a collection whose keys are not known yet; of several with one key, the first."""

    def __init__(self, source: ImageSource, known: set[str], prefix: str) -> None:
        self.name = source.name
        self._source, self._known, self._prefix = source, known, prefix
        self._count = sum(1 for _ in self.refs())

    def __len__(self) -> int:
        return self._count

    def refs(self, start: int = 0) -> Iterator[ImageRef]:
        """New images from number `start` on, their keys prefixed."""
        seen: set[str] = set()
        for ref in self._source.refs():
            key = self._prefix + ref.key
            if key in self._known or key in seen:
                continue
            seen.add(key)
            if len(seen) > start:
                yield replace(ref, key=key)

    def position(self, image_path: str) -> int | None:
        """Number among the new images of the one with this address; None if there is none."""
        return next((place for place, ref in enumerate(self.refs()) if ref.image_path == image_path), None)

    def fingerprint(self) -> str:
        """That of the whole collection."""
        return self._source.fingerprint()


def _new_rows(
    source: EmbeddingSource, known: set[str], prefix: str
) -> Iterator[tuple[np.ndarray, dict[str, list[Any]]]]:
    """Batches of a collection of embeddings without the rows whose keys are known."""
    seen: set[str] = set()
    for array, columns in source.batches():
        keys = [prefix + key for key in columns["key"]]
        kept = []
        for place, key in enumerate(keys):
            if key not in known and key not in seen:
                seen.add(key)
                kept.append(place)
        if kept:
            chosen = {name: [values[place] for place in kept] for name, values in {**columns, "key": keys}.items()}
            yield array[kept], chosen


def _count(batches: Iterator[tuple[np.ndarray, dict[str, list[Any]]]]) -> int:
    return sum(len(array) for array, _ in batches)


def _known_keys(workspace: Workspace) -> set[str]:
    rows = workspace.latents.metadata(["key"]).column("key").to_pylist()
    rejects = [reject["key"] for reject in read_rejects(workspace) if reject["input"] < workspace.manifest.next_input]
    return {*rows, *rejects}


def _require_kind(workspace: Workspace, collection: ImageSource | EmbeddingSource) -> None:
    spec = workspace.manifest.recipe.encoder
    holds = "embeddings" if spec.kind == "embeddings" else f"latents of the encoder {spec.id}"
    if isinstance(collection, EmbeddingSource) != (spec.kind == "embeddings"):
        came = "embeddings" if isinstance(collection, EmbeddingSource) else "images"
        raise MismatchError(
            f"{workspace.root} holds {holds}, {collection.name} holds {came}; encode it into a new folder"
        )
    if isinstance(collection, EmbeddingSource) and collection.d != spec.d:
        raise MismatchError(
            f"{workspace.root} holds embeddings of {spec.d} values, those of {collection.name} have {collection.d}; "
            "they come from different encoders"
        )


def _account(workspace: Workspace, addition: Addition) -> Any:
    """What each commit writes into the manifest: one entry for this collection, also where a killed run goes on."""
    before = workspace.manifest
    entries, start = before.additions, before.next_input
    if entries and replace(entries[-1], inputs=0) == addition:
        start -= entries[-1].inputs
        entries = entries[:-1]

    def changes(next_input: int, last: bool) -> dict[str, Any]:
        entry = replace(addition, inputs=next_input - start)
        return {"next_input": next_input, "additions": (*entries, entry)}

    return changes
