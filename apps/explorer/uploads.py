"""A picture that a reader hands to a page: judged, decoded and encoded like the workspace's own images.

Stricter than for a collection, because a page answers many readers from one process: at most 20 MiB and 50 megapixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from index.encode import encode_one
from index.images import RejectedImage
from index.workspace import Workspace
from manifold.errors import InputError

if TYPE_CHECKING:
    from index.encoders import Encoder

__all__ = ["MAX_UPLOAD_BYTES", "MAX_UPLOAD_PIXELS", "encode_upload"]

MAX_UPLOAD_BYTES = 20 * 2**20
MAX_UPLOAD_PIXELS = 50_000_000

_WHY = {
    "empty file": "the file is empty",
    "not an image": "it is not an image",
    "unsupported format": "its format is not supported; JPEG, PNG, WebP, AVIF, GIF, TIFF and BMP are",
    "unsupported colour space": "its colour space is not supported; save it as RGB",
    "undefined sample range": "no convention says which of its values is white; save it with 8 bits a colour",
    "zero area": "it has no area",
    "decompression bomb": f"it has more than {MAX_UPLOAD_PIXELS // 10**6} megapixels; reduce it first",
    "truncated": "the file is cut off; copy it again",
    "damaged": "the file is damaged",
    "too large for memory": "it does not fit into memory; reduce it first",
}


def encode_upload(data: bytes, name: str, workspace: Workspace, encoder: Encoder) -> Tensor:
    """The latent of an uploaded image, cropped and encoded as the workspace's images were.

    Arguments
        data: the bytes of the file. name: what the reader calls it. workspace: for its crop. encoder: the workspace's.

    Returns: (1, d) float32.

    Raises: InputError, one sentence that says what is wrong with the file.
    """
    if len(data) > MAX_UPLOAD_BYTES:
        raise InputError(
            f"{name} has {len(data) / 2**20:,.0f} MiB, uploads may have {MAX_UPLOAD_BYTES // 2**20}; reduce it first"
        )
    try:
        return encode_one(data, workspace.manifest.recipe, encoder, max_pixels=MAX_UPLOAD_PIXELS).flatten(1)
    except RejectedImage as rejected:
        raise InputError(f"{name} cannot be used: {_WHY.get(rejected.reason, rejected.reason)}") from rejected
