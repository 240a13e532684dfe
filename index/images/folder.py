"""A folder of image files, searched through all its subfolders.

A file belongs to the collection if its name has an image extension, or no extension at all and the first bytes of an
image. It stays in the collection when it cannot be decoded (it is then a reject); other files (.txt, .json, ...) are
not part of it. Hidden files and folders, whose names start with a dot, are skipped. Links are followed, a link to a
folder above itself is not. The order is that of the paths below the root as strings. A file `a/b.txt` holds the
caption of `a/b.jpg`.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from manifold.errors import InputError

from .formats import has_image_name, sniff
from .sources import FileSpan, ImageRef, fingerprint_files, portable, source_name

__all__ = ["FolderSource", "Listing", "is_workspace", "list_folder"]


class ImageFile(NamedTuple):
    """An image file of a listing."""

    path: str
    """Below the root, with forward slashes."""
    size_bytes: int
    """-1 for a link to nowhere: it stays in the collection and is rejected as a missing file."""
    has_caption: bool


class Listing(NamedTuple):
    """All files of a folder that are not hidden."""

    root: Path
    images: list[ImageFile]
    others: list[str]
    """Paths below the root of the files that are not images."""


def list_folder(root: Path) -> Listing:
    """Look through a folder and its subfolders. Raises: InputError if one of them cannot be read."""
    listing = Listing(root, [], [])
    try:
        _scan(str(root), "", (), listing)
    except PermissionError as error:
        raise InputError(f"{error.filename} cannot be read (no permission); change its permissions") from error
    listing.images.sort()
    return listing


class FolderSource:
    """The images in a folder and its subfolders.

    Cost: one directory scan when opened; about 200 bytes of memory an image.
    """

    def __init__(self, root: Path, listing: Listing | None = None) -> None:
        self.name = source_name(root)
        self._root = str(root)
        self._images = (listing or list_folder(root)).images

    def __len__(self) -> int:
        return len(self._images)

    def refs(self, start: int = 0) -> Iterator[ImageRef]:
        """Images from number `start` on."""
        for index in range(start, len(self._images)):
            relative, _, has_caption = self._images[index]
            stem = os.path.splitext(relative)[0]  # noqa: PTH122 (Path would normalise the name)
            caption = _read_caption(f"{self._root}/{stem}.txt") if has_caption else None
            yield ImageRef(portable(stem), portable(relative), FileSpan(f"{self._root}/{relative}"), caption)

    def position(self, image_path: str) -> int | None:
        """Number of the image with this address; None if there is none."""
        place = bisect_left(self._images, image_path, key=lambda image: image.path)
        return place if place < len(self) and self._images[place].path == image_path else None

    def fingerprint(self) -> str:
        """SHA-256 over names and sizes of the image files."""
        return fingerprint_files((image.path, image.size_bytes) for image in self._images)


def _scan(folder: str, prefix: str, above: tuple[tuple[int, int], ...], listing: Listing) -> None:
    """Add the files below `folder`; `above` identifies the folders that contain it, to stop at links that lead back."""
    here = os.stat(folder)  # noqa: PTH116 (a million Path objects are slow)
    identity = (here.st_dev, here.st_ino)
    if identity in above:
        return
    with os.scandir(folder) as scan:
        entries = [entry for entry in scan if not entry.name.startswith(".")]
    if prefix and is_workspace(folder):  # its maps and sheets are no images of the collection
        return
    texts = {entry.name[:-4] for entry in entries if entry.name.endswith(".txt")}
    for entry in entries:
        name = prefix + entry.name
        if entry.is_dir():
            _scan(entry.path, f"{name}/", (*above, identity), listing)
        elif _belongs(entry):
            stem = os.path.splitext(entry.name)[0]  # noqa: PTH122
            listing.images.append(ImageFile(name, _size(entry), stem in texts))
        else:
            listing.others.append(name)


def is_workspace(folder: str | Path) -> bool:
    """Whether a folder is one of ours, whole or begun."""
    return os.path.isfile(f"{folder}/manifest.json") and os.path.isdir(f"{folder}/latents")  # noqa: PTH112, PTH113


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return -1


def _belongs(entry: os.DirEntry[str]) -> bool:
    if has_image_name(entry.name):
        return entry.is_file() or entry.is_symlink()
    if "." in entry.name or not entry.is_file():
        return False
    try:
        with open(entry.path, "rb") as file:  # noqa: PTH123
            return sniff(file.read(32)) is not None
    except OSError:
        return False


def _read_caption(path: str) -> str | None:
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
    return text or None
