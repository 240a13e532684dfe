"""Which files are images: by name for listing a folder, by their first bytes for everything else.

A name only decides whether a file belongs to a collection; what it holds is decided by its bytes, so a PNG named .jpg
is read as a PNG, and a text file named .jpg is a reject.
"""

from __future__ import annotations

__all__ = ["DECODED_FORMATS", "IMAGE_EXTENSIONS", "has_image_name", "sniff", "states_zero_area"]

DECODED_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI")
"""Pillow's names of the formats we let it try. EPS (runs a program), PSD, ICO and the scientific ones are left out."""

_UNDECODED_EXTENSIONS = frozenset({"heic", "heif", "hif", "jxl"})
"""Photographs that Pillow alone cannot decode: they belong to a collection, and are rejected with that reason."""

IMAGE_EXTENSIONS = _UNDECODED_EXTENSIONS | {
    "jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff",
    "avif", "avifs", "jp2", "j2k", "jpx", "jpf", "ppm", "pgm", "pbm", "pnm", "pfm", "qoi",
}  # fmt: skip
"""Extensions, lower case and without the dot, of files that belong to a collection of images."""

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"qoif", "QOI"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JXL"),
    (b"\xff\x0a", "JXL"),
)
_PPM_KINDS = b"123456Ffy"
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"heif": "HEIC", b"mif1": "HEIC"}


def has_image_name(name: str) -> bool:
    """Whether a file's name ends in an image extension, in any case."""
    return name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS if "." in name else False


def sniff(head: bytes) -> str | None:
    """The image format that the first 32 bytes of a file announce, or None."""
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12])
    if len(head) > 2 and head[:1] == b"P" and head[1] in _PPM_KINDS and head[2:3].isspace():
        return "PPM"
    return None


def states_zero_area(data: bytes) -> bool:
    """Whether the header of a PNG, GIF, BMP or JPEG states a width or height of zero."""
    kind = sniff(data[:32])
    sides: tuple[bytes, ...] = ()
    if kind == "PNG" and len(data) >= 24:
        sides = data[16:20], data[20:24]
    elif kind == "GIF" and len(data) >= 10:
        sides = data[6:8], data[8:10]
    elif kind == "BMP" and len(data) >= 26:
        sides = data[18:22], data[22:26]
    elif kind == "JPEG":
        sides = _jpeg_sides(data)
    return any(not any(side) for side in sides)


def _jpeg_sides(data: bytes) -> tuple[bytes, ...]:
    """The two-byte height and width of the first frame header of a JPEG; nothing if there is none."""
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return data[position + 5 : position + 7], data[position + 7 : position + 9]
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return ()
