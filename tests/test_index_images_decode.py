import random
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from images import ORIENTATION, damaged_files, encoded, picture, png, scanlines
from PIL import Image, TiffImagePlugin

from index.images.decode import MAX_PIXELS, REASONS, RejectedImage, decode_image
from index.images.formats import IMAGE_EXTENSIONS, has_image_name, sniff

UPRIGHT = {  # by the EXIF specification: where row 0 and column 0 of the stored image belong
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: a[::-1, ::-1],
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def center(array: np.ndarray) -> np.ndarray:
    height, width = array.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return array[top : top + side, left : left + side]


def lanczos(length: int, low: float, high: float, size: int) -> np.ndarray:
    """Weights (size, length) of antialiased Lanczos-3 resampling of the interval [low, high], by the formula."""
    scale = (high - low) / size
    stretch = max(scale, 1.0)
    centers = low + (np.arange(size) + 0.5) * scale
    distance = (np.arange(length) + 0.5 - centers[:, None]) / stretch
    weights = np.where(abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0.0)
    return weights / weights.sum(1, keepdims=True)


def resampled(array: np.ndarray, size: int, crop: str) -> np.ndarray:
    height, width = array.shape[:2]
    if crop == "center":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        box = (top, top + side, left, left + side)
    else:
        box = (0, height, 0, width)
    rows, columns = lanczos(height, *box[:2], size), lanczos(width, *box[2:], size)
    return np.clip(np.einsum("yh,hwc,xw->yxc", rows, array.astype(np.float64), columns, optimize=True), 0, 255)


def pixels(data: bytes, size: int, crop: str = "center") -> np.ndarray:
    return decode_image(data, size, crop).pixels


# Geometry ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(kind: str, orientation: int) -> None:
    stored = picture(20, 31)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = decode_image(encoded(stored, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {})), 20)
    upright = UPRIGHT[orientation](stored)
    assert (image.height, image.width) == upright.shape[:2]
    np.testing.assert_array_equal(image.pixels, center(upright))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_jpeg_decoded_at_reduced_scale(orientation: int) -> None:
    stored = picture(200, 333)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = decode_image(encoded(stored, "JPEG", quality=95, exif=exif), 16)
    upright = UPRIGHT[orientation](stored)
    assert (image.height, image.width) == upright.shape[:2]
    assert abs(image.pixels - resampled(upright, 16, "center")).mean() < 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_an_avif(orientation: int) -> None:
    stored = picture(32, 48)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = decode_image(encoded(stored, "AVIF", quality=95, exif=exif), 32)
    upright = UPRIGHT[orientation](stored)
    assert (image.height, image.width) == upright.shape[:2]
    assert abs(image.pixels.astype(int) - center(upright)).mean() < 5


@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0\0", b"Exif\0\0" + bytes(30), b"garbage" * 9])
def test_broken_exif_is_taken_as_upright(exif: bytes) -> None:
    array = picture(24, 24)
    np.testing.assert_array_equal(pixels(encoded(array, exif=exif), 24), array)


@pytest.mark.parametrize("crop", ["center", "squash"])
@pytest.mark.parametrize(
    ("height", "width", "size"), [(40, 56, 32), (90, 61, 17), (200, 33, 32), (12, 9, 32), (7, 300, 7)]
)
def test_resampling_is_the_formula(crop: str, height: int, width: int, size: int) -> None:
    array = picture(height, width)
    image = decode_image(encoded(array), size, crop)
    assert image.pixels.shape == (size, size, 3)
    assert image.pixels.dtype == np.uint8
    assert (image.width, image.height) == (width, height)
    # Pillow rounds to 8 bits after each of its two passes: half a level, and half a level times the second weights.
    spread = max(abs(lanczos(length, 0, length, size)).sum(1).max() for length in (height, width, min(height, width)))
    assert abs(image.pixels - resampled(array, size, crop)).max() <= 0.5 + 0.5 * spread + 0.01


def test_reduction_is_antialiased() -> None:
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    reduced = pixels(encoded(stripes), 32).astype(float)
    assert abs(reduced - 127.5).max() < 4
    aliased = np.asarray(Image.fromarray(stripes).resize((32, 32), Image.Resampling.NEAREST)).astype(float)
    assert abs(aliased - 127.5).max() > 100  # the check can fail


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 47), (61, 32)])
def test_pixels_of_the_right_size_are_untouched(height: int, width: int) -> None:
    array = picture(height, width)
    np.testing.assert_array_equal(pixels(encoded(array), 32), center(array))


