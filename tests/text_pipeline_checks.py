"""Text-to-image families recorded, teleported and reported; test_manifold_text_pipelines.py runs it in its own process."""

import inspect

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from images import encoded, picture
from manifold_apps import report_model
from manifold_apps.report import write_report
from manifold_apps.report_model import open_flow_model
from manifold_apps.run import run_images
from tiny_pipelines import tiny_ddim
from tiny_text_pipelines import FAMILIES, build

from manifold.errors import InputError, MismatchError
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


def for_one_image(call):
    """Keywords for the report: one prompt's embeddings, no guidance."""
    kept = {name: value for name, value in call.items() if name in ("height", "width")}
    embeddings = {name: value[:1] for name, value in call.items() if isinstance(value, torch.Tensor)}
    return kept | {name: value for name, value in embeddings.items() if not name.startswith("negative")}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_report_asks_the_network_as_its_pipeline_does(family):
    """Against what the network was shown and answered in a run of the pipeline itself."""
    pipeline, call = build(family)
    model = open_flow_model(pipeline, 6, call=for_one_image(call))
    shown = []
    hook = model.network.register_forward_hook(
        lambda module, args, kwargs, output: shown.append((args, kwargs, output)), with_kwargs=True
    )
    run = model.sample([0, 1, 2])
    hook.remove()
    assert run.x_t.shape[1:] == (3, *model.shape)
    assert not torch.equal(run.x_t[0, 0], run.x_t[0, 1])
    torch.testing.assert_close(model.sample([2]).x_t[:, 0], run.x_t[:, 2], rtol=1e-3, atol=1e-4)
    for place, (args, kwargs, output) in enumerate(shown):
        given = inspect.signature(model.network.forward).bind(*args, **kwargs).arguments
        state = model.seen.layout.unpack(given[model.seen.names[0]])
        answer = output[0] if isinstance(output, tuple) else output.sample
        asked = model.seen.ask(model.network, state, run.timesteps[place].float())
        torch.testing.assert_close(asked, model.seen.layout.unpack(answer), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_report_s_denoiser_and_sampler_are_those_of_the_pipeline(family):
    pipeline, call = build(family)
    model = open_flow_model(pipeline, 6, call=for_one_image(call))
    run = model.sample([0, 1])
    denoiser = model.denoiser()
    for place in (1, 3):
        found = denoiser.denoise(run.x_t[place], float(run.alphas[place]), float(run.sigmas[place]))
        torch.testing.assert_close(found, run.x0_hat[place], rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(model.sampler_from(0)(run.x_t[0]), run.x_t[-1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_a_report_of_a_pipeline_that_paints_from_text(family, tmp_path):
    pipeline, call = build(family)
    call = {name: value for name, value in for_one_image(call).items() if name not in ("height", "width")}
    pipeline.vae.save_pretrained(tmp_path / "vae")
    (tmp_path / "images").mkdir()
    for number in range(60):
        (tmp_path / "images" / f"{number}.png").write_bytes(encoded(picture(16, 16, number), "PNG"))
    root = run_images(tmp_path / "images", tmp_path / "ws", encoder=str(tmp_path / "vae"), size=16, workers=0).root
    path = tmp_path / "report.html"
    made = write_report(root, pipeline, path, seeds=4, steps=6, call=call)
    assert made.findings.recording.x_t.shape == (7, 4, 4, 8, 8)
    assert len(made.findings.perturbations) > 0
    text = path.read_text()
    assert (
        f"prompt embeddings, {'no guidance' if family == 'sd' else 'guidance 3.5, which the network is told'}" in text
    )
    with pytest.raises(InputError, match="which paints without a prompt"):
        open_flow_model(tiny_ddim(), 6, prompt="a cat")


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("sd", {"guidance_scale": 7.5}, "asks without guidance"),
        ("sd", {"guidanse_scale": 1.0}, "a StableDiffusionPipeline takes no guidanse_scale"),
    ],
)
def test_what_a_report_cannot_ask_for_is_refused(family, change, words):
    pipeline, call = build(family)
    call = for_one_image(call)
    with pytest.raises(InputError, match=words):
        open_flow_model(pipeline, 6, call={**call, **change})
    with pytest.raises(InputError, match="either a prompt or prompt_embeds"):
        open_flow_model(pipeline, 6, call=call, prompt="a cat")


def test_a_flow_sampler_that_draws_noise_has_no_replacement():
    pipeline, call = build("sd3")
    pipeline.scheduler = type(pipeline.scheduler)(shift=3.0, stochastic_sampling=True)
    with pytest.raises(InputError, match="draws noise at every step; give the pipeline a deterministic sampler"):
        open_flow_model(pipeline, 6, call=for_one_image(call))


def test_without_a_prompt_each_family_is_asked_for_its_own_nothing(monkeypatch):
    """SDXL sets zeros against a prompt, Sana puts nothing before it; the others embed an empty text."""
    asked = {}
    for family in ("sd", "sdxl", "sana"):
        pipeline, call = build(family)
        one = for_one_image(call)
        monkeypatch.setattr(report_model, "first_call", lambda pipeline, network, call: asked.update(call))
        asked.clear()
        if family == "sdxl":
            embeddings = one["prompt_embeds"], one["pooled_prompt_embeds"]
            monkeypatch.setattr(
                pipeline, "encode_prompt",
                lambda prompt, do_classifier_free_guidance, embeddings=embeddings: (
                    embeddings[0], 0 * embeddings[0], embeddings[1], 0 * embeddings[1],
                ),
            )  # fmt: skip
        model = open_flow_model(pipeline, 6)
        assert asked["guidance_scale"] == 1.0
        assert 'prompt "", no guidance' in model.condition
        if family == "sdxl":
            assert "prompt" not in asked
            assert not asked["prompt_embeds"].any()
            assert not asked["pooled_prompt_embeds"].any()
        else:
            assert asked["prompt"] == ""
        assert ("complex_human_instruction" in asked) == (family == "sana")


def test_a_replaced_sampler_clips_only_where_the_first_did():
    pipeline, call = build("sd")
    pipeline.scheduler = EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear")
    model = open_flow_model(pipeline, 6, call=for_one_image(call))
    assert model.replaced_scheduler == "EulerAncestralDiscreteScheduler"
    assert not model.pipeline.scheduler.config.clip_sample


def test_latents_of_another_scale_are_another_autoencoder(tmp_path):
    pipeline, call = build("sd")
    call = {name: value for name, value in for_one_image(call).items() if name not in ("height", "width")}
    other = pipeline.vae.config.scaling_factor
    pipeline.vae.register_to_config(scaling_factor=2 * other)
    pipeline.vae.save_pretrained(tmp_path / "vae")
    pipeline.vae.register_to_config(scaling_factor=other)
    (tmp_path / "images").mkdir()
    for number in range(30):
        (tmp_path / "images" / f"{number}.png").write_bytes(encoded(picture(16, 16, number), "PNG"))
    root = run_images(tmp_path / "images", tmp_path / "ws", encoder=str(tmp_path / "vae"), size=16, workers=0).root
    with pytest.raises(MismatchError, match="scaled otherwise"):
        write_report(root, pipeline, tmp_path / "a.html", seeds=4, steps=6, call=call)
