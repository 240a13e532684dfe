"""Statistics keep their digits: small tails, half precision, autocast, and another default type."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from index import build_index, encode_images, fit_workspace
from index.coordinates import eigen_coordinates
from index.likelihoods import log_likelihoods
from index.search import Searcher
from manifold import GaussianManifold, GaussianMixture, Moments
from manifold.covariance import LowRankCovariance, fit_lowrank, fit_stationary
from manifold.cross_spectrum import CrossSpectrum
from manifold.distances import bures_wasserstein
from manifold.errors import InputError
from manifold.noising import noised
from manifold.reproducibility import split_half
from manifold.rows import ArrayRows
from manifold.scatter import _add_rows_by_matmul


def steep(n, d, strong, tail, seed=0):
    """Rows with a few strong directions and all others tiny, in a basis of no axes."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
    deviations = np.concatenate([np.geomspace(10, 1, strong), np.full(d - strong, tail)])
    return rng.standard_normal((n, d)) * deviations @ basis.T


def dense_log_prob(manifold, asked, sigma):
    """SciPy's, of the dense covariance; the eigenvectors, kept in float32, made orthonormal again."""
    model = manifold.covariance
    basis = np.linalg.qr(model.eigvecs.double().numpy())[0]
    inside = basis * (model.eigvals.double().numpy() - manifold.tail_var) @ basis.T
    dense = inside + (manifold.tail_var + sigma**2) * np.eye(manifold.d)
    return multivariate_normal(manifold.mean.double().numpy(), dense).logpdf(asked.double().numpy())


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    root = tmp_path_factory.mktemp("precision")
    (root / "embeddings").mkdir()
    rows = steep(400, 96, 40, 0.05)
    np.save(root / "embeddings" / "img_emb_0.npy", rows.astype(np.float32))
    encode_images(root / "embeddings", root / "ws")
    fit_workspace(root / "ws", model="full")
    build_index(root / "ws", measure=False)
    return root / "ws"


@pytest.mark.parametrize("sigma", [0.0, 1e-3, 1.0])
def test_log_prob_with_a_tail_a_million_times_smaller(sigma):
    rows = steep(3000, 128, 40, 1e-3)
    manifold = GaussianManifold.fit(torch.from_numpy(rows).float(), rank=40)
    asked = torch.from_numpy(rows[:50]).float()
    wanted = dense_log_prob(manifold, asked, sigma)
    np.testing.assert_allclose(manifold.log_prob(asked, 1.0, sigma).numpy(), wanted, atol=2e-2)


def test_shares_of_components_that_differ_in_the_tail_alone():
    rows = torch.from_numpy(steep(4000, 256, 48, 1e-3))
    shift = 2e-4 * torch.from_numpy(np.random.default_rng(1).standard_normal(256))
    parts = [GaussianManifold.fit(rows[:2000], rank=48), GaussianManifold.fit(rows[2000:] + shift, rank=48)]
    mixture = GaussianMixture(parts)
    asked = (rows[:40] + 1e-3 * torch.from_numpy(np.random.default_rng(2).standard_normal((40, 256)))).float()
    logs = torch.stack([torch.from_numpy(dense_log_prob(part, asked, 1e-3)) for part in parts], 1)
    for one in (mixture, mixture.to(dtype=torch.float64)):
        found = one.responsibilities(asked, 1.0, 1e-3)
        torch.testing.assert_close(found, logs.softmax(1), atol=1e-2, rtol=0)
        torch.testing.assert_close(one.log_prob(asked, 1.0, 1e-3), logs.logsumexp(1) - math.log(2), atol=0.05, rtol=0)


def test_likelihoods_of_a_collection_at_any_rank(workspace):
    searcher = Searcher.open(workspace)
    store, manifold = searcher.workspace.latents, searcher.manifold
    rows = store.read(np.arange(len(store))).astype(np.float64)
    for k in (20, 60, 95):
        eigvecs = np.linalg.qr(manifold.eigvecs[:, :k].double().numpy())[0]
        eigvals = manifold.eigvals[:k].double().numpy()
        tail = manifold.eigvals[k:].double().sum().item() / (96 - k)
        dense = eigvecs * (eigvals - tail) @ eigvecs.T + tail * np.eye(96)
        wanted = multivariate_normal(manifold.mean.double().numpy(), dense).logpdf(rows)
        np.testing.assert_allclose(log_likelihoods(workspace, k=k).numpy(), wanted, atol=0.05)


