"""A recorded run is the run itself to the last bit, and what it records is what the sampler used."""

import functools
import inspect
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers.callbacks import PipelineCallback
from tiny_pipelines import SD, LatentPipeline, quiet, tiny_ddim, tiny_ddpm, tiny_demo, tiny_dit, tiny_latent

import manifold
from manifold.errors import FormatError, InputError
from manifold.pipeline_families import StateLayout
from manifold.recording import Recording
from manifold.schedule import NoiseSchedule
from manifold.trajectory import record

# diffusers passes tensors to numpy the old way, and warns of its own old solvers; nothing of ours.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.algorithm_types dpmsolver and sde-dpmsolver. is deprecated:FutureWarning"),
]

V = {"prediction_type": "v_prediction"}
SCHEDULERS = [
    ("DDPMScheduler", SD),
    ("DDPMScheduler", {**SD, **V, "thresholding": True}),
    ("DDIMScheduler", {**SD, "clip_sample": False, "set_alpha_to_one": False}),
    ("DDIMScheduler", {**SD, **V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    ("PNDMScheduler", {**SD, "skip_prk_steps": True}),
    ("PNDMScheduler", {**SD, "skip_prk_steps": False}),
    ("DPMSolverMultistepScheduler", SD),
    ("DPMSolverMultistepScheduler", {**SD, **V, "use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {**SD, "algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistepScheduler", {**SD, "thresholding": True}),
    ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3}),
    ("DPMSolverSinglestepScheduler", SD),
    ("DEISMultistepScheduler", SD),
    ("UniPCMultistepScheduler", SD),
    ("UniPCMultistepScheduler", {**SD, "predict_x0": False, "final_sigmas_type": "sigma_min"}),
    ("EulerDiscreteScheduler", SD),
    ("EulerDiscreteScheduler", {**SD, **V, "timestep_spacing": "leading"}),
    ("EulerAncestralDiscreteScheduler", SD),
    ("HeunDiscreteScheduler", SD),
    ("KDPM2DiscreteScheduler", SD),
    ("KDPM2AncestralDiscreteScheduler", SD),
    ("DPMSolverSDEScheduler", {**SD, "noise_sampler_seed": 0}),
    ("LMSDiscreteScheduler", SD),
    ("EDMEulerScheduler", {}),
    ("EDMDPMSolverMultistepScheduler", {}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchHeunDiscreteScheduler", {}),
]
IDS = [f"{name}-{'-'.join(map(str, options.values()))}" for name, options in SCHEDULERS]


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def watched_by_hand(scheduler):
    """An independent log of a scheduler: a subclass whose step writes down what it is given and what it gives."""
    log = []

    class Logged(type(scheduler)):
        @functools.wraps(type(scheduler).step)  # pipelines look whether it takes a generator
        def step(self, *args, **kwargs):
            bound = inspect.signature(super().step).bind(*args, **kwargs).arguments
            given = bound["model_output"].clone(), float(bound["timestep"]), bound["sample"].clone()
            result = super().step(*args, **kwargs)
            log.append(SimpleNamespace(output=given[0], t=given[1], state=given[2], result=result))
            return result

    scheduler.__class__ = Logged
    return log


@pytest.mark.filterwarnings("ignore:Should have ta>=t0:UserWarning")  # torchsde, of rounding
@pytest.mark.parametrize(("name", "options"), SCHEDULERS, ids=IDS)
def test_latent_pipeline_with_every_scheduler(name, options):
    pipeline = tiny_latent(getattr(diffusers, name)(**options))
    call = {"class_labels": [1, 4], "num_inference_steps": 6, "guidance_scale": 3.0}
    plain = pipeline(**call, generator=seeded()).images
    before = dict(vars(pipeline.scheduler))
    recording = record(pipeline, **call, generator=seeded())
    assert set(vars(pipeline.scheduler)) == set(before), "the scheduler must be left as it was"
    assert torch.equal(recording.output.images, plain)

    log = watched_by_hand(pipeline.scheduler)
    latents = pipeline(**call, generator=seeded(), output_type="latent").images
    states = torch.stack([*(one.state for one in log), latents])
    assert torch.equal(recording.x_t, states)
    assert recording.timesteps.tolist() == [one.t for one in log]
    assert recording.x0_hat.shape == (len(log), 2, 4, 8, 8)
    for step, one in enumerate(log):
        if len(one.result) > 1:
            assert torch.equal(recording.x0_hat[step], one.result[1])

    # x_t = alpha x0_hat + sigma eps_hat, where eps_hat is what the guided network said
    prediction = pipeline.scheduler.config.get("prediction_type", "epsilon")
    if prediction == "epsilon" and not options.get("thresholding") and not name.startswith("EDM"):
        flow = name.startswith("FlowMatch")
        for step, one in enumerate(log):
            if name.startswith(("DDPM", "DDIM")):
                break  # they clip x0_hat
            alpha, sigma = recording.alphas[step], recording.sigmas[step]
            x0 = recording.x0_hat[step].double()
            eps = x0 + one.output if flow else one.output.double()
            torch.testing.assert_close(alpha * x0 + sigma * eps, one.state.double(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "options", "other"),
    [
        ("DEISMultistepScheduler", {}, diffusers.UniPCMultistepScheduler(**SD, predict_x0=True)),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
         diffusers.UniPCMultistepScheduler(**SD, predict_x0=True)),
        ("UniPCMultistepScheduler", {"predict_x0": False, "final_sigmas_type": "sigma_min"},
         diffusers.DPMSolverMultistepScheduler(**SD, algorithm_type="dpmsolver++")),
    ],
)  # fmt: skip
def test_a_sampler_goes_by_its_own_options_whichever_it_was_made_from(name, options, other):
    """`from_config` keeps what only the other class goes by; the sampler itself takes no notice of it."""
    call = {"class_labels": [1, 4], "num_inference_steps": 6}
    kinds = getattr(diffusers, name)
    kept, plain = kinds.from_config(other.config, **options), kinds(**SD, **options)
    assert {"predict_x0", "algorithm_type"} <= set(kept.config)
    recordings = [record(tiny_latent(one), **call, generator=seeded()) for one in (kept, plain)]
    assert torch.equal(recordings[0].x_t, recordings[1].x_t)
    assert torch.equal(recordings[0].x0_hat, recordings[1].x0_hat)


def test_second_order_samplers_show_every_evaluation():
    for name, evaluations in (("HeunDiscreteScheduler", 11), ("KDPM2DiscreteScheduler", 11), ("PNDMScheduler", 7)):
        recording = record(
            tiny_latent(getattr(diffusers, name)(**SD, **({"skip_prk_steps": True} if name[0] == "P" else {}))),
            [0],
            num_inference_steps=6,
            generator=seeded(),
        )
        assert len(recording.alphas) == len(recording.x0_hat) == evaluations
        assert len(recording.x_t) == evaluations + 1


def test_karras_timesteps_that_repeat_keep_their_own_levels():
    pipeline = tiny_latent(
        diffusers.DPMSolverMultistepScheduler(
            **SD, use_karras_sigmas=True, algorithm_type="dpmsolver", final_sigmas_type="sigma_min"
        )
    )
    outputs, step = [], pipeline.scheduler.step

    @functools.wraps(step)
    def watched(model_output, *args, **kwargs):
        outputs.append(model_output.double())
        return step(model_output, *args, **kwargs)

    pipeline.scheduler.step = watched
    recording = record(pipeline, [0], num_inference_steps=99, generator=seeded())
    assert len(set(recording.timesteps.tolist())) < 99
    ratio = recording.sigmas / recording.alphas
    torch.testing.assert_close(ratio, pipeline.scheduler.sigmas[:99].double(), rtol=1e-9, atol=0)
    alpha, sigma = (one[:, None, None, None, None] for one in (recording.alphas, recording.sigmas))
    expected = (recording.x_t[:-1].double() - sigma * torch.stack(outputs)) / alpha
    torch.testing.assert_close(recording.x0_hat.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [tiny_ddpm, tiny_ddim])
def test_unconditional_pipelines_without_a_callback(make):
    pipeline = make()
    call = {"batch_size": 2, "num_inference_steps": 7, "output_type": "np"}
    plain = pipeline(**call, generator=seeded()).images
    recording = record(pipeline, **call, generator=seeded())
    assert (recording.output.images == plain).all()
    assert "step" not in vars(pipeline.scheduler)
    log = watched_by_hand(pipeline.scheduler)
    pipeline(**call, generator=seeded())
    assert torch.equal(recording.x_t[:-1], torch.stack([one.state for one in log]))
    assert torch.equal(recording.x_t[-1], log[-1].result.prev_sample)
    assert torch.equal(recording.x0_hat, torch.stack([one.result.pred_original_sample for one in log]))
    cumulative = pipeline.scheduler.alphas_cumprod[recording.timesteps.long()].double()
    torch.testing.assert_close(recording.alphas, cumulative.sqrt(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(recording.sigmas, (1 - cumulative).sqrt(), rtol=1e-6, atol=1e-7)
    assert recording.metadata == {
        "pipeline": type(pipeline).__name__,
        "scheduler": recording.metadata["scheduler"],
        "coordinates": "vp",
    }


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_dit_keeps_two_copies_under_guidance_and_one_is_recorded(guidance_scale):
    pipeline = tiny_dit()
    call = {"class_labels": [1, 7, 9], "num_inference_steps": 5, "guidance_scale": guidance_scale, "output_type": "np"}
    plain = pipeline(**call, generator=seeded()).images
    recording = record(pipeline, **call, generator=seeded())
    assert (recording.output.images == plain).all()
    assert recording.x_t.shape == (6, 3, 4, 8, 8)
    with torch.no_grad():
        decoded = pipeline.vae.decode(recording.x_t[-1] / pipeline.vae.config.scaling_factor).sample
    images = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(images, torch.as_tensor(plain), rtol=1e-5, atol=1e-5)


def test_a_callback_of_the_callers_runs_and_its_changes_are_recorded():
    pipeline = tiny_latent(diffusers.DDIMScheduler(**SD))
    seen = []

    def callback(_, step, timestep, tensors):
        seen.append((step, float(timestep)))
        return {"latents": tensors["latents"] + 1}

    call = {"class_labels": [2], "output_type": "latent", "callback_on_step_end": callback}
    plain = pipeline(**call, generator=seeded()).images
    recording = record(pipeline, **call, generator=seeded())
    assert torch.equal(recording.output.images, plain)
    assert torch.equal(recording.x_t[-1], plain)
    assert seen[:10] == seen[10:]
    assert [t for _, t in seen[10:]] == recording.timesteps.tolist()


def test_a_callback_of_diffusers_own_class_gets_its_tensors():
    class Halve(PipelineCallback):
        tensor_inputs = ("latents", "t")

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            assert float(callback_kwargs["t"]) == float(timestep)
            callback_kwargs["latents"] = callback_kwargs["latents"] / 2
            return callback_kwargs

    pipeline = tiny_latent(diffusers.DDIMScheduler(**SD))
    halve = Halve(cutoff_step_ratio=1.0)
    call = {"class_labels": [2], "output_type": "latent", "callback_on_step_end": halve}
    plain = pipeline(**call, generator=seeded()).images
    recording = record(pipeline, **call, generator=seeded())
    assert torch.equal(recording.output.images, plain)
    assert torch.equal(recording.x_t[-1], plain)


def test_a_callback_may_change_nothing():
    pipeline = tiny_demo(diffusers.EulerDiscreteScheduler(**SD))
    call = {"class_labels": [2], "output_type": "latent"}
    plain = pipeline(**call, generator=seeded()).images
    recording = record(pipeline, **call, generator=seeded(), callback_on_step_end=lambda *_: {})
    assert torch.equal(recording.output.images, plain)
    assert torch.equal(recording.x_t[-1], plain)


@pytest.mark.parametrize("guidance_scale", [1.0, 1.5])
def test_the_demo_models_pipeline(guidance_scale):
    pipeline = tiny_demo(diffusers.DPMSolverMultistepScheduler(**SD))
    call = {"class_labels": [1, 3], "num_inference_steps": 6, "guidance_scale": guidance_scale}
    plain = pipeline(**call, output_type="np", generator=seeded()).images
    recording = record(pipeline, **call, output_type="np", generator=seeded())
    assert (recording.output.images == plain).all()
    latents = pipeline(**call, output_type="latent", generator=seeded()).images
    assert torch.equal(recording.x_t[-1], latents)


@pytest.mark.parametrize("name", ["DDIMScheduler", "FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_half_precision_stays_half(name):
    pipeline = tiny_latent(getattr(diffusers, name)())
    pipeline.to(torch.bfloat16)
    call = {"class_labels": [1, 3], "num_inference_steps": 6, "guidance_scale": 2.0}
    plain = pipeline(**call, generator=seeded()).images
    recording = record(pipeline, **call, generator=seeded())
    assert torch.equal(recording.output.images, plain)
    assert recording.x_t.dtype == recording.x0_hat.dtype == torch.bfloat16


def test_a_failed_run_leaves_the_scheduler_as_it_was():
    pipeline = tiny_latent(diffusers.UniPCMultistepScheduler(**SD))

    def fail(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(pipeline, [1], callback_on_step_end=fail)
    assert not {"step", "convert_model_output"} & set(vars(pipeline.scheduler))
    pipeline.scheduler.step = own = pipeline.scheduler.step
    record(pipeline, [1], num_inference_steps=3)
    assert pipeline.scheduler.step is own


def test_a_learned_variance_is_not_part_of_the_prediction():
    learned = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "variance_type": "learned_range"}
    scheduler = diffusers.DPMSolverMultistepScheduler(**SD, **learned)
    pipeline = tiny_ddpm()
    pipeline.scheduler = scheduler
    pipeline.unet.conv_out = torch.nn.Conv2d(8, 6, 3, padding=1)
    log = watched_by_hand(scheduler)
    recording = record(pipeline, generator=seeded(), num_inference_steps=4, output_type="pt")
    schedule = NoiseSchedule.from_scheduler(scheduler)
    assert log[0].output.shape[1] == 6
    expected = [schedule.x0_hat(one.output[:, :3], one.state, one.t) for one in log]
    torch.testing.assert_close(recording.x0_hat, torch.stack(expected))


@pytest.mark.parametrize(
    "layout", [StateLayout(), StateLayout((2, 3), 2), StateLayout((4, 6), 1), StateLayout(copies=2)]
)
def test_packing_is_undone_by_unpacking(layout):
    state = torch.randn(2, 5, 4, 6)
    packed = layout.pack(state)
    assert torch.equal(layout.unpack(packed), state)
    if layout.grid is not None:
        rows, columns, side = *layout.grid, layout.patch
        assert packed.shape == (2, rows * columns, 5 * side**2)
        token = packed[1, columns + 2].view(5, side, side)  # second row, third column
        assert torch.equal(token, state[1, :, side : 2 * side, 2 * side : 3 * side])
    if layout.copies == 2:
        assert torch.equal(packed, torch.cat([state, state]))


def test_unknown_packings_are_said_at_the_first_step():
    class Video(LatentPipeline):
        def prepare_latents(self, *args):
            return super().prepare_latents(*args)[:, :, None]

    class Frames(torch.nn.Module):
        config, dtype, device, calls = tiny_latent(None).unet.config, torch.float32, torch.device("cpu"), 0

        def forward(self, x, t, **_):
            Frames.calls += 1
            return (torch.zeros_like(x),)

    pipeline = quiet(Video(Frames(), None, diffusers.DDIMScheduler(**SD)))
    with pytest.raises(InputError, match=r"those of Video have shape \(1, 4, 1, 8, 8\)"):
        record(pipeline, [1])
    assert Frames.calls == 1


def test_saved_and_loaded(tmp_path):
    recording = record(tiny_ddim(), batch_size=2, num_inference_steps=4, generator=seeded())
    recording.save(tmp_path / "run.safetensors")
    loaded = manifold.Recording.load(tmp_path / "run.safetensors")
    for name in ("x_t", "x0_hat", "alphas", "sigmas", "timesteps"):
        assert torch.equal(getattr(loaded, name), getattr(recording, name))
    assert loaded.metadata == recording.metadata
    assert loaded.output is None
    manifold.GaussianManifold.fit(torch.randn(9, 4)).save(tmp_path / "other.safetensors")
    with pytest.raises(FormatError, match=r"other\.safetensors holds no recording"):
        Recording.load(tmp_path / "other.safetensors")


def test_wrong_use_is_said():
    class Idle(type(tiny_ddim())):
        def __call__(self):
            return None

    with pytest.raises(InputError, match="Idle made no step with its scheduler"):
        record(Idle(tiny_ddim().unet, diffusers.DDIMScheduler()))
    with pytest.raises(InputError, match="has no alphas_cumprod"):
        record(tiny_latent(diffusers.IPNDMScheduler()), [1])
