"""What a collection of images is to the rest of the project: a fixed order of references that can start anywhere.

A reference says where an image's bytes lie and what is known about it; nothing is decoded here. Bytes that lie in a
file of their own or unpacked in a tar are named by a FileSpan, so that a decoding worker reads them itself; bytes
that have to be unpacked (parquet, Arrow) travel inside the reference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

__all__ = ["FileSpan", "ImageCollection", "ImageRef", "ImageSource", "fingerprint_files", "portable", "source_name"]


@dataclass(frozen=True, slots=True)
class FileSpan:
    """Bytes lying in a file: a whole image file, or a member of an uncompressed tar."""

    path: str
    offset: int = 0
    length: int | None = None
    """In bytes; to the end of the file if None."""


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image of a collection."""

    key: str
    """The collection's own name for it: unique where the collection's are."""
    image_path: str
    """Its address below the collection's root: `a/b.jpg`, `shard.tar/0001.jpg`, `part.parquet#17`."""
    data: bytes | FileSpan
    caption: str | None = None
    label: int | None = None


class ImageSource(Protocol):
    """A collection of images in a fixed order."""

    @property
    def name(self) -> str:
        """The last part of the path it was opened by: the same wherever the collection is copied to."""
        ...

    def __len__(self) -> int:
        """Number of images, usable or not."""
        ...

    def refs(self, start: int = 0) -> Iterator[ImageRef]:
        """Images from number `start` on; starting in the middle costs no reading of the images before."""
        ...

    def fingerprint(self) -> str:
        """SHA-256 of the listing (names and sizes of files), in hexadecimal: tells whether a collection changed."""
        ...


class ImageCollection(ImageSource, Protocol):
    """A collection at rest, whose images are found by their address as well."""

    def position(self, image_path: str) -> int | None:
        """Number of the image with this address, None if there is none; costs what `refs` costs from there."""
        ...


def portable(path: str) -> str:
    """A path with forward slashes that can be stored as UTF-8: bytes that are not UTF-8 become a replacement sign."""
    return path.replace("\\", "/").encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def source_name(path: Path) -> str:
    """The name of a collection opened by `path`, without the folder it lies in."""
    return portable(path.name or path.resolve().name)


def fingerprint_files(entries: Iterable[tuple[str, int]]) -> str:
    """SHA-256 over (name below the root, size in bytes) of a collection's files, in order."""
    digest = hashlib.sha256()
    for name, size in entries:
        digest.update(f"{portable(name)}\0{size}\n".encode())
    return digest.hexdigest()
