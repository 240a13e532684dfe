"""Teleportation against the full run of the exact denoiser of a known Gaussian, and against loops written by hand."""

import functools
import inspect
import math

import diffusers
import pytest
import torch
from tiny_pipelines import (
    SD,
    ExactGaussian,
    LatentPipeline,
    quiet,
    tiny_ddim,
    tiny_ddpm,
    tiny_demo,
    tiny_dit,
    tiny_latent,
    tiny_vae,
)

from manifold.covariance import FullCovariance
from manifold.errors import InputError, ShapeError
from manifold.gaussian import GaussianManifold
from manifold.mixture import GaussianMixture
from manifold.probability_flow import solve_flow
from manifold.recording import record
from manifold.teleport import steps_left_out, teleport

# diffusers passes tensors to numpy the old way; nothing of ours.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]
SHAPE = (2, 4, 4)
TRAILING = {**SD, "timestep_spacing": "trailing"}
FIRST, SECOND = 1, 2
SCHEDULERS = [
    ("DDIMScheduler", {**TRAILING, "clip_sample": False}, FIRST, 1),
    ("DDIMScheduler", {**SD, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}, FIRST, 1),
    ("EulerDiscreteScheduler", TRAILING, FIRST, 1),
    ("EulerDiscreteScheduler", {**SD, "timestep_spacing": "leading"}, FIRST, 1),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, FIRST, 1),
    ("DPMSolverMultistepScheduler", TRAILING, SECOND, 1),
    ("DPMSolverMultistepScheduler", {**SD, "use_karras_sigmas": True}, None, 1),
    ("UniPCMultistepScheduler", TRAILING, SECOND, 1),
    ("PNDMScheduler", {**SD, "skip_prk_steps": True}, SECOND, 1),
    ("HeunDiscreteScheduler", TRAILING, SECOND, 2),
    ("FlowMatchHeunDiscreteScheduler", {}, SECOND, 2),
    ("DPMSolverSinglestepScheduler", {**SD, "lower_order_final": True}, None, 1),
    ("DEISMultistepScheduler", SD, None, 1),
    ("LMSDiscreteScheduler", TRAILING, SECOND, 1),
]
IDS = [f"{name}-{'-'.join(map(str, options.values()))}" for name, options, *_ in SCHEDULERS]


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def gaussian(shape=SHAPE, seed=0, scale=4.0):
    """A manifold in float64 and its dense covariance."""
    draw = torch.Generator().manual_seed(seed)
    d = math.prod(shape)
    basis, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=draw))
    eigvals = scale * torch.arange(1, d + 1, dtype=torch.float64) ** -1.5
    mean = torch.randn(shape, dtype=torch.float64, generator=draw)
    return GaussianManifold(FullCovariance(mean.flatten(), eigvals, basis), shape=shape), (basis * eigvals) @ basis.T


def exact(name, options):
    """A pipeline whose network is the exact denoiser of `gaussian()`."""
    manifold, covariance = gaussian()
    scheduler = getattr(diffusers, name)(**options)
    network = ExactGaussian(manifold.mean.view(SHAPE), covariance, scheduler)
    return quiet(LatentPipeline(network, None, scheduler)), manifold


def compared(pipeline, manifold, steps, **how):
    """The teleported run, the full run of the same seed, and the largest difference."""
    call = {"class_labels": [0, 0, 0], "num_inference_steps": steps, "output_type": "latent"}
    full = pipeline(**call, generator=seeded()).images
    pipeline.unet.calls = 0
    jumped = teleport(pipeline, manifold, **call, generator=seeded(), **how)
    return jumped, full, float((jumped.output.images - full).abs().max())


