"""What can still be seen of files that a collection's owner lost to rejection: the part of a cut-off picture that is there.

Looser than `index.images.decode`, which decides what is fit to be encoded: here nothing is, a person only wants to know which
picture it was. Files that crashed a decoder or did not fit into memory are not opened again.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from index.images import read_bytes
from index.images.formats import DECODED_FORMATS

if TYPE_CHECKING:
    from index.originals import Originals

__all__ = ["MAX_GLIMPSE_PIXELS", "glimpse", "glimpse_of"]

MAX_GLIMPSE_PIXELS = 50_000_000
"""Largest picture decoded, after a JPEG was reduced by its decoder."""
_HOPELESS = frozenset(
    {"empty file", "not an image", "zero area", "crashes the decoder", "too large for memory", "missing file"}
)
_UNSCALED = frozenset({"I", "F"})


def glimpse_of(originals: Originals, reject: dict[str, Any], side_px: int = 128) -> np.ndarray | None:
    """What can be seen of a rejected input, see `glimpse`; None too if the file is gone or is another one by now.

    Arguments
        originals: of the workspace. reject: of `read_rejects`.
    """
    if reject["reason"] in _HOPELESS:
        return None
    try:
        ref = originals.find(reject["image_path"], reject["key"])
        return None if ref is None else glimpse(read_bytes(ref.data), side_px)
    # A file that was turned away may fail in any way, and one that fails has no picture.
    except Exception:
        return None


def glimpse(data: bytes, side_px: int = 128) -> np.ndarray | None:
    """The middle square of as much of a picture as can be decoded, (side_px, side_px, 3) uint8; None if that is nothing.

    Rows that are missing are black, and a picture of one colour throughout counts as nothing. Values without a convention
    for white are stretched to the range in use.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=DECODED_FORMATS)
            image.draft(None, (side_px, side_px))
            if image.width * image.height > MAX_GLIMPSE_PIXELS:
                return None
            whole = _loaded(image)
        # Pillow's parsers raise nearly anything at damaged bytes.
        except Exception:
            return None
    side = min(whole.size)
    left, top = (whole.width - side) // 2, (whole.height - side) // 2
    square = whole.crop((left, top, left + side, top + side)).resize((side_px, side_px), Image.Resampling.BOX)
    pixels = np.asarray(square)
    return pixels if (pixels != pixels[0, 0]).any() else None


def _loaded(image: Any) -> Image.Image:
    """Decoded as far as it goes, as RGB."""
    try:
        image.load()
    except (OSError, SyntaxError, ValueError):
        image.tile = []  # what was decoded stays in the image; Pillow is told that there is no more to come
    if image.mode in _UNSCALED or image.mode.startswith("I;"):
        values = np.asarray(image, dtype=np.float64)
        low, high = float(values.min()), float(values.max())
        return Image.fromarray((255 * (values - low) / max(high - low, 1e-300)).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
