"""Training of the demo model: resuming changes nothing, the average is the one stated, the loss is the velocity's."""

import json
import math
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import needs_cuda
from images import encoded
from manifold_apps.training.autoencoder import build_autoencoder, pixel_loss
from manifold_apps.training.card import History, last_losses, read_history, write_card
from manifold_apps.training.checkpoints import find_checkpoints
from manifold_apps.training.decoder import _CRITIC_SHARE, _CRITIC_WEIGHT, DecoderAndCritic, decoder_losses
from manifold_apps.training.denoiser import build_scheduler, denoiser_losses
from manifold_apps.training.images import load_training_images
from manifold_apps.training.latents import Latents, encode_latents
from manifold_apps.training.loop import Settings, Trainer, _exponent
from manifold_apps.training.run import train_demo
from safetensors import safe_open
from tiny_pipelines import tiny_demo
from torch import nn

from manifold.demo_model import MODEL_FOLDER, load_demo_model, load_gallery
from manifold.errors import InputError, MismatchError, NonFiniteError, NotFittedError

SETTINGS = Settings(batch_size=8, learning_rate=1e-2, warmup_steps=3, plateau_steps=5)


def line_losses(network, generator):
    x = torch.randn(8, 3, generator=generator)
    wanted = x @ torch.tensor([[1.0], [-2.0], [0.5]])
    return {"loss": (network(x).float() - wanted).square().mean()}


def trainer(folder, settings=SETTINGS, losses=line_losses):
    torch.manual_seed(0)
    return Trainer(nn.Linear(3, 1), losses, folder, settings, "line")


