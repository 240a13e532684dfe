"""The empirical posterior against a plain float64 softmax; independence of cuts; the certified path against brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manifold.certified import CertifiedEmpiricalDenoiser
from manifold.empirical import EmpiricalDenoiser
from manifold.errors import InputError, NotFittedError, ShapeError
from manifold.gaussian import GaussianManifold


def plain(x_t, rows, alpha, sigma):
    """The formula as it stands, per state, differences in float64."""
    x_t, rows = np.asarray(x_t, np.float64), np.asarray(rows, np.float64)
    logits = -np.square(x_t[:, None] - alpha * rows[None]).sum(-1) / (2 * sigma**2)
    peak = logits.max(1, keepdims=True)
    weights = np.exp(logits - peak)
    evidence = peak[:, 0] + np.log(weights.mean(1))
    weights /= weights.sum(1, keepdims=True)
    return weights @ rows, weights, evidence


class Cut:
    """A store whose shards and batches have whatever sizes the test wants."""

    def __init__(self, rows, sizes):
        self.rows, self.sizes, self.d = rows, sizes, rows.shape[1]

    def __len__(self):
        return len(self.rows)

    def batches(self, rows):
        start, number = 0, 0
        while start < len(self.rows):
            size = min(self.sizes[number % len(self.sizes)], rows)
            yield self.rows[start : start + size]
            start, number = start + size, number + 1


def collection(n=300, d=24, seed=0, offset=3.0):
    rng = np.random.default_rng(seed)
    scales = np.geomspace(5, 0.05, d)
    return (rng.normal(size=(n, d)) * scales + offset).astype(np.float32)


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.2), (1.0, 2.0), (0.6, 0.8), (0.0, 1.0), (1.0, 1e3)])
def test_posterior_is_the_plain_softmax(rng, alpha, sigma):
    rows = collection()
    x_t = alpha * rows[:7] + sigma * rng.normal(size=(7, 24))
    mean, weights, evidence = plain(x_t, rows, alpha, sigma)
    found = EmpiricalDenoiser(rows).posterior(torch.from_numpy(x_t), alpha, sigma, k=5)
    np.testing.assert_allclose(found.x0_hat, mean, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.probabilities, -np.sort(-weights)[:, :5], rtol=1e-8, atol=1e-14)
    np.testing.assert_allclose(found.log_evidence, evidence, rtol=1e-10, atol=1e-9)
    if alpha:
        assert found.ids[:, 0].tolist() == weights.argmax(1).tolist()
    assert found.missed.tolist() == [0.0] * 7


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 97), min_size=1, max_size=5),
    batch=st.integers(1, 400),
    sigma=st.floats(0.05, 50),
)
def test_no_cut_into_shards_or_batches_changes_the_result(sizes, batch, sigma):
    """A softmax normalised per batch, a known public mistake, is off by far more."""
    rows = collection(seed=1)
    x_t = torch.from_numpy(rows[:3] + sigma * np.random.default_rng(2).normal(size=(3, 24)))
    whole = EmpiricalDenoiser(rows).posterior(x_t, 1.0, sigma)
    cut = EmpiricalDenoiser(Cut(rows, sizes), batch_rows=batch).posterior(x_t, 1.0, sigma)
    torch.testing.assert_close(cut.x0_hat, whole.x0_hat, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(cut.probabilities, whole.probabilities, rtol=1e-8, atol=1e-14)
    torch.testing.assert_close(cut.log_evidence, whole.log_evidence, rtol=1e-10, atol=1e-9)


def test_a_softmax_per_batch_would_fail():
    rows = collection(seed=1)
    x_t = rows[:3] + 3 * np.random.default_rng(2).normal(size=(3, 24))
    per_batch = np.mean([plain(x_t, rows[i : i + 50], 1.0, 3.0)[0] for i in range(0, 300, 50)], 0)
    right = EmpiricalDenoiser(rows).posterior(torch.from_numpy(x_t), 1.0, 3.0).x0_hat
    assert np.abs(per_batch - right.numpy()).max() > 0.1


def test_huge_noise_gives_the_first_order_expansion():
    """x0_hat = mean + (C v - E[u |u|^2] / 2) / sigma^2 + O(1 / sigma^4), u = x_i - mean, v = x_t - mean: slope 4."""
    rows = collection(n=80, d=6, offset=0.5).astype(np.float64)
    mean, covariance = rows.mean(0), np.cov(rows.T, bias=True)
    x_t = rows[:2] + 0.7
    errors = []
    for sigma in (100.0, 1000.0):
        centred = rows - mean
        third = (centred * np.square(centred).sum(1, keepdims=True)).mean(0)
        expected = mean + ((x_t - mean) @ covariance - third / 2) / sigma**2
        found = EmpiricalDenoiser(rows).denoise(torch.from_numpy(x_t), 1.0, sigma).numpy()
        errors.append(np.abs(found - expected).max())
    assert errors[0] < 1e-4
    slope = np.log10(errors[0] / errors[1])
    assert 3.7 < slope < 4.3


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(2, 60),
    d=st.integers(1, 12),
    far=st.floats(10, 1000),
    alpha=st.floats(0.1, 1),
)
def test_any_collection_under_huge_noise_is_its_expansion(seed, n, d, far, alpha):
    """The expansion above with its remainder: with z the exponents, at most 1.5 R^2 / sigma^2, the rest is within 2 R z^2."""
    rng = np.random.default_rng(seed)
    rows, x_t = rng.normal(size=(n, d)) + 3, alpha * (rng.normal(size=(2, d)) + 3)
    mean = rows.mean(0)
    u, v = rows - mean, x_t / alpha - mean
    reach = max(np.linalg.norm(u, axis=1).max(), np.linalg.norm(v, axis=1).max())
    sigma = far * reach  # of noise in units of the clean latent
    first = (v @ (u.T @ u) / n - (u * np.square(u).sum(1, keepdims=True)).mean(0) / 2) / sigma**2
    found = EmpiricalDenoiser(rows).denoise(torch.from_numpy(x_t), alpha, alpha * sigma).numpy()
    remainder = 2 * reach * (1.5 / far**2) ** 2
    assert np.linalg.norm(found - mean - first, axis=1).max() <= remainder + 1e-13 * (3 + reach)


def test_tweedie_and_autograd_of_the_evidence():
    rows = torch.from_numpy(collection(n=50, d=5)).double()
    x_t = (rows[:4] + 0.5).clone().requires_grad_()
    logits = -(x_t[:, None] - 0.8 * rows).square().sum(-1) / (2 * 0.6**2)
    (gradient,) = torch.autograd.grad(logits.logsumexp(1).sum(), x_t)
    found = EmpiricalDenoiser(rows).score(x_t.detach(), 0.8, 0.6)
    torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-9)


def test_small_noise_collapses_on_the_source_without_overflow():
    rows = collection()
    found = EmpiricalDenoiser(rows).posterior(torch.from_numpy(rows[:5]), 1.0, 1e-6)
    assert found.ids[:, 0].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(found.probabilities[:, 0], 1.0)
    np.testing.assert_allclose(found.x0_hat, rows[:5], rtol=1e-6)


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("alpha", [1.0, 0.3])
@pytest.mark.parametrize("spread", [1, 16])
def test_the_certificate_holds(sigma, alpha, spread, monkeypatch):
    monkeypatch.setattr(
        "manifold.certified._SPREAD", spread
    )  # 1: by bounds to the last row; 16: brute force beyond that
    rows = collection(n=3000, d=32, seed=5)
    manifold = GaussianManifold.fit(rows)
    x_t = torch.from_numpy(alpha * rows[:20] + sigma * np.random.default_rng(3).normal(size=(20, 32)))
    exact, weights, _ = plain(x_t, rows, alpha, sigma)
    for rank, tolerance in [(6, 1e-5), (16, 1e-2), (32, 1e-12)]:
        fast = CertifiedEmpiricalDenoiser(rows, manifold, rank=rank, tolerance=tolerance)
        found = fast.posterior(x_t, alpha, sigma, k=3)
        assert bool((found.missed <= tolerance).all())
        error = np.linalg.norm(found.x0_hat.numpy() - exact, axis=1)
        assert (error <= found.error_bound.numpy() + 1e-10).all()
        top = -np.sort(-weights, axis=1)[:, :3]
        true_mass = top / found.probabilities.numpy().clip(1e-300)
        assert (true_mass[top > 1e-8] >= 1 - tolerance - 1e-9).all()  # what was evaluated holds at least this share
        np.testing.assert_allclose(found.probabilities, top, rtol=1.1 * tolerance + 1e-8, atol=1e-9)


def test_bounds_never_exceed_the_distance_they_bound(rng):
    """The adversary: rows inside the span and states that are rows, where every rounding shows."""
    rows = np.zeros((500, 40), np.float32)
    rows[:, :3] = 1e3 * rng.normal(size=(500, 3))
    rows[250:] += 1e-3 * rng.normal(size=(250, 40)).astype(np.float32)
    manifold = GaussianManifold.fit(rows, rank=3)
    fast = CertifiedEmpiricalDenoiser(rows, manifold)
    x = torch.from_numpy(rows[::17]).double()
    one = torch.ones(len(x), 1, dtype=torch.float64)
    bounds = fast._bounds(x - manifold.mean.double(), one, one)
    distance = torch.from_numpy(np.square(rows[::17, None].astype(np.float64) - rows[None].astype(np.float64)).sum(-1))
    assert bool((bounds >= -distance / 2).all())


def test_fast_path_looks_at_few_rows_when_noise_is_small():
    rows = collection(n=5000, d=32, seed=5)
    fast = CertifiedEmpiricalDenoiser(torch.from_numpy(rows), GaussianManifold.fit(rows), rank=16)
    found = fast.posterior(torch.from_numpy(rows[:8] + np.float32(0.05)), 1.0, 0.1)
    assert int(found.evaluated.max()) == 256
    assert found.ids[:, 0].tolist() == list(range(8))


def test_shape_and_type_come_back():
    rows = torch.randn(40, 3, 2, 2)
    x_t = torch.randn(5, 3, 2, 2).half()
    for model in (EmpiricalDenoiser(rows), CertifiedEmpiricalDenoiser(rows, GaussianManifold.fit(rows))):
        found = model.denoise(x_t, torch.full((5,), 0.9), torch.linspace(0.5, 2, 5))
        assert (found.shape, found.dtype) == (x_t.shape, torch.float16)


def test_wrong_use_is_said():
    rows = collection(n=20)
    manifold = GaussianManifold.fit(rows)
    for model in (EmpiricalDenoiser(rows), CertifiedEmpiricalDenoiser(rows, manifold)):
        with pytest.raises(InputError, match="needs sigma > 0"):
            model.denoise(torch.zeros(1, 24), 1.0, 0.0)
        with pytest.raises(ShapeError, match=r"\(n, 24\), they have \(1, 25\)"):
            model.denoise(torch.zeros(1, 25), 1.0, 1.0)
    with pytest.raises(NotFittedError, match="collection is empty"):
        EmpiricalDenoiser(rows[:0])
    with pytest.raises(NotFittedError, match="collection is empty"):
        CertifiedEmpiricalDenoiser(rows[:0], manifold)
    with pytest.raises(InputError, match="tolerance must lie between 0 and 1"):
        CertifiedEmpiricalDenoiser(rows, manifold, tolerance=0)
    with pytest.raises(InputError, match="rank must lie between 1 and 24, it is 25"):
        CertifiedEmpiricalDenoiser(rows, manifold, rank=25)
    with pytest.raises(ShapeError, match="has 23 values a row, the manifold 24"):
        CertifiedEmpiricalDenoiser(rows[:, 1:], manifold)
    with pytest.raises(InputError, match="needs fetch="):
        CertifiedEmpiricalDenoiser(Cut(rows, [5]), manifold)


def test_a_collection_may_be_of_bfloat16():
    rows = torch.randn(30, 12, generator=torch.Generator().manual_seed(0)).bfloat16()
    x_t = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    manifold = GaussianManifold.fit(rows)
    for made in (EmpiricalDenoiser, lambda one: CertifiedEmpiricalDenoiser(one, manifold)):
        torch.testing.assert_close(made(rows).denoise(x_t, 1.0, 1.0), made(rows.float()).denoise(x_t, 1.0, 1.0))


def test_states_that_require_a_gradient_are_taken():
    rows = collection(n=600, d=12, seed=2)
    fast = CertifiedEmpiricalDenoiser(torch.from_numpy(rows), GaussianManifold.fit(rows), rank=6)
    x_t = torch.from_numpy(rows[:4]) + 0.1
    found = fast.denoise(x_t.clone().requires_grad_(), 1.0, 0.3)
    torch.testing.assert_close(found.detach(), fast.denoise(x_t, 1.0, 0.3))
