"""Recording and teleportation of every text-to-image family; test_manifold_text_pipelines.py runs it in its own process."""

import inspect

import pytest
import torch
from tiny_text_pipelines import FAMILIES, build

from manifold.gaussian import GaussianManifold
from manifold.teleport import teleport
from manifold.trajectory import record

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers' own modules, of which each family loads others


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def unpacked(pipeline, family, latents, call):
    """diffusers' own way from tokens to a grid."""
    if family == "flux":
        return pipeline._unpack_latents(latents, call["height"], call["width"], pipeline.vae_scale_factor)
    if family == "flux2":
        h, w = call["height"] // 4, call["width"] // 4
        ids = pipeline._prepare_latent_ids(torch.empty(len(latents), latents.shape[-1], h, w))
        return pipeline._unpack_latents_with_ids(latents, ids)
    return latents


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_run_is_the_plain_run(family):
    pipeline, call = build(family)
    plain = pipeline(**call, generator=seeded())[0]
    seen = []

    def callback(_, step, timestep, tensors):
        seen.append((float(timestep), tensors["latents"].clone()))
        return tensors

    recording = record(pipeline, **call, generator=seeded())
    assert torch.equal(recording.output[0], plain)
    assert "step" not in vars(pipeline.scheduler)
    if family == "pixart":  # has the older kind of callback, which may only look
        pipeline(
            **call, generator=seeded(), callback=lambda i, t, latents: callback(pipeline, i, t, {"latents": latents})
        )
    else:
        pipeline(**call, generator=seeded(), callback_on_step_end=callback)
    assert recording.timesteps.tolist() == [t for t, _ in seen]
    states = [unpacked(pipeline, family, latents, call) for _, latents in seen]
    assert torch.equal(recording.x_t[1:], torch.stack(states))
    assert recording.x_t.ndim == 5
    assert recording.x0_hat.shape == recording.x_t[1:].shape
    assert bool(recording.x0_hat.isfinite().all())


@pytest.mark.parametrize("family", FAMILIES)
def test_default_size_without_height_and_width(family):
    """FLUX counts its tokens from the default size; the others have their grid in the state."""
    pipeline, call = build(family)
    if family.startswith("flux"):
        pipeline.default_sample_size = 8
    call = {name: value for name, value in call.items() if name not in ("height", "width")}
    if family in ("pixart", "sana"):
        pipeline.transformer.register_to_config(sample_size=16)
    recording = record(pipeline, **{**call, "num_inference_steps": 2}, generator=seeded())
    assert recording.x_t.shape[-1] == recording.x_t.shape[-2] == (4 if family == "flux2" else recording.x_t.shape[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_target_is_the_guided_prediction(family):
    """x_t = alpha x0_hat + sigma eps, and the prediction is what the scheduler's step was given."""
    pipeline, call = build(family)
    recording = record(pipeline, **call, generator=seeded())
    outputs = []
    step = pipeline.scheduler.step

    def logged(*args, **kwargs):
        outputs.append(inspect.signature(step).bind(*args, **kwargs).arguments["model_output"].clone())
        return step(*args, **kwargs)

    logged.__signature__ = inspect.signature(step)
    pipeline.scheduler.step = logged
    pipeline(**call, generator=seeded())
    for number, output in enumerate(outputs):
        output = unpacked(pipeline, family, output, call).double()
        x_t, x0 = recording.x_t[number].double(), recording.x0_hat[number].double()
        alpha, sigma = recording.alphas[number], recording.sigmas[number]
        eps = output + x0 if recording.metadata["coordinates"] == "flow" else output
        scale = float(x_t.abs().max())
        torch.testing.assert_close(alpha * x0 + sigma * eps, x_t, rtol=0, atol=1e-4 * scale)


def any_gaussian(shape):
    generator = torch.Generator().manual_seed(7)
    return GaussianManifold.fit(torch.randn(50, *shape, dtype=torch.float64, generator=generator) * 0.7 + 0.2)


@pytest.mark.parametrize("family", FAMILIES)
def test_teleporting_nowhere_is_the_plain_run(family):
    pipeline, call = build(family)
    shape = record(pipeline, **call, generator=seeded()).x_t.shape[2:]
    plain = pipeline(**call, generator=seeded())[0]
    jumped = teleport(pipeline, any_gaussian(shape), skip=0, **call, generator=seeded())
    assert torch.equal(jumped.output[0], plain)
    assert jumped.saved == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_teleported_run_starts_from_the_moved_noise_of_the_full_run(family):
    """The full run's noise, moved by hand, is where the remaining steps start; latents drawn or given alike."""
    pipeline, call = build(family)
    full = record(pipeline, **call, generator=seeded())
    manifold = any_gaussian(full.x_t.shape[2:])
    levels = [float(one) for place in (0, 2) for one in (full.alphas[place], full.sigmas[place])]
    expected = manifold.solve(full.x_t[0], *levels)
    seen = []
    step = pipeline.scheduler.step

    def logged(*args, **kwargs):
        bound = inspect.signature(step).bind(*args, **kwargs).arguments
        seen.append((float(bound["timestep"]), bound["sample"].clone()))
        return step(*args, **kwargs)

    logged.__signature__ = inspect.signature(step)
    pipeline.scheduler.step = logged
    jumped = teleport(pipeline, manifold, skip=0.34, **call, generator=seeded())
    assert [t for t, _ in seen] == full.timesteps.tolist()[2:]
    torch.testing.assert_close(unpacked(pipeline, family, seen[0][1], call), expected, rtol=1e-5, atol=1e-5)
    assert (jumped.evaluations, jumped.evaluations_full, jumped.saved) == (4, 6, 2)
    assert jumped.start_level == (levels[2], levels[3])
    assert bool(jumped.output[0].isfinite().all())

    # the network saw that state at that step too: the prediction is a function of it
    pipeline.scheduler.step = step
    again = teleport(pipeline, manifold, skip=0.34, **call, generator=seeded())
    assert torch.equal(again.output[0], jumped.output[0])
    assert torch.equal(pipeline(**call, generator=seeded())[0], full.output[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_network_is_shown_the_moved_state(family):
    pipeline, call = build(family)
    full = record(pipeline, **call, generator=seeded())
    manifold = any_gaussian(full.x_t.shape[2:])
    network = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    seen = []

    def look(_, args, kwargs):
        seen.append((args[0] if args else kwargs["hidden_states"]).clone())

    handle = network.register_forward_pre_hook(look, with_kwargs=True)
    teleport(pipeline, manifold, skip=0.34, **call, generator=seeded())
    handle.remove()
    assert len(seen) == 4
    alpha, sigma = float(full.alphas[2]), float(full.sigmas[2])
    state = manifold.solve(full.x_t[0], float(full.alphas[0]), float(full.sigmas[0]), alpha, sigma)
    state = state / (1 + sigma**2) ** 0.5 if full.metadata["coordinates"] == "ve" else state
    shown = unpacked(pipeline, family, seen[0][-2:], call)
    torch.testing.assert_close(shown, state, rtol=1e-5, atol=1e-5)
