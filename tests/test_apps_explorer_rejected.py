"""What can be seen of rejected files: as much as is there, and nothing where there is nothing."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from images import damaged_files
from manifold_apps.explorer.rejected import glimpse, glimpse_of
from PIL import Image


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_whole_picture_is_its_middle_square():
    pixels = noise(32, 48)
    np.testing.assert_array_equal(glimpse(encoded(pixels, "PNG"), 32), pixels[:, 8:40])
    doubled = glimpse(encoded(pixels, "PNG"), 64)
    np.testing.assert_array_equal(doubled[::2, ::2], pixels[:, 8:40])


def test_a_picture_cut_off_shows_the_rows_that_are_there():
    pixels = noise(64, 64)
    bitmap = encoded(pixels, "PPM")
    seen = glimpse(bitmap[: len(bitmap) // 2], 64)
    np.testing.assert_array_equal(seen[:30], pixels[:30])
    assert not seen[33:].any()
    whole = encoded(pixels, "JPEG")
    seen = glimpse(whole[: len(whole) // 2], 64)
    with Image.open(io.BytesIO(whole)) as image:
        wanted = np.asarray(image.convert("RGB"))
    np.testing.assert_allclose(seen[:12].astype(int), wanted[:12].astype(int), atol=2)


def test_values_without_a_convention_for_white_are_stretched():
    values = np.linspace(-700, 90_000, 256).reshape(16, 16).astype(np.float32)
    seen = glimpse(encoded(values, "TIFF"), 16)
    assert (seen.min(), seen.max()) == (0, 255)
    assert (np.diff(seen[..., 0].ravel().astype(int)) >= 0).all()


@pytest.mark.parametrize("name", list(damaged_files()))
def test_a_damaged_file_is_seen_or_not_and_raises_nothing(name):
    seen = glimpse(damaged_files()[name][0], 24)
    assert seen is None or (seen.shape == (24, 24, 3) and seen.any())


def test_nothing_is_not_a_picture():
    assert glimpse(b"this is not an image at all") is None
    assert glimpse(b"") is None
    assert glimpse(encoded(np.zeros((9, 9, 3), np.uint8), "PNG")) is None, "one colour says nothing"
    assert glimpse(encoded(np.zeros((10_000, 10_000, 3), np.uint8), "PNG")) is None, "too large to be decoded"


def test_a_file_is_opened_only_if_it_is_the_one_that_was_rejected():
    data = encoded(noise(24, 24), "PNG")

    class Found:
        def find(self, image_path, key):
            if image_path == "gone.png":
                raise FileNotFoundError
            return SimpleNamespace(data=data) if (image_path, key) == ("a.png", "a") else None

    reject = {"reason": "truncated", "image_path": "a.png", "key": "a"}
    assert glimpse_of(Found(), reject, 24) is not None
    assert glimpse_of(Found(), reject | {"key": "b"}, 24) is None
    assert glimpse_of(Found(), reject | {"reason": "crashes the decoder"}, 24) is None
    assert glimpse_of(Found(), reject | {"image_path": "gone.png"}, 24) is None
