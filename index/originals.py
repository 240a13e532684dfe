"""The images that a workspace's rows were encoded from, found again in their collections.

A workspace keeps no images, only where they lie in their collection. Collections are walked in their own order, and so are
the rows, so one walk finds what was encoded in one go; images that were added later from a folder that had grown take a
second walk. Images that were rejected or removed are passed over, undecoded. One image is found by its address.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from manifold.errors import FormatError, InputError, MismatchError

from .images import ImageRef, open_images
from .images.sources import ImageCollection
from .workspace import Workspace

__all__ = ["Originals", "find_originals", "open_originals"]


class Originals:
    """An image source with one image for each row of a workspace, in row order. Open it with `open_originals`.

    Arguments
        workspace: whose rows. collections: each with the prefixes under which its keys were stored.

    Cost: a walk reads what the collections' own listing reads, and holds the names of all rows in memory.
    """

    def __init__(self, workspace: Workspace, collections: Sequence[tuple[ImageCollection, set[str]]]) -> None:
        self.name = workspace.manifest.recipe.source
        self._workspace = workspace
        self._collections = collections

    def __len__(self) -> int:
        return len(self._workspace.latents)

    def refs(self, start: int = 0) -> Iterator[ImageRef]:
        """Images of the rows from number `start` on. Raises: MismatchError if one is not there any more."""
        paths, keys = self._names
        row, before = 0, -1
        while row < len(self):
            if row == before:
                raise MismatchError(
                    f"{paths[row]}, row {row} of {self._workspace.root}, is not in the collection any more, or not in its "
                    "place; restore it, or name every collection that was encoded"
                )
            before = row
            for collection, prefixes in self._collections:
                for ref in collection.refs():
                    if ref.image_path == paths[row] and _named(ref, prefixes, keys[row]):
                        if row >= start:
                            yield ref
                        row += 1
                        if row == len(self):
                            return

    def fingerprint(self) -> str:
        """Of the first collection."""
        return self._collections[0][0].fingerprint()

    def find(self, image_path: str, key: str) -> ImageRef | None:
        """The image, of a row or a reject, with this address and key; None if no collection has it."""
        for collection, prefixes in self._collections:
            place = collection.position(image_path)
            ref = None if place is None else next(collection.refs(place), None)
            if ref is not None and ref.image_path == image_path and _named(ref, prefixes, key):
                return ref
        return None

    @cached_property
    def _names(self) -> tuple[list[str], list[str]]:
        known = self._workspace.latents.metadata(["image_path", "key"])
        return known["image_path"].to_pylist(), known["key"].to_pylist()


def open_originals(
    workspace: Workspace, images: Sequence[str | Path] = (), *, image_column: str | None = None
) -> Originals:
    """Open the collections that a workspace was encoded from.

    Arguments
        workspace: encoded. images: its collections, or those with images still in it; looked for beside the workspace and
            in the working folder unless given.
        image_column: column with the images, for tables that have several; the one that was encoded, unless given.

    Raises: InputError if a collection is not found, or the workspace was imported from embeddings; MismatchError if one is
        not what was encoded, or has changed since.
    """
    _require_images(workspace)
    places = [Path(place) for place in images]
    for name in [] if places else _sources(workspace):
        found = next((place for place in _beside(workspace, name) if place.exists()), None)
        if found is None:
            raise InputError(
                f"the images of {workspace.root} are needed, and {name} lies neither beside it nor here; "
                "say where with --images"
            )
        places.append(found)
    return Originals(workspace, [_recognised(workspace, place, image_column) for place in places])


def find_originals(workspace: Workspace, images: str | Path | None = None) -> Originals | None:
    """The collections of a workspace as far as they are where they are likely to be; None if none is.

    Arguments
        workspace: encoded. images: one of its collections; otherwise a folder or file of each remembered name is looked for
            beside the workspace and in the working folder.

    Raises: InputError if `images` cannot be opened, or the workspace was imported from embeddings; MismatchError if its
        listing is none of those remembered; FormatError if a container in it is damaged.

    Cost: one listing of each collection.
    """
    if images is not None:
        return open_originals(workspace, [images])
    if workspace.manifest.recipe.crop == "none":
        return None
    found = []
    for name in _sources(workspace):
        for place in _beside(workspace, name):
            try:
                found.append(_recognised(workspace, place, None))
            except (InputError, FormatError, MismatchError):  # nothing there, or something else under that name
                continue
            break
    return Originals(workspace, found) if found else None


def _require_images(workspace: Workspace) -> None:
    if workspace.manifest.recipe.crop == "none":
        raise InputError(
            f"{workspace.root} was imported from embeddings, so there are no images to read; leave out --images"
        )


def _sources(workspace: Workspace) -> list[str]:
    """Names of the collections, each once."""
    manifest = workspace.manifest
    return list(dict.fromkeys([manifest.recipe.source, *(one.source for one in manifest.additions)]))


def _beside(workspace: Workspace, name: str) -> list[Path]:
    return [workspace.root.resolve().parent / name, Path(name)]


def _recognised(workspace: Workspace, place: Path, image_column: str | None) -> tuple[ImageCollection, set[str]]:
    """A collection that was encoded, with the prefixes under which its keys were stored."""
    recipe, additions = workspace.manifest.recipe, workspace.manifest.additions
    encoded = [(recipe.source, recipe.fingerprint, "", recipe.image_column)]
    encoded += [(one.source, one.fingerprint, _prefix(one.command), one.image_column) for one in additions]
    named = [column for _, _, _, column in encoded if column is not None]
    # A table of several columns cannot be opened without one, and its listing does not tell which it was.
    columns = dict.fromkeys([image_column] if image_column else [encoded[0][3], *named])
    refused: InputError | None = None
    for column in columns:
        try:
            collection = open_images(place, image_column=column)
        except InputError as error:
            refused = error
            continue
        fingerprint = collection.fingerprint()
        sources = {
            source for source, known, _, its in encoded if known == fingerprint and (image_column or its == column)
        }
        if sources:
            # A folder that has grown holds what was encoded from it before, too.
            return collection, {prefix for source, _, prefix, _ in encoded if source in sources}
    if refused is not None:
        raise refused
    raise MismatchError(
        f"{place} is not a collection that {workspace.root} was encoded from, or has changed since (names or sizes of its "
        f"files differ); name the place where {recipe.source} lies now with --images"
    )


def _named(ref: ImageRef, prefixes: set[str], key: str) -> bool:
    return any(prefix + ref.key == key for prefix in prefixes)


def _prefix(command: str) -> str:
    """What an addition put before the keys of its images, so that they are told from others of the same name."""
    words = shlex.split(command)
    return words[words.index("--prefix") + 1] if "--prefix" in words else ""
