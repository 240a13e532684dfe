"""Webdataset shards: tar files in which members that share a name up to its first dot describe one image.

    0001.jpg 0001.txt 0001.json    one image with its caption; .cls or the json's `label` is its label

Members of one image lie next to each other. A group without a member of a known image extension is not part of the
collection; of several, the one with the plain extension (`0001.jpg`, not `0001.mask.png`) counts, otherwise the first.
Decoding workers read members in place, so the shards must not be compressed.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from manifold.errors import FormatError

from .formats import has_image_name
from .sources import FileSpan, ImageRef, fingerprint_files, portable

__all__ = ["WebDatasetSource"]

_TEXT_FIELDS = ("txt", "caption", "json", "cls")


class _Member(NamedTuple):
    key: str
    field: str
    name: str
    offset: int
    length: int


class WebDatasetSource:
    """The images in tar shards.

    Arguments
        name: of the collection.
        root: the folder that `image_path` is relative to.
        files: the shards, in reading order.

    Raises: FormatError if a shard is damaged, cut off or compressed.

    Cost: the headers of all shards are read when opened, and again with the images; memory does not grow with them.
    """

    def __init__(self, name: str, root: Path, files: Sequence[Path]) -> None:
        self.name = name
        self._root = root
        self._files = list(files)
        self._counts = [sum(1 for _ in _groups(path)) for path in self._files]

    def __len__(self) -> int:
        return sum(self._counts)

    def refs(self, start: int = 0) -> Iterator[ImageRef]:
        """Images from number `start` on."""
        for path, count in zip(self._files, self._counts, strict=True):
            if start < count:
                yield from self._refs_of(path, start)
            start = max(0, start - count)

    def position(self, image_path: str) -> int | None:
        """Number of the image with this address; None if there is none."""
        before = 0
        for path, count in zip(self._files, self._counts, strict=True):
            shard = f"{self._relative(path)}/"
            if image_path.startswith(shard):
                names = (portable(image.name) for image, _ in _groups(path))
                found = next((place for place, name in enumerate(names) if shard + name == image_path), None)
                if found is not None:
                    return before + found
            before += count
        return None

    def fingerprint(self) -> str:
        """SHA-256 over names and sizes of the shards."""
        return fingerprint_files((self._relative(path), path.stat().st_size) for path in self._files)

    def _relative(self, path: Path) -> str:
        return portable(path.relative_to(self._root).as_posix())

    def _refs_of(self, path: Path, start: int) -> Iterator[ImageRef]:
        address = self._relative(path)
        with path.open("rb") as file:
            for number, (image, members) in enumerate(_groups(path)):
                if number < start:
                    continue
                texts = {member.field: _read(file, member) for member in members if member.field in _TEXT_FIELDS}
                described = _json_object(texts.get("json"))
                caption = texts.get("txt") or texts.get("caption") or described.get("caption")
                key = described.get("key")
                yield ImageRef(
                    key=_storable(key) if isinstance(key, str) and key else portable(image.key),
                    image_path=f"{address}/{portable(image.name)}",
                    data=FileSpan(str(path), image.offset, image.length),
                    caption=(_storable(caption).strip() or None) if isinstance(caption, str) else None,
                    label=_label(texts.get("cls"), described.get("label")),
                )


def _groups(path: Path) -> Iterator[tuple[_Member, list[_Member]]]:
    """The image and all members of each group of a shard that has an image."""
    group: list[_Member] = []
    for member in _members(path):
        if group and member.key != group[0].key:
            yield from _with_image(group)
            group = []
        group.append(member)
    yield from _with_image(group)


def _with_image(group: list[_Member]) -> Iterator[tuple[_Member, list[_Member]]]:
    images = [member for member in group if has_image_name(member.name)]
    if images:
        yield min(images, key=lambda member: "." in member.field), group


def _members(path: Path) -> Iterator[_Member]:
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # else it would keep every header it has seen
                folder, _, base = info.name.rpartition("/")
                stem, dot, field = base.partition(".")
                if info.isreg() and stem and dot:
                    key = f"{folder}/{stem}" if folder else stem
                    yield _Member(key, field.lower(), info.name, info.offset_data, info.size)
            end = tar.offset
        # tarfile takes a damaged or missing header for the end of the archive; a true end is marked by zeros.
        with path.open("rb") as file:
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no header and no end mark at byte {end:,}")
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise FormatError(
            f"{path} is cut off, damaged or compressed ({error}); fetch it again, or unpack it"
        ) from error
    except OSError as error:
        raise FormatError(f"{path} cannot be read ({error.strerror or error}); check its permissions") from error


def _read(file: BinaryIO, member: _Member) -> str:
    file.seek(member.offset)
    return file.read(member.length).decode("utf-8", "replace")


def _json_object(text: str | None) -> dict[str, object]:
    """The fields of a .json member; none if it is not a JSON object, which costs the image its caption only."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _storable(text: str) -> str:
    """Text that can be stored as UTF-8: half a surrogate pair, as JSON cut in its middle has, becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def _label(cls: str | None, described: object) -> int | None:
    """An integer label from the .cls member or, failing that, from the JSON."""
    text = cls if cls is not None else described
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    try:
        return int(text.strip()) if isinstance(text, str) else None
    except ValueError:
        return None
