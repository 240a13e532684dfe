"""Opening a collection: what a path holds is found out by looking, and said where it cannot be used.

    a folder with image files (in any depth)          FolderSource
    .tar shards, or a folder of them                  WebDatasetSource
    .parquet with image bytes, or a folder of them    ParquetSource
    a Hugging Face dataset saved to disk              ArrowSource
    clip-retrieval output, or .npy files              EmbeddingSource

Files may be named by a pattern with braces or globs. A folder that holds two kinds is refused: which one was meant is
the user's to say. Parquet without a column of image bytes is metadata and does not count.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from manifold.errors import InputError

from .embeddings import EmbeddingSource
from .folder import FolderSource, Listing, is_workspace, list_folder
from .parquet import ParquetSource, image_columns, read_schema
from .patterns import is_pattern, matching_files, natural_order
from .sources import ImageCollection, source_name
from .webdataset import WebDatasetSource

__all__ = ["open_collection", "open_images"]

_READABLE = (
    "a folder of images, .tar shards, .parquet files with image bytes, a dataset saved to disk, or .npy embeddings"
)
_PACKED = {".gz": "gunzip", ".tgz": "gunzip", ".zst": "unzstd", ".bz2": "bunzip2", ".xz": "unxz", ".zip": "unzip"}
_SPLIT = re.compile(r"([\w.]+)-\d+-of-\d+(?:-[0-9a-f]+)?\.parquet")
_SPLIT_FOLDERS = frozenset({"train", "test", "val", "valid", "validation", "dev"})


def open_images(path: str | Path, *, image_column: str | None = None) -> ImageCollection:
    """Open a collection of images.

    Arguments
        path: a folder, a file, or a pattern such as `data-{00000..00012}.tar`.
        image_column: of a table with several columns of image bytes, the one to read.

    Raises: InputError if it is missing, holds no images or several kinds of them, or embeddings; FormatError if a
        container is damaged.
    """
    opened = open_collection(path, image_column=image_column)
    if isinstance(opened, EmbeddingSource):
        raise InputError(f"{path} holds embeddings, not images; give the folder, shards or files that hold the images")
    return opened


def open_collection(path: str | Path, *, image_column: str | None = None) -> ImageCollection | EmbeddingSource:
    """Open a collection of images, or of embeddings made elsewhere. Arguments and errors as in `open_images`."""
    opened = _open(path, image_column)
    if len(opened) == 0:
        raise InputError(f"{path} holds no images; give {_READABLE}")
    return opened


def _open(path: str | Path, image_column: str | None) -> ImageCollection | EmbeddingSource:
    text = str(path)
    place = Path(path)
    if "://" in text:
        raise InputError(f"{text} is an address, not a path; download the collection and give the folder it lies in")
    if place.is_dir():
        return _open_folder(place, image_column)
    if place.is_file():
        return _open_files(source_name(place), [place], image_column)
    if is_pattern(text):
        return _open_files(source_name(place), matching_files(text), image_column)
    raise InputError(f"{text} does not exist; give {_READABLE}")


def _open_files(
    name: str, files: Sequence[Path], image_column: str | None, root: Path | None = None
) -> ImageCollection | EmbeddingSource:
    kinds = sorted({path.suffix.lower() for path in files})
    root = root or _common_folder(files)
    if len(kinds) > 1:
        raise InputError(f"{name} names files of several kinds ({', '.join(kinds)}); give files of one kind")
    if kinds[0] == ".tar":
        return WebDatasetSource(name, root, files)
    if kinds[0] == ".parquet":
        return ParquetSource(name, root, files, image_column)
    if kinds[0] == ".npy":
        return EmbeddingSource(name, files)
    if kinds[0] in _PACKED:
        raise InputError(
            f"{files[0]} is compressed, and cannot be read in place; unpack it first with {_PACKED[kinds[0]]}"
        )
    raise InputError(f"{files[0]} is a single file of a kind that holds no collection; give {_READABLE}")


def _common_folder(files: Sequence[Path]) -> Path:
    parents = [path.parent for path in files]
    first = parents[0]
    return next(
        folder for folder in (first, *first.parents) if all(parent.is_relative_to(folder) for parent in parents)
    )


def _open_folder(root: Path, image_column: str | None) -> ImageCollection | EmbeddingSource:
    if is_workspace(root):
        raise InputError(
            f"{root} is a workspace already; give the images it was made from, or use the workspace itself"
        )
    if (root / "dataset_dict.json").is_file() or (root / "state.json").is_file():
        from .arrow_dataset import ArrowSource  # imports torch, through manifold.files

        return ArrowSource(root, image_column)
    listing = list_folder(root)
    found = {kind: _of_kind(listing, suffix) for kind, suffix in (("tar", ".tar"), ("parquet", ".parquet"))}
    embeddings = [path for path in _of_kind(listing, ".npy") if path.parent == _embedding_folder(root)]
    images = listing.images
    if found["parquet"] and (images or found["tar"] or embeddings) and not _has_images(found["parquet"][0]):
        found["parquet"] = []
    present = {
        "images": len(images),
        "tar shards": len(found["tar"]),
        "parquet files with images": len(found["parquet"]),
        "embedding files (.npy)": len(embeddings),
    }
    kinds = [f"{count:,} {kind}" for kind, count in present.items() if count]
    if len(kinds) > 1:
        raise InputError(
            f"{root} holds {' and '.join(kinds)}, and which of them is the collection is not clear; "
            f"give a subfolder, or a pattern such as '{root}/*.tar'"
        )
    if images:
        return FolderSource(root, listing)
    if embeddings:
        return _open_files(source_name(root), embeddings, None, root)
    if found["tar"]:
        return _open_files(source_name(root), found["tar"], None, root)
    if found["parquet"]:
        _require_one_split(root, found["parquet"])
        return _open_files(source_name(root), found["parquet"], image_column, root)
    raise InputError(f"{root} {_what_else(listing)}; give {_READABLE}")


def _of_kind(listing: Listing, suffix: str) -> list[Path]:
    names = [name for name in listing.others if name.lower().endswith(suffix)]
    return [listing.root / name for name in sorted(names, key=natural_order)]


def _embedding_folder(root: Path) -> Path:
    """Where the .npy files of a collection lie: directly in it or, in clip-retrieval output, in its img_emb."""
    below = root / "img_emb"
    return below if below.is_dir() else root


def _has_images(path: Path) -> bool:
    return bool(image_columns(read_schema(path)))


def _require_one_split(root: Path, files: Sequence[Path]) -> None:
    examples: dict[str, Path] = {}
    for path in files:
        found = _SPLIT.fullmatch(path.name)
        if found:
            examples.setdefault(found.group(1), path.with_name(f"{found.group(1)}-*.parquet"))
        elif path.parent.name in _SPLIT_FOLDERS:
            examples.setdefault(path.parent.name, path.parent)
    if len(examples) > 1:
        last = max(examples)
        raise InputError(f"{root} holds the splits {', '.join(sorted(examples))}; give one of them: '{examples[last]}'")


def _what_else(listing: Listing) -> str:
    if not listing.others:
        return "holds no images: it is empty, or all in it is hidden"
    kinds = Counter(Path(name).suffix.lower() or "no extension" for name in listing.others).most_common(3)
    counted = ", ".join(f"{count:,} of {kind}" for kind, count in kinds)
    packed = next((name for name in listing.others if Path(name).suffix.lower() in _PACKED), None)
    hint = f"; unpack {packed} first" if packed else ""
    return f"holds no images among its {len(listing.others):,} files ({counted}){hint}"
