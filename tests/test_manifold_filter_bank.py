"""Trajectories from few products against the float64 formula, level by level: the worst state at the worst level counts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manifold import filter_bank
from manifold.covariance import FullCovariance, LowRankCovariance
from manifold.gaussian import GaussianManifold

D, N, LEVELS = 300, 24, 50
ANGLES = torch.linspace(math.pi / 2, 0, LEVELS, dtype=torch.float64)
NOISE = torch.linspace(1, 0, LEVELS, dtype=torch.float64)
SCHEDULES = {  # all end at sigma = 0; vp and flow start at alpha = 0
    "vp": (ANGLES.cos() * (ANGLES < 1.57), ANGLES.sin()),
    "ve": (torch.ones(LEVELS, dtype=torch.float64), 80 * NOISE**7),
    "flow": (1 - NOISE, NOISE),
}
SPECTRA = {
    "to 1e4": torch.logspace(4, -8, D, dtype=torch.float64),
    "power law": 200 * torch.arange(1, D + 1, dtype=torch.float64) ** -1.5,
    "rank-deficient": torch.cat([torch.logspace(2, -3, 100), torch.zeros(D - 100)]).double(),
}
LIMIT = {torch.float32: 2e-6, torch.float64: 1e-13}
"""Largest error of a state at a level, relative to the length of its deviation there; one by one it is 1e-6 and 3e-15."""


def manifold_of(eigvals, k=D, seed=0):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64)).Q
    mean = torch.randn(D, generator=generator, dtype=torch.float64)
    if k == D:
        return GaussianManifold(FullCovariance(mean, eigvals, basis))
    return GaussianManifold(LowRankCovariance(mean, eigvals[:k], basis[:, :k], float(eigvals[k:].mean())))


def one_by_one(manifold, x_s, a_s, s_s, alphas, sigmas):
    """Deviations of x_t and x0_hat, (L, n, d) each, in float64 and with the eigenvectors split off one by one."""
    values, basis = manifold.eigvals, manifold.eigvecs
    y = x_s - a_s[:, None] * manifold.mean
    inside = y @ basis
    outside = y - inside @ basis.T if manifold.k < D else torch.zeros_like(y)

    def gain(v, alpha, sigma, state):
        now, before = alpha**2 * v + sigma**2, a_s[:, None] ** 2 * v + s_s[:, None] ** 2
        return (now / before).sqrt().nan_to_num(0) if state else (alpha * v / (now * before).sqrt()).nan_to_num(0)

    levels = list(zip(alphas, sigmas, strict=True))
    tail = torch.tensor([manifold.tail_var], dtype=torch.float64)
    return [
        torch.stack(
            [(gain(values, *one, state) * inside) @ basis.T + gain(tail, *one, state) * outside for one in levels]
        )
        for state in (True, False)
    ]


@pytest.fixture
def ranks(monkeypatch):
    """The ranks found, None for states that were filtered one by one."""
    found = []
    factors = filter_bank.filter_factors

    def seen(*arguments):
        result = factors(*arguments)
        found.append(None if result is None else result[0].shape[1])
        return result

    monkeypatch.setattr(filter_bank, "filter_factors", seen)
    return found


def worst(manifold, x_s, a_s, s_s, alphas, sigmas):
    """Largest relative error of a trajectory in the manifold's own type."""
    wide = manifold.to(dtype=torch.float64)
    each = [torch.as_tensor(one, dtype=torch.float64).expand(len(x_s)) for one in (a_s, s_s)]
    expected = one_by_one(wide, x_s.double().flatten(1), *each, alphas, sigmas)
    path = manifold.trajectory(x_s, a_s, s_s, alphas, sigmas)
    found = (
        path.x_t.double().flatten(2) - alphas[:, None, None] * wide.mean,
        path.x0_hat.double().flatten(2) - wide.mean,
    )
    errors = []
    for one, right, added in zip(found, expected, (alphas[:, None], torch.ones(len(alphas), 1)), strict=True):
        # the mean is part of the result, and rounds with it
        size = right.norm(dim=2) + added * wide.mean.norm()
        errors.append(float(((one - right).norm(dim=2) / size.clamp_min(1e-300)).max()))
    return max(errors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("k", [D, 256])
def test_from_pure_noise_to_the_end_as_the_formula_says(ranks, dtype, spectrum, schedule, k):
    manifold = manifold_of(SPECTRA[spectrum], k).to(dtype=dtype)
    alphas, sigmas = (one.to(dtype).double() for one in SCHEDULES[schedule])
    noise = torch.randn(N, D, dtype=dtype)
    x_s = alphas[0].to(dtype) * manifold.sample(N) + sigmas[0].to(dtype) * noise
    assert worst(manifold, x_s, float(alphas[0]), float(sigmas[0]), alphas, sigmas) < LIMIT[dtype]
    # In float64 and with few eigenpairs, one by one may be as cheap.
    if dtype == torch.float32 or (k, spectrum) == (D, "power law"):
        assert ranks[0] <= (30 if dtype == torch.float32 else 60)


def test_a_start_for_each_row_and_images(ranks):
    manifold = GaussianManifold(manifold_of(SPECTRA["power law"]).covariance, shape=(3, 10, 10)).to(dtype=torch.float32)
    alphas, sigmas = (one.float().double() for one in SCHEDULES["flow"])
    s_s = torch.linspace(0.05, 1, N)
    x_s = (1 - s_s).view(-1, 1, 1, 1) * manifold.sample(N) + s_s.view(-1, 1, 1, 1) * torch.randn(N, 3, 10, 10)
    path = manifold.trajectory(x_s, 1 - s_s, s_s, alphas, sigmas)
    assert path.x_t.shape == path.x0_hat.shape == (LEVELS, N, 3, 10, 10)
    assert worst(manifold, x_s, 1 - s_s, s_s, alphas, sigmas) < LIMIT[torch.float32]
    assert ranks[0] < 30


@pytest.mark.parametrize("mode", [0, D // 2, D - 1])
def test_states_the_model_does_not_expect_keep_their_digits(ranks, mode):
    """A single eigenvector, the last of variance 1e-8: made of few products, its end would drown in their rounding."""
    manifold = manifold_of(SPECTRA["to 1e4"])
    single = GaussianManifold(FullCovariance(0 * manifold.mean, manifold.eigvals, manifold.eigvecs)).to(
        dtype=torch.float32
    )
    alphas, sigmas = (one.float().double() for one in SCHEDULES["vp"])
    x_s = single.eigvecs[:, mode].expand(N, D) * torch.linspace(0.5, 2, N)[:, None]
    path = single.trajectory(x_s, 0.0, 1.0, alphas, sigmas)
    expected = torch.stack(
        [single.solve(x_s, 0.0, 1.0, float(a), float(s)) for a, s in zip(alphas, sigmas, strict=True)]
    )
    assert float(((path.x_t - expected).norm(dim=2) / expected.norm(dim=2)).max()) < LIMIT[torch.float32]
    assert (ranks[0] is None) == (mode > 0)


def test_a_coarser_factorisation_would_not_pass(monkeypatch):
    manifold = manifold_of(SPECTRA["to 1e4"])
    monkeypatch.setattr(filter_bank, "_FINEST", 1e-6)
    error = worst(manifold, torch.randn(N, D, dtype=torch.float64), 0.0, 1.0, *SCHEDULES["vp"])
    assert 1e-9 < error < 1e-6


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    top=st.floats(-2, 4),
    decades=st.floats(0, 9),
    levels=st.lists(st.tuples(st.floats(0, 1), st.floats(1e-3, 100)), min_size=30, max_size=40),
    k=st.sampled_from([D, 100]),
)
def test_any_spectrum_and_any_levels(seed, top, decades, levels, k):
    manifold = manifold_of(torch.logspace(top, top - decades, D, dtype=torch.float64), k, seed)
    alphas, sigmas = torch.tensor(levels, dtype=torch.float64).T
    noise = torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x_s = alphas[0] * manifold.mean + sigmas[0] * noise
    assert worst(manifold, x_s, float(alphas[0]), float(sigmas[0]), alphas, sigmas) < LIMIT[torch.float64]


def test_gradients_are_those_of_one_filter_after_another(ranks):
    manifold = manifold_of(SPECTRA["power law"])
    alphas, sigmas = SCHEDULES["ve"]
    x_s = (80 * torch.randn(N, D, dtype=torch.float64)).requires_grad_()
    weights = torch.randn(LEVELS, N, D, dtype=torch.float64)
    (few,) = torch.autograd.grad((manifold.trajectory(x_s, 1.0, 80.0, alphas, sigmas).x0_hat * weights).sum(), x_s)
    assert ranks[0] is not None
    single = sum(
        (manifold.denoise(manifold.solve(x_s, 1.0, 80.0, float(a), float(s)), float(a), float(s)) * w).sum()
        for a, s, w in zip(alphas, sigmas, weights, strict=True)
    )
    (expected,) = torch.autograd.grad(single, x_s)
    torch.testing.assert_close(few, expected, rtol=1e-10, atol=1e-10)


def test_gradients_by_the_levels(ranks):
    manifold, x_s = manifold_of(SPECTRA["power law"]), torch.randn(N, D, dtype=torch.float64)
    sigmas = SCHEDULES["flow"][1][1:-1].clone().requires_grad_()
    (found,) = torch.autograd.grad(
        manifold.trajectory(x_s, 0.0, 1.0, 1 - sigmas.detach(), sigmas).x_t[20].sum(), sigmas
    )
    assert ranks == []
    alpha, sigma, h = 1 - float(sigmas[20].detach()), float(sigmas[20].detach()), 1e-6
    slope = (
        manifold.solve(x_s, 0.0, 1.0, alpha, sigma + h) - manifold.solve(x_s, 0.0, 1.0, alpha, sigma - h)
    ).sum() / (2 * h)
    assert float(found[20]) == pytest.approx(float(slope), rel=1e-5)
    assert float(found.abs().sum()) == pytest.approx(abs(float(found[20])))


def test_factors_are_exact_enough_for_every_state_and_every_filter():
    """The two inequalities at the head of the module, for states that lean to large variances, to small ones, to none."""
    variances = torch.logspace(4, -4, 2000, dtype=torch.float64)
    gains = variances / (variances + torch.logspace(2, -2, 100, dtype=torch.float64)[:, None] ** 2)
    energy = torch.stack([variances, torch.ones_like(variances), variances.rsqrt()])
    factors = filter_bank.filter_factors(gains, energy, 0, torch.float32)
    assert factors is not None
    mixing, reduced = factors
    assert mixing.shape[1] < 40
    size = (gains.square() @ energy.T).sqrt()
    missing = ((gains - mixing @ reduced).square() @ energy.T).sqrt()
    assert bool((missing <= 2**-23 * size * (1 + 1e-6)).all())
    magnified = mixing.abs() @ (reduced.square() @ energy.T).sqrt()
    assert bool((magnified <= 32 * size).all())
