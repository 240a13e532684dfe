"""Latents as pictures on a page: decoded, enlarged, set side by side, offered as files; and pictures from the reader."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Sequence

import numpy as np
import streamlit as st
import torch
from PIL import Image
from torch import Tensor

from manifold.errors import InputError

from .loading import Opened
from .uploads import MAX_UPLOAD_BYTES, encode_upload

__all__ = ["decode", "enlarge", "grid", "png", "same_size", "show", "strip", "thumbnails", "upload"]

_GAP_PX = 4


def decode(opened: Opened, latents: Tensor) -> np.ndarray:
    """Latents (n, d) or (n, C, h, w) as pictures (n, H, W, 3) uint8.

    Raises: InputError, with the sentence that says why, if the workspace's encoder could not be opened.
    """
    if opened.encoder is None:
        raise InputError(f"pictures need the workspace's encoder: {opened.missing['encoder']}")
    shaped = latents.reshape(len(latents), *opened.store.shape).float()
    return opened.encoder.decode(shaped).permute(0, 2, 3, 1).numpy()


def same_size(noisy: Tensor, clean: Tensor) -> Tensor:
    """Noisy latents scaled to the length of a clean one: beyond it a decoder shows nothing but its limits."""
    length = noisy.flatten(1).norm(dim=1).clamp_min(torch.finfo(noisy.dtype).tiny)
    scale = clean.flatten(1).norm(dim=1) / length
    return noisy * scale.view(-1, *[1] * (noisy.ndim - 1))


def thumbnails(opened: Opened, rows: Sequence[int]) -> np.ndarray:
    """The collection's images by row, decoded from their latents, (n, H, W, 3) uint8; kept once decoded."""
    return _thumbnails(opened.token, opened, tuple(int(row) for row in rows))


@st.cache_data(max_entries=256, show_spinner=False)
def _thumbnails(token: str, _opened: Opened, rows: tuple[int, ...]) -> np.ndarray:
    return decode(_opened, torch.from_numpy(_opened.store.read(rows)).float())


def enlarge(pixels: np.ndarray, side: int) -> Image.Image:
    """A picture with at least `side` pixels on its longer side: by whole factors, so that every pixel shows."""
    factor = max(1, math.ceil(side / max(pixels.shape[:2])))
    return Image.fromarray(pixels.repeat(factor, axis=0).repeat(factor, axis=1))


def strip(pictures: np.ndarray, side: int = 96) -> Image.Image:
    """Pictures (n, H, W, 3) in one row, on nothing."""
    return grid(pictures, len(pictures), side)


def grid(pictures: np.ndarray, columns: int, side: int = 96) -> Image.Image:
    """Pictures (n, H, W, 3) in rows of `columns`, on nothing."""
    tiles = [enlarge(picture, side) for picture in pictures]
    width, height = tiles[0].size
    rows = -(-len(tiles) // columns)
    size = (columns * (width + _GAP_PX) - _GAP_PX, rows * (height + _GAP_PX) - _GAP_PX)
    sheet = Image.new("RGBA", size)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet.paste(tile, (column * (width + _GAP_PX), row * (height + _GAP_PX)))
    return sheet


def show(pixels: np.ndarray | Image.Image, caption: str = "", *, side: int = 224) -> None:
    """One picture as wide as its column allows, with a caption."""
    picture = pixels if isinstance(pixels, Image.Image) else enlarge(pixels, side)
    # Sent with the page: a file of its own is gone when a slow browser asks for it after the next press of a slider.
    inline = f"data:image/png;base64,{base64.b64encode(png(picture)).decode()}"
    st.image(inline, caption=caption or None, width="stretch", alt=caption or "picture")


def png(picture: Image.Image) -> bytes:
    """As the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def upload(opened: Opened, key: str) -> tuple[Tensor, str] | None:
    """Ask the reader for an image: its latent (1, d) and its name, or None, with a sentence if it cannot be used."""
    if opened.encoder is None:
        st.info(f"uploads need the workspace's encoder: {opened.missing['encoder']}", icon=":material/info:")
        return None
    file = st.file_uploader(
        "Upload an image",
        key=key,
        help=f"Up to {MAX_UPLOAD_BYTES // 2**20} MiB and 50 megapixels. It stays on this machine.",
    )
    if file is None:
        return None
    try:
        data = file.getvalue()
        return _encoded(opened.token, opened, hashlib.sha256(data).hexdigest(), data, file.name), file.name
    except InputError as error:
        st.warning(str(error), icon=":material/broken_image:")
        return None


@st.cache_data(max_entries=16, show_spinner="Encoding …", hash_funcs={bytes: lambda data: len(data)})
def _encoded(token: str, _opened: Opened, digest: str, data: bytes, name: str) -> Tensor:
    assert _opened.encoder is not None
    return encode_upload(data, name, _opened.workspace, _opened.encoder)
