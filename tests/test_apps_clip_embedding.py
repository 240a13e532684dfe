"""Latents seen by CLIP: decoded, resized and embedded as by hand, with a stand-in and with a real open_clip model."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import make_workspace
from manifold_apps.clip_embedding import latent_embedder
from PIL import Image
from tiny_clip import projection_model, save_tiny_clip
from tiny_models import save_tiny_kl

import index.clip
from index.encoders import open_encoder
from index.workspace import Workspace
from manifold.errors import InputError

HAVE_OPEN_CLIP = importlib.util.find_spec("open_clip") is not None
needs_open_clip = pytest.mark.skipif(not HAVE_OPEN_CLIP, reason="needs open_clip: pip install 'latent-manifold[clip]'")
SIDE = 12


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    """Pixels in [-1, 1] as latents."""
    rows = torch.rand(70, 3 * SIDE**2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return make_workspace(tmp_path / "ws", rows.numpy().astype(np.float16), (3, SIDE, SIDE))


def pictures(latents, side):
    """uint8 (n, 3, side, side) by Pillow alone."""
    found = []
    for row in latents.view(-1, 3, SIDE, SIDE):
        pixels = ((row.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        resized = Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS)
        found.append(torch.from_numpy(np.array(resized)).permute(2, 0, 1))
    return torch.stack(found)


def test_an_encoder_that_moved_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(index.clip, "open_clip_model", lambda name, device=None: projection_model())
    spec = open_encoder(str(save_tiny_kl(tmp_path / "vae")), SIDE).spec
    rows = np.random.default_rng(0).normal(size=(3, spec.d)).astype(np.float16)
    made = make_workspace(tmp_path / "ws", rows, spec.latent_shape)
    made.commit(recipe=replace(made.manifest.recipe, encoder=spec))
    (tmp_path / "vae").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="say where it lies with --encoder"):
        latent_embedder(made, "projection")
    assert latent_embedder(made, "projection", encoder=str(tmp_path / "moved"))(torch.zeros(2, spec.d)).shape[0] == 2


def test_latents_are_decoded_resized_and_embedded(workspace, monkeypatch):
    model = projection_model()
    monkeypatch.setattr(index.clip, "open_clip_model", lambda name, device=None: model)
    latents = torch.from_numpy(workspace.latents.read(np.arange(70))).float()
    found = latent_embedder(workspace, "projection")(latents)
    assert found.shape == (70, model.spec.d)
    torch.testing.assert_close(found, model.encode_images(pictures(latents, model.spec.image_size)))


@needs_open_clip
def test_a_real_model_from_a_folder(workspace, tmp_path):
    folder = save_tiny_clip(tmp_path / "tiny")
    model = index.clip.open_clip_model(str(folder))
    latents = torch.from_numpy(workspace.latents.read(np.arange(5))).float()
    found = latent_embedder(workspace, str(folder))(latents)
    torch.testing.assert_close(
        found, model.encode_images(pictures(latents, model.spec.image_size)), rtol=1e-4, atol=1e-5
    )
