"""NoiseSchedule against the diffusers schedulers themselves: what they add, visit, show the network, and make of it."""

import diffusers
import pytest
import torch

from manifold.errors import InputError, ShapeError
from manifold.pipeline_families import visited_levels
from manifold.schedule import NoiseSchedule, levels_at_snr
from manifold.snr_curves import FlowCurve, TableCurve

# diffusers passes tensors to numpy the old way; nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
CASES = [
    ("DDPMScheduler", SD, "vp"),
    ("DDPMScheduler", {**SD, "prediction_type": "v_prediction"}, "vp"),
    ("DDPMScheduler", {**SD, "prediction_type": "sample"}, "vp"),
    ("DDIMScheduler", SD, "vp"),
    ("DDIMScheduler", {**SD, **ZERO_SNR}, "vp"),
    ("PNDMScheduler", {**SD, "skip_prk_steps": True}, "vp"),
    ("DPMSolverMultistepScheduler", SD, "vp"),
    ("DPMSolverMultistepScheduler", {**SD, "prediction_type": "v_prediction"}, "vp"),
    ("DPMSolverMultistepScheduler", {**SD, **ZERO_SNR}, "vp"),
    ("DPMSolverMultistepScheduler", {**SD, "use_karras_sigmas": True}, "vp"),
    ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}, "flow"),
    ("DEISMultistepScheduler", SD, "vp"),
    ("UniPCMultistepScheduler", SD, "vp"),
    (
        "UniPCMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3},
        "flow",
    ),
    ("EulerDiscreteScheduler", SD, "ve"),
    ("EulerDiscreteScheduler", {**SD, "prediction_type": "v_prediction", "use_karras_sigmas": True}, "ve"),
    ("EulerDiscreteScheduler", {**SD, **ZERO_SNR}, "ve"),
    ("EulerDiscreteScheduler", {**SD, "prediction_type": "v_prediction", "timestep_type": "continuous"}, "ve"),
    ("EulerDiscreteScheduler", {**SD, "prediction_type": "sample", "timestep_spacing": "leading"}, "ve"),
    ("EulerAncestralDiscreteScheduler", SD, "ve"),
    ("HeunDiscreteScheduler", SD, "ve"),
    ("HeunDiscreteScheduler", {**SD, "prediction_type": "v_prediction", "use_karras_sigmas": True}, "ve"),
    ("LMSDiscreteScheduler", SD, "ve"),
    ("EDMEulerScheduler", {}, "ve"),
    ("EDMEulerScheduler", {"prediction_type": "v_prediction", "sigma_data": 1.0}, "ve"),
    ("EDMDPMSolverMultistepScheduler", {}, "ve"),
    ("FlowMatchEulerDiscreteScheduler", {}, "flow"),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, "flow"),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "shift_terminal": 0.02}, "flow"),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, "flow"),
]
IDS = [f"{name}-{'-'.join(map(str, options.values()))}" for name, options, _ in CASES]


def made(name, options, steps=12):
    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(steps, **({"mu": 0.9} if options.get("use_dynamic_shifting") else {}))
    return scheduler


@pytest.fixture
def pair(fixed_seed):
    return torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3)


@pytest.mark.parametrize(("name", "options", "coordinates"), CASES, ids=IDS)
def test_levels_are_what_the_scheduler_adds_at_every_step_it_visits(name, options, coordinates, pair):
    scheduler, (x0, eps) = made(name, options), pair
    schedule = NoiseSchedule.from_scheduler(scheduler)
    assert schedule.coordinates == coordinates
    add = getattr(scheduler, "scale_noise", None)
    for t in dict.fromkeys(scheduler.timesteps.tolist()):
        scheduler._step_index = None  # FlowMatchHeun's scale_noise remembers the first timestep it saw
        at = torch.tensor([t], dtype=scheduler.timesteps.dtype)
        expected = scheduler.add_noise(x0, eps, at) if add is None else add(x0, at, eps)
        alpha, sigma = schedule.levels(t)
        torch.testing.assert_close((alpha * x0 + sigma * eps).float(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name, options, where in CASES if where != "flow" and "EDM" not in name]
)
def test_every_training_timestep_of_alphas_cumprod(name, options):
    if options.get("timestep_type") == "continuous":
        pytest.skip("its timesteps are log(sigma) / 4, not numbers from 0 to 999")
    scheduler = getattr(diffusers, name)(**options)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    t = torch.arange(1000)
    alpha, sigma = levels_at_snr(schedule.log_snr(t), "vp")
    torch.testing.assert_close(alpha, scheduler.alphas_cumprod.double().sqrt(), rtol=2e-7, atol=2e-7)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(1000, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name, options, _ in CASES if "sigmas" not in str(options)]
)
def test_visited_levels_are_the_schedulers_sigmas(name, options):
    scheduler = made(name, options)
    if not hasattr(scheduler, "sigmas"):
        pytest.skip("keeps no sigmas; its alphas_cumprod are tested above")
    schedule = NoiseSchedule.from_scheduler(scheduler)
    ratio = torch.exp(-0.5 * schedule.log_snr(scheduler.timesteps))
    sigmas = scheduler.sigmas[: len(scheduler.timesteps)].double()
    expected = sigmas / (1 - sigmas) if schedule.coordinates == "flow" else sigmas
    torch.testing.assert_close(ratio, expected, rtol=1e-9, atol=0)


