"""Trajectories in their own planes, against NumPy's decomposition and an exactly Gaussian model."""

import math

import numpy as np
import pytest
import torch
from helpers import assert_close

from manifold.covariance import FullCovariance
from manifold.errors import NonFiniteError, ShapeError
from manifold.gaussian import GaussianManifold
from manifold.path_plane import measure_path_plane

D, N, LEVELS = 24, 5, 17


@pytest.fixture
def gaussian(fixed_seed):
    generator = torch.Generator().manual_seed(fixed_seed)
    basis = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64)).Q
    eigvals = torch.logspace(1, -3, D, dtype=torch.float64)
    return GaussianManifold(FullCovariance(torch.randn(D, generator=generator).double(), eigvals, basis))


@pytest.fixture
def run(gaussian):
    """The Gaussian's own solution by dense matrices: states that grow (variance exploding), and their levels."""
    sigmas = 60 * torch.linspace(1, 0.05, LEVELS, dtype=torch.float64) ** 3
    alphas = torch.ones_like(sigmas)
    start = gaussian.sample(N, torch.Generator().manual_seed(1)).double() + sigmas[0] * torch.randn(
        N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    vectors, eigvals, mean = (part.double().numpy() for part in (gaussian.eigvecs, gaussian.eigvals, gaussian.mean))
    first = eigvals + float(sigmas[0]) ** 2
    states = [
        mean + (start.numpy() - mean) @ (vectors * np.sqrt((eigvals + sigma**2) / first) @ vectors.T)
        for sigma in sigmas.tolist()
    ]
    return torch.from_numpy(np.stack(states)), alphas, sigmas


def test_the_plane_is_that_of_numpys_svd(gaussian, run):
    x_t, alphas, sigmas = run
    bent = x_t + 0.3 * torch.linspace(0, math.pi, LEVELS, dtype=torch.float64).sin()[:, None, None]
    found = measure_path_plane(bent, alphas, sigmas, gaussian)
    for number in range(N):
        path = (bent[:, number] / torch.hypot(alphas, sigmas)[:, None]).numpy()
        u, s, vectors = np.linalg.svd(path - path.mean(0), full_matrices=False)
        shown = found.measured[:, number].numpy()
        np.testing.assert_allclose(np.abs(shown), np.abs((u * s)[:, :2]), atol=1e-9)
        assert shown[-1, 0] > shown[0, 0], "time runs to the right"
        assert shown[np.abs(shown[:, 1]).argmax(), 1] > 0
        turned = np.stack([np.sign(vectors[k] @ (path - path.mean(0)).T @ shown[:, k]) * vectors[k] for k in range(2)])
        theory = (
            x_t[:, number] / torch.hypot(alphas, sigmas)[:, None]
        ).numpy()  # the same x_T: the bend is 0 at the ends
        np.testing.assert_allclose(found.gaussian[:, number].numpy(), (theory - path.mean(0)) @ turned.T, atol=1e-8)


def test_a_gaussian_run_lies_on_the_theory_and_a_smooth_path_does_not(gaussian, run):
    found = measure_path_plane(*run, gaussian, generator=torch.Generator().manual_seed(0))
    assert_close(found.gaussian, found.measured)
    assert_close(found.null[[0, -1]], found.measured[[0, -1]])
    assert float((found.null - found.measured).abs().max()) > 0.05
    x_t, alphas, sigmas = run
    again = measure_path_plane(x_t.view(LEVELS, N, 6, 2, 2), alphas, sigmas, gaussian)
    assert_close(again.measured, found.measured)


def test_paths_that_cannot_be_drawn(gaussian, run):
    x_t, alphas, sigmas = run
    with pytest.raises(ShapeError, match="x_t"):
        measure_path_plane(x_t[:2], alphas[:2], sigmas[:2], gaussian)
    x_t = x_t.clone()
    x_t[3, 1, 2] = math.nan
    with pytest.raises(NonFiniteError, match="x_t"):
        measure_path_plane(x_t, alphas, sigmas, gaussian)
