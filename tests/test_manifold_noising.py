"""Noised states against the formula, and what is decided against the closed form's own predictions."""

import math

import numpy as np
import pytest
import torch

from manifold.errors import InputError
from manifold.gaussian import GaussianManifold
from manifold.noising import decided, noise_levels, noised, noised_path


def test_levels_fall_by_equal_factors():
    levels = noise_levels(100, 0.01, 9)
    assert levels[0] == 100
    assert levels[-1] == 0.01
    np.testing.assert_allclose(np.diff(np.log(levels)), math.log(1e-4) / 8, rtol=0.01)
    for high, low in ((1, 2), (math.inf, 1), (math.nan, 1)):
        with pytest.raises(InputError, match="fall from high to low"):
            noise_levels(high, low)


def test_noise_has_the_level_asked_and_comes_again():
    x0 = torch.randn(3, 5000)
    x_t = noised(x0, 0.5, 2.0, seed=4)
    eps = (x_t - 0.5 * x0) / 2
    assert abs(float(eps.std()) - 1) < 0.02
    assert abs(float((eps * x0).mean())) < 0.03
    assert torch.equal(x_t, noised(x0, 0.5, 2.0, seed=4))
    assert not torch.equal(x_t, noised(x0, 0.5, 2.0, seed=5))


def test_the_noise_of_a_path_stays_the_same():
    x0 = torch.randn(2, 3, 4, 4)
    path = noised_path(x0, [1.0, 0.6, 1.0], [3.0, 0.8, 0.0], seed=1)
    assert path.shape == (3, 2, 3, 4, 4)
    torch.testing.assert_close((path[0] - x0) / 3, (path[1] - 0.6 * x0) / 0.8)
    torch.testing.assert_close(path[2], x0)
    with pytest.raises(InputError, match="of one length"):
        noised_path(x0, [1.0], [1.0, 2.0])


@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.7, 4.0, 50.0])
def test_decided_agrees_with_the_prediction_along_a_trajectory(sigma):
    """Along the probability flow the coefficient of x0_hat over that of the sample is the share, for every direction."""
    scale = 4 / torch.arange(1, 21, dtype=torch.float64)
    manifold = GaussianManifold.fit(torch.randn(600, 20, dtype=torch.float64) * scale).to(dtype=torch.float64)
    found = decided(manifold, 0.5, 0.5 * sigma)
    x_t = 0.5 * manifold.sample(1) + 0.5 * sigma * torch.randn(1, 20, dtype=torch.float64)
    now = (manifold.denoise(x_t, 0.5, 0.5 * sigma) - manifold.mean) @ manifold.eigvecs
    end = (manifold.endpoint(x_t, 0.5, 0.5 * sigma) - manifold.mean) @ manifold.eigvecs
    torch.testing.assert_close((now / end)[0], found.shares, rtol=1e-6, atol=1e-9)
    half = manifold.emergence(0.5) >= sigma
    assert found.count == int(half.sum())
    assert found.variance == pytest.approx(float(manifold.eigvals[half].sum() / manifold.eigvals.sum()))


def test_pure_noise_has_no_level():
    manifold = GaussianManifold.fit(torch.randn(50, 4))
    with pytest.raises(InputError, match="alpha must be above 0"):
        decided(manifold, 0.0, 1.0)