@pytest.mark.parametrize("kind", ["lowrank", "full", "stationary"])
def test_a_model_is_at_no_distance_from_itself(kind):
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((400, 192))).float()
    if kind == "stationary":
        model = fit_stationary(CrossSpectrum.of(ArrayRows(rows), (3, 8, 8)))
    else:
        model = GaussianManifold.fit(rows, rank=40 if kind == "lowrank" else None).covariance
    assert model.mean.dtype == torch.float32
    assert bures_wasserstein(model, model) < 1e-11 * 192


def test_types_too_small_for_variances_are_refused():
    rows = torch.randn(50, 12)
    stationary = fit_stationary(CrossSpectrum.of(ArrayRows(rows), (3, 2, 2)))
    for model in (GaussianManifold.fit(rows), GaussianMixture([GaussianManifold.fit(rows)]), stationary):
        for dtype in (torch.float16, torch.bfloat16, torch.int64):
            with pytest.raises(InputError, match="float32 or float64"):
                model.to(dtype=dtype)
    half = GaussianManifold.fit(rows).eps(rows.half(), 1.0, 300.0)
    assert half.dtype == torch.float16
    assert float(half.abs().max()) > 0


def test_autocast_around_a_call_costs_no_digit(workspace):
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.standard_normal((300, 48)) * np.geomspace(3, 0.1, 48)).float()
    manifold = GaussianManifold.fit(rows)
    searcher = Searcher.open(workspace)
    states = torch.from_numpy(searcher.workspace.latents.read(np.arange(5))).float() + torch.randn(5, 96)

    def answers():
        stationary = fit_stationary(CrossSpectrum.of(ArrayRows(rows), (3, 4, 4)))
        path = manifold.trajectory(rows[:40], 0.0, 1.0, torch.linspace(0.1, 1, 60), torch.linspace(1, 0, 60))
        hits = [searcher.search(states, 1.0, 1.0, question) for question in ("source", "endpoint")]
        scatter = torch.zeros(48, 48, dtype=torch.float64)
        _add_rows_by_matmul(scatter, rows, 1.0)
        mixture = GaussianMixture([manifold, GaussianManifold.fit(rows[:150])])
        return [
            manifold.denoise(rows, 1.0, 0.5),
            stationary.apply(torch.sqrt, rows),
            mixture.denoise(rows, 1.0, 0.5),
            fit_lowrank(ArrayRows(rows), 8).eigvals,
            GaussianManifold.fit(rows.half()).eigvals,
            split_half(ArrayRows(rows)).overlap,
            path.x_t,
            scatter,
            eigen_coordinates(workspace, k=5),
            *(torch.from_numpy(one.scores) for one in hits),
        ]

    plain = answers()
    with torch.autocast("cpu", torch.bfloat16):
        under = answers()
    for one, other in zip(plain, under, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0)


def test_another_default_type_changes_nothing(workspace):
    x0 = torch.arange(12.0, dtype=torch.float32).reshape(2, 6)
    before = noised(x0, 1.0, 0.5), eigen_coordinates(workspace, k=5), build_index(workspace, measure=True)
    torch.set_default_dtype(torch.float64)
    try:
        after = noised(x0, 1.0, 0.5), eigen_coordinates(workspace, k=5), build_index(workspace, measure=True)
        moments = Moments(3).tensors()
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(before[:2], after[:2], strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0)
    assert after[2]["index_sha256"] == before[2]["index_sha256"]
    assert after[2]["recall"] == before[2]["recall"]
    assert moments["waiting"].dtype == torch.float32


def test_quadratic_forms_are_those_of_dense_matrices():
    rng = np.random.default_rng(3)
    rows = torch.from_numpy(rng.standard_normal((100, 27)))
    models = [
        GaussianManifold.fit(rows, rank=9).covariance,
        GaussianManifold.fit(rows).covariance,
        fit_stationary(CrossSpectrum.of(ArrayRows(rows), (3, 3, 3))),
    ]
    assert isinstance(models[0], LowRankCovariance)
    for model in models:
        wide = model.to(dtype=torch.float64)
        dense = wide.apply(lambda v: 1 / (v + 0.1), torch.eye(27, dtype=torch.float64))
        wanted = torch.einsum("ni,ij,nj->n", rows, dense, rows)
        found = model.quadratic(lambda v: 1 / (v + 0.1), rows.to(model.mean))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
