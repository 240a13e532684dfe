"""The whole closed form end to end: from pure noise to sigma = 0, properties for any levels, and the derived quantities."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.linalg import sqrtm

from manifold.covariance import FullCovariance, LowRankCovariance, StationaryCovariance
from manifold.distances import kl_divergence
from manifold.errors import InputError, MismatchError, ShapeError
from manifold.gaussian import GaussianManifold

POSITIVE = st.floats(0.01, 100)
LEVEL = st.tuples(st.floats(0.0, 1.0), POSITIVE)
SEED = st.integers(0, 2**20)


def random_manifold(seed, d=8, k=None, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    eigvals = torch.logspace(2, -2, d, dtype=torch.float64)
    mean = torch.randn(d, generator=generator, dtype=torch.float64)
    if k is None:
        model = FullCovariance(mean, eigvals, basis)
    else:
        model = LowRankCovariance(mean, eigvals[:k], basis[:, :k], float(eigvals[k:].mean()))
    return GaussianManifold(model).to(dtype=dtype)


def stationary(seed=0):
    generator = torch.Generator().manual_seed(seed)
    root = torch.fft.rfft2(torch.randn(3, 3, 4, 4, generator=generator, dtype=torch.float64))
    spectrum = torch.einsum("ikhw,jkhw->hwij", root, root.conj()) / 16
    return GaussianManifold(StationaryCovariance(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), spectrum, 4))


def dense(model):
    return model.apply(lambda v: v, torch.eye(model.d, dtype=model.mean.dtype))


SCHEDULES = {
    "vp": lambda t: (
        np.cos(np.pi * t / 2),
        np.sin(np.pi * t / 2),
        -np.sin(np.pi * t / 2),
        np.cos(np.pi * t / 2),
        np.pi / 2,
    ),
    "ve": lambda t: (1.0, 80 * t, 0.0, 80.0, 1.0),
    "flow": lambda t: (1 - t, t, -1.0, 1.0, 1.0),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("variance", [1e4, 137.0, 1.0, 1e-2, 1e-4])
def test_from_the_noisiest_state_to_the_clean_one_as_scipy_integrates_it(name, variance):
    """VP and flow start at alpha = 0 exactly; all end at sigma = 0 exactly. The integrator sees no singularity: v > 0."""

    def flow(t, x):
        alpha, sigma, d_alpha, d_sigma, speed = SCHEDULES[name](t)
        v = alpha**2 * variance + sigma**2
        y = x - alpha * 3.0
        return speed * (d_alpha * (3.0 + alpha * variance / v * y) + d_sigma * sigma / v * y)

    expected = solve_ivp(flow, (1.0, 0.0), [0.7], method="DOP853", rtol=1e-12, atol=1e-13).y[0, -1]
    one = torch.ones(1, dtype=torch.float64)
    manifold = GaussianManifold(FullCovariance(3 * one, variance * one, one[None]))
    alpha, sigma = (1.0, 80.0) if name == "ve" else (0.0, 1.0)
    x_T = torch.tensor([[0.7]], dtype=torch.float64)
    assert float(manifold.solve(x_T, alpha, sigma, 1.0, 0.0)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("variance", [1e4, 1.0, 1e-4, 1e-8, 1e-12, 0.0])
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_the_same_in_log_time_down_to_no_variance_at_all(name, variance, mean):
    """With no variance the ODE is singular at sigma = 0. In u = log t it is not, and exp(u) comes as near to 0 as one likes.

    Mean 0 compares what is left of the noise itself, 1e-14 of it, and not its sum with a mean.
    """

    def flow(u, x):
        t = math.exp(u)
        alpha, sigma, d_alpha, d_sigma, speed = SCHEDULES[name](t)
        v = alpha**2 * variance + sigma**2
        y = x - alpha * mean
        return t * speed * (d_alpha * (mean + alpha * variance / v * y) + d_sigma * sigma / v * y)

    tiny = 1e-14
    run = solve_ivp(flow, (0.0, math.log(tiny)), [0.7], method="DOP853", rtol=1e-10, atol=0.0)
    one = torch.ones(1, dtype=torch.float64)
    manifold = GaussianManifold(FullCovariance(mean * one, variance * one, one[None]))
    start = (1.0, 80.0) if name == "ve" else (0.0, 1.0)
    x_T = torch.tensor([[0.7]], dtype=torch.float64)
    near = manifold.solve(x_T, *start, *SCHEDULES[name](tiny)[:2])
    assert float(near) == pytest.approx(run.y[0, -1], rel=1e-6, abs=0)
    # what is left of the way to t = 0 is shorter than 80 t times the slope, which is of the order of the state
    assert float(manifold.solve(x_T, *start, 1.0, 0.0)) == pytest.approx(run.y[0, -1], rel=1e-6, abs=1e-10)
    if variance == 0:
        assert manifold.solve(x_T, *start, 1.0, 0.0).item() == mean


@settings(max_examples=60, deadline=None)
@given(SEED, LEVEL, LEVEL, LEVEL, st.sampled_from([None, 3]))
def test_solve_composes(seed, s, t, u, k):
    manifold = random_manifold(seed, k=k)
    noise = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x_s = s[0] * manifold.mean + s[1] * noise
    assert_close(manifold.solve(manifold.solve(x_s, *s, *t), *t, *u), manifold.solve(x_s, *s, *u))


@settings(max_examples=60, deadline=None)
@given(SEED, LEVEL, LEVEL)
def test_solve_inverts_in_float32(seed, s, t):
    manifold = random_manifold(seed, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    x_s = s[0] * manifold.sample(4, generator) + s[1] * torch.randn(4, 8, generator=generator)
    back = manifold.solve(manifold.solve(x_s, *s, *t), *t, *s)
    # relative to the state, and to the largest intermediate value carried back through the smallest gain
    gain = manifold.sensitivity(*t, *s)
    reach = float(manifold.solve(x_s, *s, *t).norm(dim=1).max() * gain.max())
    limit = 1e-5 * max(float(x_s.norm(dim=1).max()), 0.1 * reach)
    assert float((back - x_s).norm(dim=1).max()) <= limit


def test_image_to_noise_and_back_in_float32():
    manifold = random_manifold(3, d=64, dtype=torch.float32)
    images = manifold.sample(16)
    noise = manifold.invert(images)
    assert float(noise.std()) == pytest.approx(1.0, rel=0.1)
    back = manifold.endpoint(noise, 0.0, 1.0)
    assert float((back - images).norm() / images.norm()) < 1e-5


@settings(max_examples=40, deadline=None)
@given(SEED, LEVEL, st.sampled_from([None, 3]))
def test_score_is_autograd_of_log_prob_and_tweedie_holds(seed, level, k):
    manifold = random_manifold(seed, k=k)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    x_t = (level[0] * manifold.sample(3, generator) + level[1] * noise).requires_grad_()
    (gradient,) = torch.autograd.grad(manifold.log_prob(x_t, *level).sum(), x_t)
    score = manifold.score(x_t.detach(), *level)
    assert_close(score, gradient)
    if level[0] > 1e-3:
        tweedie = (x_t.detach() + level[1] ** 2 * score) / level[0]
        scale = float(x_t.detach().abs().max()) / level[0]
        assert_close(manifold.denoise(x_t.detach(), *level), tweedie, scale=max(scale, 1.0))


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_noise_and_target_make_up_the_state(alpha):
    manifold = random_manifold(1)
    x_t = torch.randn(5, 8, dtype=torch.float64)
    assert_close(alpha * manifold.denoise(x_t, alpha, 0.7) + 0.7 * manifold.eps(x_t, alpha, 0.7), x_t)
    assert_close(manifold.eps(x_t, alpha, 0.7), -0.7 * manifold.score(x_t, alpha, 0.7))


def test_velocity_is_the_slope_of_solve():
    manifold, x_t = random_manifold(2), torch.randn(5, 8, dtype=torch.float64)
    h = 1e-5
    forward, backward = manifold.solve(x_t, 0.6, 0.4, 0.6 - h, 0.4 + h), manifold.solve(x_t, 0.6, 0.4, 0.6 + h, 0.4 - h)
    torch.testing.assert_close(manifold.velocity(x_t, 0.6, 0.4), (forward - backward) / (2 * h), rtol=1e-6, atol=1e-7)
    v = 0.6 * manifold.eps(x_t, 0.6, 0.8) - 0.8 * manifold.denoise(x_t, 0.6, 0.8)
    assert_close(manifold.velocity(x_t, 0.6, 0.8, -0.8, 0.6), v)


@pytest.mark.parametrize("order", [1, 2])
def test_integrating_velocity_approaches_solve_with_the_right_slope(order):
    """Euler and Heun on `velocity`: errors fall with the first and second power of the step."""
    manifold, x_s = random_manifold(4), torch.randn(3, 8, dtype=torch.float64)
    errors, counts = [], [64, 128, 256, 512]
    for steps in counts:
        x, t = x_s, np.linspace(0.9, 0.2, steps + 1)
        for now, after in pairwise(t):
            slope = manifold.velocity(x, 1 - now, now)
            if order == 2:
                slope = (slope + manifold.velocity(x + (after - now) * slope, 1 - after, after)) / 2
            x = x + (after - now) * slope
        errors.append(float((x - manifold.solve(x_s, 0.1, 0.9, 0.8, 0.2)).norm()))
    found = np.polyfit(np.log(1 / np.array(counts)), np.log(errors), 1)[0]
    assert found == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(
    "manifold", [random_manifold(5), random_manifold(5, k=3), stationary()], ids=["full", "lowrank", "stationary"]
)
def test_trajectory_is_solve_and_denoise_at_each_level(manifold):
    shape = (3, 4, 4) if manifold.d == 48 else (manifold.d,)
    x_s = torch.randn(4, *shape, dtype=torch.float64)
    alphas, sigmas = [0.0, 0.3, 0.9, 1.0], [1.0, 0.9, 0.2, 0.0]
    path = manifold.trajectory(x_s, 0.2, 0.9, alphas, sigmas)
    assert path.x_t.shape == path.x0_hat.shape == (4, *x_s.shape)
    for level, (alpha, sigma) in enumerate(zip(alphas, sigmas, strict=True)):
        x_t = manifold.solve(x_s, 0.2, 0.9, alpha, sigma)
        assert_close(path.x_t[level], x_t)
        assert_close(path.x0_hat[level], manifold.denoise(x_t, alpha, sigma))
    each = torch.tensor([0.2, 0.5, 0.1, 0.4], dtype=torch.float64)
    rows = manifold.trajectory(x_s, each, 1 - each, alphas, sigmas).x_t
    for row in range(4):
        alone = manifold.solve(x_s[row : row + 1], float(each[row]), 1 - float(each[row]), 0.9, 0.2)
        assert_close(rows[2, row : row + 1], alone)


def test_stationary_denoises_like_its_dense_matrix():
    manifold = stationary()
    sigma_matrix = dense(manifold.covariance)
    x_t = torch.randn(3, 48, dtype=torch.float64)
    gain = 0.6 * sigma_matrix @ torch.linalg.inv(0.36 * sigma_matrix + 0.25 * torch.eye(48).double())
    assert_close(manifold.denoise(x_t, 0.6, 0.5), manifold.mean + (x_t - 0.6 * manifold.mean) @ gain.T)


@pytest.mark.parametrize("k", [None, 3])
def test_posterior_is_dense_conditioning(k):
    manifold = random_manifold(6, k=k)
    sigma_matrix, eye = dense(manifold.covariance), torch.eye(8).double()
    expected = (
        sigma_matrix - 0.7 * sigma_matrix @ torch.linalg.inv(0.49 * sigma_matrix + 0.36 * eye) @ sigma_matrix * 0.7
    )
    x_t = torch.randn(2, 8, dtype=torch.float64)
    posterior = manifold.posterior(x_t, 0.7, 0.6)
    assert_close(posterior.total_variance, expected.trace()[None].squeeze(0))
    assert_close(posterior.eigvals, (manifold.eigvecs.T @ expected @ manifold.eigvecs).diagonal())
    drawn = posterior.sample(40_000, torch.Generator().manual_seed(0))
    assert drawn.shape == (40_000, 2, 8)
    assert float((torch.cov(drawn[:, 0].T) - expected).norm() / expected.norm()) < 0.03
    torch.testing.assert_close(drawn.mean(0), manifold.denoise(x_t, 0.7, 0.6), rtol=0, atol=0.02)


def test_sensitivity_is_the_response_of_the_final_sample():
    manifold, x_s = random_manifold(7), torch.randn(1, 8, dtype=torch.float64)
    for mode in range(8):
        moved = manifold.endpoint(x_s + 0.01 * manifold.eigvecs[:, mode], 0.3, 0.9) - manifold.endpoint(x_s, 0.3, 0.9)
        assert_close(moved[0], 0.01 * manifold.sensitivity(0.3, 0.9)[mode] * manifold.eigvecs[:, mode], scale=1.0)


@pytest.mark.parametrize("share", [0.5, 1 / math.sqrt(2), 0.9])
def test_at_emergence_the_predicted_target_has_reached_its_share(share):
    manifold = random_manifold(8)
    final = manifold.mean + 2 * manifold.eigvecs.sum(1)
    for mode, sigma in enumerate(manifold.emergence(share).tolist()):
        x_t = manifold.solve(final[None], 1.0, 0.0, 1.0, sigma)
        reached = (manifold.denoise(x_t, 1.0, sigma)[0] - manifold.mean) @ manifold.eigvecs[:, mode]
        assert float(reached) == pytest.approx(2 * share, rel=1e-9)
    assert_close(manifold.emergence(0.5), (3 * manifold.eigvals).sqrt())


def test_rotation_for_white_data_is_exact_and_a_quarter_turn_otherwise():
    """Sigma = I turns nothing (x_t = x_T for mean 0); a plane holds nearly all of any smooth trajectory."""
    noise = torch.randn(5, 16, dtype=torch.float64)
    eye = torch.eye(16, dtype=torch.float64)
    white = GaussianManifold(FullCovariance(torch.zeros(16).double(), torch.ones(16).double(), eye)).rotation(noise)
    assert float(white.angle.abs().max()) < 1e-6
    assert float(white.outside.max()) < 1e-12
    peaked = GaussianManifold(FullCovariance(torch.zeros(16).double(), torch.logspace(2, -4, 16).double(), eye))
    found = peaked.rotation(noise, levels=50)
    assert found.residual.shape == (50, 5)
    assert float(found.residual[[0, -1]].max()) < 1e-12  # both ends are in the formula by construction
    assert float(found.outside.max()) < 0.1
    gram = found.plane @ found.plane.transpose(1, 2)
    assert_close(gram, torch.eye(2).double().expand(5, 2, 2).clone())
    x0 = peaked.endpoint(noise, 0.0, 1.0)
    cosine = torch.nn.functional.cosine_similarity(x0, noise)
    assert_close(found.angle.cos(), cosine)
    with_nothing = peaked.rotation(torch.cat([noise, torch.zeros(1, 16).double()]), levels=50)
    assert_close(with_nothing.residual[:, :5], found.residual)
    assert_close(with_nothing.residual[:, 5], torch.zeros(50).double())


@pytest.mark.parametrize(("k_p", "k_q"), [(None, None), (3, None), (2, 5)])
@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.0), (0.5, 0.9)])
def test_kl_is_torchs(k_p, k_q, alpha, sigma):
    p, q = random_manifold(1, k=k_p), random_manifold(2, k=k_q)
    noise = sigma**2 * torch.eye(8).double()
    dists = [
        torch.distributions.MultivariateNormal(alpha * m.mean, alpha**2 * dense(m.covariance) + noise) for m in (p, q)
    ]
    expected = float(torch.distributions.kl_divergence(*dists))
    assert p.kl_divergence(q, alpha, sigma) == pytest.approx(expected, rel=1e-9)
    assert p.kl_divergence(p, alpha, sigma) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("k_p", "k_q"), [(None, None), (3, None), (2, 5)])
def test_bures_is_the_formula_with_matrix_roots(k_p, k_q):
    p, q = random_manifold(1, k=k_p), random_manifold(2, k=k_q)
    a, b = dense(p.covariance).numpy(), dense(q.covariance).numpy()
    root = sqrtm(a)
    squared = float((p.mean - q.mean).square().sum()) + np.trace(a + b - 2 * np.real(sqrtm(root @ b @ root)))
    assert p.bures_distance(q) == pytest.approx(math.sqrt(squared), rel=1e-8)
    assert p.bures_distance(p) == pytest.approx(0, abs=1e-5)


def test_wrong_use_is_said():
    manifold = random_manifold(1)
    x = torch.zeros(2, 8, dtype=torch.float64)
    with pytest.raises(ShapeError, match="two lists of one length"):
        manifold.trajectory(x, 1.0, 1.0, torch.ones(3), torch.ones(2))
    with pytest.raises(InputError, match="sigma must be finite and at least 0"):
        manifold.trajectory(x, 1.0, 1.0, torch.ones(2), torch.tensor([1.0, -1.0]))
    with pytest.raises(InputError, match="share must lie between 0 and 1, it is 1"):
        manifold.emergence(1)
    with pytest.raises(MismatchError, match="d = 8 and d = 4"):
        manifold.kl_divergence(random_manifold(1, d=4))
    flat = FullCovariance(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.eye(2))
    with pytest.raises(InputError, match="compare at sigma > 0"):
        kl_divergence(flat, flat)