def test_squash_of_the_right_size_is_untouched_and_else_uses_the_whole_image() -> None:
    array = picture(32, 32)
    np.testing.assert_array_equal(pixels(encoded(array), 32, "squash"), array)
    half = np.zeros((32, 96, 3), np.uint8)
    half[:, 48:] = 255
    squashed = pixels(encoded(half), 32, "squash")
    assert squashed[:, :14].max() < 20
    assert squashed[:, 18:].min() > 235
    assert pixels(encoded(half), 32)[:, :14].max() == 0


@pytest.mark.parametrize(("size", "scale"), [(16, 8), (32, 4), (64, 2)])
def test_jpeg_at_reduced_scale_stays_near_the_full_decoding(size: int, scale: int) -> None:
    array = picture(size * 3 * scale + 5, size * 3 * scale + 40)
    data = encoded(array, "JPEG", quality=92)
    full = resampled(np.asarray(Image.open(BytesIO(data)).convert("RGB")), size, "center")
    assert abs(pixels(data, size) - full).mean() < 0.6
    # Shifting the cut by one reduced pixel, the mistake that rounding the box would make, is seen by this bound.
    shifted = resampled(np.roll(np.asarray(Image.open(BytesIO(data))), scale, axis=(0, 1)), size, "center")
    assert abs(shifted - full).mean() > 0.6


# Colour ------------------------------------------------------------------------------------------------------------


def test_greyscale_and_one_bit_become_three_equal_channels() -> None:
    grey = picture(16, 16)[..., 0]
    np.testing.assert_array_equal(pixels(encoded(grey), 16), np.repeat(grey[..., None], 3, axis=2))
    bits = grey > 127
    expected = np.repeat(np.where(bits, 255, 0)[..., None], 3, axis=2)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(bits)), 16), expected)
    for compression in ("group4", "tiff_lzw", None):
        np.testing.assert_array_equal(
            pixels(encoded(Image.fromarray(bits), "TIFF", compression=compression), 16), expected
        )


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_composited_on_white(mode: str, kind: str) -> None:
    colour = picture(16, 16) if mode == "RGBA" else picture(16, 16)[..., :1]
    alpha = np.linspace(0, 255, 256).astype(np.uint8).reshape(16, 16, 1)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    image = Image.fromarray(np.concatenate([colour, alpha], axis=2), mode)
    opacity = alpha / 255.0
    expected = np.broadcast_to(colour * opacity + 255 * (1 - opacity), (16, 16, 3))
    assert abs(pixels(encoded(image, kind, **options), 16) - expected).max() <= 1.0


def test_palette_with_and_without_transparency() -> None:
    places = np.arange(256, dtype=np.uint8).reshape(16, 16) % 4
    palette = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
    image = Image.fromarray(places, "P")
    image.putpalette(palette.tobytes())
    np.testing.assert_array_equal(pixels(encoded(image), 16), palette[places])
    clear_first = palette.copy()
    clear_first[0] = 255
    np.testing.assert_array_equal(pixels(encoded(image, transparency=0), 16), clear_first[places])
    np.testing.assert_array_equal(pixels(encoded(image, "GIF", transparency=0), 16), clear_first[places])
    half = palette.astype(float)
    half[1] = palette[1] * (128 / 255) + 255 * (127 / 255)
    translucent = pixels(encoded(image, transparency=bytes([255, 128])), 16)
    assert abs(translucent - half[places]).max() <= 1.0


def test_transparent_colour_key_of_rgb() -> None:
    array = np.zeros((8, 8, 3), np.uint8)
    array[:4] = (1, 2, 3)
    key = struct.pack(">HHH", 1, 2, 3)
    data = png(8, 8, 8, 2, scanlines(array.reshape(8, -1)), (b"tRNS", key))
    expected = array.copy()
    expected[:4] = 255
    np.testing.assert_array_equal(pixels(data, 8), expected)


