"""Trajectories in the eigenbasis: exact for the Gaussian's own flow, against a formula written out, and blind to scale."""

import math

import pytest
import torch

from manifold.errors import InputError
from manifold.gaussian import GaussianManifold
from manifold.path_modes import measure_mode_paths


@pytest.fixture
def manifold():
    scale = 4 / torch.arange(1, 17, dtype=torch.float64)
    drawn = torch.randn(500, 16, dtype=torch.float64) * scale + 2
    return GaussianManifold.fit(drawn).to(dtype=torch.float64)


def levels(count: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    theta = torch.linspace(math.pi / 2 - 0.01, 0, count, dtype=torch.float64)
    return theta.cos(), theta.sin()


def test_the_gaussian_agrees_with_itself_and_with_the_formula(manifold):
    alphas, sigmas = levels()
    x_T = sigmas[0] * torch.randn(5, 16, dtype=torch.float64) + alphas[0] * manifold.mean
    path = manifold.trajectory(x_T, alphas[0], sigmas[0], alphas, sigmas).x_t
    found = measure_mode_paths(path, alphas, sigmas, manifold, [0, 3, 9])
    torch.testing.assert_close(found.measured, found.gaussian, atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(found.agreement, torch.ones(3, dtype=torch.float64))
    for place, mode in enumerate([0, 3, 9]):
        v = alphas**2 * manifold.eigvals[mode] + sigmas**2
        start = (x_T - alphas[0] * manifold.mean) @ manifold.eigvecs[:, mode]
        torch.testing.assert_close(
            found.measured[:, :, place], (v / v[0]).sqrt()[:, None] * start, atol=1e-8, rtol=1e-6
        )


def test_the_coordinates_of_the_sampler_do_not_matter(manifold):
    alphas, sigmas = levels()
    path = torch.randn(9, 4, 16, dtype=torch.float64)
    one = measure_mode_paths(path, alphas, sigmas, manifold)
    factor = torch.linspace(1, 7, 9, dtype=torch.float64)
    other = measure_mode_paths(path * factor[:, None, None], alphas * factor, sigmas * factor, manifold)
    torch.testing.assert_close(one.measured, other.measured)
    torch.testing.assert_close(one.noise, other.noise)


def test_another_path_does_not_agree(manifold):
    alphas, sigmas = levels()
    found = measure_mode_paths(torch.randn(9, 6, 16, dtype=torch.float64), alphas, sigmas, manifold, [0])
    assert float(found.agreement) < 0.5


def test_modes_out_of_range(manifold):
    with pytest.raises(InputError, match="ranks from 0 to 15"):
        measure_mode_paths(torch.randn(9, 1, 16), *levels(), manifold, [16])
