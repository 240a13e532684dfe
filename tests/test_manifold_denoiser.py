"""A diffusers network behind `denoise`, against the scheduler's own x0; and the figures of a comparison."""

import diffusers
import numpy as np
import pytest
import torch

from manifold.compare import compare_denoisers
from manifold.denoiser import Denoiser, DiffusersDenoiser
from manifold.empirical import EmpiricalDenoiser
from manifold.errors import InputError, ShapeError
from manifold.gaussian import GaussianManifold
from manifold.schedule import NoiseSchedule
from manifold.snr_curves import TableCurve

SCHEDULERS = {
    "ddpm": lambda: diffusers.DDIMScheduler(clip_sample=False),
    "v": lambda: diffusers.DDIMScheduler(clip_sample=False, prediction_type="v_prediction"),
    "euler": lambda: diffusers.EulerDiscreteScheduler(timestep_spacing="leading"),
}
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_unet_gives_the_schedulers_predicted_original_sample(unet, name):
    scheduler = SCHEDULERS[name]()
    scheduler.set_timesteps(10)
    t = scheduler.timesteps[5]
    adapter = DiffusersDenoiser(unet, scheduler)
    alpha, sigma = adapter.schedule.levels(t)
    x_t = alpha.float() * torch.randn(2, 3, 8, 8) + sigma.float() * torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        output = unet(scheduler.scale_model_input(x_t, t), t).sample
    expected = scheduler.step(output, t, x_t).pred_original_sample
    torch.testing.assert_close(adapter.denoise(x_t, alpha, sigma), expected, rtol=1e-3, atol=1e-3)
    # the same state on another scale, flat, gives the same prediction
    flat = DiffusersDenoiser(unet, scheduler, shape=(3, 8, 8))
    again = flat.denoise((x_t / alpha.float()).flatten(1), 1.0, sigma / alpha)
    torch.testing.assert_close(again, expected.flatten(1), rtol=1e-3, atol=1e-3)


def test_transformer_with_flow_matching_and_conditions():
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, sample_size=8, num_layers=1,
        num_embeds_ada_norm=10, norm_num_groups=4,
    ).eval()  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    adapter = DiffusersDenoiser(model, scheduler, conditions={"class_labels": torch.tensor([3])})
    x_t = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        output = model(x_t, torch.tensor([400.0, 400.0]), class_labels=torch.tensor([3, 3])).sample[:, :4]
    torch.testing.assert_close(adapter.denoise(x_t, 0.6, 0.4), x_t - 0.4 * output, rtol=1e-4, atol=1e-5)


def test_a_perfect_epsilon_network_is_recovered_at_every_level():
    """The Gaussian's own eps as the network: the adapter must give the Gaussian's x0_hat, between timesteps too."""
    manifold = GaussianManifold.fit(torch.randn(200, 3, 4, 4, dtype=torch.float64) * 2 + 1).to(dtype=torch.float64)
    scheduler = diffusers.DDPMScheduler()
    adapter = DiffusersDenoiser(lambda x, t: manifold.eps(x, *adapter.schedule.levels(t)), scheduler)
    x_t = torch.randn(3, 3, 4, 4, dtype=torch.float64)
    for alpha, sigma in [(1.0, 0.3), (0.5, 2.0), (0.6, 0.8)]:
        torch.testing.assert_close(
            adapter.denoise(x_t, alpha, sigma), manifold.denoise(x_t, alpha, sigma), rtol=1e-6, atol=1e-6
        )


def test_round_timesteps_shows_whole_numbers():
    seen = []

    def network(x, t):
        seen.extend(t.tolist())
        return torch.zeros_like(x)

    DiffusersDenoiser(network, diffusers.DDPMScheduler(), round_timesteps=True).denoise(
        torch.zeros(1, 1, 2, 2), 1.0, 0.77
    )
    assert seen[0] == int(seen[0])


