"""Levels at a timestep against what the scheduler itself adds to a clean sample."""

import diffusers
import pytest
import torch

from manifold.errors import InputError
from manifold.schedule import level_at, load_scheduler

TRAINING = ["DDPMScheduler", "DDIMScheduler", "PNDMScheduler"]
SAMPLING = ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"]
"""Schedulers whose add_noise knows only the timesteps they will visit."""
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def assert_levels_add_noise(scheduler, timestep: int) -> None:
    x0, eps = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    alpha, sigma = level_at(scheduler, timestep)
    expected = scheduler.add_noise(x0, eps, torch.tensor([timestep]))
    torch.testing.assert_close(alpha * x0 + sigma * eps, expected)


@pytest.mark.parametrize("name", TRAINING)
def test_levels_are_those_of_add_noise(name, tmp_path):
    getattr(diffusers, name)(**BETAS).save_pretrained(tmp_path)
    for timestep in (0, 1, 500, 999):
        assert_levels_add_noise(load_scheduler(tmp_path), timestep)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers with NumPy 2
@pytest.mark.parametrize("name", SAMPLING)
def test_levels_are_those_of_add_noise_at_visited_timesteps(name, tmp_path):
    getattr(diffusers, name)(**BETAS).save_pretrained(tmp_path)
    scheduler = load_scheduler(tmp_path)
    scheduler.set_timesteps(10)
    for timestep in scheduler.timesteps.tolist():
        assert_levels_add_noise(scheduler, timestep)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_levels_of_flow_matching_are_those_of_scale_noise(shift, tmp_path):
    diffusers.FlowMatchEulerDiscreteScheduler(shift=shift).save_pretrained(tmp_path / "scheduler")
    scheduler = load_scheduler(tmp_path)
    scheduler.set_timesteps(10)
    x0, eps = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    for timestep in scheduler.timesteps:
        alpha, sigma = level_at(scheduler, float(timestep))
        expected = scheduler.scale_noise(x0, timestep[None], eps)
        torch.testing.assert_close(alpha * x0 + sigma * eps, expected, rtol=1e-5, atol=1e-5)


def test_wrong_timesteps_and_folders(tmp_path):
    scheduler = diffusers.DDPMScheduler()
    for timestep in (-1, 1000, 0.5):
        with pytest.raises(InputError, match=f"whole number from 0 to 999, it is {timestep:g}"):
            level_at(scheduler, timestep)
    with pytest.raises(InputError, match="between 0 and 1000, it is 1001"):
        level_at(diffusers.FlowMatchEulerDiscreteScheduler(), 1001)
    with pytest.raises(InputError, match="no levels by timestep; give the noise level with --sigma"):
        level_at(diffusers.EDMEulerScheduler(), 5)
    with pytest.raises(InputError, match=r"holds no scheduler_config.json"):
        load_scheduler(tmp_path)
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "TomorrowScheduler"}')
    with pytest.raises(InputError, match="'TomorrowScheduler', which the installed diffusers does not have"):
        load_scheduler(tmp_path)
