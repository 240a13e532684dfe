"""Embeddings made elsewhere: .npy files of shape (rows, d), with or without parquet metadata.

clip-retrieval writes `img_emb/img_emb_0.npy` ... and `metadata/metadata_0.parquet` ... with equal row counts; any
folder of 2-D .npy files is read too, without metadata or with `metadata/` in the folder. Files are taken in the order
of the numbers in their names, `_2` before `_10`. The width, type and finiteness of the numbers are checked, since a
search over wrong ones would look sound.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.format import open_memmap

from manifold.errors import FormatError, InputError, MismatchError, NonFiniteError

from .parquet import plain_values
from .patterns import natural_order
from .sources import fingerprint_files, portable

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["EmbeddingSource"]

READ_BYTES = 16 * 2**20
"""Rows are read in portions of at most this many bytes."""

_CAPTION_NAMES = ("caption", "text")
_LABEL_NAMES = ("label", "cls")
_KEY_NAMES = ("key", "__key__")
_PATH_NAMES = ("image_path", "path", "url")


class EmbeddingSource:
    """Rows of one or several .npy files, in order.

    Attributes
        name: of the collection.
        d: numbers in a row.

    Arguments
        name: of the collection.
        files: .npy files, in order.

    Raises: FormatError (a file is damaged, not 2-D, or not of floats); MismatchError (widths differ, or the metadata do
        not fit the files); InputError (no rows).

    Cost: the headers are read when opened; about `READ_BYTES` of rows in memory at a time.
    """

    def __init__(self, name: str, files: Sequence[Path]) -> None:
        self.name = name
        self._files = list(files)
        shapes = [_shape(path) for path in self._files]
        self.d = shapes[0][1]
        self._portion = max(1, READ_BYTES // (8 * self.d))
        for path, (_, width) in zip(self._files, shapes, strict=True):
            if width != self.d:
                raise MismatchError(
                    f"{path} has {width} numbers a row, {self._files[0].name} has {self.d}; "
                    "all files of a collection must come from the same encoder"
                )
        self._rows = [rows for rows, _ in shapes]
        if sum(self._rows) == 0:
            raise InputError(f"the .npy files of {name} hold no rows; give embeddings of at least one image")
        self._metadata = _metadata_files(self._files, self._rows)

    def __len__(self) -> int:
        return sum(self._rows)

    def batches(self, start: int = 0) -> Iterator[tuple[np.ndarray, dict[str, list[Any]]]]:
        """Rows from number `start` on.

        Returns: pairs of an array (rows, d), of the files' own type, and the columns image_path, key, width, height,
            status, caption and label, a list of as many values each.

        Raises: NonFiniteError naming the file and row.
        """
        for number, (path, rows) in enumerate(zip(self._files, self._rows, strict=True)):
            if start < rows:
                table = _read_metadata(self._metadata[number]) if self._metadata else None
                first = sum(self._rows[:number])
                for low in range(start, rows, self._portion):
                    high = min(rows, low + self._portion)
                    yield _read_rows(path, low, high), self._columns(table, path, first, low, high)
            start = max(0, start - rows)

    def fingerprint(self) -> str:
        """SHA-256 over names and sizes of the files."""
        return fingerprint_files((path.name, path.stat().st_size) for path in [*self._files, *self._metadata])

    def _columns(self, table: pa.Table | None, path: Path, first: int, low: int, high: int) -> dict[str, list[Any]]:
        def column(names: Sequence[str], kind: type) -> list[Any]:
            name = next((name for name in names if table is not None and name in table.column_names), None)
            if table is None or name is None:
                return [None] * (high - low)
            values = plain_values(table.column(name).slice(low, high - low).combine_chunks())
            return [value if isinstance(value, kind) and not isinstance(value, bool) else None for value in values]

        paths, keys = column(_PATH_NAMES, str), column(_KEY_NAMES, object)
        return {
            "image_path": [path_ or portable(f"{path.name}#{low + i}") for i, path_ in enumerate(paths)],
            "key": [str(first + low + i) if key is None else str(key) for i, key in enumerate(keys)],
            "width": _sides(column(("original_width", "width"), int)),
            "height": _sides(column(("original_height", "height"), int)),
            "status": ["success"] * (high - low),
            "caption": column(_CAPTION_NAMES, str),
            "label": column(_LABEL_NAMES, int),
        }


def _sides(values: Sequence[int | None]) -> list[int | None]:
    """Pixels along a side; None for what no image has."""
    return [value if value is not None and 0 < value < 2**31 else None for value in values]


def _shape(path: Path) -> tuple[int, int]:
    """Rows and width of a .npy file, checked."""
    try:
        array = open_memmap(path, mode="r")
    except (ValueError, EOFError, OSError) as error:
        if "Python objects" in str(error):
            raise FormatError(f"{path} holds Python objects, which could run code; save it as plain numbers") from None
        raise FormatError(f"{path} is damaged or not a .npy file ({error}); make it again or take it out") from error
    if array.ndim != 2:
        raise FormatError(
            f"{path} must hold a 2-D array (rows, width), it holds {array.shape}; reshape it or take it out"
        )
    if array.shape[1] == 0:
        raise FormatError(f"{path} has rows of no numbers; make it again or take it out")
    if array.dtype.kind != "f":
        raise FormatError(f"{path} must hold floats, it holds {array.dtype}; convert it or take it out")
    rows, width = array.shape
    return rows, width


def _read_rows(path: Path, low: int, high: int) -> np.ndarray:
    # Mapped anew for each portion, so that the pages read do not stay in this process.
    rows = np.array(open_memmap(path, mode="r")[low:high])
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise NonFiniteError(
            f"row {low + int(np.argmin(finite)):,} of {path} holds NaN or infinity; remove it or make it again"
        )
    return rows


def _metadata_files(files: Sequence[Path], rows: Sequence[int]) -> list[Path]:
    """The parquet file of each .npy file, by number or else by order; nothing if there is no metadata folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = files[0].parent
    places = [place for place in (folder / "metadata", folder.parent / "metadata") if place.is_dir()]
    if folder.name != "img_emb":
        places = [place for place in places if place.parent == folder]
    if not places:
        return []
    found = sorted(places[0].glob("*.parquet"), key=lambda path: natural_order(path.name))
    numbered = {_number(path): path for path in found}
    if len(numbered) == len(found) and numbered.keys() >= {_number(path) for path in files}:
        found = [numbered[_number(path)] for path in files]
    if len(found) != len(files):
        raise MismatchError(
            f"{places[0]} has {len(found)} parquet files for {len(files)} .npy files; each .npy needs its own, "
            "in the same order, or move the metadata folder away"
        )
    for path, parquet, count in zip(files, found, rows, strict=True):
        try:
            described = pq.read_metadata(parquet).num_rows
        except (pa.ArrowException, OSError) as error:
            raise FormatError(f"{parquet} is not a readable parquet file ({error}); restore it") from error
        if described != count:
            raise MismatchError(
                f"{parquet} has {described:,} rows, {path.name} has {count:,}; they must describe the same images, "
                "make both again or move the metadata folder away"
            )
    return found


def _number(path: Path) -> int:
    """The last number in a file's name; -1 if there is none."""
    numbers = re.findall(r"\d+", path.stem)
    return int(numbers[-1]) if numbers else -1


def _read_metadata(path: Path) -> pa.Table:
    import pyarrow.parquet as pq

    wanted = {*_CAPTION_NAMES, *_LABEL_NAMES, *_KEY_NAMES, *_PATH_NAMES}
    wanted |= {"width", "height", "original_width", "original_height"}
    columns = [name for name in pq.read_schema(path).names if name in wanted]
    return pq.read_table(path, columns=columns)
