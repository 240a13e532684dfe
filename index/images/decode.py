"""From the bytes of an image file to a square of 8-bit RGB pixels: the one place where this policy is written.

Colour
    EXIF orientation is applied, and the width and height reported are those of the upright image.
    Greyscale and 1-bit images become three equal channels.
    Transparency (RGBA, LA, a transparent palette entry or colour) is composited on white, the page most images were
    made to be seen on; dropping the alpha channel instead would show colours that the author hid.
    16 bits a sample are reduced to the high byte, value >> 8, which is what Pillow itself does to 16-bit colour, so
    that grey and colour agree; nothing is stretched to the range in use, a dark scan stays dark.
    32-bit integers are read as 16-bit when all lie in 0..65535, floats as 0..1 when all lie there; otherwise the image
    is rejected, because no convention says what white is.
    CMYK and YCCK are converted by Pillow without a profile; YCbCr to RGB. Other colour spaces (Lab) are rejected.
    Embedded ICC profiles are ignored: values are taken as sRGB, as diffusion training pipelines take them.
    Of an animation or a multi-page file, the first frame.
Geometry
    `center` takes the middle square, offset (longer - shorter) // 2, and resamples it to size x size: the same as
    resizing the shorter side and then cropping, without rounding the longer side. `squash` resamples the whole image.
    The filter is Lanczos with its support scaled for reduction (antialiased), the default of diffusers. An image whose
    square already measures size x size is not resampled: its pixels pass untouched.
    A JPEG whose sides are at least 6 * size is decoded at 1/2, 1/4 or 1/8 scale by libjpeg (`Image.draft`), never below
    3 * size. On 400 photographs reduced to 32 px this differs from the full decoding by 0.25 grey levels on average and
    by 0.72 in the worst image, at twice the speed; 2 * size would treble the difference.
Rejection
    Damaged, truncated, empty, zero-area or unsupported input raises RejectedImage with a reason from `REASONS`, and
    so does an image of more than `MAX_PIXELS` pixels. Nothing is printed and no warning escapes. Broken EXIF data
    alone does not reject an image: it is taken as upright. Damage that a format does not detect stays undetected: JPEG,
    BMP and PPM carry no checksum.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import (  # noqa: F401 (importing a plugin registers it, and importing only these is quick)
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    QoiImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from .formats import DECODED_FORMATS, sniff, states_zero_area

__all__ = ["MAX_PIXELS", "REASONS", "Crop", "DecodedImage", "RejectedImage", "decode_image"]

Crop = Literal["center", "squash"]

MAX_PIXELS = 2 * 89_478_485
"""Largest image decoded, in pixels (half a gibibyte as RGB): where Pillow, too, calls a file a decompression bomb."""

REASONS = (
    "empty file",
    "not an image",
    "unsupported format",
    "unsupported colour space",
    "undefined sample range",
    "zero area",
    "decompression bomb",
    "truncated",
    "damaged",
    "too large for memory",
    "missing file",
    "unreadable file",
    "crashes the decoder",
)
"""Every reason for which an image is rejected; the last three come from reading files and from worker processes."""

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNS = frozenset(_UPRIGHT[orientation] for orientation in (5, 6, 7, 8))
_REVERSED_X = frozenset(_UPRIGHT[orientation] for orientation in (2, 3, 7, 8))
_REVERSED_Y = frozenset(_UPRIGHT[orientation] for orientation in (3, 4, 6, 7))
_CONVERTIBLE = frozenset({"1", "L", "P", "RGBX", "CMYK", "YCbCr"})


_STDERR_LOCK = threading.Lock()
logging.getLogger("PIL").addHandler(logging.NullHandler())  # unless the program wants Pillow's log, it goes nowhere


class RejectedImage(Exception):
    """An image that cannot be used; `reason` is one of `REASONS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """Pixels of an image, and the size it had."""

    pixels: np.ndarray
    """(size, size, 3) uint8 RGB."""
    width: int
    """Of the original after EXIF orientation, in pixels."""
    height: int
    """Of the original after EXIF orientation, in pixels."""


def decode_image(data: bytes, size: int, crop: Crop = "center", *, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode an image file to a square of RGB pixels, by the policy at the top of this module.

    Arguments
        data: the bytes of the file.
        size: side of the square, in pixels.
        crop: `center` cuts the middle square, `squash` distorts.
        max_pixels: an image of more is rejected as a decompression bomb before it is decoded; at most MAX_PIXELS counts.

    Returns: pixels (size, size, 3) uint8, and the original's width and height.

    Raises: RejectedImage.

    Cost: the decoded image and its RGB copy in memory; deterministic.
    """
    if not data:
        raise RejectedImage("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image, (width, height), reduction = _parse(data, size, min(max_pixels, MAX_PIXELS))
            method = _orientation(image)
            square = _to_square(_to_rgb(image), (width, height), reduction, size, crop, method)
            if method is not None:
                square = square.transpose(method)
            if method in _TURNS:
                width, height = height, width
            return DecodedImage(np.asarray(square), width, height)
        except MemoryError:
            raise RejectedImage("too large for memory") from None


def _parse(data: bytes, size: int, max_pixels: int) -> tuple[Image.Image, tuple[int, int], int]:
    """The loaded image, its size at full scale, and by how much it is reduced (1, 2, 4 or 8)."""
    try:
        with _silent_libtiff() if sniff(data[:32]) == "TIFF" else nullcontext():
            image = Image.open(io.BytesIO(data), formats=DECODED_FORMATS)
            full = image.size
            if full[0] * full[1] > max_pixels:
                raise RejectedImage("decompression bomb")
            drafted = image.draft(None, (3 * size, 3 * size))
            image.load()
    except (RejectedImage, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise RejectedImage("decompression bomb") from None
    except UnidentifiedImageError:
        raise RejectedImage(_why_unidentified(data)) from None
    # Damaged bytes make Pillow's parsers raise nearly anything (OSError, SyntaxError, struct.error, KeyError,
    # RecursionError, ...). Only they run in this block, so any exception here means that the file is damaged.
    except Exception as error:
        if states_zero_area(data):
            raise RejectedImage("zero area") from None
        raise RejectedImage("truncated" if "truncated" in str(error).lower() else "damaged") from None
    return image, full, 1 if drafted is None else round(full[0] / drafted[1][2])


@contextmanager
def _silent_libtiff() -> Iterator[None]:
    """Send standard error nowhere: libtiff, alone among the decoders, writes there what it finds damaged."""
    try:
        kept = os.dup(2)
    except OSError:  # a program without a standard error
        yield
        return
    with _STDERR_LOCK, open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        try:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _why_unidentified(data: bytes) -> str:
    kind = sniff(data[:32])
    if kind is None:
        return "not an image"
    if kind not in DECODED_FORMATS:
        return "unsupported format"
    return "zero area" if states_zero_area(data) else "damaged"


def _to_rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image
    if mode.startswith("I;16"):
        return _from_levels(np.asarray(image) >> 8)
    if mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise RejectedImage("undefined sample range")
        return _from_levels(values >> 8)
    if mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):
            raise RejectedImage("undefined sample range")
        return _from_levels(np.rint(values * 255))
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image.convert("RGBA"))
        return page.convert("RGB")
    if mode not in _CONVERTIBLE:
        raise RejectedImage("unsupported colour space")
    return image.convert("RGB")


def _from_levels(levels: np.ndarray) -> Image.Image:
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """What makes a loaded image upright, by its EXIF data; None if nothing does."""
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken EXIF: Pillow's parser raises nearly anything, and the pixels are sound
        return None


def _to_square(
    image: Image.Image, full: tuple[int, int], reduction: int, size: int, crop: Crop, method: Image.Transpose | None
) -> Image.Image:
    """The square of `image`, which shows a picture of size `full` reduced `reduction` times and not yet made upright.

    The square is placed in the coordinates of the full picture, and rounded as it would be in the upright one.
    """
    width, height = full
    left, top, right, bottom = 0, 0, width, height
    if crop == "center":
        side = min(width, height)
        left = (width - side + (method in _REVERSED_X)) // 2
        top = (height - side + (method in _REVERSED_Y)) // 2
        right, bottom = left + side, top + side
    if (right - left, bottom - top) == (size, size):
        return image.crop((left, top, right, bottom))
    box = (left / reduction, top / reduction, right / reduction, bottom / reduction)
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box)
