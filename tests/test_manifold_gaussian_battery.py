"""Every method of GaussianManifold for every covariance model, shape, type and kind of level, beside dense matrices."""

import math

import pytest
import torch
from helpers import assert_close, needs_cuda
from torch import Tensor

from manifold.certified import CertifiedEmpiricalDenoiser
from manifold.covariance import FullCovariance, LowRankCovariance, StationaryCovariance
from manifold.errors import InputError
from manifold.gaussian import GaussianManifold
from manifold.mixture import GaussianMixture

SHAPE, D, N = (3, 4, 4), 48, 5
ALPHAS, SIGMAS = torch.tensor([0.9, 0.5, 0.0, 1.0, 0.3]), torch.tensor([0.2, 0.7, 1.0, 20.0, 0.9])


def full(generator):
    basis = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64)).Q
    mean = torch.randn(D, generator=generator, dtype=torch.float64)
    return FullCovariance(mean, torch.logspace(2, -2, D, dtype=torch.float64), basis)


def lowrank(generator):
    whole = full(generator)
    return LowRankCovariance(whole.mean, whole.eigvals[:10], whole.eigvecs[:, :10], 0.05)


def stationary(generator):
    waves = torch.fft.rfft2(torch.randn(3, 3, 4, 4, generator=generator, dtype=torch.float64))
    spectrum = torch.einsum("ikhw,jkhw->hwij", waves, waves.conj()) / 16
    return StationaryCovariance(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), spectrum, 4)


@pytest.fixture(params=[full, lowrank, stationary])
def manifold(request, fixed_seed):
    return GaussianManifold(request.param(torch.Generator().manual_seed(fixed_seed)), shape=SHAPE)