@pytest.mark.parametrize(("name", "options", "order", "per_step"), SCHEDULERS, ids=IDS)
def test_teleported_run_meets_the_full_run(name, options, order, per_step):
    """The closed form is exact, so all that differs is the sampler's own error in the steps it need not take.

    50 and 200 divide 1000: DDIM and PNDM of diffusers step by whole timesteps, and stray from their list otherwise.
    """
    pipeline, manifold = exact(name, options)
    jumped, _, coarse = compared(pipeline, manifold, 50, skip=0.3)
    extra = 1 if name == "PNDMScheduler" else 0  # its first step asks twice
    assert jumped.evaluations == pipeline.unet.calls == 35 * per_step - (per_step - 1) + extra
    assert jumped.evaluations_full == 50 * per_step - (per_step - 1) + extra
    assert jumped.saved == 15 * per_step
    _, full, fine = compared(pipeline, manifold, 200, skip=0.3)
    assert float(full.std()) > 0.3
    limit = {FIRST: 4e-3, SECOND: 7e-5, None: 2e-2}[order]
    assert fine < limit
    if order is not None:
        slope = math.log(coarse / fine) / math.log(4)
        assert slope > order - 0.15 or fine < 5e-6  # UniPC is at the end of float32 by then


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_a_wrong_alpha_would_be_seen(name):
    """The classic slip, alpha squared for alpha, fails the tolerance that ours passes."""

    class Wrong:
        def solve(self, x_s, a_s, s_s, a_t, s_t):
            return manifold.solve(x_s, a_s**2, s_s, a_t**2, s_t)

    options = {} if name.startswith("Flow") else SD
    pipeline, manifold = exact(name, {**options, **({"clip_sample": False} if name == "DDIMScheduler" else {})})
    assert compared(pipeline, manifold, 200)[2] < 4e-3
    assert compared(pipeline, Wrong(), 200)[2] > 3e-2


@pytest.mark.parametrize(("name", "options", "order", "per_step"), SCHEDULERS, ids=IDS)
def test_skipping_nothing_is_the_plain_call(name, options, order, per_step):
    pipeline = tiny_latent(getattr(diffusers, name)(**options))
    call = {"class_labels": [1, 2], "num_inference_steps": 6, "guidance_scale": 3.0}
    plain = pipeline(**call, generator=seeded()).images
    jumped = teleport(pipeline, gaussian((4, 8, 8))[0], skip=0, **call, generator=seeded())
    assert torch.equal(jumped.output.images, plain)
    assert jumped.saved == 0
    # and a teleported call leaves nothing behind
    before = set(vars(pipeline.scheduler))
    teleport(pipeline, gaussian((4, 8, 8))[0], **call, generator=seeded())
    assert set(vars(pipeline.scheduler)) == before
    assert "prepare_latents" not in vars(pipeline)
    assert torch.equal(pipeline(**call, generator=seeded()).images, plain)


def by_hand(pipeline, manifold, steps, start, guidance_scale, labels, scheduler):
    """A loop written out: noise, closed form, remaining steps."""
    scheduler.set_timesteps(steps)
    noise = torch.randn(len(labels), 4, 8, 8, generator=seeded())
    squared = scheduler.alphas_cumprod.double()
    first, later = int(scheduler.timesteps[0]), int(scheduler.timesteps[start])
    levels = [float(v) for t in (first, later) for v in (squared[t].sqrt(), (1 - squared[t]).sqrt())]
    euler = isinstance(scheduler, diffusers.EulerDiscreteScheduler)
    if euler:
        noise = noise * scheduler.init_noise_sigma
        levels = [1.0, levels[1] / levels[0], 1.0, levels[3] / levels[2]]
    state = manifold.solve(noise, *levels)
    if euler:
        scheduler.set_begin_index(start)
    free = torch.full((len(labels),), 5)
    for t in scheduler.timesteps[start:]:
        shown = scheduler.scale_model_input(state, t)
        both = [pipeline.unet(shown, t, class_labels=c).sample for c in (free, torch.tensor(labels))]
        state = scheduler.step(both[0] + guidance_scale * (both[1] - both[0]), t, state).prev_sample
    return state


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
@torch.no_grad()
def test_guided_network_equals_the_loop_by_hand(name):
    options = {**SD, "timestep_spacing": "leading", **({"clip_sample": False} if name[0] == "D" else {})}
    make = functools.partial(getattr(diffusers, name), **options)
    pipeline, (manifold, _) = tiny_latent(make()), gaussian((4, 8, 8))
    call = {"class_labels": [1, 4], "num_inference_steps": 10, "guidance_scale": 3.0, "output_type": "latent"}
    jumped = teleport(pipeline, manifold, skip=0.35, **call, generator=seeded())
    assert jumped.evaluations == 7
    expected = by_hand(pipeline, manifold, 10, 3, 3.0, [1, 4], make())
    torch.testing.assert_close(jumped.output.images, expected, rtol=1e-4, atol=1e-4)
    scheduler = make()
    scheduler.set_timesteps(10)
    assert jumped.start_timestep == float(scheduler.timesteps[3])
    cumulative = float(scheduler.alphas_cumprod[int(scheduler.timesteps[3])])
    alpha, sigma = jumped.start_level
    assert sigma / alpha == pytest.approx(math.sqrt((1 - cumulative) / cumulative), rel=1e-5)


