"""A decoding process: reads tasks from its standard input, writes pixels to its standard output, ends with its parent.

It imports NumPy, Pillow and this package's decoder, and never the program that started it, so a script needs no
`if __name__ == "__main__"` guard and torch is not loaded once per process. A message is a JSON header after its
length in four bytes, then raw bytes:

    task    {"size", "crop", "images": [number of bytes | [path, offset, length], ...]}, then the bytes of the images
    answer  {"outcomes": [[width, height] | reason, ...]}, then the pixels (decoded, size, size, 3) of those decoded
            {"error": traceback} if the decoder has a bug
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from .decode import Crop, RejectedImage, decode_image
from .sources import FileSpan

__all__ = ["Outcome", "decode_chunk", "main", "read_bytes", "receive", "send"]

Outcome = tuple[int, int] | str
"""Width and height of a decoded image, or the reason why it is rejected."""

PARENT_POLL_S = 1.0

MAX_FILE_BYTES = 2**30
"""Larger files are rejected unread: no image of up to `decode.MAX_PIXELS` pixels needs more, scanned slides do."""


def read_bytes(data: bytes | FileSpan) -> bytes:
    """The bytes that a reference names. Raises: RejectedImage if the file cannot be read."""
    if isinstance(data, bytes):
        return data
    try:
        with open(data.path, "rb") as file:  # noqa: PTH123 (pathlib doubles the cost of a small file)
            length = os.fstat(file.fileno()).st_size - data.offset if data.length is None else data.length
            if length > MAX_FILE_BYTES:
                raise RejectedImage("too large for memory")
            file.seek(data.offset)
            return file.read(max(0, length))
    except FileNotFoundError:
        raise RejectedImage("missing file") from None
    except (OSError, ValueError):  # ValueError: a name with a null byte
        raise RejectedImage("unreadable file") from None


def decode_chunk(images: Sequence[bytes | FileSpan], size: int, crop: Crop) -> tuple[list[Outcome], np.ndarray]:
    """Decode some images.

    Returns: an outcome for each, and the pixels (decoded, size, size, 3) uint8 of those that were decoded, in order.
    """
    outcomes: list[Outcome] = []
    pixels = np.empty((len(images), size, size, 3), dtype=np.uint8)
    decoded = 0
    for data in images:
        try:
            image = decode_image(read_bytes(data), size, crop)
        except RejectedImage as rejected:
            outcomes.append(rejected.reason)
            continue
        pixels[decoded] = image.pixels
        outcomes.append((image.width, image.height))
        decoded += 1
    return outcomes, pixels[:decoded]


def send(stream: BinaryIO, header: dict[str, Any], *payloads: Any) -> None:
    """Write one message."""
    encoded = json.dumps(header).encode("ascii")
    stream.write(len(encoded).to_bytes(4, "little") + encoded)
    for payload in payloads:
        stream.write(payload)
    stream.flush()


def receive(stream: BinaryIO) -> dict[str, Any]:
    """Read the header of one message. Raises: EOFError if the other side is gone."""
    length = stream.read(4)
    if len(length) < 4:
        raise EOFError
    encoded = stream.read(int.from_bytes(length, "little"))
    return json.loads(encoded)


def main(parent: int) -> None:
    """Answer tasks until the input ends or the process `parent` is gone."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    tasks, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # what a decoding library prints must not reach the answers, nor the user's screen
        os.dup2(nowhere, descriptor)
    try:
        while True:
            _answer(tasks, answers)
    except (EOFError, BrokenPipeError):
        os._exit(0)  # not sys.exit, which would try to flush the broken pipe


def _answer(tasks: BinaryIO, answers: BinaryIO) -> None:
    task = receive(tasks)
    images = [tasks.read(image) if isinstance(image, int) else FileSpan(*image) for image in task["images"]]
    try:
        outcomes, pixels = decode_chunk(images, task["size"], task["crop"])
    except Exception:  # a bug: the parent raises it where its user sees it
        send(answers, {"error": traceback.format_exc()})
    else:
        send(answers, {"outcomes": outcomes}, pixels.data)


def _end_with(parent: int) -> None:
    """End this process when its parent has changed, even in the middle of an image."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
