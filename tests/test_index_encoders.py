"""Encoders against diffusers called directly, scaled as each model's own pipeline scales."""

import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import save_tiny_dc, save_tiny_flux2, save_tiny_kl, save_tiny_pipeline, save_tiny_taesd

from index.encode import encode_images
from index.encoders import EncoderSpec, open_encoder, reopen
from index.workspace import Workspace
from manifold.errors import FormatError, InputError, MismatchError, ShapeError


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (5, 3, 16, 16), generator=generator, dtype=torch.uint8)


def prepared(images: torch.Tensor) -> torch.Tensor:
    """As diffusers' VaeImageProcessor prepares 8-bit images: to 0..1, then to -1..1."""
    from diffusers.image_processor import VaeImageProcessor

    return VaeImageProcessor.normalize(images.float() / 255)


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_pixels(images):
    encoder = open_encoder("pixels", 16)
    same(encoder.encode(images), prepared(images))
    assert torch.equal(encoder.decode(encoder.encode(images)), images)
    assert encoder.spec.latent_shape == (3, 16, 16)
    assert encoder.spec.d == 768


@pytest.mark.parametrize(
    ("config", "formula"),
    [
        ({}, lambda z: z * 0.18215),
        ({"scaling_factor": 0.13025}, lambda z: z * 0.13025),
        ({"scaling_factor": 1.5305, "shift_factor": 0.0609}, lambda z: (z - 0.0609) * 1.5305),
        (
            {"latents_mean": (1.0, 2.0, 3.0, 4.0), "latents_std": (0.5, 1.0, 2.0, 4.0), "scaling_factor": 0.5},
            lambda z: (
                (z - torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1))
                * 0.5
                / torch.tensor([0.5, 1.0, 2.0, 4.0]).view(1, 4, 1, 1)
            ),
        ),
    ],
    ids=["sd", "sdxl", "sd3-flux", "playground"],
)
def test_kl_is_scaled_as_its_pipeline_does(tmp_path, images, config, formula):
    folder = save_tiny_kl(tmp_path / "vae", **config)
    vae = diffusers.AutoencoderKL.from_pretrained(folder).eval()
    encoder = open_encoder(str(folder), 16)
    with torch.inference_mode():
        raw = vae.encode(prepared(images)).latent_dist.mode()
        same(encoder.encode(images), formula(raw))
        pictures = (vae.decode(raw).sample / 2 + 0.5).clamp(0, 1).mul(255).round().byte()
    difference = encoder.decode(encoder.encode(images)).int() - pictures.int()
    assert int(difference.abs().max()) <= 1
    assert encoder.spec.latent_shape == (4, 8, 8)


def test_the_forward_pass_is_bit_for_bit_that_of_diffusers(tmp_path, images):
    """On the same tensors, before scaling by a factor of one."""
    folder = save_tiny_kl(tmp_path / "vae", scaling_factor=1.0)
    vae = diffusers.AutoencoderKL.from_pretrained(folder).eval()
    with torch.inference_mode():
        raw = vae.encode(images.float() / 127.5 - 1).latent_dist.mode()
    assert torch.equal(open_encoder(str(folder), 16).encode(images), raw)


def test_flux2_is_patched_and_normalised_as_its_pipeline_does(tmp_path, images):
    folder = save_tiny_flux2(tmp_path / "vae")
    vae = diffusers.AutoencoderKLFlux2.from_pretrained(folder).eval()
    encoder = open_encoder(str(folder), 16)
    with torch.inference_mode():
        raw = vae.encode(prepared(images)).latent_dist.mode()
        # Flux2Pipeline._patchify_latents, which needs transformers to be imported.
        patched = raw.view(5, 4, 4, 2, 4, 2).permute(0, 1, 3, 5, 2, 4).reshape(5, 16, 4, 4)
        mean = vae.bn.running_mean.view(1, -1, 1, 1)
        deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
        same(encoder.encode(images), (patched - mean) / deviation)
        pictures = (vae.decode(raw).sample / 2 + 0.5).clamp(0, 1).mul(255).round().byte()
    assert int((encoder.decode(encoder.encode(images)).int() - pictures.int()).abs().max()) <= 1
    assert encoder.spec.latent_shape == (16, 4, 4)


def test_tiny_and_dc(tmp_path, images):
    tiny = diffusers.AutoencoderTiny.from_pretrained(save_tiny_taesd(tmp_path / "tiny")).eval()
    deep = diffusers.AutoencoderDC.from_pretrained(save_tiny_dc(tmp_path / "dc")).eval()
    with torch.inference_mode():
        same(open_encoder(str(tmp_path / "tiny"), 16).encode(images), tiny.encode(prepared(images)).latents)
        same(open_encoder(str(tmp_path / "dc"), 16).encode(images), deep.encode(prepared(images)).latent * 0.41407)
        pictures = (deep.decode(deep.encode(prepared(images)).latent).sample / 2 + 0.5).clamp(0, 1).mul(255).round()
    encoder = open_encoder(str(tmp_path / "dc"), 16)
    assert float((encoder.decode(encoder.encode(images)).float() - pictures).abs().max()) <= 1


