"""Decoding a collection in worker processes: in order, with bounded memory.

The collection is cut into chunks of a few dozen images. A window of chunks is in flight at a time; a thread for each
worker process hands it a chunk and takes the pixels back, one copy through a pipe. The consumer receives chunks in the
order of the collection, whatever the order in which they were finished, so the result does not depend on the workers.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self, cast, get_args

import numpy as np

from manifold.errors import InputError, ManifoldError

from .decode import Crop
from .sources import FileSpan, ImageRef, ImageSource
from .worker import Outcome, decode_chunk, receive, send

__all__ = ["CRASHED", "Decoded", "Rejected", "WorkerDiedError", "decode_stream"]

CHUNK_IMAGES = 64
CHUNK_BYTES = 8 * 2**20
"""A chunk is closed when its files, or its pixels, reach this many bytes."""

CRASHED = "crashes the decoder"
"""The reason of an image on which the decoding process itself died."""

_CRASHES = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT})
_BOOT = "import sys; sys.path[:] = sys.argv[2:]; from index.images.worker import main; main(int(sys.argv[1]))"


class WorkerDiedError(ManifoldError, RuntimeError):
    """A decoding process ended before its work was done."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image of the collection, decoded."""

    position: int
    """Number of the image in the collection, from 0."""
    key: str
    image_path: str
    caption: str | None
    label: int | None
    pixels: np.ndarray
    """(size, size, 3) uint8 RGB; a view of its chunk, to be copied if it is kept."""
    width: int
    """Of the original after EXIF orientation, in pixels."""
    height: int
    """Of the original after EXIF orientation, in pixels."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """An image of the collection that cannot be used."""

    position: int
    """Number of the image in the collection, from 0."""
    key: str
    image_path: str
    caption: str | None
    label: int | None
    reason: str
    """One of `decode.REASONS`."""


def decode_stream(
    source: ImageSource,
    size: int,
    crop: str = "center",
    *,
    start: int = 0,
    workers: int = 1,
    batch: int = CHUNK_IMAGES,
) -> Iterator[list[Decoded | Rejected]]:
    """Decode a collection to squares of pixels, keeping its order.

    Arguments
        source: the collection.
        size: side of the squares, in pixels.
        crop: `center` cuts the middle square, `squash` distorts.
        start: number of the first image.
        workers: decoding processes; 0 decodes in this process.
        batch: most images in a list; lists are shorter where images are large.

    Returns: an iterator of lists that together hold every image from `start` on, once, in order. Closing it, or leaving
        it by an exception such as KeyboardInterrupt, ends the processes.

    Raises: InputError (options); FormatError (a damaged container); WorkerDiedError.

    Cost: 2 * workers + 2 chunks in memory, a chunk being at most 64 images and, beyond the first image, 8 MiB of files
        or of pixels.
    """
    if size < 1 or batch < 1:
        raise InputError(f"size and batch must be at least 1, got size {size} and batch {batch}")
    if workers < 0 or start < 0:
        raise InputError(f"workers and start must be 0 or more, got workers {workers} and start {start}")
    if crop not in get_args(Crop):
        raise InputError(f"crop must be one of {', '.join(get_args(Crop))}, got {crop!r}")
    most = max(1, min(batch, CHUNK_IMAGES, CHUNK_BYTES // (3 * size * size)))
    chunks = _chunks(source, start, most)
    how = cast(Crop, crop)
    return _in_processes(chunks, size, how, workers) if workers else _in_this_process(chunks, size, how)


@dataclass(frozen=True, slots=True)
class _Chunk:
    position: int  # of its first image
    refs: list[ImageRef]

    def items(self, outcomes: Sequence[Outcome], pixels: np.ndarray) -> list[Decoded | Rejected]:
        items: list[Decoded | Rejected] = []
        rows = iter(pixels)
        for place, (ref, outcome) in enumerate(zip(self.refs, outcomes, strict=True)):
            about = (self.position + place, ref.key, ref.image_path, ref.caption, ref.label)
            items.append(
                Rejected(*about, outcome) if isinstance(outcome, str) else Decoded(*about, next(rows), *outcome)
            )
        return items


def _chunks(source: ImageSource, start: int, most: int) -> Iterator[_Chunk]:
    refs: list[ImageRef] = []
    held_bytes = 0
    for ref in source.refs(start):
        refs.append(ref)
        held_bytes += len(ref.data) if isinstance(ref.data, bytes) else 0
        if len(refs) == most or held_bytes >= CHUNK_BYTES:
            yield _Chunk(start, refs)
            start, refs, held_bytes = start + len(refs), [], 0
    if refs:
        yield _Chunk(start, refs)


def _in_this_process(chunks: Iterator[_Chunk], size: int, crop: Crop) -> Iterator[list[Decoded | Rejected]]:
    for chunk in chunks:
        yield chunk.items(*decode_chunk([ref.data for ref in chunk.refs], size, crop))


def _in_processes(chunks: Iterator[_Chunk], size: int, crop: Crop, workers: int) -> Iterator[list[Decoded | Rejected]]:
    window: deque[Future[list[Decoded | Rejected]]] = deque()
    with _Pool(workers, size, crop) as pool:
        for chunk in chunks:
            window.append(pool.submit(chunk))
            if len(window) == 2 * workers + 2:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()


class _Pool:
    """Worker processes, each started when first needed, and as many threads that talk to them."""

    def __init__(self, workers: int, size: int, crop: Crop) -> None:
        self._size, self._crop = size, crop
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed = True
            for process in self._all:
                process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._all:
            process.close()

    def submit(self, chunk: _Chunk) -> Future[list[Decoded | Rejected]]:
        return self._threads.submit(self._items, chunk)

    def _items(self, chunk: _Chunk) -> list[Decoded | Rejected]:
        images = [ref.data for ref in chunk.refs]
        try:
            return chunk.items(*self._decode(images))
        except _Crash:
            pass
        # One of the images kills its process: give each a process of its own to find out which.
        items: list[Decoded | Rejected] = []
        for place, ref in enumerate(chunk.refs):
            single = _Chunk(chunk.position + place, [ref])
            try:
                items += single.items(*self._decode([ref.data]))
            except _Crash:
                items += single.items([CRASHED], np.empty(0))
        return items

    def _decode(self, images: list[bytes | FileSpan]) -> tuple[list[Outcome], np.ndarray]:
        process = self._take()
        try:
            answer = process.decode(images, self._size, self._crop)
        except _Crash:
            with self._lock:
                self._all.discard(process)
            process.close()
            raise
        with self._lock:
            self._idle.append(process)
        return answer

    def _take(self) -> _Process:
        with self._lock:
            if self._closed:
                raise WorkerDiedError("the stream was closed")
            if self._idle:
                return self._idle.pop()
            process = _Process()
            self._all.add(process)
            return process


class _Crash(Exception):
    """A worker process died by a signal that a damaged image can cause."""


class _Process:
    """One worker process. A process group of its own keeps the terminal's Ctrl-C from it: the parent decides."""

    def __init__(self) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        command = [sys.executable, "-P", "-c", _BOOT, str(os.getpid()), *map(str, sys.path)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                process_group=0,
            )
        except OSError as error:
            self._stderr.close()
            raise WorkerDiedError(
                f"a decoding process could not be started ({error}); use fewer workers, or 0 to decode in this process"
            ) from error

    def decode(self, images: list[bytes | FileSpan], size: int, crop: Crop) -> tuple[list[Outcome], np.ndarray]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        described = [len(data) if isinstance(data, bytes) else [data.path, data.offset, data.length] for data in images]
        try:
            send(
                self._process.stdin,  # type: ignore[arg-type]
                {"size": size, "crop": crop, "images": described},
                *(data for data in images if isinstance(data, bytes)),
            )
            answer = receive(self._process.stdout)  # type: ignore[arg-type]
            if "error" in answer:
                raise RuntimeError(f"a decoding process failed:\n{answer['error']}")
            outcomes = [outcome if isinstance(outcome, str) else tuple(outcome) for outcome in answer["outcomes"]]
            decoded = sum(not isinstance(outcome, str) for outcome in outcomes)
            pixels = np.empty(decoded * size * size * 3, dtype=np.uint8)
            if self._process.stdout.readinto(pixels) < pixels.nbytes:  # type: ignore[attr-defined]
                raise EOFError
        except (EOFError, BrokenPipeError):
            raise self._death() from None
        return outcomes, pixels.reshape(decoded, size, size, 3)

    def _death(self) -> Exception:
        code = self._process.wait()
        if -code in _CRASHES:
            return _Crash()
        self._stderr.seek(0)
        last_words = self._stderr.read().decode(errors="replace").strip().splitlines()[-1:]
        if code < 0:
            how = f"was killed by signal {-code}"
            advice = "most likely memory ran out; use fewer workers or free some memory"
        else:
            how = f"ended with status {code}"
            advice = f"it said: {last_words[0]}" if last_words else "it said nothing; try workers 0"
        return WorkerDiedError(f"a decoding process {how}: {advice}, and run the same command again, it resumes")

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:  # what was still buffered for a process that is gone
                continue
