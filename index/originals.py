"""The images that a workspace's rows were encoded from, found again in their collections.

A workspace keeps no images, only where they lie in their collection. Collections are walked in their own order, and so are
the rows, so one walk finds what was encoded in one go; images that were added later from a folder that had grown take a
second walk. Images that were rejected or removed are passed over, undecoded.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from manifold.errors import InputError, MismatchError

from .images import ImageRef, ImageSource, open_images
from .workspace import Workspace

__all__ = ["Originals", "open_originals"]


class Originals:
    """An image source with one image for each row of a workspace, in row order. Open it with `open_originals`.

    Arguments
        workspace: whose rows. collections: each with the prefixes under which its keys were stored.

    Cost: names of all rows in memory; a walk reads what the collections' own listing reads.
    """

    def __init__(self, workspace: Workspace, collections: Sequence[tuple[ImageSource, set[str]]]) -> None:
        self.name = workspace.manifest.recipe.source
        self._root = workspace.root
        self._collections = collections
        known = workspace.latents.metadata(["image_path", "key"])
        self._paths, self._keys = known["image_path"].to_pylist(), known["key"].to_pylist()

    def __len__(self) -> int:
        return len(self._paths)

    def refs(self, start: int = 0) -> Iterator[ImageRef]:
        """Images of the rows from number `start` on. Raises: MismatchError if one is not there any more."""
        row, before = 0, -1
        while row < len(self):
            if row == before:
                raise MismatchError(
                    f"{self._paths[row]}, row {row} of {self._root}, is not in the collection any more, or not in its place; "
                    "restore it, or name every collection that was encoded"
                )
            before = row
            for collection, prefixes in self._collections:
                for ref in collection.refs():
                    named = any(prefix + ref.key == self._keys[row] for prefix in prefixes)
                    if named and ref.image_path == self._paths[row]:
                        if row >= start:
                            yield ref
                        row += 1
                        if row == len(self):
                            return

    def fingerprint(self) -> str:
        """Of the first collection."""
        return self._collections[0][0].fingerprint()


def open_originals(
    workspace: Workspace, images: Sequence[str | Path] = (), *, image_column: str | None = None
) -> Originals:
    """Open the collections that a workspace was encoded from.

    Arguments
        workspace: encoded. images: its collections, or those with images still in it; looked for beside the workspace and
            in the working folder unless given.
        image_column: column with the images, for tables that have several.

    Raises: InputError if a collection is not found, or the workspace was imported from embeddings; MismatchError if one is
        not what was encoded, or has changed since.
    """
    manifest = workspace.manifest
    if manifest.recipe.crop == "none":
        raise InputError(f"{workspace.root} was imported from embeddings, so its images cannot be read")
    places = [Path(place) for place in images]
    for name in [] if places else dict.fromkeys([manifest.recipe.source, *(one.source for one in manifest.additions)]):
        beside = [workspace.root.resolve().parent / name, Path(name)]
        found = next((place for place in beside if place.exists()), None)
        if found is None:
            raise InputError(
                f"the images of {workspace.root} are needed, and {name} lies neither beside it nor here; "
                "say where with --images"
            )
        places.append(found)
    encoded = [(manifest.recipe.source, manifest.recipe.fingerprint, "")]
    encoded += [(one.source, one.fingerprint, _prefix(one.command)) for one in manifest.additions]
    collections = []
    for place in places:
        collection = open_images(place, image_column=image_column)
        fingerprint = collection.fingerprint()
        sources = {source for source, known, _ in encoded if known == fingerprint}
        if not sources:
            raise MismatchError(
                f"{place} is not a collection that {workspace.root} was encoded from, or has changed since; "
                "name the right one with --images"
            )
        # A folder that has grown holds what was encoded from it before, too.
        collections.append((collection, {prefix for source, _, prefix in encoded if source in sources}))
    return Originals(workspace, collections)


def _prefix(command: str) -> str:
    """What an addition put before the keys of its images, so that they are told from others of the same name."""
    words = shlex.split(command)
    return words[words.index("--prefix") + 1] if "--prefix" in words else ""
