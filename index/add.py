"""Adding images to a workspace: what is new is encoded, and nothing else is done again.

An image is known by its key; where a collection has a key several times, by key and address. New images are encoded by the
recipe in the manifest into shards of their own, the moments go on where they stopped, and the index is extended in its own
basis (see `index.refresh`). A killed run leaves whole shards; the same command goes on after them.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from manifold.errors import InputError, MismatchError
from manifold.files import is_utf8

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
    """Images that the workspace had already, as a row or as a reject."""


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
        max_rejects: stop when new images that cannot be used are more than this share, 0 to 1, of the collection.
        progress: told of ("encode", new images done, new images in all), then of "fit" and "index".

    Returns: the workspace, opened again, and what was done. Statistics and index are those of all its images: searches give
        what they would give had all been encoded at once. What was not fitted or not indexed stays so.

    Raises: InputError (no such collection, an incomplete workspace); MismatchError (embeddings for an encoder's workspace, or
        of another width); TooManyRejectsError; NonFiniteError; StorageError; all of `Workspace.encoder`.

    Warns: ManifoldWarning if the new images differ so much that the index should be built again; see `refresh_index`.

    Cost: listing the collection, encoding what is new, and `refresh_workspace`. Keys and addresses of all rows in memory.
    """
    if not 0 <= max_rejects <= 1:
        raise InputError(f"max_rejects is a share from 0 to 1, got {max_rejects}")
    if not is_utf8(prefix):
        raise InputError(f"prefix must be text that can be stored as UTF-8, it is {prefix!r}")
    worker_count(workers)
    root = Path(workspace)
    Workspace.open(root).require_complete()
    collection = open_collection(images, image_column=image_column)
    with writing(root):
        opened = Workspace.open(root)
        remove_uncommitted(opened)
        _require_kind(opened, collection)
        known = _known_names(opened)
        before = opened.manifest
        fingerprint = collection.fingerprint()
        words = ["manifold", "add", "WS", collection.name, *(["--prefix", prefix] if prefix else [])]
        words += ["--image-column", image_column] if image_column else []
        addition = Addition(collection.name, fingerprint, 0, shlex.join(words), image_column)
        with ShardWriter(opened, _account(opened, addition)) as writer:
            if isinstance(collection, EmbeddingSource):
                new, total = _new_places(known, _row_names(collection, prefix)), len(collection)
                fresh = len(new)
                if fresh:
                    done = before.next_input
                    import_into(writer, _rows_at(collection, new, prefix), done, done + fresh, progress)
            else:
                selected = _NewImages(collection, known, prefix)
                total, fresh = len(collection), len(selected)
                if fresh:
                    encode_into(
                        opened, writer, selected, opened.encoder(encoder), offset=before.next_input, workers=workers,
                        max_rejects=max_rejects, share_of=total, progress=progress,
                    )  # fmt: skip
            if fresh:
                writer.finish(before.next_input + fresh)
        manifest = opened.manifest
    refresh_workspace(root, progress=progress)
    rows, rejects = manifest.count - before.count, manifest.rejects - before.rejects
    return Added(Workspace.open(root), rows, rejects, total - fresh)


class _NewImages:
    """The images of a collection that the workspace does not have yet, see `_new_places`."""

    def __init__(self, source: ImageSource, known: _Names, prefix: str) -> None:
        self.name = source.name
        self._source, self._prefix = source, prefix
        self._numbers = _new_places(known, [(prefix + ref.key, ref.image_path) for ref in source.refs()])

    def __len__(self) -> int:
        return len(self._numbers)

    def refs(self, start: int = 0) -> Iterator[ImageRef]:
        """New images from number `start` on, their keys prefixed."""
        if start < len(self):
            first = int(self._numbers[start])
            wanted = iter(self._numbers[start:].tolist())
            number = next(wanted)
            for place, ref in enumerate(self._source.refs(first), first):
                if place == number:
                    yield replace(ref, key=self._prefix + ref.key)
                    number = next(wanted, -1)
                    if number < 0:
                        return

    def fingerprint(self) -> str:
        """That of the whole collection."""
        return self._source.fingerprint()


def _row_names(source: EmbeddingSource, prefix: str) -> list[_Name]:
    names: list[_Name] = []
    for _, columns in source.batches():
        names += zip((prefix + key for key in columns["key"]), columns["image_path"], strict=True)
    return names


def _rows_at(
    source: EmbeddingSource, places: np.ndarray, prefix: str
) -> Iterator[tuple[np.ndarray, dict[str, list[Any]]]]:
    """Batches of a collection of embeddings with no other rows than those of these numbers, their keys prefixed."""
    first = 0
    for array, columns in source.batches():
        kept = (places[(places >= first) & (places < first + len(array))] - first).tolist()
        first += len(array)
        if kept:
            keys = [prefix + key for key in columns["key"]]
            chosen = {name: [values[place] for place in kept] for name, values in {**columns, "key": keys}.items()}
            yield array[kept], chosen


_Name = tuple[str, str]
"""Key and address of an image."""
_Names = Counter[_Name]


def _known_names(workspace: Workspace) -> _Names:
    table = workspace.latents.metadata(["key", "image_path"])
    rows = zip(table.column("key").to_pylist(), table.column("image_path").to_pylist(), strict=True)
    rejects = (one for one in read_rejects(workspace) if one["input"] < workspace.manifest.next_input)
    return Counter([*rows, *((one["key"], one["image_path"]) for one in rejects)])


def _new_places(known: _Names, names: Sequence[_Name]) -> np.ndarray:
    """Numbers of the images that the workspace does not have, of a collection of these names.

    Those at their address are there. As many more are as the workspace has of a key at addresses that the collection does
    not have: images that lie elsewhere now, as in shards that were cut anew.
    """
    elsewhere: Counter[str] = Counter()
    for (key, _), times in known.items():
        elsewhere[key] += times
    elsewhere.subtract(key for key, address in names if (key, address) in known)
    new = []
    for place, (key, address) in enumerate(names):
        if (key, address) in known:
            continue
        if elsewhere[key] > 0:
            elsewhere[key] -= 1
        else:
            new.append(place)
    return np.array(new, dtype=np.int64)


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
