"""The latent store: float16 shards read through memory maps, with metadata in the same row order.

Rows are numbered through all shards from 0. float16 resolves one part in 2,000, far below what a VAE's own reconstruction
error leaves of a latent, and halves the disk; sums over the store are taken in higher precision by their callers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from manifold.errors import FormatError, InputError, MismatchError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["LatentStore", "Shard", "latents_file", "metadata_file", "numbered"]


@dataclass(frozen=True)
class Shard:
    """One committed shard: its row count, the checksums of its two files, and the number in their names."""

    rows: int
    latents_sha256: str
    metadata_sha256: str
    number: int = -1
    """Rises from shard to shard, with gaps once images were removed; the shard's position unless given."""


def numbered(shards: Iterable[Shard]) -> tuple[Shard, ...]:
    """The shards, those without a number numbered by position."""
    return tuple(
        shard if shard.number >= 0 else replace(shard, number=position) for position, shard in enumerate(shards)
    )


def latents_file(root: Path, number: int) -> Path:
    """Where shard `number` keeps its latents."""
    return root / "latents" / f"latents_{number:05d}.npy"


def metadata_file(root: Path, number: int) -> Path:
    """Where shard `number` keeps its metadata."""
    return root / "metadata" / f"metadata_{number:05d}.parquet"


class LatentStore:
    """Read access to the latents and metadata of a workspace.

    Memory: rows are read through memory maps; a pass over the whole store holds one shard's map at a time.

    Arguments
        root: folder of the workspace. shards: in row order. shape: of a latent.
        listed: tells which shards the workspace has now. A file's number may come back once images were removed, so a
            file opened later than that is read only if it is still the shard meant.
    """

    def __init__(
        self,
        root: Path,
        shards: Sequence[Shard],
        shape: tuple[int, int, int],
        listed: Callable[[], Collection[Shard]] | None = None,
    ) -> None:
        self.root = root
        self._listed = listed
        self.shards = numbered(shards)
        self.shape = shape
        self.d = int(np.prod(shape))
        self._starts = np.array([0, *accumulate(shard.rows for shard in self.shards)], dtype=np.int64)
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Rows by number, in the order asked: (m, d) float16.

        Raises: InputError for a number that is not a row; FormatError if a shard is missing or cut off.
        """
        wanted = np.asarray(ids, dtype=np.int64).reshape(-1)
        self._require_rows(wanted)
        rows = np.empty((len(wanted), self.d), dtype=np.float16)
        if bool((wanted[1:] >= wanted[:-1]).all()):
            return self.read_into(wanted, rows)
        order = wanted.argsort()
        return self.read_into(wanted[order], rows)[order.argsort()]

    def read_into(self, rising: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Rows by number written to `out`, (m, d) float16, which is returned.

        Arguments
            rising: (m,) int64 numbers of rows, none smaller than the one before.

        Raises: FormatError if a shard is missing or cut off.
        """
        for number, (low, high) in enumerate(pairwise(rising.searchsorted(self._starts).tolist())):
            if low < high:
                places = rising[low:high] - self._starts[number]
                self._map(number).take(places, axis=0, out=out[low:high], mode="clip")
        return out

    def batches(self, rows: int, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """All latents from row `start` to before row `stop`, in order, as (m, d) float16 arrays with m <= `rows`.

        A batch never spans two shards. Raises: FormatError if a shard is missing or cut off.
        """
        stop = len(self) if stop is None else min(stop, len(self))
        for number, shard in enumerate(self.shards):
            first = int(self._starts[number])
            begin, end = max(start - first, 0), min(stop - first, shard.rows)
            if begin >= end:
                continue
            mapped = self._open(number)
            for low in range(begin, end, rows):
                yield mapped[low : min(low + rows, end)]
            del mapped

    def metadata(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The metadata table, in row order, all columns or those named."""
        import pyarrow as pa

        tables = [self._metadata(number, columns) for number in range(len(self.shards))]
        if not tables:
            raise InputError(f"{self.root} holds no latents yet; encode images into it first")
        return pa.concat_tables(tables)

    def metadata_columns(self) -> list[str]:
        """Names of the metadata columns."""
        if not self.shards:
            raise InputError(f"{self.root} holds no latents yet; encode images into it first")
        return list(self._metadata(0, None).column_names)

    def rows(self, ids: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """Metadata of rows by number, in the order asked; each has its row number as `row`."""
        wanted = np.asarray(ids, dtype=np.int64).reshape(-1)
        self._require_rows(wanted)
        owners = np.searchsorted(self._starts, wanted, side="right") - 1
        tables = {int(number): self._metadata(int(number), None) for number in np.unique(owners)}
        found = []
        for row, number in zip(wanted.tolist(), owners.tolist(), strict=True):
            record = tables[number].slice(row - int(self._starts[number]), 1).to_pylist()[0]
            found.append({"row": row, **record})
        return found

    def _require_rows(self, wanted: np.ndarray) -> None:
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            outside = wanted[(wanted < 0) | (wanted >= len(self))]
            raise InputError(f"row {outside[0]} is not in {self.root}, whose rows are numbered 0 to {len(self) - 1}")

    def _map(self, number: int) -> np.ndarray:
        if number not in self._maps:
            self._maps[number] = self._open(number)
        return self._maps[number]

    def _open(self, number: int) -> np.ndarray:
        path = latents_file(self.root, self.shards[number].number)
        expected = (self.shards[number].rows, self.d)
        try:
            mapped = np.load(path, mmap_mode="c", allow_pickle=False)  # what is written stays with the caller
        except FileNotFoundError as error:
            self._require_listed(number)
            raise FormatError(f"{path} is missing; restore it from a backup or encode again") from error
        except (ValueError, EOFError, OSError) as error:
            raise FormatError(f"{path} is cut off or damaged ({error}); restore it or encode again") from error
        self._require_listed(number)
        if mapped.shape != expected or mapped.dtype != np.float16:
            raise FormatError(
                f"{path} must hold {expected} float16, it holds {mapped.shape} {mapped.dtype}; restore it or encode again"
            )
        return np.asarray(mapped)  # numpy's own class for memory maps makes each reading slower

    def _metadata(self, number: int, columns: Sequence[str] | None) -> pa.Table:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = metadata_file(self.root, self.shards[number].number)
        try:
            table = pq.read_table(path, columns=None if columns is None else list(columns))
        except FileNotFoundError as error:
            self._require_listed(number)
            raise FormatError(f"{path} is missing; restore it from a backup or encode again") from error
        except (pa.ArrowInvalid, OSError) as error:
            raise FormatError(f"{path} is damaged ({error}); restore it from a backup or encode again") from error
        self._require_listed(number)
        if table.num_rows != self.shards[number].rows:
            raise FormatError(
                f"{path} must have {self.shards[number].rows} rows, it has {table.num_rows}; restore it or encode again"
            )
        return table

    def _require_listed(self, number: int) -> None:
        if self._listed is not None and self.shards[number] not in self._listed():
            raise MismatchError(
                f"images were removed from {self.root} since it was opened, rows have other numbers now; open it again"
            )