KEEP_NO_X0 = ("PNDMScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler")
"""PNDM never forms x0, UniPC has a test of its own, DEIS converts to the noise instead."""
STEPPING = [case[:2] for case in CASES if case[0] not in KEEP_NO_X0]


@pytest.mark.parametrize(
    ("name", "options"), STEPPING, ids=[i for i, c in zip(IDS, CASES, strict=True) if c[:2] in STEPPING]
)
def test_predicted_target_and_network_input_are_the_schedulers_own(name, options, pair, monkeypatch):
    """`step` of each scheduler, stopped at the step's start, gives the x0 it believes in."""
    options = {**options, **({"clip_sample": False} if name in ("DDPMScheduler", "DDIMScheduler") else {})}
    scheduler, (state, output) = made(name, options), pair
    schedule = NoiseSchedule.from_scheduler(scheduler)
    t = scheduler.timesteps[4]
    if hasattr(scheduler, "scale_model_input"):
        shown = scheduler.scale_model_input(state, t)
        torch.testing.assert_close(schedule.network_input(state, t), shown, rtol=1e-5, atol=1e-6)
    if hasattr(scheduler, "convert_model_output"):
        scheduler._init_step_index(t)
        expected = scheduler.convert_model_output(output, sample=state)
    elif name == "LMSDiscreteScheduler":
        expected = scheduler.step(output, t, state).pred_original_sample
    elif name.startswith("FlowMatch"):  # an Euler step all the way to sigma = 0 lands on x0
        scheduler._init_step_index(t)
        scheduler.sigmas[scheduler.step_index + 1] = 0
        expected = scheduler.step(output, t, state).prev_sample
        if "Heun" in name:
            expected = state - scheduler.sigmas[scheduler.step_index - 1] * output
    elif name == "HeunDiscreteScheduler":
        scheduler._init_step_index(t)
        scheduler.sigmas = scheduler.sigmas.clone()
        scheduler.sigmas[scheduler.step_index + 1] = 0
        expected = scheduler.step(output, t, state).prev_sample
    else:
        expected = scheduler.step(output, t, state).pred_original_sample
    torch.testing.assert_close(schedule.x0_hat(output, state, t), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
@pytest.mark.parametrize(
    "name",
    ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler"],
)
def test_samplers_that_evaluate_between_their_sigmas_show_the_network_what_we_say(name, pair):
    """Two steps of the sampler; at each evaluation `scale_model_input` says which level it believes to be at."""
    scheduler, (_, output) = made(name, SD), pair
    schedule = NoiseSchedule.from_scheduler(scheduler)
    state = torch.ones(1, 2, 3, 3)
    for t in scheduler.timesteps[:4]:
        shown = scheduler.scale_model_input(state, t)
        torch.testing.assert_close(schedule.network_input(state, t), shown, rtol=1e-4, atol=1e-6)
        state = scheduler.step(output, t, state).prev_sample


def test_cosine_timesteps_are_read_as_the_scheduler_writes_them():
    scheduler = diffusers.CosineDPMSolverMultistepScheduler()
    scheduler.set_timesteps(9)
    sigmas = torch.tensor([0.01, 0.3, 1.0, 5.0, 100.0], dtype=torch.float64)
    schedule = NoiseSchedule.from_scheduler(diffusers.CosineDPMSolverMultistepScheduler())
    timesteps = scheduler.precondition_noise(sigmas)
    torch.testing.assert_close(schedule.sigma(timesteps), sigmas, rtol=1e-6, atol=0)
    torch.testing.assert_close(schedule.at_snr(sigmas**-2), timesteps, rtol=1e-6, atol=0)
    state, output = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3)
    wanted = scheduler.precondition_outputs(state, output, 0.3)
    torch.testing.assert_close(schedule.x0_hat(output, state, timesteps[1]), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_a_stand_in_for_pure_noise_is_read_as_pure_noise(name):
    """With diffusers' own linear betas the 2^-24 it puts last lies above the value before."""
    scheduler = getattr(diffusers, name)(**ZERO_SNR)
    assert scheduler.alphas_cumprod[-1] > scheduler.alphas_cumprod[-2]
    schedule = NoiseSchedule.from_scheduler(scheduler)
    t = torch.arange(999)
    alpha, _ = levels_at_snr(schedule.log_snr(t), "vp")
    torch.testing.assert_close(alpha, scheduler.alphas_cumprod[:-1].double().sqrt(), rtol=2e-7, atol=1e-9)
    assert float(schedule.log_snr(999)) == -float("inf")


def test_unipc_converts_alike(pair):
    for options in (SD, {**SD, "prediction_type": "v_prediction"}):
        scheduler = made("UniPCMultistepScheduler", options)
        t = scheduler.timesteps[3]
        scheduler._init_step_index(t)
        expected = scheduler.convert_model_output(pair[1], sample=pair[0])
        found = NoiseSchedule.from_scheduler(scheduler).x0_hat(pair[1], pair[0], t)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_conversion_keeps_the_signal_to_noise_ratio_and_comes_back(pair):
    schedule = NoiseSchedule.from_scheduler(diffusers.DDPMScheduler(**SD))
    x0, eps = pair
    for t in (0.0, 123.4, 999.0):
        alpha, sigma = schedule.levels(t)
        x_t = (alpha * x0 + sigma * eps).double()
        ve = schedule.convert(x_t, t, "ve")
        torch.testing.assert_close(ve, x0.double() + sigma / alpha * eps, rtol=1e-6, atol=1e-6)
        flow = schedule.convert(x_t, t, "flow")
        share = sigma / (alpha + sigma)
        torch.testing.assert_close(flow, (1 - share) * x0.double() + share * eps, rtol=1e-6, atol=1e-6)
        back = NoiseSchedule(schedule.curve, coordinates="flow").convert(flow, t, "vp")
        torch.testing.assert_close(back, x_t, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [SD, {**SD, **ZERO_SNR}])
def test_snr_and_back_between_timesteps(options):
    schedule = NoiseSchedule.from_scheduler(diffusers.DDIMScheduler(**options))
    t = torch.tensor([0.0, 0.5, 17.25, 500.0, 998.0, 998.5])
    alpha, sigma = schedule.levels(t)
    torch.testing.assert_close(schedule.at_snr((alpha / sigma) ** 2), t.double(), rtol=1e-9, atol=1e-9)
    assert bool((schedule.log_snr(torch.linspace(0, 999, 4001)).diff() < 0).all())


def test_between_two_timesteps_log_snr_is_linear():
    scheduler = diffusers.DDPMScheduler(**SD)
    log_snr = torch.log(scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)).double()
    found = NoiseSchedule.from_scheduler(scheduler).log_snr(400.25)
    torch.testing.assert_close(found, 0.75 * log_snr[400] + 0.25 * log_snr[401], rtol=1e-5, atol=0)