def test_a_pipelines_folder_gives_its_vae(tmp_path, images):
    save_tiny_pipeline(tmp_path / "pipeline")
    through_pipeline = open_encoder(str(tmp_path / "pipeline"), 16)
    alone = open_encoder(str(tmp_path / "pipeline" / "vae"), 16)
    assert torch.equal(through_pipeline.encode(images), alone.encode(images))
    assert through_pipeline.spec.config_hash == alone.spec.config_hash


def test_samples_are_seeded_by_row(tmp_path, images):
    folder = save_tiny_kl(tmp_path / "vae")
    encoder = open_encoder(str(folder), 16, mode="sample", seed=3)
    whole = encoder.encode(images, first_row=100)
    parts = torch.cat([encoder.encode(images[:2], first_row=100), encoder.encode(images[2:], first_row=102)])
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-6)
    other = open_encoder(str(folder), 16, mode="sample", seed=4).encode(images, first_row=100)
    assert float((whole - other).abs().max()) > 0.01


def test_samples_have_the_posteriors_mean_and_spread(tmp_path, images):
    folder = save_tiny_kl(tmp_path / "vae", scaling_factor=1.0)
    encoder = open_encoder(str(folder), 16, mode="sample")
    one = images[:1].expand(400, -1, -1, -1).contiguous()
    drawn = encoder.encode(one)
    with torch.inference_mode():
        vae = diffusers.AutoencoderKL.from_pretrained(folder).eval()
        posterior = vae.encode(prepared(images[:1])).latent_dist
    standard = (drawn - posterior.mean) / posterior.std
    assert abs(float(standard.mean())) < 0.02
    assert abs(float(standard.std()) - 1) < 0.02


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_close_and_returns_float32(tmp_path, images, dtype):
    folder = str(save_tiny_kl(tmp_path / "vae", force_upcast=False))
    exact, half = open_encoder(folder, 16).encode(images), open_encoder(folder, 16, dtype=dtype).encode(images)
    assert half.dtype == torch.float32
    assert 0 < float((half - exact).norm() / exact.norm()) < 0.05


def test_models_marked_force_upcast_run_in_float32(tmp_path, images):
    folder = str(save_tiny_kl(tmp_path / "vae", force_upcast=True))
    assert torch.equal(
        open_encoder(folder, 16, dtype="float16").encode(images), open_encoder(folder, 16).encode(images)
    )


@pytest.mark.parametrize("save", [save_tiny_kl, save_tiny_taesd, save_tiny_dc])
def test_tiles_are_those_of_diffusers(tmp_path, save):
    folder = save(tmp_path / "vae")
    large = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    encoder = open_encoder(str(folder), 64, tile=32)
    kind = getattr(diffusers, encoder.spec.kind)
    vae = kind.from_pretrained(folder).eval()
    if save is save_tiny_dc:
        vae.enable_tiling(32, 32, 24, 24)
    else:
        vae.tile_sample_min_size, vae.tile_latent_min_size, vae.spatial_scale_factor = 32, 16, 2
        vae.enable_tiling()
    with torch.inference_mode():
        encoded = vae.encode(prepared(large))
    raw = {"AutoencoderKL": lambda: encoded.latent_dist.mode(), "AutoencoderTiny": lambda: encoded.latents,
           "AutoencoderDC": lambda: encoded.latent}[encoder.spec.kind]()  # fmt: skip
    same(encoder.encode(large), raw * vae.config.scaling_factor)
    assert float((encoder.encode(large) - open_encoder(str(folder), 64).encode(large)).abs().max()) > 1e-3
    assert encoder.spec.tile == 32


def test_spec_survives_json(tmp_path):
    spec = open_encoder(str(save_tiny_flux2(tmp_path / "vae")), 16, dtype="bfloat16", seed=5).spec
    assert EncoderSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_reopening_finds_the_same_or_says_why_not(tmp_path, images):
    folder = save_tiny_kl(tmp_path / "vae")
    opened = open_encoder(str(folder), 16)
    assert torch.equal(reopen(opened.spec).encode(images), opened.encode(images))
    moved = tmp_path / "moved"
    folder.rename(moved)
    with pytest.raises(InputError, match="say where it lies with --encoder"):
        reopen(opened.spec)
    assert torch.equal(reopen(opened.spec, override=str(moved)).encode(images), opened.encode(images))
    save_tiny_kl(folder, scaling_factor=0.5)
    with pytest.raises(MismatchError, match="its configuration or weights differ"):
        reopen(opened.spec)
    with pytest.raises(InputError, match=r"imported as embeddings, so there is no encoder: no image can be encoded"):
        reopen(EncoderSpec("embeddings", "embeddings", (8, 1, 1), 0))


