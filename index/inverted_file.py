"""Inverted lists written straight to a file, in FAISS's own layout, so that only row numbers are ever in memory.

After the bytes that FAISS writes for an empty index (`faiss_io.empty_file`) come the length of each list, then list by list
its codes and its row numbers. `faiss.read_index` reads the result like any other; with `faiss.IO_FLAG_MMAP` it leaves the
lists on the disk. The tests compare the file with FAISS's own, byte for byte.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np

__all__ = ["write_inverted_file"]

_GATHER_BYTES = 64 * 2**20


def write_inverted_file(
    path: Path, header: bytes, lists: int, encoded: Iterable[tuple[np.ndarray, np.ndarray]], spool: Path
) -> None:
    """Write an index file of rows that come in order.

    Arguments
        path: the file to write. header: of `faiss_io.empty_file`. lists: how many inverted lists there are.
        encoded: for each batch of rows their lists (m,) and their codes (m, bytes) uint8.
        spool: a file for the codes in row order; deleted afterwards, whatever happens.

    Cost: 16 bytes of memory a row, and the file twice on the disk for a while.
    """
    try:
        owners, size = _spool(encoded, spool)
        order = np.argsort(owners, kind="stable")
        lengths = np.bincount(owners, minlength=lists).astype(np.uint64)
        with path.open("wb") as file:
            file.write(header)
            file.write(_lengths(lengths))
            codes = np.memmap(spool, dtype=np.uint8, mode="r", shape=(len(owners), size))
            for first, last in _portions(lengths, size + 8):
                begin, end = int(lengths[:first].sum()), int(lengths[:last].sum())
                rows = order[begin:end]
                gathered, place = codes[rows], 0
                for length in lengths[first:last].astype(np.int64).tolist():
                    file.write(gathered[place : place + length].tobytes())
                    file.write(rows[place : place + length].astype("<i8").tobytes())
                    place += length
    finally:
        spool.unlink(missing_ok=True)


def _spool(encoded: Iterable[tuple[np.ndarray, np.ndarray]], spool: Path) -> tuple[np.ndarray, int]:
    owners, size = [], 0
    with spool.open("wb") as file:
        for lists, codes in encoded:
            owners.append(lists.astype(np.int32))
            file.write(codes.tobytes())
            size = codes.shape[1]
    return np.concatenate(owners), size


def _lengths(lengths: np.ndarray) -> bytes:
    """All lengths, or (list, length) pairs where at most half of the lists hold anything: FAISS's own rule."""
    filled = np.flatnonzero(lengths)
    if len(filled) > len(lengths) // 2:
        return b"full" + struct.pack("<Q", len(lengths)) + lengths.astype("<u8").tobytes()
    pairs = np.stack([filled.astype(np.uint64), lengths[filled]], 1)
    return b"sprs" + struct.pack("<Q", pairs.size) + pairs.astype("<u8").tobytes()


def _portions(lengths: np.ndarray, row_bytes: int) -> Iterable[tuple[int, int]]:
    """Consecutive runs of lists that are gathered together; a longer list stands alone."""
    first, rows = 0, 0
    for number, length in enumerate(lengths.astype(np.int64).tolist()):
        if number > first and (rows + length) * row_bytes > _GATHER_BYTES:
            yield first, number
            first, rows = number, 0
        rows += length
    yield first, len(lengths)