def test_zero_terminal_snr_is_pure_noise():
    schedule = NoiseSchedule.from_scheduler(diffusers.DDIMScheduler(**SD, **ZERO_SNR))
    alpha, sigma = schedule.levels(999)
    assert (float(alpha), float(sigma)) == (0.0, 1.0)
    assert float(schedule.at_snr(0.0)) == 999.0
    with pytest.raises(InputError, match='infinite in "ve"'):
        schedule.convert(torch.zeros(1, 2), 999, "ve")


def test_options_of_another_class_are_no_part_of_a_schedule():
    """DDIM made from the options of an Euler sampler with logarithms for timesteps has whole ones, and its own table."""
    euler = diffusers.EulerDiscreteScheduler(**SD, prediction_type="v_prediction", timestep_type="continuous")
    scheduler = diffusers.DDIMScheduler.from_config(euler.config)
    assert scheduler.config.timestep_type == "continuous"
    alpha, sigma = NoiseSchedule.from_scheduler(scheduler).levels(torch.tensor([3, 500]))
    cumulative = scheduler.alphas_cumprod[[3, 500]].double()
    torch.testing.assert_close(alpha, cumulative.sqrt(), rtol=1e-6, atol=0)
    torch.testing.assert_close(sigma, (1 - cumulative).sqrt(), rtol=1e-6, atol=0)


def test_options_that_a_subclass_passes_on_are_its_own():
    class PassesOn(diffusers.DDIMScheduler):
        def __init__(self, **options):
            super().__init__(**options)

    assert NoiseSchedule.from_scheduler(PassesOn(prediction_type="v_prediction")).prediction == "v_prediction"


def test_from_a_folder(tmp_path):
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(tmp_path / "scheduler")
    alpha, sigma = NoiseSchedule.from_scheduler(tmp_path).levels(torch.tensor([0.0, 250.0, 1000.0]))
    again = NoiseSchedule.from_scheduler(tmp_path / "scheduler").levels(torch.tensor([0.0, 250.0, 1000.0]))
    assert torch.equal(again[0], alpha)
    assert alpha.tolist() == [1.0, 0.75, 0.0]
    assert sigma.tolist() == pytest.approx([0.0, 0.25, 1.0], rel=1e-12)


