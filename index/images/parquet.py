"""Parquet files with the bytes of the images inside, in the layout of Hugging Face datasets.

The image column is a struct {bytes, path} or plain binary. Also read, where present: `label` (integers), a text column
(`caption`, `text`, ...), and `key`. Rows are read a few at a time, so memory depends on the size of a data page (what
the writer compressed in one piece), not of a file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manifold.errors import FormatError, InputError

from .sources import FileSpan, ImageRef, fingerprint_files, portable

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = ["Columns", "ParquetSource", "choose_columns", "image_columns", "plain_values", "read_schema", "table_refs"]

READ_BYTES = 8 * 2**20
"""Rows are read in portions of about this many bytes."""

_IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
_CAPTION_NAMES = ("caption", "text", "txt", "prompt", "captions", "texts")
_LABEL_NAMES = ("label", "labels", "cls", "class", "fine_label", "target")
_KEY_NAMES = ("key", "__key__")


@dataclass(frozen=True)
class Columns:
    """The columns of a table that a reference is made from; None where there is no such column."""

    image: str
    caption: str | None
    label: str | None
    key: str | None

    @property
    def names(self) -> list[str]:
        """Those that exist."""
        return [name for name in (self.image, self.caption, self.label, self.key) if name is not None]


def image_columns(schema: pa.Schema) -> list[str]:
    """Names of the columns that can hold images: binary, or a struct with a binary field `bytes`."""
    import pyarrow as pa

    def is_bytes(kind: pa.DataType) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))

    def is_image(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            place = kind.get_field_index("bytes")
            return place >= 0 and is_bytes(kind.field(place).type)
        return is_bytes(kind)

    return [field.name for field in schema if is_image(field.type)]


def read_schema(path: Path) -> pa.Schema:
    """Names and types of the columns of a parquet file. Raises: FormatError."""
    with _open(path) as file:
        return file.schema_arrow


def choose_columns(schema: pa.Schema, where: object, image_column: str | None) -> Columns:
    """Decide which columns hold images, captions, labels and keys.

    Raises: InputError if no column can hold images, or several can and none is preferred.
    """
    import pyarrow as pa

    def first(names: Sequence[str], accepts: Any) -> str | None:
        return next((name for name in names if name in schema.names and accepts(schema.field(name).type)), None)

    def is_text(kind: pa.DataType) -> bool:
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))

    def is_caption(kind: pa.DataType) -> bool:
        return is_text(kind) or bool(pa.types.is_list(kind) and is_text(kind.value_type))

    candidates = image_columns(schema)
    if image_column is not None and image_column not in candidates:
        raise InputError(
            f"column {image_column!r} of {where} must hold image bytes (binary, or a struct with a field bytes); "
            f"those that do: {', '.join(candidates) or 'none'}"
        )
    if not candidates:
        raise InputError(
            f"{where} has no column of image bytes (binary, or a struct with a field bytes), only "
            f"{', '.join(schema.names) or 'no columns'}; give the files that hold the images"
        )
    preferred = [name for name in _IMAGE_NAMES if name in candidates]
    if image_column is None and len(candidates) > 1 and not preferred:
        raise InputError(
            f"{where} has several columns of image bytes ({', '.join(candidates)}); choose one with image_column"
        )
    return Columns(
        image=image_column or (preferred or candidates)[0],
        caption=first(_CAPTION_NAMES, is_caption),
        label=first(_LABEL_NAMES, pa.types.is_integer),
        key=first(_KEY_NAMES, lambda kind: is_text(kind) or pa.types.is_integer(kind)),
    )


class ParquetSource:
    """The images in the rows of one or several parquet files.

    Arguments
        name: of the collection.
        root: the folder that `image_path` is relative to.
        files: in reading order.
        image_column: needed only if several columns hold bytes and none has a usual name.

    Raises: InputError (a file without a usable column); FormatError (a damaged file).

    Cost: the footers are read when opened; a data page and about `READ_BYTES` of rows in memory at a time.
    """

    def __init__(self, name: str, root: Path, files: Sequence[Path], image_column: str | None = None) -> None:
        self.name = name
        self._root = root
        self._files = list(files)
        self._columns: list[Columns] = []
        self._rows: list[int] = []
        for path in self._files:
            with _open(path) as file:
                self._columns.append(choose_columns(file.schema_arrow, path, image_column))
                self._rows.append(file.metadata.num_rows)

    def __len__(self) -> int:
        return sum(self._rows)

    def refs(self, start: int = 0) -> Iterator[ImageRef]:
        """Images from number `start` on."""
        for path, columns, rows in zip(self._files, self._columns, self._rows, strict=True):
            if start < rows:
                yield from self._refs_of(path, columns, start)
            start = max(0, start - rows)

    def position(self, image_path: str) -> int | None:
        """Number of the image with this address; None if there is none."""
        return table_position(image_path, [self._relative(path) for path in self._files], self._rows)

    def fingerprint(self) -> str:
        """SHA-256 over names and sizes of the files."""
        return fingerprint_files((self._relative(path), path.stat().st_size) for path in self._files)

    def _relative(self, path: Path) -> str:
        return portable(path.relative_to(self._root).as_posix())

    def _refs_of(self, path: Path, columns: Columns, start: int) -> Iterator[ImageRef]:
        import pyarrow as pa

        address, row = self._relative(path), 0
        with _open(path) as file:
            try:
                for number in range(file.metadata.num_row_groups):
                    group = file.metadata.row_group(number)
                    if row + group.num_rows <= start:
                        row += group.num_rows
                        continue
                    portion = max(1, min(256, READ_BYTES * group.num_rows // max(1, group.total_byte_size)))
                    for batch in file.iter_batches(
                        portion, row_groups=[number], columns=columns.names, use_threads=False
                    ):
                        if row + batch.num_rows > start:
                            skipped = max(0, start - row)
                            yield from table_refs(batch.slice(skipped), columns, address, row + skipped, path.parent)
                        row += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                raise FormatError(
                    f"{path} is damaged ({error}); restore it or take it out of the collection"
                ) from error


def table_refs(
    batch: pa.RecordBatch, columns: Columns, address: str, first_row: int, folder: Path
) -> Iterator[ImageRef]:
    """References of the rows of `batch`, which are rows `first_row`... of the file at `address`, lying in `folder`."""
    none = [None] * batch.num_rows

    def values(name: str | None) -> list[Any]:
        return none if name is None else plain_values(batch.column(name))

    images, captions, labels = values(columns.image), values(columns.caption), values(columns.label)
    for place, (image, caption, label, key) in enumerate(
        zip(images, captions, labels, values(columns.key), strict=True)
    ):
        row = first_row + place
        inner = image.get("path") if isinstance(image, dict) else None
        if isinstance(caption, list):
            caption = next((text for text in caption if text), None)
        yield ImageRef(
            key=str(key) if key is not None else _key(inner, row),
            image_path=f"{address}#{row}",
            data=_data(image, folder),
            caption=(caption or "").strip() or None,
            label=label,
        )


def plain_values(column: pa.Array) -> list[Any]:
    """The column as Python's own values; in texts, bytes that are not UTF-8 become a replacement sign.

    Raises: FormatError if such texts lie inside lists or structs.
    """
    import pyarrow as pa

    undecoded = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError as error:
        if column.type not in undecoded:
            raise FormatError(
                f"a table holds {column.type} with texts that are not UTF-8 ({error}); write it again"
            ) from error
        # `cast` would look at the bytes; a view only names them otherwise.
        texts = column.view(undecoded[column.type]).to_pylist()
        values = [None if text is None else text.decode("utf-8", "replace") for text in texts]
    return values


def table_position(image_path: str, addresses: Sequence[str], rows: Sequence[int]) -> int | None:
    """Number, in all files of so many rows, of the image with the address that `table_refs` gives it."""
    address, _, row = image_path.rpartition("#")
    if address not in addresses or not row.isdecimal():
        return None
    number = addresses.index(address)
    return sum(rows[:number]) + int(row) if int(row) < rows[number] else None


def _key(inner: str | None, row: int) -> str:
    """The path that the dataset itself gives an image, without extension; its row number if it gives none."""
    if not inner:
        return str(row)
    stem, _ = os.path.splitext(os.path.basename(inner) if os.path.isabs(inner) else inner)  # noqa: PTH119, PTH117, PTH122
    return portable(stem)


def _data(image: dict[str, Any] | bytes | None, folder: Path) -> bytes | FileSpan:
    """Bytes of an image; an image kept outside the table, by path only, is looked for beside it."""
    if not isinstance(image, dict):
        return image or b""
    if image["bytes"] is None and image.get("path"):
        return FileSpan(str(folder / image["path"]))
    return image["bytes"] or b""


def _open(path: Path) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without both settings pyarrow holds a whole row group, which may be the whole file.
        return pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise FormatError(f"{path} is not a readable parquet file ({error}); restore it or take it out") from error
