"""The class-conditional pipeline against a sampling loop written out here, and the shipped model against its promises."""

import pytest
import torch

from manifold.demo_model import CLASS_NAMES, MODEL_FOLDER, ClassConditionalPipeline, load_demo_model, load_gallery
from manifold.errors import InputError, NotFittedError, ShapeError


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, scaling_factor=0.7, shift_factor=0.2,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    unet = UNet2DModel(
        sample_size=4, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, num_class_embeds=4,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        prediction_type="v_prediction", clip_sample=False, beta_schedule="linear", timestep_spacing="trailing"
    )
    made = ClassConditionalPipeline(vae.eval(), unet.eval(), scheduler)
    made.set_progress_bar_config(disable=True)
    return made


@torch.no_grad()
def painted_by_hand(pipeline, labels, x_t, steps, w):
    """DDIM without noise, from the definitions of v-prediction and guidance."""
    alphas_cumprod = pipeline.scheduler.alphas_cumprod
    stride = 1000 // steps
    times = [1000 - step * stride - 1 for step in range(steps)]
    for t in times:
        without = pipeline.unet(x_t, t, class_labels=torch.full((len(labels),), 3)).sample
        with_class = pipeline.unet(x_t, t, class_labels=torch.tensor(labels)).sample
        v = without + w * (with_class - without)
        alpha, sigma = alphas_cumprod[t].sqrt(), (1 - alphas_cumprod[t]).sqrt()
        x0_hat, eps = alpha * x_t - sigma * v, sigma * x_t + alpha * v
        later = t - stride
        after = alphas_cumprod[later] if later >= 0 else torch.tensor(1.0)
        x_t = after.sqrt() * x0_hat + (1 - after).sqrt() * eps
    return x_t


@pytest.mark.parametrize("w", [1.0, 2.5])
def test_the_pipeline_paints_what_the_definitions_say(pipeline, w):
    noise = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    ours = pipeline([0, 2], latents=noise, num_inference_steps=10, guidance_scale=w, output_type="latent").images
    torch.testing.assert_close(ours, painted_by_hand(pipeline, [0, 2], noise, 10, w), rtol=1e-4, atol=1e-4)


def test_a_seed_a_picture_gives_the_same_pictures_one_by_one(pipeline):
    seeds = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    both = pipeline([1, 1], generator=seeds, num_inference_steps=4, output_type="latent").images
    second = pipeline(1, generator=torch.Generator().manual_seed(6), num_inference_steps=4, output_type="latent").images
    torch.testing.assert_close(both[1:], second, rtol=1e-4, atol=1e-5)


def test_latents_are_unscaled_before_they_are_decoded(pipeline):
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    options = {"latents": noise, "num_inference_steps": 3}
    latents = pipeline(0, output_type="latent", **options).images
    with torch.no_grad():
        expected = (pipeline.vae.decode(latents / 0.7 + 0.2).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(pipeline(0, output_type="pt", **options).images, expected, rtol=1e-4, atol=1e-5)


def test_a_callback_sees_every_step_and_may_change_it(pipeline):
    seen = []

    def halve(pipe, step, timestep, tensors):
        seen.append((step, int(timestep)))
        return {"latents": tensors["latents"] * 0}

    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    images = pipeline(0, latents=noise, num_inference_steps=4, callback_on_step_end=halve, output_type="latent").images
    assert seen == [(0, 999), (1, 749), (2, 499), (3, 249)]
    assert not images.any()


def test_wrong_labels_and_latents_are_refused(pipeline):
    with pytest.raises(InputError, match="between 0 and 3"):
        pipeline([0, 4])
    with pytest.raises(InputError, match="between 0 and 3"):
        pipeline([])
    with pytest.raises(ShapeError, match="for 2 labels"):
        pipeline([0, 1], latents=torch.zeros(1, 4, 4, 4))


@pytest.mark.parametrize("steps", [0, 1001])
def test_numbers_of_steps_out_of_range_are_refused(pipeline, steps):
    with pytest.raises(InputError, match=f"must lie between 1 and 1,000, it is {steps:,}"):
        pipeline(0, num_inference_steps=steps)


def test_a_saved_pipeline_opens_again_and_a_missing_one_says_what_to_do(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "saved")
    again = load_demo_model(tmp_path / "saved")
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    options = {"latents": noise, "num_inference_steps": 3, "output_type": "latent"}
    assert torch.equal(again(0, **options).images, pipeline(0, **options).images)
    with pytest.raises(NotFittedError, match="manifold train-demo"):
        load_demo_model(tmp_path)


def test_there_is_a_name_for_every_class():
    assert len(CLASS_NAMES) == 10


def test_the_shipped_model_is_small_and_its_gallery_whole():
    files = [path for path in MODEL_FOLDER.rglob("*") if path.is_file()]
    weights = sum(path.stat().st_size for path in files if path.suffix == ".safetensors" and path.stem != "gallery")
    assert 10e6 < weights < 16e6
    gallery = load_gallery()
    assert gallery.latents.shape == (4096, 4, 8, 8)
    assert gallery.labels.bincount().tolist() == [410] * 6 + [409] * 4
    assert bool(gallery.latents.isfinite().all())
    assert {path.name for path in files} >= {"README.md", "samples.png", "model_index.json"}


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_images_of_the_gallery_can_be_painted_again():
    from diffusers import DPMSolverMultistepScheduler

    gallery, pipeline = load_gallery(), load_demo_model()
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    rows = [3, 1000, 4095]
    again = pipeline(
        gallery.labels[rows].tolist(),
        generator=[torch.Generator().manual_seed(row) for row in rows],
        num_inference_steps=int(gallery.recipe["steps"]),
        guidance_scale=float(gallery.recipe["guidance_scale"]),
        output_type="latent",
    ).images
    torch.testing.assert_close(again, gallery.latents[rows].float(), rtol=0.02, atol=0.05)


def test_the_shipped_autoencoder_gives_back_what_it_is_shown():
    """Smooth pictures, which any image autoencoder must know, come back to a few grey levels."""
    from index.encoders import open_encoder

    encoder = open_encoder("demo-vae", 32)
    across = torch.linspace(30, 220, 32).expand(32, 32)
    pictures = torch.stack([torch.stack([across, across.T, across.flip(1)]), torch.stack([across.T] * 3)]).byte()
    latents = encoder.encode(pictures)
    assert latents.shape == (2, 4, 8, 8)
    error = (encoder.decode(latents).float() - pictures.float()).abs().mean()
    assert float(error) < 12