class Dense:
    """The formulas of the concept page with matrices, one state and one level at a time."""

    def __init__(self, manifold: GaussianManifold) -> None:
        self.mean = manifold.mean
        self.eye = torch.eye(D, dtype=torch.float64)
        self.sigma = manifold.covariance.apply(lambda v: v, self.eye)

    def root(self, alpha: float, sigma: float) -> Tensor:
        values, vectors = torch.linalg.eigh(alpha**2 * self.sigma + sigma**2 * self.eye)
        return (vectors * values.clamp_min(0).sqrt()) @ vectors.T

    def score(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        return -torch.linalg.solve(alpha**2 * self.sigma + sigma**2 * self.eye, x - alpha * self.mean)

    def denoise(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        return self.mean - alpha * self.sigma @ self.score(x, alpha, sigma)

    def eps(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        return -sigma * self.score(x, alpha, sigma)

    def velocity(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        return self.eps(x, alpha, sigma) - self.denoise(x, alpha, sigma)

    def endpoint(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        return self.solve(x, alpha, sigma, 1.0, 0.0)

    def solve(self, x: Tensor, alpha: float, sigma: float, alpha_t: float = 0.7, sigma_t: float = 0.4) -> Tensor:
        """The roots commute: they are functions of one matrix."""
        moved = self.root(alpha_t, sigma_t) @ torch.linalg.solve(self.root(alpha, sigma), x - alpha * self.mean)
        return alpha_t * self.mean + moved

    def log_prob(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        noisy = alpha**2 * self.sigma + sigma**2 * self.eye
        return torch.distributions.MultivariateNormal(alpha * self.mean, noisy).log_prob(x)


def called(manifold, name, x, alpha, sigma):
    more = (0.7, 0.4) if name == "solve" else ()
    return getattr(manifold, name)(x, alpha, sigma, *more)


METHODS = ["denoise", "score", "eps", "velocity", "solve", "endpoint", "log_prob"]


@pytest.fixture
def states(manifold, fixed_seed):
    generator = torch.Generator().manual_seed(fixed_seed)
    x0 = manifold.sample(N, generator)
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    return ALPHAS.double().view(-1, 1, 1, 1) * x0 + SIGMAS.double().view(-1, 1, 1, 1) * noise


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("flat", [True, False])
def test_a_level_for_each_state(manifold, states, name, flat):
    dense = Dense(manifold)
    x_t = states.flatten(1) if flat else states
    found = called(manifold, name, x_t, ALPHAS.double(), SIGMAS.double())
    rows = zip(states.flatten(1), ALPHAS.double().tolist(), SIGMAS.double().tolist(), strict=True)
    expected = torch.stack([getattr(dense, name)(x, a, s) for x, a, s in rows])
    assert found.shape == (expected.shape if name == "log_prob" else x_t.shape)
    assert_close(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("level", [(0.6, 0.8), torch.tensor([0.6, 0.8], dtype=torch.float64)])
def test_one_level_for_all(manifold, states, name, level):
    dense = Dense(manifold)
    found = called(manifold, name, states, *level)
    expected = torch.stack([getattr(dense, name)(x, 0.6, 0.8) for x in states.flatten(1)])
    assert_close(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_types_come_back(manifold, states, name, dtype):
    x_t = states.to(dtype)
    expected = called(manifold, name, x_t.double(), 0.6, 0.8)
    found = called(manifold.to(dtype=torch.float32), name, x_t, 0.6, 0.8)
    assert found.dtype == (torch.float32 if name == "log_prob" else dtype)
    assert_close(found, expected)


@pytest.mark.parametrize("name", METHODS)
def test_gradients(manifold, states, name):
    x_t = states[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: called(manifold, name, x, 0.6, 0.8), (x_t,))


def test_gradients_by_the_level(manifold, states):
    level = torch.tensor([0.6, 0.8], dtype=torch.float64, requires_grad=True)
    for name in METHODS:
        assert torch.autograd.gradcheck(lambda one, name=name: called(manifold, name, states[:1], *one), (level,))


@pytest.mark.parametrize("each", [True, False])
def test_posterior(manifold, states, each):
    dense = Dense(manifold)
    alpha, sigma = (ALPHAS[[0, 1, 4]].double(), SIGMAS[[0, 1, 4]].double()) if each else (0.6, 0.8)
    x_t = states[[0, 1, 4]]
    posterior = manifold.posterior(x_t, alpha, sigma)
    assert posterior.mean.shape == x_t.shape
    drawn = posterior.sample(6000, torch.Generator().manual_seed(0)).flatten(2)
    assert drawn.shape == (6000, 3, D)
    levels = list(zip(alpha.tolist(), sigma.tolist(), strict=True)) if each else [(0.6, 0.8)] * 3
    for row, (a, s) in enumerate(levels):
        gain = torch.linalg.solve(a**2 * dense.sigma + s**2 * dense.eye, dense.sigma)
        covariance = dense.sigma - a**2 * dense.sigma @ gain
        total = posterior.total_variance if posterior.total_variance.ndim == 0 else posterior.total_variance[row]
        assert_close(total, covariance.trace())
        error = torch.cov(drawn[:, row].T) - covariance
        assert float(error.norm() / covariance.norm()) < 0.15
        expected = dense.denoise(x_t[row].flatten(), a, s)
        assert float((drawn[:, row].mean(0) - expected).norm()) < 4 * math.sqrt(float(covariance.trace()) / 6000)


def test_trajectory_rotation_invert(manifold):
    dense = Dense(manifold)
    noise = torch.randn(3, *SHAPE, dtype=torch.float64)
    theta = torch.linspace(math.pi / 2, 0, 6, dtype=torch.float64)
    alphas, sigmas = theta.cos(), theta.sin()
    alphas[0] = sigmas[-1] = 0
    path = manifold.trajectory(noise, 0.0, 1.0, alphas, sigmas)
    for level, (a, s) in enumerate(zip(alphas.tolist(), sigmas.tolist(), strict=True)):
        states = torch.stack([dense.solve(x, 0.0, 1.0, a, s) for x in noise.flatten(1)])
        assert_close(path.x_t[level].flatten(1), states)
        if s:
            targets = torch.stack([dense.denoise(x, a, s) for x in states])
            assert_close(path.x0_hat[level].flatten(1), targets)
    ends = path.x_t[-1]
    assert_close(path.x0_hat[-1], ends)
    turned = manifold.rotation(noise, levels=6)
    assert_close(turned.angle.cos(), torch.nn.functional.cosine_similarity(ends.flatten(1), noise.flatten(1)))
    assert turned.residual.shape == (6, 3)
    back = manifold.invert(ends)
    assert float((back - noise).norm() / noise.norm()) < 1e-6  # the flattest direction is 1e-2 of its noise at the end


def test_sensitivity_emergence_and_distances(manifold):
    dense = Dense(manifold)
    values = torch.linalg.eigvalsh(dense.sigma).flip(0)[: manifold.k]
    assert_close(manifold.sensitivity(0.3, 0.9, 0.8, 0.1), ((0.64 * values + 0.01) / (0.09 * values + 0.81)).sqrt())
    assert_close(manifold.emergence(0.5), (3 * values.clamp_min(0)).sqrt(), scale=1e4)
    other = GaussianManifold(full(torch.Generator().manual_seed(5)))
    two = Dense(other)
    pair = [
        torch.distributions.MultivariateNormal(0.8 * one.mean, 0.64 * one.sigma + 0.36 * one.eye)
        for one in (dense, two)
    ]
    expected = float(torch.distributions.kl_divergence(*pair))
    assert manifold.kl_divergence(other, 0.8, 0.6) == pytest.approx(expected, rel=1e-9)
    root = dense.root(1.0, 0.0)
    overlap = torch.linalg.eigvalsh(root @ two.sigma @ root).clamp_min(0).sqrt().sum()
    squared = (dense.mean - two.mean).square().sum() + dense.sigma.trace() + two.sigma.trace() - 2 * overlap
    assert manifold.bures_distance(other) == pytest.approx(math.sqrt(float(squared)), rel=1e-6)


@needs_cuda
@pytest.mark.parametrize("name", METHODS)
def test_on_a_gpu(manifold, states, name):
    found = called(manifold.to("cuda"), name, states.cuda(), 0.6, 0.8)
    assert found.is_cuda
    assert_close(found.cpu(), called(manifold, name, states, 0.6, 0.8))


@pytest.mark.parametrize("levels", ["alpha", "sigma", "both"])
def test_a_number_and_a_level_a_row_together_are_what_each_row_gets_alone(levels):
    """Of every public formula, for a full and for a low-rank Gaussian and for a mixture of both."""
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(60, 12, generator=generator, dtype=torch.float64)
    full, low = GaussianManifold.fit(rows), GaussianManifold.fit(rows + 1, rank=4)
    mixed = GaussianMixture([full.covariance, low.covariance])
    x_t = torch.randn(5, 12, generator=generator)
    alpha = torch.linspace(0.3, 1, 5, dtype=torch.float64) if levels != "sigma" else 1.0
    sigma = torch.linspace(0.1, 2, 5, dtype=torch.float64) if levels != "alpha" else 0.5
    asked = [
        *(
            (one, name)
            for one in (full, low)
            for name in ("denoise", "score", "eps", "velocity", "log_prob", "endpoint")
        ),
        *((mixed, name) for name in ("denoise", "score", "log_prob")),
    ]
    for one, name in asked:
        together = getattr(one, name)(x_t, alpha, sigma)
        for row in range(5):
            a, s = (float(level[row]) if isinstance(level, torch.Tensor) else level for level in (alpha, sigma))
            assert_close(together[row].float(), getattr(one, name)(x_t[row : row + 1], a, s)[0].float())
    departed = full.endpoint(x_t, alpha, sigma, x0_hat=full.denoise(x_t, alpha, sigma))
    assert_close(departed, full.endpoint(x_t, alpha, sigma))


def test_no_states_give_no_answers_and_integers_are_refused():
    rows = torch.randn(60, 12, generator=torch.Generator().manual_seed(4))
    manifold = GaussianManifold.fit(rows)
    none, levels = torch.empty(0, 12), torch.empty(0)
    for name in ("denoise", "score", "eps", "velocity", "endpoint"):
        assert getattr(manifold, name)(none, 1.0, 0.5).shape == (0, 12)
        assert getattr(manifold, name)(none, levels, levels).shape == (0, 12)
    assert manifold.log_prob(none, levels, levels).shape == (0,)
    assert GaussianMixture([manifold.covariance]).sample(0).shape == (0, 12)
    assert CertifiedEmpiricalDenoiser(rows, manifold).denoise(none, 1.0, 1.0).shape == (0, 12)
    with pytest.raises(InputError, match=r"floating-point type, they are torch.int64"):
        manifold.denoise(torch.full((1, 12), 3), 1.0, 1.0)