def write_pictures(folder: Path, images: torch.Tensor) -> Path:
    folder.mkdir()
    for number, pixels in enumerate(images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_a_collection_through_a_vae_end_to_end(tmp_path, images):
    home = tmp_path / "home"
    home.mkdir()
    folder = save_tiny_kl(home / "vae")
    pictures = write_pictures(home / "pictures", images)
    made = encode_images(pictures, home / "ws", encoder=str(folder), size=16, batch_size=2, workers=1)
    vae = diffusers.AutoencoderKL.from_pretrained(folder).eval()
    with torch.inference_mode():
        expected = vae.encode(prepared(images)).latent_dist.mode() * 0.18215
    np.testing.assert_allclose(made.latents.read(range(5)), expected.flatten(1), rtol=1e-3, atol=1e-4)
    assert made.manifest.recipe.encoder.id == "../vae", "a local folder is named relative to the workspace"
    home.rename(tmp_path / "elsewhere")
    moved = Workspace.open(tmp_path / "elsewhere" / "ws")
    assert torch.equal(
        moved.encoder().encode(images), open_encoder(str(tmp_path / "elsewhere" / "vae"), 16).encode(images)
    )


def test_a_stopped_run_of_samples_resumes_to_the_same_bytes(tmp_path, images):
    folder = str(save_tiny_kl(tmp_path / "vae"))
    pictures = write_pictures(tmp_path / "pictures", images.repeat(4, 1, 1, 1))
    options = {"encoder": folder, "size": 16, "mode": "sample", "batch_size": 3, "shard_rows": 6, "workers": 0}
    encode_images(pictures, tmp_path / "whole", **options)

    def stop(stage: str, done: int, total: int) -> None:
        if done >= 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_images(pictures, tmp_path / "ws", progress=stop, **options)
    encode_images(pictures, tmp_path / "ws", **options)
    for name in sorted(path.name for path in (tmp_path / "whole" / "latents").iterdir()):
        assert (tmp_path / "ws" / "latents" / name).read_bytes() == (tmp_path / "whole" / "latents" / name).read_bytes()


def test_names_that_are_no_encoder(tmp_path):
    for name in (str(tmp_path / "nowhere"), "./nowhere", "just-a-word", "a/b/c"):
        with pytest.raises(InputError, match=r"it is neither a folder nor a hub id; use a local folder"):
            open_encoder(name, 16)
    with pytest.raises(
        InputError, match="no-such/model could not be fetched from the hub; check the name and the network"
    ):
        open_encoder("no-such/model", 16)
    with pytest.raises(InputError, match=r"holds no config.json of a diffusers autoencoder"):
        open_encoder(str(tmp_path), 16)


def test_models_that_cannot_be_used(tmp_path):
    folder = save_tiny_kl(tmp_path / "vae")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "_class_name": "UNet2DModel"}))
    with pytest.raises(InputError, match="is a UNet2DModel; supported are AutoencoderKL"):
        open_encoder(str(folder), 16)
    (folder / "config.json").write_text(json.dumps(config))
    weights = folder / "diffusion_pytorch_model.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[: len(sound) // 2])
    with pytest.raises(FormatError, match="cannot be loaded"):
        open_encoder(str(folder), 16)
    shutil.move(weights, folder / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match="no weights in safetensors format"):
        open_encoder(str(folder), 16)


def test_options_that_do_not_fit(tmp_path, images):
    folder = str(save_tiny_kl(tmp_path / "vae"))
    with pytest.raises(InputError, match=r"must be a multiple of 2 for .*, it is 15; use --size 14 or 16"):
        open_encoder(folder, 15)
    with pytest.raises(InputError, match="a tile's side must be a multiple of 2, at least 4, it is 5"):
        open_encoder(folder, 16, tile=5)
    sixteen = str(save_tiny_taesd(tmp_path / "sixteen", latent_channels=16))
    with pytest.raises(InputError, match="only if it has 4 latent channels; encode without --tile"):
        open_encoder(sixteen, 16, tile=8)
    with pytest.raises(InputError, match="mode must be `mode` or `sample`, it is 'mean'"):
        open_encoder(folder, 16, mode="mean")
    with pytest.raises(InputError, match="dtype must be float32, float16 or bfloat16, it is 'int8'"):
        open_encoder(folder, 16, dtype="int8")
    with pytest.raises(InputError, match="has no posterior to sample"):
        open_encoder(str(save_tiny_taesd(tmp_path / "tiny")), 16, mode="sample")
    with pytest.raises(InputError, match="pixels have no posterior"):
        open_encoder("pixels", 16, mode="sample")
    with pytest.raises(ShapeError, match=r"images must have shape \(n, 3, 16, 16\), they have \(5, 3, 16, 8\)"):
        open_encoder(folder, 16).encode(images[..., :8])


def test_an_index_of_a_cuda_device_that_is_not_there(monkeypatch):
    from index.encoders.opening import choose_device

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == "cuda:1"
    with pytest.raises(InputError, match="device cuda:2 was asked for, torch finds only 2 CUDA devices here"):
        choose_device("cuda:2")
    with pytest.raises(InputError, match="'gpu' is no device"):
        choose_device("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_cuda_asked_for_and_absent(tmp_path):
    with pytest.raises(InputError, match="torch finds no CUDA device here; use --device cpu"):
        open_encoder(str(save_tiny_kl(tmp_path / "vae")), 16, device="cuda")