@pytest.mark.parametrize("make", [tiny_ddpm, tiny_ddim])
@torch.no_grad()
def test_unconditional_pipelines_draw_their_own_noise(make):
    pipeline, (manifold, _) = make(), gaussian((3, 8, 8))
    call = {"batch_size": 2, "num_inference_steps": 10, "output_type": "np"}
    draw = seeded()
    jumped = teleport(pipeline, manifold, **call, generator=draw)
    assert jumped.evaluations == 7

    draw, scheduler = seeded(), pipeline.scheduler
    noise = torch.randn(2, 3, 8, 8, generator=draw)
    scheduler.set_timesteps(10)
    squared = scheduler.alphas_cumprod.double()[scheduler.timesteps[[0, 3]]]
    levels = [float(v) for one in squared for v in (one.sqrt(), (1 - one).sqrt())]
    state = manifold.solve(noise, *levels)
    for t in scheduler.timesteps[3:]:
        state = scheduler.step(pipeline.unet(state, t).sample, t, state, generator=draw).prev_sample
    expected = (state / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(torch.as_tensor(jumped.output.images), expected, rtol=1e-4, atol=1e-4)

    plain = pipeline(**call, generator=seeded()).images
    assert (teleport(pipeline, manifold, skip=0, **call, generator=seeded()).output.images == plain).all()


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@torch.no_grad()
def test_dit_whose_state_is_there_twice(guidance_scale):
    pipeline, (manifold, _) = tiny_dit(), gaussian((4, 8, 8))
    call = {"class_labels": [1, 7, 9], "num_inference_steps": 10, "guidance_scale": guidance_scale, "output_type": "np"}
    jumped = teleport(pipeline, manifold, **call, generator=seeded())
    scheduler = pipeline.scheduler
    noise = torch.randn(3, 4, 8, 8, generator=seeded())
    scheduler.set_timesteps(10)
    squared = scheduler.alphas_cumprod.double()[scheduler.timesteps[[0, 3]]]
    levels = [float(v) for one in squared for v in (one.sqrt(), (1 - one).sqrt())]
    state = manifold.solve(noise, *levels)
    for t in scheduler.timesteps[3:]:
        both = [
            pipeline.transformer(state, timestep=t.expand(3), class_labels=torch.tensor(labels)).sample[:, :4]
            for labels in ([1, 7, 9], [1000] * 3)
        ]
        guided = both[1] + guidance_scale * (both[0] - both[1]) if guidance_scale > 1 else both[0]
        state = scheduler.step(guided, t, state).prev_sample
    expected = (pipeline.vae.decode(state / pipeline.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    found = torch.as_tensor(jumped.output.images)
    torch.testing.assert_close(found, expected.permute(0, 2, 3, 1), rtol=1e-3, atol=1e-3)


class WithoutPrepareLatents(LatentPipeline):
    """Draws its noise in its call, as diffusers' older pipelines do."""

    def __call__(self, class_labels, num_inference_steps=10, guidance_scale=1.0, generator=None):
        guided = guidance_scale > 1
        labels = torch.tensor(class_labels)
        labels = torch.cat([torch.full_like(labels, 5), labels]) if guided else labels
        latents = torch.randn(len(class_labels), 4, 8, 8, generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        latents = latents * self.scheduler.init_noise_sigma
        for t in self.scheduler.timesteps:
            shown = self.scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, t)
            with torch.no_grad():
                output = self.unet(shown, t, class_labels=labels).sample
            if guided:
                free, conditional = output.chunk(2)
                output = free + guidance_scale * (conditional - free)
            latents = self.scheduler.step(output, t, latents).prev_sample
        return latents

    @property
    def prepare_latents(self):
        raise AttributeError("prepare_latents")


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_pipelines_without_prepare_latents(name, guidance_scale):
    make = functools.partial(getattr(diffusers, name), **SD)
    usual, (manifold, _) = tiny_latent(make()), gaussian((4, 8, 8))
    older = quiet(WithoutPrepareLatents(usual.unet, tiny_vae(), make()))
    assert not hasattr(older, "prepare_latents")
    call = {"class_labels": [1, 4], "num_inference_steps": 8, "guidance_scale": guidance_scale}
    expected = teleport(usual, manifold, **call, generator=seeded(), output_type="latent")
    jumped = teleport(older, manifold, **call, generator=seeded())
    assert jumped.evaluations == expected.evaluations == 6
    torch.testing.assert_close(jumped.output, expected.output.images, rtol=1e-5, atol=1e-5)
    demo = teleport(tiny_demo(make()), manifold, **call, generator=seeded(), output_type="latent")
    assert demo.evaluations == 6
    torch.testing.assert_close(demo.output.images, expected.output.images, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["DDIMScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_half_precision_stays_half(name):
    pipeline, (manifold, _) = tiny_latent(getattr(diffusers, name)()), gaussian((4, 8, 8))
    call = {"class_labels": [1, 4], "num_inference_steps": 8, "guidance_scale": 2.0, "output_type": "latent"}
    noise = torch.randn(2, 4, 8, 8).bfloat16()
    precise = teleport(pipeline, manifold, **call, latents=noise.float()).output.images
    pipeline.to(torch.bfloat16)
    half = teleport(pipeline, manifold, **call, latents=noise).output.images
    assert half.dtype == torch.bfloat16
    assert float((half - precise).norm() / precise.norm()) < 0.1


def test_latents_of_the_callers_are_the_noise_and_stay_untouched():
    pipeline, manifold = exact("EulerDiscreteScheduler", TRAILING)
    latents = torch.randn(3, *SHAPE, generator=seeded())
    kept = latents.clone()
    call = {"class_labels": [0, 0, 0], "num_inference_steps": 20, "output_type": "latent"}
    given = teleport(pipeline, manifold, **call, latents=latents)
    assert torch.equal(latents, kept)
    drawn = teleport(pipeline, manifold, **call, generator=seeded())
    assert torch.equal(given.output.images, drawn.output.images)


def test_start_by_noise_level():
    pipeline, manifold = exact("DDIMScheduler", {**TRAILING, "clip_sample": False})
    pipeline.scheduler.set_timesteps(40)
    squared = pipeline.scheduler.alphas_cumprod[pipeline.scheduler.timesteps].double()
    ratios = ((1 - squared) / squared).sqrt()
    jumped, _, _ = compared(pipeline, manifold, 40, sigma=float(ratios[9]))
    assert jumped.evaluations == 31
    assert jumped.start_timestep == float(pipeline.scheduler.timesteps[9])
    jumped, _, _ = compared(pipeline, manifold, 40, sigma=float(ratios[9]) * 0.999)
    assert jumped.evaluations == 30
    assert compared(pipeline, manifold, 40, sigma=1e6)[0].saved == 0
    with pytest.raises(InputError, match="at least that of the sampler's last step"):
        compared(pipeline, manifold, 40, sigma=1e-6)


def test_the_default_is_three_tenths_and_rounds_down():
    pipeline, manifold = exact("FlowMatchEulerDiscreteScheduler", {})
    assert compared(pipeline, manifold, 19)[0].evaluations == 19 - 5
    assert compared(pipeline, manifold, 10, skip=0.3)[0].evaluations == 7
    assert compared(pipeline, manifold, 10, skip=0.99)[0].evaluations == 1
    for steps in range(1, 101):  # round-off, as of 0.29 * 100, takes no step away
        assert [steps_left_out(left / steps, steps) for left in range(steps)] == list(range(steps))


def test_mixtures_and_statistics_of_each_images_class():
    pipeline, manifold = exact("DPMSolverMultistepScheduler", TRAILING)
    single, _, _ = compared(pipeline, manifold, 30)
    mixed, _, _ = compared(pipeline, GaussianMixture([manifold]), 30)
    torch.testing.assert_close(mixed.output.images, single.output.images, rtol=1e-3, atol=1e-3)
    other, _ = gaussian(seed=5)
    each, _, _ = compared(pipeline, [manifold, other, manifold], 30)
    moved, _, _ = compared(pipeline, other, 30)
    for row, expected in enumerate((single, moved, single)):
        torch.testing.assert_close(each.output.images[row], expected.output.images[row], rtol=1e-5, atol=1e-5)
    assert float((single.output.images[1] - moved.output.images[1]).abs().max()) > 0.1


def test_a_teleported_run_can_be_recorded():
    pipeline, manifold = exact("DDIMScheduler", {**TRAILING, "clip_sample": False})
    call = {"class_labels": [0, 0], "num_inference_steps": 20, "output_type": "latent", "generator": seeded()}

    class Teleporting(LatentPipeline):
        def __call__(self, **call):
            return teleport(pipeline, manifold, **call)

    recording = record(quiet(Teleporting(pipeline.unet, None, pipeline.scheduler)), **call)
    jumped = recording.output
    assert len(recording.alphas) == jumped.evaluations == 14
    assert (float(recording.alphas[0]), float(recording.sigmas[0])) == jumped.start_level
    assert torch.equal(recording.x_t[-1], jumped.output.images)


def test_flow_of_a_denoiser_converges_with_order_two():
    manifold, _ = gaussian()
    x_s = 3 * torch.randn(4, *SHAPE, dtype=torch.float64)
    for levels in ((0.0, 1.0, 0.8, 0.6), (1.0, 14.6, 1.0, 2.0), (0.3, 0.7, 0.05, 0.95)):
        expected = manifold.solve(x_s, *levels)
        errors = [float((solve_flow(manifold, x_s, *levels, steps=n) - expected).abs().max()) for n in (32, 256)]
        assert errors[1] < 1e-3
        assert math.log(errors[0] / errors[1]) / math.log(8) > 1.85
    with pytest.raises(InputError, match="at least 1 step"):
        solve_flow(manifold, x_s, 0.0, 1.0, 1.0, 0.0)


class FromAnImage(LatentPipeline):
    """Starts in the middle by itself, as image-to-image pipelines do."""

    def __call__(self, **call):
        set_timesteps = self.scheduler.set_timesteps

        @functools.wraps(set_timesteps)
        def later(*args, **kwargs):
            set_timesteps(*args, **kwargs)
            self.scheduler.timesteps = self.scheduler.timesteps[2:]

        self.scheduler.set_timesteps = later
        try:
            return super().__call__(**call)
        finally:
            self.scheduler.set_timesteps = set_timesteps


def test_a_pipeline_that_goes_on_with_a_copy_of_its_noise_is_refused():
    """It draws before it plans its steps, as FLUX does, but its network would be shown the copy, which nobody moved."""

    class Copies(LatentPipeline):
        @torch.no_grad()
        def __call__(self, n=2, generator=None):
            drawn = self.prepare_latents(n, torch.float32, "cpu", generator).clone()
            self.scheduler.set_timesteps(8)
            for t in self.scheduler.timesteps:
                labels = torch.zeros(n, dtype=torch.long)
                drawn = self.scheduler.step(self.unet(drawn, t, class_labels=labels).sample, t, drawn).prev_sample
            return drawn

    own = tiny_latent(diffusers.DDIMScheduler(**SD, clip_sample=False))
    pipeline = quiet(Copies(own.unet, own.vae, own.scheduler))
    with pytest.raises(InputError, match="Copies does not start from its scheduler's first step"):
        teleport(pipeline, gaussian((4, 8, 8))[0], skip=0.5, generator=seeded())


def test_wrong_use_is_said():
    pipeline, manifold = exact("DDIMScheduler", {**TRAILING, "clip_sample": False})
    call = {"class_labels": [0], "generator": seeded()}
    with pytest.raises(InputError, match="either skip or sigma"):
        teleport(pipeline, manifold, skip=0.1, sigma=2.0, **call)
    with pytest.raises(InputError, match=r"skip must be at least 0 and below 1, it is 1"):
        teleport(pipeline, manifold, skip=1, **call)
    with pytest.raises(InputError, match="sigma must be above 0, it is -1"):
        teleport(pipeline, manifold, sigma=-1.0, **call)
    with pytest.raises(InputError, match="able to solve or to denoise, a float can do neither"):
        teleport(pipeline, 1.0, **call)
    with pytest.raises(ShapeError, match=r"states must have shape \(n, 12\)"):
        teleport(pipeline, gaussian((3, 2, 2))[0], **call)
    with pytest.raises(ShapeError, match="one manifold for each of 1 states, there are 2"):
        teleport(pipeline, [manifold, manifold], **call)
    with pytest.raises(InputError, match="skip_prk_steps=True"):
        teleport(exact("PNDMScheduler", {**SD, "skip_prk_steps": False})[0], manifold, **call)
    image = quiet(FromAnImage(pipeline.unet, None, pipeline.scheduler))
    with pytest.raises(InputError, match="FromAnImage does not start from its scheduler's first step"):
        teleport(image, manifold, **call)
    assert not {"step", "set_timesteps", "scale_model_input"} & set(vars(diffusers.DDIMScheduler()))
    assert inspect.ismethod(pipeline.scheduler.step)


def test_the_last_step_can_be_all_that_is_made():
    pipeline, manifold = exact("DDIMScheduler", {**TRAILING, "clip_sample": False})
    jumped, *_ = compared(pipeline, manifold, 10, skip=1 - 1e-12)
    assert (jumped.evaluations, jumped.evaluations_full, jumped.saved) == (1, 10, 9)


def test_one_noise_for_several_classes_is_not_taken_for_guidance():
    pipeline = tiny_demo(diffusers.DDIMScheduler(**TRAILING, clip_sample=False))
    movers = [gaussian((4, 8, 8), seed)[0] for seed in (0, 1)]
    call = {"num_inference_steps": 5, "guidance_scale": 1.0, "output_type": "latent"}
    both = teleport(
        pipeline, movers, class_labels=[1, 2], generator=[seeded(7), seeded(7)], skip=0.5, **call
    ).output.images
    for row, (label, mover) in enumerate(zip((1, 2), movers, strict=True)):
        alone = teleport(pipeline, mover, class_labels=[label], generator=[seeded(7)], skip=0.5, **call).output.images
        torch.testing.assert_close(both[row], alone[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", ["add_noise", "scale_noise"])
def test_a_pipeline_that_noises_an_image_itself_is_refused_at_full_strength_too(way):
    """It would put the noise of its first shown timestep on the image, which is not x_T."""
    scheduler = {
        "add_noise": diffusers.DDIMScheduler(**TRAILING, clip_sample=False),
        "scale_noise": diffusers.FlowMatchEulerDiscreteScheduler(),
    }[way]

    class FromAnImage(LatentPipeline):
        def prepare_latents(self, *arguments):
            noise = super().prepare_latents(*arguments)
            at = self.scheduler.timesteps[:1]
            image = torch.zeros_like(noise)
            return (
                scheduler.add_noise(image, noise, at) if way == "add_noise" else scheduler.scale_noise(image, at, noise)
            )

    plain = tiny_latent(scheduler)
    pipeline = quiet(FromAnImage(plain.unet, plain.vae, scheduler))
    with pytest.raises(InputError, match="as pipelines from an image do not; it cannot be teleported"):
        teleport(pipeline, gaussian((4, 8, 8))[0], class_labels=[0], num_inference_steps=5, skip=0.4)
    assert pipeline(class_labels=[0], num_inference_steps=5, generator=seeded()).images.isfinite().all()
