"""A Hugging Face dataset saved with `save_to_disk`: Arrow stream files, listed in state.json.

Read with pyarrow alone; the `datasets` library is not needed. Columns are found as in parquet files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from manifold.errors import FormatError, InputError
from manifold.files import read_json

from .parquet import choose_columns, table_position, table_refs
from .sources import ImageRef, fingerprint_files, source_name

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ArrowSource"]


class ArrowSource:
    """The images of a dataset saved to disk.

    Arguments
        root: the folder that holds state.json.
        image_column: needed only if several columns hold bytes and none has a usual name.

    Raises: InputError (a folder of several splits, no usable column); FormatError (a file is missing or damaged).

    Cost: the headers of the record batches are read when opened; one record batch in memory at a time (1,000 rows
        unless the dataset was written otherwise).
    """

    def __init__(self, root: Path, image_column: str | None = None) -> None:
        self.name = source_name(root)
        self._root = root
        if not (root / "state.json").is_file():
            splits = read_json(root / "dataset_dict.json").get("splits", [])
            raise InputError(
                f"{root} holds the splits {', '.join(map(str, splits))}; give one of them: {root / str(splits[0])}"
                if splits
                else f"{root} is a saved dataset without splits; save it again"
            )
        state = read_json(root / "state.json")
        if state.get("_indices_data_files"):
            raise InputError(f"{root} was saved with an index of its rows; call flatten_indices() and save it again")
        try:
            self._files = [root / str(entry["filename"]) for entry in state["_data_files"]]
        except (KeyError, TypeError) as error:
            raise FormatError(f"{root / 'state.json'} does not list the data files; save the dataset again") from error
        self._rows = [_count_rows(path) for path in self._files]
        if not sum(self._rows):
            raise InputError(f"{root} is a saved dataset without rows; give one that holds images")
        with _stream(self._files[0]) as reader:
            self._columns = choose_columns(reader.schema, root, image_column)

    def __len__(self) -> int:
        return sum(self._rows)

    def refs(self, start: int = 0) -> Iterator[ImageRef]:
        """Images from number `start` on."""
        for path, rows in zip(self._files, self._rows, strict=True):
            if start < rows:
                yield from self._refs_of(path, start)
            start = max(0, start - rows)

    def position(self, image_path: str) -> int | None:
        """Number of the image with this address; None if there is none."""
        return table_position(image_path, [path.name for path in self._files], self._rows)

    def fingerprint(self) -> str:
        """SHA-256 over names and sizes of the data files."""
        return fingerprint_files((path.name, path.stat().st_size) for path in self._files)

    def _refs_of(self, path: Path, start: int) -> Iterator[ImageRef]:
        row = 0
        with _stream(path) as reader:
            for batch in reader:
                if row + batch.num_rows > start:
                    skipped = max(0, start - row)
                    yield from table_refs(batch.slice(skipped), self._columns, path.name, row + skipped, self._root)
                row += batch.num_rows


@contextmanager
def _stream(path: Path, *, mapped: bool = False) -> Iterator[pa.RecordBatchStreamReader]:
    """An Arrow stream file; mapped to count batches unread, unmapped so that pages read do not stay."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) if mapped else pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
            yield reader
    except FileNotFoundError as error:
        raise FormatError(f"{path} is missing, though state.json lists it; restore it or save again") from error
    except (pa.ArrowException, OSError) as error:
        raise FormatError(f"{path} is damaged or not an Arrow stream ({error}); save the dataset again") from error


def _count_rows(path: Path) -> int:
    with _stream(path, mapped=True) as reader:
        return sum(batch.num_rows for batch in reader)
