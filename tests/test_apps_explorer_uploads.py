"""Uploads: each kind of unusable file gets its sentence, a usable one the latent that the workspace's own would have."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from images import damaged_files
from manifold_apps.explorer.uploads import MAX_UPLOAD_BYTES, encode_upload
from PIL import Image

from index.encoders import PixelEncoder
from index.images.decode import REASONS
from index.workspace import Recipe
from manifold.errors import InputError


@pytest.fixture
def workspace():
    recipe = Recipe("photos", 1, "", PixelEncoder(8).spec, "center", batch_size=1, shard_rows=1)
    return SimpleNamespace(manifest=SimpleNamespace(recipe=recipe))


def png(size) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 100, 50)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_usable_image_becomes_a_latent(workspace):
    latent = encode_upload(png((16, 8)), "a.png", workspace, PixelEncoder(8))
    wanted = np.repeat(np.array([200, 100, 50]) / 127.5 - 1, 64)
    np.testing.assert_allclose(latent.numpy()[0], wanted, atol=1e-6)


@pytest.mark.parametrize("name", list(damaged_files()))
def test_damaged_files_get_a_sentence(workspace, name):
    data, reason = damaged_files()[name]
    assert reason in REASONS
    with pytest.raises(InputError, match=rf"^{name} cannot be used: (it|the file|its|no convention) "):
        encode_upload(data, name, workspace, PixelEncoder(8))


def test_a_hundred_megapixels_are_refused_before_decoding(workspace):
    with pytest.raises(InputError, match="more than 50 megapixels"):
        encode_upload(png((10_000, 10_000)), "wall.png", workspace, PixelEncoder(8))


def test_fifty_megabytes_are_refused(workspace):
    with pytest.raises(InputError, match="has 50 MiB, uploads may have 20"):
        encode_upload(bytes(50 * 2**20), "film.mov", workspace, PixelEncoder(8))
    assert MAX_UPLOAD_BYTES < 50 * 2**20