def test_folders_without_a_scheduler(tmp_path):
    with pytest.raises(InputError, match=r"holds no scheduler_config.json, neither itself nor in scheduler/"):
        NoiseSchedule.from_scheduler(tmp_path)
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "TomorrowScheduler"}')
    with pytest.raises(InputError, match="'TomorrowScheduler', which the installed diffusers does not have"):
        NoiseSchedule.from_scheduler(tmp_path)


def test_wrong_use_is_said():
    schedule = NoiseSchedule.from_scheduler(diffusers.DDPMScheduler())
    with pytest.raises(InputError, match="between 0 and 999, it is 1000"):
        schedule.levels(1000)
    with pytest.raises(InputError, match="coordinates must be one of vp, ve, flow, it is 'VP'"):
        schedule.convert(torch.zeros(1, 2), 5, "VP")
    with pytest.raises(InputError, match="runs from data to noise"):
        NoiseSchedule.from_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True))
    with pytest.raises(InputError, match="between 0 and 1000, it is 1001"):
        NoiseSchedule.from_scheduler(diffusers.FlowMatchEulerDiscreteScheduler()).levels(1001)
    with pytest.raises(InputError, match="log SNR must lie between"):
        schedule.at_snr(1e12)
    with pytest.raises(ShapeError, match=r"a number or \(4,\), it has shape \(3,\)"):
        schedule.convert(torch.zeros(4, 2), torch.tensor([1.0, 2.0, 3.0]), "ve")
    with pytest.raises(InputError, match="says nothing of x0"):
        NoiseSchedule(FlowCurve(), coordinates="flow").x0_hat(torch.zeros(1, 2), torch.zeros(1, 2), 1000.0)
    with pytest.raises(InputError, match="coordinates must be one of vp, ve, flow, it is 'polar'"):
        NoiseSchedule(FlowCurve(), coordinates="polar")
    with pytest.raises(InputError, match="has no alphas_cumprod, flow or EDM"):
        NoiseSchedule.from_scheduler(diffusers.ScoreSdeVeScheduler())
    with pytest.raises(InputError, match="that fall"):
        TableCurve(torch.tensor([0.5, 0.6]))


def test_half_precision_rounds_the_result_and_not_the_factor():
    """Each value is the nearest that bfloat16 has to the exact one."""
    scheduler = diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.set_timesteps(9)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    state = 10 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    for timestep in scheduler.timesteps:
        sigma = scheduler.sigmas[scheduler.index_for_timestep(timestep)].double()
        for found, factor in (
            (schedule.network_input(state, timestep), 1 / (sigma**2 + 1).sqrt()),
            (schedule.x0_hat(state, state, timestep), 1 - sigma),
        ):
            exact = state.double() * factor
            assert float(((found.double() - exact) / exact).abs().max()) < 1.01 * 2**-8


@pytest.mark.parametrize("name", ["DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"])
def test_schedulers_that_run_from_data_to_noise_are_refused(name):
    with pytest.raises(InputError, match=f"{name} runs from data to noise"):
        NoiseSchedule.from_scheduler(getattr(diffusers, name)())


ONE_IMAGE = [
    (name, {**SD, **more})
    for name in (
        "SASolverScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "UniPCMultistepScheduler",
        "DEISMultistepScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2DiscreteScheduler",
    )
    for more in ({}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True})
] + [
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}),
]


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
@pytest.mark.parametrize(("name", "options"), ONE_IMAGE, ids=[f"{n}-{list(o)[-1]}" for n, o in ONE_IMAGE])
def test_the_sampler_itself_steps_from_one_of_our_levels_to_the_next(name, options, fixed_seed):
    """Data of one image: the flow is x_t = alpha x0 + sigma eps with the same eps throughout, and no solver leaves it."""
    scheduler = made(name, options, 20)
    scheduler.tau_func = lambda t: 0  # SASolver's noise
    alphas, sigmas = visited_levels(scheduler)
    x0, eps = torch.randn(2, 1, 2, 3, 3, dtype=torch.float64)
    state = alphas[0] * x0 + sigmas[0] * eps
    for t, alpha, sigma in zip(scheduler.timesteps, alphas, sigmas, strict=True):
        torch.testing.assert_close(
            state, alpha * x0 + sigma * eps, rtol=0, atol=1e-4 * float(torch.hypot(alpha, sigma))
        )
        noise = (state - alpha * x0) / sigma
        state = scheduler.step(noise - x0 if name.startswith("FlowMatch") else noise, t, state).prev_sample