def test_comparison_by_hand():
    rows = torch.randn(300, 6, dtype=torch.float64) * torch.tensor([5.0, 2, 1, 1, 0.5, 0.1]).double() + 2
    fit, x0 = rows[:200], rows[200:]
    manifold, empirical = GaussianManifold.fit(fit).to(dtype=torch.float64), EmpiricalDenoiser(fit)
    assert isinstance(manifold, Denoiser)
    assert isinstance(empirical, Denoiser)
    generator = torch.Generator().manual_seed(1)
    table = compare_denoisers(
        {"gaussian": manifold, "empirical": empirical}, x0, [1.0, 0.5], [0.5, 8.0], generator=generator, repeats=2
    )
    assert [(row.name, row.sigma) for row in table] == [
        ("gaussian", 0.5), ("empirical", 0.5), ("gaussian", 8.0), ("empirical", 8.0),
    ]  # fmt: skip
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x_t = (0.5 * x0 + 8.0 * noise).numpy()
    predicted, target = manifold.denoise(torch.from_numpy(x_t), 0.5, 8.0).numpy(), x0.numpy()
    row = table[2]
    assert row.mse == pytest.approx(np.mean((predicted - target) ** 2), rel=1e-10)
    centred = target - target.mean(0)
    assert row.explained_denoiser == pytest.approx(1 - ((predicted - target) ** 2).sum() / (centred**2).sum(), rel=1e-9)
    score, exact = (0.5 * predicted - x_t) / 64, (0.5 * target - x_t) / 64
    explained = 1 - ((score - exact) ** 2).sum() / ((exact - exact.mean(0)) ** 2).sum()
    assert row.explained_score == pytest.approx(explained, rel=1e-9)
    assert row.explained_score > 0.9 > row.explained_denoiser  # the score flatters
    assert row.seconds > 0
    itself = compare_denoisers({"gaussian": manifold}, x0, [1.0], [1.0], reference=manifold)[0]
    assert (itself.mse, itself.explained_denoiser) == (0.0, 1.0)
    assert itself.cosine == pytest.approx(1.0)


def test_wrong_use_is_said():
    adapter = DiffusersDenoiser(lambda x, t: x, diffusers.DDPMScheduler())
    with pytest.raises(ShapeError, match=r"pass shape=\(C, H, W\)"):
        adapter.denoise(torch.zeros(2, 12), 1.0, 1.0)
    with pytest.raises(InputError, match="not trained at sigma = 0"):
        adapter.denoise(torch.zeros(2, 3, 2, 2), 1.0, 0.0)
    with pytest.raises(InputError, match="log SNR must lie between"):
        adapter.denoise(torch.zeros(2, 3, 2, 2), 1.0, 1e5)
    with pytest.raises(InputError, match="at least 2 latents, 1 came"):
        compare_denoisers({}, torch.zeros(1, 3), [1.0], [1.0])
    with pytest.raises(InputError, match="they have 2 and 1"):
        compare_denoisers({}, torch.zeros(3, 3), [1.0, 1.0], [1.0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_states_show_the_timesteps_of_float32(dtype):
    shown = []

    def network(x_t, timesteps, **_):
        shown.append(timesteps)
        return x_t

    denoiser = DiffusersDenoiser(network, diffusers.DDIMScheduler(), round_timesteps=True)
    wanted = torch.tensor([501.0, 777.0, 981.0])
    alpha, sigma = denoiser.schedule.levels(wanted)
    denoiser.denoise(torch.zeros(3, 3, 8, 8, dtype=dtype), alpha, sigma)
    assert torch.equal(shown[0], wanted)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_end_levels_of_a_schedule_are_its_own_also_through_float32(unet, name):
    scheduler = SCHEDULERS[name]()
    adapter = DiffusersDenoiser(unet, scheduler)
    for t in (0, 999):
        squared = scheduler.alphas_cumprod[t]
        state = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(t))
        assert bool(adapter.denoise(state, squared.sqrt(), (1 - squared).sqrt()).isfinite().all())
    with pytest.raises(InputError, match="log SNR must lie between"):
        adapter.denoise(state, 1.0, 1e3)


@pytest.mark.parametrize("option", ["use_karras_sigmas", "use_exponential_sigmas", "use_lu_lambdas"])
def test_the_level_asked_counts_whatever_steps_a_sampler_was_given(option):
    """epsilon = 1 everywhere: x0_hat = (x_t - sigma) / alpha at the level asked, to the last digits."""
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_schedule="scaled_linear", **{option: True})
    scheduler.set_timesteps(30)
    adapter = DiffusersDenoiser(lambda x, t: torch.ones_like(x), scheduler)
    fresh = NoiseSchedule(TableCurve(scheduler.alphas_cumprod), coordinates="vp", prediction="epsilon")
    for t in scheduler.timesteps[::4]:
        alpha, sigma = fresh.levels(float(t))
        found = adapter.denoise(torch.zeros(1, 3, 2, 2, dtype=torch.float64), alpha, sigma)
        torch.testing.assert_close(found, torch.full_like(found, float(-sigma / alpha)))
