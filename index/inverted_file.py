"""Inverted lists written straight to a file, in FAISS's own layout, so that only row numbers are ever in memory.

After the bytes that FAISS writes for an empty index (`faiss_io.empty_file`) come the length of each list, then list by list
its codes and its row numbers. `faiss.read_index` reads the result like any other; with `faiss.IO_FLAG_MMAP` it leaves the
lists on the disk. Rows are added by writing the file again, list by list, each after what it held before. The tests compare
the files with FAISS's own, byte for byte.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np

__all__ = ["InvertedLists", "write_inverted_file"]

_GATHER_BYTES = 64 * 2**20


class InvertedLists:
    """The lists of a file of `write_inverted_file`, read through a memory map.

    Arguments
        path: the file. header_bytes: what stands before the lists. lists: how many. code_bytes: of a row.
    """

    def __init__(self, path: Path, header_bytes: int, lists: int, code_bytes: int) -> None:
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r")
        self._code_bytes = code_bytes
        kind = self._bytes[header_bytes : header_bytes + 4].tobytes()
        (size,) = struct.unpack("<Q", self._bytes[header_bytes + 4 : header_bytes + 12].tobytes())
        start = header_bytes + 12 + 8 * size
        stated = self._bytes[header_bytes + 12 : start].view("<u8").astype(np.int64)
        self.lengths = np.zeros(lists, dtype=np.int64)
        if kind == b"full":
            self.lengths[:] = stated
        else:
            self.lengths[stated[0::2]] = stated[1::2]
        self._starts = start + (code_bytes + 8) * np.concatenate([[0], np.cumsum(self.lengths)])

    def __len__(self) -> int:
        return int(self.lengths.sum())

    def of(self, number: int) -> tuple[bytes, bytes]:
        """The codes of list `number`, and its row numbers."""
        start, stop = int(self._starts[number]), int(self._starts[number + 1])
        middle = start + self._code_bytes * int(self.lengths[number])
        return self._bytes[start:middle].tobytes(), self._bytes[middle:stop].tobytes()


def write_inverted_file(
    path: Path,
    header: bytes,
    lists: int,
    encoded: Iterable[tuple[np.ndarray, np.ndarray]],
    spool: Path,
    earlier: InvertedLists | None = None,
) -> None:
    """Write an index file of rows that come in order.

    Arguments
        path: the file to write. header: of `faiss_io.empty_file`. lists: how many inverted lists there are.
        encoded: for each batch of rows their lists (m,) and their codes (m, bytes) uint8.
        spool: a file for the codes in row order; deleted afterwards, whatever happens.
        earlier: lists that come before; the rows are numbered on from theirs.

    Cost: 16 bytes of memory a new row, one list of the earlier ones at a time, and the file twice on the disk for a while.
    """
    try:
        owners, size = _spool(encoded, spool)
        order = np.argsort(owners, kind="stable")
        lengths = np.bincount(owners, minlength=lists)
        before = 0 if earlier is None else len(earlier)
        with path.open("wb") as file:
            file.write(header)
            file.write(_lengths(lengths if earlier is None else lengths + earlier.lengths))
            codes = np.memmap(spool, np.uint8, "r", shape=(len(owners), size)) if size else np.empty((0, 0), np.uint8)
            for first, last in _portions(lengths, size + 8):
                begin, end = int(lengths[:first].sum()), int(lengths[:last].sum())
                rows = order[begin:end]
                gathered, place = codes[rows], 0
                for number, length in enumerate(lengths[first:last].tolist(), first):
                    held, numbers = (b"", b"") if earlier is None else earlier.of(number)
                    file.write(held)
                    file.write(gathered[place : place + length].tobytes())
                    file.write(numbers)
                    file.write((rows[place : place + length] + before).astype("<i8").tobytes())
                    place += length
    finally:
        spool.unlink(missing_ok=True)


def _spool(encoded: Iterable[tuple[np.ndarray, np.ndarray]], spool: Path) -> tuple[np.ndarray, int]:
    owners, size = [np.empty(0, dtype=np.int32)], 0
    with spool.open("wb") as file:
        for lists, codes in encoded:
            owners.append(lists.astype(np.int32))
            file.write(codes.tobytes())
            size = codes.shape[1]
    return np.concatenate(owners), size


def _lengths(lengths: np.ndarray) -> bytes:
    """All lengths, or (list, length) pairs where at most half of the lists hold anything: FAISS's own rule."""
    lengths = lengths.astype(np.uint64)
    filled = np.flatnonzero(lengths)
    if len(filled) > len(lengths) // 2:
        return b"full" + struct.pack("<Q", len(lengths)) + lengths.astype("<u8").tobytes()
    pairs = np.stack([filled.astype(np.uint64), lengths[filled]], 1)
    return b"sprs" + struct.pack("<Q", pairs.size) + pairs.astype("<u8").tobytes()


def _portions(lengths: np.ndarray, row_bytes: int) -> Iterable[tuple[int, int]]:
    """Consecutive runs of lists that are gathered together; a longer list stands alone."""
    first, rows = 0, 0
    for number, length in enumerate(lengths.tolist()):
        if number > first and (rows + length) * row_bytes > _GATHER_BYTES:
            yield first, number
            first, rows = number, 0
        rows += length
    yield first, len(lengths)
