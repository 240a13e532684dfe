"""From a diffusers pipeline to the numbers: record a run of the exact network, measure it, and meet the prediction.

The sampler is first order, so what is measured approaches what is predicted as the inverse of the number of steps; a network
with a planted error does not approach it.
"""

from types import SimpleNamespace

import diffusers
import pytest
import torch

from manifold import (
    GaussianManifold,
    measure_alignment,
    measure_emergence,
    measure_path_pca,
    measure_path_rotation,
    measure_perturbation,
    record,
    shuffled_network,
)
from manifold.covariance import FullCovariance

SHAPE, D, N = (3, 4, 4), 48, 12
STEPS = (25, 100)


class Network(torch.nn.Module):
    """The optimal epsilon network of N(mean, covariance); `error` multiplies what it predicts."""

    def __init__(self, mean, covariance, scheduler, error: float = 1.0) -> None:
        super().__init__()
        self.mean, self.covariance, self.error = mean, covariance, error
        self.squared = scheduler.alphas_cumprod.double()
        self.config = SimpleNamespace(sample_size=SHAPE[1], in_channels=SHAPE[0])
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def forward(self, x, t, **_):
        alpha, sigma = self.squared[int(t)].sqrt(), (1 - self.squared[int(t)]).sqrt()
        noisy = alpha**2 * self.covariance + sigma**2 * torch.eye(D, dtype=torch.float64)
        eps = sigma * torch.linalg.solve(noisy, (x.double().flatten(1) - alpha * self.mean).T).T
        return SimpleNamespace(sample=(self.error * eps).view(x.shape).to(x))


@pytest.fixture
def gaussian(fixed_seed):
    generator = torch.Generator().manual_seed(fixed_seed)
    basis = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64)).Q
    mean = 0.3 * torch.randn(D, generator=generator, dtype=torch.float64)
    return GaussianManifold(FullCovariance(mean, torch.logspace(1, -2, D, dtype=torch.float64), basis), shape=SHAPE)


@pytest.fixture
def painted(gaussian):
    """A recording of DDIM with so many steps and such a network."""

    def run(steps: int, error: float = 1.0):
        scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
        covariance = (gaussian.eigvecs * gaussian.eigvals) @ gaussian.eigvecs.T
        pipeline = diffusers.DDIMPipeline(Network(gaussian.mean, covariance, scheduler, error), scheduler)
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(3)
        found = record(pipeline, batch_size=N, num_inference_steps=steps, generator=generator, output_type="np")
        assert found.x_t.shape == (steps + 1, N, *SHAPE)
        return found

    return run


def halves(errors: list[float], factor: float = 3.0) -> None:
    """Four times the steps, about a quarter of the error: at least a third."""
    assert errors[1] < errors[0] / factor, errors


def test_alignment_of_a_recorded_run(gaussian, painted):
    runs = [painted(steps) for steps in STEPS]
    found = [measure_alignment(run.x_t, run.x0_hat, run.alphas, run.sigmas, gaussian) for run in runs]
    halves([float(one.state.distance.max()) for one in found])
    assert float(found[1].state.cosine.mean(1).min()) > 0.999
    assert float(found[1].target.cosine.mean(1).min()) > 0.999
    assert float(found[1].null_state.cosine.mean()) < 0.3
    wrong = painted(100, error=1.02)
    planted = measure_alignment(wrong.x_t, wrong.x0_hat, wrong.alphas, wrong.sigmas, gaussian)
    assert float(planted.state.distance.max()) > 2 * float(found[1].state.distance.max())


def test_flatness_and_rotation_of_a_recorded_run(gaussian, painted):
    runs = [painted(steps) for steps in STEPS]
    flat = [measure_path_pca(run.x_t, run.alphas, run.sigmas, gaussian) for run in runs]
    halves([float((one.measured - one.gaussian).abs().max()) for one in flat], 2.0)
    assert bool((flat[1].measured[:, 1] > flat[1].null[:, 1]).all())
    turns = [measure_path_rotation(run.x_t, run.alphas, run.sigmas, gaussian) for run in runs]
    halves([float((one.measured.angle - one.gaussian.angle).abs().max()) for one in turns], 2.0)
    assert float(turns[1].measured.residual.max()) < float(turns[1].null.residual.max())


def test_emergence_in_a_recorded_run(gaussian, painted):
    runs = [painted(steps) for steps in STEPS]
    found = [
        measure_emergence(run.x_t, run.x0_hat, run.alphas, run.sigmas, gaussian, modes=30, draws=5) for run in runs
    ]
    halves([float((one.level / one.predicted - 1).abs().nanmean()) for one in found], 2.0)
    assert found[1].exponent == pytest.approx(0.5, abs=0.02)
    assert found[1].rank_correlation > 0.999


def test_gains_of_a_diffusers_sampler(gaussian, painted):
    """The sampler is the scheduler's own loop from three fifths of the run."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    covariance = (gaussian.eigvecs * gaussian.eigvals) @ gaussian.eigvecs.T

    def sampler(x, steps: int, error: float = 1.0):
        network = Network(gaussian.mean, covariance, scheduler, error)
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps[3 * steps // 5 :]:
            x = scheduler.step(network(x, t).sample, t, x).prev_sample
        return x

    errors = []
    for steps in (50, 200):
        run = painted(steps)
        start = 3 * steps // 5
        level = float(run.alphas[start]), float(run.sigmas[start])
        torch.testing.assert_close(sampler(run.x_t[start], steps), run.x_t[-1], rtol=0, atol=1e-5)
        found = measure_perturbation(lambda x, steps=steps: sampler(x, steps), run.x_t[start], *level, gaussian)
        errors.append(float((found.gain.mean(1) / found.predicted - 1).abs().max()))
        assert float(found.leak.max()) < 1e-3
    halves(errors)
    assert errors[1] < 0.03
    planted = measure_perturbation(lambda x: sampler(x, 200, 1.2), run.x_t[start], *level, gaussian)
    assert float((planted.gain.mean(1) / found.predicted - 1).abs().max()) > 0.1


def test_a_network_with_shuffled_weights_paints_other_paths(gaussian):
    """The null for a network: the same architecture and weights, in another order."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    paths = []
    for network in (unet, shuffled_network(unet, 1)):
        pipeline = diffusers.DDIMPipeline(network, diffusers.DDIMScheduler(clip_sample=False))
        pipeline.set_progress_bar_config(disable=True)
        run = record(pipeline, batch_size=2, num_inference_steps=5, generator=torch.Generator().manual_seed(0))
        paths.append(run.x_t)
    assert torch.equal(paths[0][0], paths[1][0])
    assert not torch.allclose(paths[0][-1], paths[1][-1])
    found = measure_path_pca(paths[0], run.alphas, run.sigmas, gaussian, shuffled=paths[1])
    assert found.shuffled is not None
    assert not torch.equal(found.shuffled, found.measured)
