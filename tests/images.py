"""Image files made in memory for the tests of the readers."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION = 0x0112


def picture(height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    """A smooth, asymmetric picture with some grain, (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.sin(5 * x + 2 * y), np.cos(3 * y - x), x * y]
    smooth = 127 + 90 * np.stack(waves, axis=-1) + rng.normal(0, 6, (height, width, 3))
    return np.clip(smooth, 0, 255).astype(np.uint8)


def encoded(array: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG written by the specification; `rows` are unfiltered scanlines, each after a zero byte."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, content) for kind, content in chunks)


def scanlines(samples: np.ndarray) -> bytes:
    """Rows of big-endian samples as PNG stores them."""
    big = samples.astype(samples.dtype.newbyteorder(">"))
    return b"".join(b"\0" + row.tobytes() for row in big)


def damaged_files() -> dict[str, tuple[bytes, str]]:
    """Ten unusable image files: name -> (bytes, the reason they must be rejected with)."""
    jpeg, whole = encoded(picture(), "JPEG"), encoded(picture())
    return {
        "empty.jpg": (b"", "empty file"),
        "text.jpg": (b"this is not an image at all", "not an image"),
        "page.png": (b"<!doctype html><html><body>404</body></html>", "not an image"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "cut.png": (whole[: len(whole) // 2], "truncated"),
        "header_only.jpg": (jpeg[:20], "damaged"),
        "checksum.png": (whole[:60] + bytes([whole[60] ^ 255]) + whole[61:], "damaged"),
        "flat.png": (png(0, 7, 8, 2, b""), "zero area"),
        "bomb.png": (png(50_000, 50_000, 8, 2, b""), "decompression bomb"),
        "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), "unsupported format"),
    }