def test_sixteen_bits_keep_the_high_byte_grey_and_colour_alike() -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.repeat((levels // 256).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(pixels(png(256, 256, 16, 0, scanlines(levels)), 256), expected)
    colour = np.repeat(levels[..., None], 3, axis=2).reshape(256, -1)
    np.testing.assert_array_equal(pixels(png(256, 256, 16, 2, scanlines(colour)), 256), expected)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(levels), "TIFF"), 256), expected)
    opaque = np.stack([levels, np.full_like(levels, 65535)], axis=2).reshape(256, -1)
    np.testing.assert_array_equal(pixels(png(256, 256, 16, 4, scanlines(opaque)), 256), expected)


def test_big_endian_tiff_of_sixteen_bits() -> None:
    levels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    strip = levels.astype(">u2").tobytes()
    fields = [(256, 8), (257, 8), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, 8), (279, 128)]
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in fields)
    data = b"MM\0*" + struct.pack(">I", 8 + 128) + strip + struct.pack(">H", len(fields)) + entries + bytes(4)
    expected = np.repeat((levels // 256).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(pixels(data, 8), expected)


def test_floats_and_wide_integers_have_a_meaning_only_in_the_usual_range() -> None:
    unit = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    expected = np.repeat(np.rint(unit * 255).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(pixels(encoded(unit, "TIFF"), 8), expected)
    wide = np.arange(64, dtype=np.int32).reshape(8, 8) * 1023
    expected = np.repeat((wide // 256).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(pixels(encoded(wide, "TIFF"), 8), expected)
    for undefined in (unit * 2, unit - 1, np.where(unit > 0.5, np.nan, unit).astype(np.float32), wide * 3, wide - 1):
        with pytest.raises(RejectedImage, match="undefined sample range"):
            decode_image(encoded(undefined, "TIFF"), 8)


def test_cmyk_without_a_profile() -> None:
    inks = picture(16, 16, seed=1)
    cmyk = np.concatenate([inks, np.full((16, 16, 1), 40, np.uint8)], axis=2)
    expected = (255.0 - inks) * (255 - 40) / 255
    tiff = pixels(encoded(Image.fromarray(cmyk, "CMYK"), "TIFF"), 16)
    assert abs(tiff - expected).max() <= 1.5
    jpeg = pixels(encoded(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=100, subsampling=0), 16)
    assert abs(jpeg - expected).max() <= 6


def test_lab_is_rejected() -> None:
    lab = Image.new("LAB", (8, 8), (120, 130, 140))
    with pytest.raises(RejectedImage, match="unsupported colour space"):
        decode_image(encoded(lab, "TIFF"), 8)


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})])
def test_first_frame_of_an_animation(kind: str, options: dict[str, bool]) -> None:
    first, second = Image.new("RGB", (12, 12), (255, 0, 0)), Image.new("RGB", (12, 12), (0, 0, 255))
    data = encoded(first, kind, save_all=True, append_images=[second], **options)
    np.testing.assert_array_equal(pixels(data, 12), np.full((12, 12, 3), (255, 0, 0), np.uint8))


@pytest.mark.parametrize(
    ("kind", "sniffed", "error"),
    [("JPEG", "JPEG", 5), ("MPO", "JPEG", 5), ("AVIF", "AVIF", 5), ("WEBP", "WEBP", 8), ("JPEG2000", "JPEG2000", 0),
     ("QOI", "QOI", 0), ("BMP", "BMP", 0), ("DIB", None, 0), ("PPM", "PPM", 0)],
)  # fmt: skip
def test_formats(kind: str, sniffed: str | None, error: int) -> None:
    array = picture(32, 32)
    data = encoded(array, kind, **({"quality": 95} if error else {}))
    assert abs(pixels(data, 32).astype(int) - array).mean() <= error
    assert sniff(data[:32]) == sniffed


def test_names() -> None:
    assert all(has_image_name(f"x.{extension.upper()}") for extension in IMAGE_EXTENSIONS)
    assert not any(has_image_name(name) for name in ("jpg", "x.txt", "x.jpg.part", "x.json", "x", "x."))
    assert sniff(b"") is None
    assert sniff(b"plain text") is None


# Rejection -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", damaged_files())
def test_damaged_files_have_their_reason(name: str) -> None:
    data, reason = damaged_files()[name]
    assert reason in REASONS
    with pytest.raises(RejectedImage, match=f"^{reason}$"):
        decode_image(data, 32)


@pytest.mark.parametrize(
    "data",
    [
        b"GIF89a" + struct.pack("<HH", 0, 5) + bytes(20),
        b"BM" + bytes(12) + struct.pack("<IiiHHIIiiII", 40, 0, 5, 1, 24, 0, 0, 0, 0, 0, 0),
        b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0\xff\xc0\0\x11\x08\0\0\0\x10\3\1\x22\0\2\x11\1\3\x11\1",
    ],
    ids=["GIF", "BMP", "JPEG"],
)
def test_zero_area(data: bytes) -> None:
    with pytest.raises(RejectedImage, match="zero area"):
        decode_image(data, 32)


def test_the_bomb_limit_holds_when_the_program_has_lifted_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    side = int(MAX_PIXELS**0.5) + 1
    with pytest.raises(RejectedImage, match="decompression bomb"):
        decode_image(png(side, side, 8, 0, b""), 32)


def test_a_large_image_below_the_limit_brings_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 56 - 1)
    assert pixels(encoded(picture()), 40).shape == (40, 40, 3)


