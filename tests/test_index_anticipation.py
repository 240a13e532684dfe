"""Anticipation against brute force, on flows whose ends are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import make_workspace

from index.anticipation import measure_anticipation
from index.build import build_index
from index.fit import fit_workspace
from index.search import Searcher
from manifold.errors import InputError, ShapeError

D, N, ROWS, K = 12, 8, 400, 10
SIGMAS = torch.tensor([20.0, 5.0, 2.0, 1.0, 0.3, 0.05, 0.0], dtype=torch.float64)
ALPHAS = torch.ones_like(SIGMAS)


@pytest.fixture
def latents(rng):
    return (rng.standard_normal((ROWS, D)) * 3 / np.arange(1, D + 1)).astype(np.float16)


@pytest.fixture
def searcher(tmp_path, latents):
    root = make_workspace(tmp_path / "ws", latents, shape=(3, 2, 2)).root
    fit_workspace(root)
    build_index(root)
    return Searcher.open(root)


def flow(searcher, sigmas=SIGMAS, alphas=ALPHAS):
    """Trajectories of the manifold's own probability flow, whose end the endpoint question knows from the start."""
    x_T = float(sigmas[0]) * torch.randn(N, D, dtype=torch.float64)
    path = searcher.manifold.trajectory(x_T, float(alphas[0]), float(sigmas[0]), alphas, sigmas)
    return path.x_t, path.x0_hat[:-1]


def brute(queries: torch.Tensor, latents: np.ndarray) -> np.ndarray:
    distances = np.square(queries.numpy()[:, None] - latents.astype(np.float64)[None]).sum(2)
    return np.argsort(distances, axis=1, kind="stable")[:, :K]


def overlap(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    return np.array([len(set(a) & set(b)) / K for a, b in zip(one.tolist(), two.tolist(), strict=True)])


def test_on_its_own_flow_the_endpoint_is_known_from_the_first_step(searcher, latents):
    x_t, x0_hat = flow(searcher)
    found = measure_anticipation(searcher, x_t.view(7, N, 3, 2, 2), x0_hat.view(6, N, 3, 2, 2), ALPHAS, SIGMAS)
    np.testing.assert_array_equal(np.sort(found.true_ids), np.sort(brute(x_t[-1], latents)))
    # The manifold computes in float32: a neighbour at the edge of the ten may change places.
    assert float(found.means["endpoint"].mean.min()) > 0.97
    assert float(found.shares["endpoint"][1:].median()) == 1.0
    for step in range(6):
        raw = overlap(brute(x_t[step], latents), found.true_ids)
        network = overlap(brute(x0_hat[step], latents), found.true_ids)
        np.testing.assert_allclose(found.shares["raw"][step], raw, atol=1e-12)
        np.testing.assert_allclose(found.shares["network"][step], network, atol=1e-12)
        ids = searcher.search(x_t[step], 1.0, float(SIGMAS[step]), "target", K).ids
        np.testing.assert_allclose(found.shares["target"][step], overlap(ids, found.true_ids), atol=1e-12)
    assert found.first_step("endpoint", 0.9) == 0
    assert found.first_step("network") > 0
    assert found.first_step("random") is None
    unknown = replace(found.means["endpoint"], mean=torch.full_like(found.means["endpoint"].mean, torch.nan))
    assert replace(found, means={"endpoint": unknown}).first_step("endpoint") is None
    assert list(found.shares) == ["target", "endpoint", "raw", "network", "random"]


def test_another_end_is_not_anticipated(searcher):
    """A planted error: the samples of the trajectories are exchanged, and with them the true neighbours."""
    x_t, x0_hat = flow(searcher)
    x_t[-1] = x_t[-1].roll(1, 0)
    found = measure_anticipation(searcher, x_t, x0_hat, ALPHAS, SIGMAS, steps=[0, 3])
    assert float(found.means["endpoint"].mean.max()) < 0.5
    assert found.steps.tolist() == [0, 3]
    assert found.sigmas.tolist() == [20.0, 1.0]


def test_random_rows_come_at_chance(searcher):
    x_t, x0_hat = flow(searcher)
    repeated = x_t.repeat(1, 40, 1), x0_hat.repeat(1, 40, 1)
    found = measure_anticipation(searcher, *repeated, ALPHAS, SIGMAS, questions=(), steps=[5])
    interval = found.means["random"]
    assert found.chance == K / ROWS == 0.025
    assert float(interval.mean) == pytest.approx(0.025, abs=0.01)
    assert float(interval.low) < 0.025 < float(interval.high)
    assert list(found.shares) == ["raw", "network", "random"]


def test_pure_noise_gives_the_flows_end_alone(searcher):
    alphas = torch.tensor([0.0, 0.6, 1.0], dtype=torch.float64)
    x_t, x0_hat = flow(searcher, torch.tensor([1.0, 0.8, 0.0], dtype=torch.float64), alphas)
    calls = []
    found = measure_anticipation(
        searcher, x_t, x0_hat, alphas[:-1], [1.0, 0.8], progress=lambda *told: calls.append(told)
    )
    for name in ("endpoint", "target"):
        assert float(found.means[name].mean[0]) > 0.97
    assert bool(found.shares["raw"][0].isnan().all())
    assert not bool(found.shares["raw"][1].isnan().any())
    assert calls == [("anticipate", done, 2) for done in range(3)]


def test_fewer_rows_than_neighbours_are_all_returned(tmp_path, latents):
    root = make_workspace(tmp_path / "few", latents[:6], shape=(3, 2, 2)).root
    fit_workspace(root)
    build_index(root)
    searcher = Searcher.open(root)
    x_t, x0_hat = flow(searcher)
    found = measure_anticipation(searcher, x_t, x0_hat, ALPHAS, SIGMAS)
    assert (found.k, found.chance) == (6, 1.0)
    assert all(bool((each == 1).all()) for each in found.shares.values())


def test_wrong_use_is_said(searcher):
    x_t, x0_hat = flow(searcher)
    with pytest.raises(InputError, match="steps must lie between 0 and 5"):
        measure_anticipation(searcher, x_t, x0_hat, ALPHAS, SIGMAS, steps=[6])
    with pytest.raises(ShapeError, match="x0_hat must be one level shorter"):
        measure_anticipation(searcher, x_t, x_t, ALPHAS, SIGMAS)
    with pytest.raises(InputError, match="must hold signal"):
        measure_anticipation(searcher, x_t, x0_hat, torch.zeros(7), SIGMAS)
    with pytest.raises(InputError, match="k must be at least 1"):
        measure_anticipation(searcher, x_t, x0_hat, ALPHAS, SIGMAS, k=0)