def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path):
    whole = trainer(tmp_path / "whole")
    whole.run(40)
    broken = trainer(tmp_path / "broken")
    broken.run(13)
    again = trainer(tmp_path / "broken")
    assert again.step == 13
    again.run(40)
    for ours, theirs in zip(again.network.parameters(), whole.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(again.average.parameters(), whole.average.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@needs_cuda
def test_a_stopped_run_goes_on_on_a_cuda_device(tmp_path):
    def losses(network, generator):
        x = torch.randn(8, 3, generator=generator).cuda()
        return {"loss": (network(x).float() - x.sum(1, keepdim=True)).square().mean()}

    def on_cuda(folder):
        torch.manual_seed(0)
        return Trainer(nn.Linear(3, 1).cuda(), losses, folder, SETTINGS, "line")

    on_cuda(tmp_path / "broken").run(13)
    again, whole = on_cuda(tmp_path / "broken"), on_cuda(tmp_path / "whole")
    again.run(40)
    whole.run(40)
    for ours, theirs in zip(again.network.parameters(), whole.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_kept_weights_are_the_power_function_average_of_all_weights(tmp_path):
    seen = []

    def watched(network, generator):
        seen.append(network.weight.detach().clone().double())
        return line_losses(network, generator)

    run = trainer(tmp_path, losses=watched)
    run.run(30)
    seen = [*seen[1:], run.network.weight.detach().double()]
    gamma = _exponent(SETTINGS.average_width)
    # Written out: after step t the average is (1 - beta_t) theta_t + beta_t average, beta_t = (1 - 1 / t)^(gamma + 1).
    weights = np.array(
        [
            (1 - (1 - 1 / step) ** (gamma + 1))
            * math.prod((1 - 1 / later) ** (gamma + 1) for later in range(step + 1, 31))
            for step in range(1, 31)
        ]
    )
    assert weights.sum() == pytest.approx(1)
    expected = sum(weight * value for weight, value in zip(weights, seen, strict=True))
    torch.testing.assert_close(run.average.weight.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_width_of_the_average_is_the_one_asked_for():
    gamma = _exponent(0.1)
    t = np.linspace(0, 1, 200_001)
    density = t**gamma / (t**gamma).sum()
    mean = (density * t).sum()
    assert math.sqrt((density * (t - mean) ** 2).sum()) == pytest.approx(0.1, rel=1e-3)


def test_learning_rate_rises_stays_and_falls_with_the_root(tmp_path):
    run = trainer(tmp_path)
    rates = []
    for run.step in (0, 2, 5, 20, 80):
        rates.append(run._learning_rate() / SETTINGS.learning_rate)
    assert rates == pytest.approx([1 / 3, 1, 1, 0.5, 0.25])


def test_finished_weights_go_on_with_their_rate_and_average_after_a_warmup(tmp_path):
    first = trainer(tmp_path / "first")
    first.run(20)
    torch.manual_seed(0)
    network = nn.Linear(3, 1)
    network.load_state_dict(first.average.state_dict())
    on = Trainer(network, line_losses, tmp_path / "on", SETTINGS, "line", steps_before=20)
    assert on._learning_rate() / SETTINGS.learning_rate == pytest.approx(1 / 3 * 0.5)
    on.run(21)
    kept = (1 - 1 / 21) ** (_exponent(SETTINGS.average_width) + 1)
    expected = kept * first.average.weight + (1 - kept) * on.network.weight.detach()
    torch.testing.assert_close(on.average.weight, expected)
    on.run(30)
    torch.manual_seed(0)
    again = Trainer(nn.Linear(3, 1), line_losses, tmp_path / "on", SETTINGS, "line")
    assert again.step == 30
    again.run(40)
    unbroken = nn.Linear(3, 1)
    unbroken.load_state_dict(first.average.state_dict())
    whole = Trainer(unbroken, line_losses, tmp_path / "whole", SETTINGS, "line", steps_before=20)
    whole.run(40)
    assert torch.equal(again.network.weight, whole.network.weight)


def test_the_log_counts_steps_and_images(tmp_path):
    trainer(tmp_path).run(250)
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [100, 200, 250]
    assert lines[-1]["images"] == 2000
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_other_settings_are_refused_and_a_broken_loss_stops(tmp_path):
    trainer(tmp_path).run(5)
    with pytest.raises(MismatchError, match="other settings"):
        trainer(tmp_path, Settings(batch_size=8, learning_rate=1e-3))
    with pytest.raises(NonFiniteError, match="step 5"):
        trainer(tmp_path, losses=lambda network, _: {"loss": network.weight.sum() * math.nan}).run(6)


def test_the_velocity_loss_is_that_of_the_papers_formula():
    """A network that answers for the exact velocity of a point mass has no loss; one that answers 0 has E v^2."""
    latents = torch.full((4, 4, 8, 8), 0.5)
    losses = denoiser_losses(Latents(latents, torch.zeros_like(latents)), torch.zeros(4, dtype=torch.int64), 1, 64)
    alphas_cumprod = build_scheduler().alphas_cumprod

    class Exact(nn.Module):
        def __init__(self, error):
            super().__init__()
            self.error = nn.Parameter(torch.tensor(error))

        def forward(self, x_t, timesteps, class_labels):
            alpha = alphas_cumprod[timesteps].sqrt()[:, None, None, None]
            sigma = (1 - alphas_cumprod[timesteps]).sqrt()[:, None, None, None]
            eps = (x_t - alpha * 0.5) / sigma
            return type("Output", (), {"sample": alpha * eps - sigma * 0.5 + self.error})()

    for error in (0.0, 0.3):
        loss = losses(Exact(error), torch.Generator().manual_seed(0))["loss"]
        assert float(loss.detach()) == pytest.approx(error**2, abs=1e-4)


def write_labelled(path, count=24, labels=True):
    rng = np.random.default_rng(0)
    rows = {"image": [encoded(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(count)]}
    if labels:
        rows["label"] = [row % 3 for row in range(count)]
    pq.write_table(pa.table(rows), path)


def test_images_are_drawn_in_range_with_their_labels(tmp_path):
    write_labelled(tmp_path / "some.parquet")
    images = load_training_images(tmp_path / "some.parquet", 32)
    assert images.classes == 3
    assert images.pixels.shape == (24, 3, 32, 32)
    x0, labels = images.batch(50, torch.Generator().manual_seed(0))
    originals = images.pixels.float() / 127.5 - 1
    for image, label in zip(x0, labels, strict=True):
        same = [
            row
            for row in range(24)
            if torch.equal(originals[row], image) or torch.equal(originals[row], image.flip(-1))
        ]
        assert len(same) == 1
        assert images.labels[same[0]] == label


def test_latents_are_those_of_each_image_and_of_its_mirror_image_and_are_kept(tmp_path):
    write_labelled(tmp_path / "some.parquet")
    images = load_training_images(tmp_path / "some.parquet", 32)
    torch.manual_seed(0)
    vae = build_autoencoder().eval()
    vae.register_to_config(scaling_factor=0.5, shift_factor=0.1)
    latents = encode_latents(vae, images, tmp_path / "latents.safetensors", batch=7)
    x0 = images.pixels.float() / 127.5 - 1
    with torch.no_grad():
        posterior = vae.encode(torch.cat([x0, x0.flip(-1)])).latent_dist
    torch.testing.assert_close(latents.means.float(), (posterior.mean - 0.1) * 0.5, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(latents.widths.float(), posterior.std * 0.5, rtol=1e-3, atol=1e-3)
    written = (tmp_path / "latents.safetensors").stat().st_mtime_ns
    assert torch.equal(encode_latents(vae, images, tmp_path / "latents.safetensors").means, latents.means)
    assert (tmp_path / "latents.safetensors").stat().st_mtime_ns == written
    other = build_autoencoder().eval()
    other.register_to_config(scaling_factor=0.5, shift_factor=0.1)
    assert not torch.equal(encode_latents(other, images, tmp_path / "latents.safetensors").means, latents.means)


@pytest.mark.parametrize("steepness", [1.0, 1e4])
def test_each_part_of_the_decoders_loss_reaches_one_network_only(steepness, tmp_path):
    """The decoder's gradient is that of pixels - w critic(painted), the critic's that of its hinge loss alone."""
    write_labelled(tmp_path / "some.parquet")
    images = load_training_images(tmp_path / "some.parquet", 32)
    torch.manual_seed(0)
    vae = build_autoencoder()
    vae.register_to_config(scaling_factor=0.5, shift_factor=0.1)
    latents = Latents(torch.randn(48, 4, 8, 8).half(), torch.zeros(48, 4, 8, 8).half())
    network = DecoderAndCritic(vae.decoder)
    with torch.no_grad():
        network.critic[-1].weight.mul_(steepness)
    decoder_losses(vae, images, latents, 4)(network, torch.Generator().manual_seed(3))["loss"].backward()

    rows = torch.randint(48, (4,), generator=torch.Generator().manual_seed(3))
    x0 = images.chosen(rows)
    painted = network.decoder(vae.post_quant_conv(latents.means[rows].float() / 0.5 + 0.1))
    decoder, critic = list(network.decoder.parameters()), list(network.critic.parameters())
    parts = pixel_loss(painted, x0), network.critic(painted).mean()
    lengths = [torch.autograd.grad(part, painted, retain_graph=True)[0].norm() for part in parts]
    weight = min(_CRITIC_WEIGHT, float(_CRITIC_SHARE * lengths[0] / lengths[1]))
    assert (weight < _CRITIC_WEIGHT) == (steepness > 1)
    wanted = torch.autograd.grad(parts[0] - weight * parts[1], decoder, retain_graph=True)
    for parameter, gradient in zip(decoder, wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)
    hinge = (1 - network.critic(x0)).clamp_min(0).mean() + (1 + network.critic(painted.detach())).clamp_min(0).mean()
    for parameter, gradient in zip(critic, torch.autograd.grad(hinge, critic), strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


def test_images_without_labels_are_refused(tmp_path):
    write_labelled(tmp_path / "bare.parquet", labels=False)
    with pytest.raises(InputError, match="has no labels"):
        load_training_images(tmp_path / "bare.parquet", 32)


def test_a_log_without_a_line_says_no_more_than_none(tmp_path):
    known = {"images": 7}
    assert last_losses(tmp_path, known) is known
    (tmp_path / "losses.jsonl").write_text("")
    assert last_losses(tmp_path, known) is known
    (tmp_path / "losses.jsonl").write_text('{"images": 8}\n{"images": 9}\n')
    assert last_losses(tmp_path, known) == {"images": 9}


# diffusers' multistep solvers hand a torch tensor to np.array in the old way.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.slow
def test_training_makes_a_pipeline_that_opens_and_a_gallery_that_can_be_painted_again(tmp_path):
    write_labelled(tmp_path / "some.parquet")
    painter = train_demo(
        tmp_path / "some.parquet",
        tmp_path / "run",
        autoencoder_steps=2,
        decoder_steps=2,
        denoiser_steps=2,
        gallery=6,
        device="cpu",
        checkpoints=True,
    )
    pipeline = load_demo_model(painter)
    assert pipeline.classes == 3
    kept = find_checkpoints(tmp_path / "run" / "checkpoints", "unet")
    assert list(kept) == [0, 2]
    with safe_open(kept[2] / "diffusion_pytorch_model.safetensors", "pt") as last:
        for name, value in pipeline.unet.state_dict().items():
            assert torch.equal(last.get_tensor(name), value.half()), name
    gallery = load_gallery(painter / "gallery.safetensors")
    assert gallery.latents.shape == (6, 4, 8, 8)
    assert gallery.labels.tolist() == [0, 1, 2, 0, 1, 2]
    from diffusers import DPMSolverMultistepScheduler

    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    again = pipeline(
        int(gallery.labels[4]),
        generator=torch.Generator().manual_seed(4),
        num_inference_steps=int(gallery.recipe["steps"]),
        guidance_scale=float(gallery.recipe["guidance_scale"]),
        output_type="latent",
    ).images
    torch.testing.assert_close(again[0], gallery.latents[4].float(), rtol=2e-2, atol=2e-2)
    card = (painter / "README.md").read_text()
    assert "24 images of some.parquet" in card
    assert "64 images more" in card
    assert "256 latents seen" in card
    assert (painter / "samples.png").is_file()

    # 256 latents seen are 4 steps of 64
    settings = {"decoder_steps": 4, "denoiser_steps": 10, "batch_size": 64, "gallery": 6, "device": "cpu"}
    on = train_demo(tmp_path / "some.parquet", tmp_path / "on", start=painter, **settings)
    assert not (tmp_path / "on" / "checkpoints").exists()
    assert "128 images more" in (on / "README.md").read_text()
    assert "640 latents seen" in (on / "README.md").read_text()
    assert not any(str(tmp_path) in path.read_text() for path in on.rglob("*.json"))
    longer = load_demo_model(on)
    for name, value in pipeline.vae.state_dict().items():
        assert name.startswith("decoder.") or torch.equal(longer.vae.state_dict()[name], value), name
    for first, last in (
        (pipeline.unet.conv_in.weight, longer.unet.conv_in.weight),
        (pipeline.vae.decoder.conv_in.weight, longer.vae.decoder.conv_in.weight),
    ):
        assert not torch.equal(first, last)

    done = train_demo(tmp_path / "some.parquet", tmp_path / "done", start=on, **settings)
    assert json.loads((done / "training.json").read_text()) == json.loads((on / "training.json").read_text())
    for name, value in longer.vae.state_dict().items():
        assert torch.equal(load_demo_model(done).vae.state_dict()[name], value), name

    with pytest.raises(MismatchError, match="other settings"):
        train_demo(tmp_path / "some.parquet", tmp_path / "on", start=painter, **settings | {"batch_size": 128})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, it is 0"),
        ({"gallery": 0}, "the gallery must have at least 1 image, it would have 0"),
        ({"autoencoder_steps": 0}, "need at least 1 step each, they would get 0 and 60,000"),
        ({"denoiser_steps": 0}, "need at least 1 step each, they would get 3,200 and 0"),
        ({"minutes": 0}, "minutes must be above 0, they are 0"),
        ({"minutes": math.nan}, "minutes must be above 0"),
        ({"device": "gpu"}, "'gpu' is no device"),
    ],
)
def test_options_that_train_nothing_are_refused_at_the_start(tmp_path, options, words):
    told = []
    write_labelled(tmp_path / "some.parquet")
    with pytest.raises(InputError, match=words):
        train_demo(
            tmp_path / "some.parquet", tmp_path / "run", **options, progress=lambda *one: told.append(one)
        )  # fmt: skip
    assert told == []


def test_the_card_of_a_decoder_that_was_not_trained_on_alone_says_so(tmp_path):
    facts = {"images": 24, "data": "some.parquet", "classes": 10, "hardware": "", "torch": ""}
    history = History(
        autoencoder={"images": 64, "squared_error": 0.1, "kl_nats": 1.0}, decoder={}, denoiser={"images": 256, "loss": 1.0}
    )  # fmt: skip
    write_card(tiny_demo(build_scheduler()), tmp_path, history, facts)
    assert "| decoder | not trained on alone |" in (tmp_path / "README.md").read_text()
    assert read_history(tmp_path) == history


@pytest.mark.slow
def test_training_on_refuses_other_classes_and_foreign_models(tmp_path):
    write_labelled(tmp_path / "some.parquet")
    settings = {"decoder_steps": 0, "denoiser_steps": 1, "gallery": 1, "device": "cpu"}
    with pytest.raises(MismatchError, match="paints 10 classes, the images have 3"):
        train_demo(tmp_path / "some.parquet", tmp_path / "run", start=MODEL_FOLDER, **settings)
    foreign = shutil.copytree(MODEL_FOLDER, tmp_path / "foreign")
    (foreign / "training.json").unlink()
    with pytest.raises(NotFittedError, match=r"no training\.json"):
        train_demo(tmp_path / "some.parquet", tmp_path / "run", start=foreign, **settings)


def test_latents_of_other_images_are_made_anew(tmp_path):
    write_labelled(tmp_path / "some.parquet")
    write_labelled(tmp_path / "more.parquet", count=30)
    torch.manual_seed(0)
    vae = build_autoencoder().eval()
    vae.register_to_config(scaling_factor=0.5, shift_factor=0.1)
    for name, count in (("some", 48), ("more", 60), ("some", 48)):
        images = load_training_images(tmp_path / f"{name}.parquet", 32)
        assert len(encode_latents(vae, images, tmp_path / "latents.safetensors").means) == count


def test_a_run_saved_before_its_first_step_goes_on_and_another_network_is_refused(tmp_path):
    trainer(tmp_path / "early").run(0)
    trainer(tmp_path / "early").run(20)
    whole = trainer(tmp_path / "whole")
    whole.run(20)
    assert torch.equal(trainer(tmp_path / "early").network.weight, whole.network.weight)
    with pytest.raises(MismatchError, match="a run of another network; give another folder"):
        Trainer(nn.Linear(3, 2), line_losses, tmp_path / "whole", SETTINGS, "line")