def test_memory_error_is_a_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", fail)
    with pytest.raises(RejectedImage, match="too large for memory"):
        decode_image(encoded(picture()), 16)


def sample_files() -> dict[str, bytes]:
    array = picture(24, 36)
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x010E] = 6, "a description"
    image = Image.fromarray(array)

    def frames() -> dict[str, Any]:  # saving leaves settings in the images appended
        return {"save_all": True, "append_images": [image.rotate(90)]}

    files = {
        "jpeg": encoded(array, "JPEG", exif=exif),
        "progressive": encoded(array, "JPEG", progressive=True),
        "cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "mpo": encoded(array, "MPO", **frames()),
        "png": encoded(array, exif=exif),
        "apng": encoded(array, **frames()),
        "palette": encoded(image.convert("P"), transparency=3),
        "grey16": encoded(array[..., 0].astype(np.uint16) * 257),
        "gif": encoded(array, "GIF", **frames()),
        "float": encoded(array[..., 0].astype(np.float32) / 255, "TIFF"),
        "group4": encoded(image.convert("1"), "TIFF", compression="group4"),
        "lossless": encoded(array, "WEBP", lossless=True),
        "pages": encoded(array, "TIFF", **frames()),
    }
    files |= {kind: encoded(array, kind) for kind in ("BMP", "DIB", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "QOI")}
    for compression in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits"):
        files[compression] = encoded(array, "TIFF", compression=compression)
    return files


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Cut off, or with some bytes changed (half the time near the start), or with a stretch removed."""
    changed = bytearray(data)
    way = rng.randrange(4)
    if way == 0:
        return bytes(changed[: rng.randrange(len(changed))])
    for _ in range(rng.choice((1, 2, 5, 20))):
        reach = min(len(changed), 200) if way == 1 else len(changed)
        changed[rng.randrange(reach)] = rng.choice((0, 255, rng.randrange(256)))
    if way == 3:
        place = rng.randrange(len(changed))
        del changed[place : place + rng.randrange(30)]
    return bytes(changed)


@pytest.mark.parametrize("name", sample_files())
def test_any_damage_gives_pixels_or_a_rejection(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    whole, rng = sample_files()[name], random.Random(zlib.crc32(name.encode()))
    assert pixels(whole, 16).shape == (16, 16, 3)
    reasons: list[str] = []
    for _ in range(150):
        try:
            assert decode_image(mutated(whole, rng), 16).pixels.shape == (16, 16, 3)
        except RejectedImage as rejection:
            reasons.append(rejection.reason)
    assert set(reasons) <= set(REASONS)
    assert len(reasons) > 30
    assert capfd.readouterr() == ("", "")


def test_a_program_without_standard_error_can_decode_tiff() -> None:
    program = (
        "import os, sys; os.close(2); from index.images.decode import decode_image;"
        "print(decode_image(sys.stdin.buffer.read(), 8).pixels.shape)"
    )
    data = encoded(picture(), "TIFF")
    done = subprocess.run([sys.executable, "-c", program], input=data, stdout=subprocess.PIPE, check=True)
    assert done.stdout.split() == [b"(8,", b"8,", b"3)"]


def test_tiff_tags_of_any_type_do_not_reject_the_pixels() -> None:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[ORIENTATION] = 6
    array = picture(20, 31)
    image = decode_image(encoded(array, "TIFF", tiffinfo=info), 20)
    np.testing.assert_array_equal(image.pixels, center(np.rot90(array, -1)))
    assert (image.width, image.height) == (20, 31)
