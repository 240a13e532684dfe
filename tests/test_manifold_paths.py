"""Flatness, rotation and alignment of recorded trajectories, against slow references and exactly Gaussian models."""

import math

import numpy as np
import pytest
import torch
from helpers import assert_close

from manifold.alignment import measure_alignment
from manifold.bootstrap import bootstrap_mean
from manifold.covariance import FullCovariance
from manifold.errors import InputError, NonFiniteError, ShapeError
from manifold.gaussian import GaussianManifold
from manifold.nulls import derangement, isotropic, random_directions, shuffled_network, smooth_path
from manifold.path_pca import measure_path_pca, path_explained
from manifold.path_rotation import measure_path_rotation, rotation_fit

D, N, LEVELS = 24, 6, 21


@pytest.fixture
def gaussian(fixed_seed):
    generator = torch.Generator().manual_seed(fixed_seed)
    basis = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64)).Q
    eigvals = torch.logspace(1, -3, D, dtype=torch.float64)
    return GaussianManifold(FullCovariance(torch.randn(D, generator=generator).double(), eigvals, basis))


def schedule(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """From noise to data: variance preserving, variance exploding, and flow matching whose ends are cut off."""
    u = torch.linspace(1, 0, LEVELS, dtype=torch.float64)
    if name == "vp":
        return (math.pi / 2 * 0.999 * u).cos(), (math.pi / 2 * 0.999 * u).sin()
    if name == "ve":
        return torch.ones_like(u), 80 * u**3
    return 1 - (0.02 + 0.97 * u), 0.02 + 0.97 * u


def dense_path(gaussian, x_T, alphas, sigmas, root=np.sqrt):
    """x_t and x0_hat with dense matrices in float64; `root` is where an error is planted."""
    vectors, eigvals = gaussian.eigvecs.numpy(), gaussian.eigvals.numpy()
    mean = gaussian.mean.numpy()
    x_t, x0_hat = [], []
    for alpha, sigma in zip(alphas.tolist(), sigmas.tolist(), strict=True):
        v, start = alpha**2 * eigvals + sigma**2, float(alphas[0]) ** 2 * eigvals + float(sigmas[0]) ** 2
        moved = (x_T.numpy() - float(alphas[0]) * mean) @ (vectors * root(v / start) @ vectors.T)
        x_t.append(alpha * mean + moved)
        x0_hat.append(mean + moved @ (vectors * (alpha * eigvals / v) @ vectors.T))
    return torch.from_numpy(np.stack(x_t)), torch.from_numpy(np.stack(x0_hat[:-1]))


def recording(gaussian, name="vp", root=np.sqrt, n=N):
    alphas, sigmas = schedule(name)
    noise = torch.randn(n, D, dtype=torch.float64)
    x_T = float(alphas[0]) * gaussian.sample(n) + float(sigmas[0]) * noise
    return *dense_path(gaussian, x_T, alphas, sigmas, root), alphas, sigmas


SCHEDULES = pytest.mark.parametrize("name", ["vp", "ve", "flow"])


@SCHEDULES
def test_path_pca_is_numpys_svd_and_the_gaussian_is_what_it_predicts(gaussian, name):
    x_t, _, alphas, sigmas = recording(gaussian, name)
    found = measure_path_pca(x_t, alphas, sigmas, gaussian, components=4, shuffled=x_t.flip(1))
    for number in range(N):
        path = (x_t[:, number] / torch.hypot(alphas, sigmas)[:, None]).numpy()
        values = np.linalg.svd(path - path.mean(0), compute_uv=False) ** 2
        expected = torch.from_numpy(np.cumsum(values)[:4] / values.sum())
        assert_close(found.measured[number], expected)
    assert_close(found.gaussian, found.measured)
    assert_close(found.shuffled, found.measured.flip(0))
    assert found.null.shape == (N, 4)
    assert not torch.allclose(found.null, found.measured, atol=1e-4)
    again = measure_path_pca(x_t.view(LEVELS, N, 6, 2, 2), alphas, sigmas, gaussian, components=4)
    assert_close(again.measured, found.measured)


def test_a_planted_exponent_is_seen_by_every_analysis(gaussian):
    """A gain of (v_t / v_T)^0.505 instead of 0.5 is 1 % in the exponent."""
    x_t, x0_hat, alphas, sigmas = recording(gaussian, "vp", lambda ratio: ratio**0.505)
    pca = measure_path_pca(x_t, alphas, sigmas, gaussian)
    assert float((pca.measured - pca.gaussian).abs().max()) > 1e-6
    turn = measure_path_rotation(x_t, alphas, sigmas, gaussian)
    assert float((turn.measured.angle - turn.gaussian.angle).abs().max()) > 1e-4
    agreement = measure_alignment(x_t, x0_hat, alphas, sigmas, gaussian)
    assert float(agreement.state.distance[-1].max()) > 1e-3
    assert float(agreement.target.distance[-1].max()) > 1e-3


@SCHEDULES
def test_rotation_is_least_squares_and_the_gaussian_is_what_it_predicts(gaussian, name):
    x_t, _, alphas, sigmas = recording(gaussian, name)
    found = measure_path_rotation(x_t, alphas, sigmas, gaussian)
    x_t = x_t / torch.hypot(alphas, sigmas)[:, None, None]
    for level in range(LEVELS):
        for number in range(N):
            ends = torch.stack([x_t[-1, number], x_t[0, number]], 1).numpy()
            state = x_t[level, number].numpy()
            (a, b), *_ = np.linalg.lstsq(ends, state, rcond=None)
            fit = ends @ [a, b]
            assert float(found.measured.signal[level, number]) == pytest.approx(a, abs=1e-9)
            assert float(found.measured.noise[level, number]) == pytest.approx(b, abs=1e-9)
            outside = np.square(state - fit).sum() / np.square(state).sum()
            assert float(found.measured.residual[level, number]) == pytest.approx(outside, abs=1e-12)
            between = fit @ ends[:, 1] / np.linalg.norm(fit) / np.linalg.norm(ends[:, 1])
            assert math.cos(float(found.measured.angle[level, number])) == pytest.approx(between, abs=1e-9)
    for name in ("signal", "noise", "residual", "formula_residual", "angle", "formula_angle"):
        torch.testing.assert_close(getattr(found.gaussian, name), getattr(found.measured, name), rtol=1e-9, atol=1e-10)


@SCHEDULES
def test_the_formula_is_exact_where_a_state_is_signal_plus_noise(name):
    """x_t = alpha x0 + sigma eps on the line, whatever the levels of the ends: no residual, the formula's own angle."""
    alphas, sigmas = schedule(name)
    x0, eps = torch.randn(2, N, D, dtype=torch.float64)
    x_t = alphas[:, None, None] * x0 + sigmas[:, None, None] * eps
    found = rotation_fit(x_t, alphas, sigmas)
    assert float(found.residual.max()) < 1e-20
    assert float(found.formula_residual.max()) < 1e-20
    torch.testing.assert_close(found.angle, found.formula_angle, rtol=0, atol=1e-9)
    assert float(found.angle[0].abs().max()) < 1e-12


def test_one_variance_beside_none_stays_in_the_plane_exactly():
    """With eigenvalues (c, 0) the state is a mixture of two fixed vectors; with c alone its ends are parallel."""
    alphas, sigmas = schedule("vp")
    eye, mean = torch.eye(D, dtype=torch.float64), torch.zeros(D, dtype=torch.float64)
    half = torch.cat([torch.full((D // 2,), 3.0), torch.zeros(D // 2)]).double()
    x_T = torch.randn(N, D, dtype=torch.float64)
    for eigvals in (half, torch.full((D,), 3.0).double()):
        flat = GaussianManifold(FullCovariance(mean, eigvals, eye))
        path = flat.trajectory(x_T, float(alphas[0]), float(sigmas[0]), alphas, sigmas).x_t
        found = measure_path_rotation(path, alphas, sigmas, flat)
        assert float(found.measured.residual.max()) < 1e-20
    assert not found.measured.signal.any(), "parallel ends: the noise alone carries the fit"


@SCHEDULES
def test_alignment_is_exact_for_a_gaussian_and_lost_for_another_noise(gaussian, name):
    x_t, x0_hat, alphas, sigmas = recording(gaussian, name)
    found = measure_alignment(
        x_t.view(LEVELS, N, 6, 2, 2), x0_hat.view(LEVELS - 1, N, 6, 2, 2), alphas, sigmas, gaussian
    )
    for part, levels in ((found.state, LEVELS), (found.target, LEVELS - 1)):
        assert part.cosine.shape == (levels, N)
        assert_close(part.cosine, torch.ones(levels, N, dtype=torch.float64))
        assert float(part.distance.max()) < 1e-9
    assert float(found.null_state.cosine.mean()) < 0.5
    assert float(found.null_target.distance.mean()) > 0.5


def test_alignment_of_pure_noise_says_nan_where_nothing_is_predicted(gaussian):
    alphas = torch.tensor([0.0, 0.7, 1.0], dtype=torch.float64)
    sigmas = torch.tensor([1.0, 0.7, 0.0], dtype=torch.float64)
    x_t, x0_hat = dense_path(gaussian, torch.randn(N, D, dtype=torch.float64), alphas, sigmas)
    found = measure_alignment(x_t, x0_hat, alphas, sigmas, gaussian)
    assert bool(found.target.cosine[0].isnan().all())
    assert not bool(found.target.cosine[1:].isnan().any())
    assert not bool(found.state.cosine.isnan().any())


def test_a_list_without_the_last_level_ends_clean(gaussian):
    x_t, x0_hat, alphas, sigmas = recording(gaussian, "ve")
    assert (float(alphas[-1]), float(sigmas[-1])) == (1.0, 0.0)
    short = measure_alignment(x_t, x0_hat, alphas[:-1], sigmas[:-1].tolist(), gaussian)
    assert torch.equal(short.sigmas, sigmas)
    assert torch.equal(short.state.cosine, measure_alignment(x_t, x0_hat, alphas, sigmas, gaussian).state.cosine)


def test_cosine_and_distance_are_taken_about_the_mean(gaussian):
    x_t, x0_hat, alphas, sigmas = recording(gaussian, "ve")
    moved = x_t + 0.1 * torch.randn(x_t.shape, dtype=torch.float64)
    found = measure_alignment(moved, x0_hat, alphas, sigmas, gaussian)
    exact, _ = dense_path(gaussian, moved[0], alphas, sigmas)
    level, number = 12, 3
    centre = float(alphas[level]) * gaussian.mean
    one, two = (moved[level, number] - centre).numpy(), (exact[level, number] - centre).numpy()
    cosine = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
    assert float(found.state.cosine[level, number]) == pytest.approx(cosine, rel=1e-10)
    distance = np.linalg.norm(one - two) / np.linalg.norm(two)
    assert float(found.state.distance[level, number]) == pytest.approx(distance, rel=1e-8)


@SCHEDULES
def test_the_smooth_null_has_the_ends_the_length_and_the_pace(gaussian, name):
    x_t, _, alphas, sigmas = recording(gaussian, name)
    # Ten times as many levels, so that chords are as long as the arc to a fraction of a percent.
    fine = torch.nn.functional.interpolate(torch.stack([alphas, sigmas])[None], 201, mode="linear", align_corners=True)
    x_t, _ = dense_path(gaussian, x_t[0], *fine[0])
    null = smooth_path(x_t, torch.Generator().manual_seed(1))
    assert torch.equal(null[[0, -1]], x_t[[0, -1]])
    steps, drawn = (one.diff(dim=0).norm(dim=2) for one in (x_t, null))
    torch.testing.assert_close(drawn.sum(0), steps.sum(0), rtol=2e-3, atol=0)
    torch.testing.assert_close(drawn, steps, rtol=0.03, atol=0.02 * float(steps.max()))
    assert not torch.equal(null, smooth_path(x_t, torch.Generator().manual_seed(2)))
    assert torch.equal(null, smooth_path(x_t, torch.Generator().manual_seed(1)))


def test_the_smooth_null_of_a_straight_line_is_straight():
    line = torch.linspace(0, 1, 9, dtype=torch.float64)[:, None, None] * torch.randn(1, 2, 5, dtype=torch.float64)
    torch.testing.assert_close(smooth_path(line), line, rtol=0, atol=1e-5)
    flat = torch.linspace(0, 1, 9, dtype=torch.float64).view(9, 1, 1) ** 2
    torch.testing.assert_close(smooth_path(flat), flat, rtol=0, atol=1e-5)


def test_nulls_destroy_what_they_say_and_keep_the_rest(gaussian):
    for n in (2, 3, 10):
        order = derangement(n)
        assert sorted(order.tolist()) == list(range(n))
        assert not bool((order == torch.arange(n)).any())
    directions = random_directions(D, 5)
    assert_close(directions.T @ directions, torch.eye(5, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([random_directions(3, 3, generator) for _ in range(2000)])
    positive = torch.cat([(drawn[:, 0] > 0).double().mean(0), (torch.linalg.det(drawn) > 0).double().mean()[None]])
    assert float((positive - 0.5).abs().max()) < 0.05, "no sign is preferred; four standard deviations are 0.045"
    sphere = isotropic(gaussian)
    assert sphere.total_variance == pytest.approx(gaussian.total_variance)
    x_t = torch.randn(3, D, dtype=torch.float64)
    variance = gaussian.total_variance / D
    expected = gaussian.mean + 0.6 * variance / (0.36 * variance + 0.64) * (x_t - 0.6 * gaussian.mean)
    assert_close(sphere.denoise(x_t, 0.6, 0.8), expected)
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    before = [parameter.clone() for parameter in network.parameters()]
    shuffled = shuffled_network(network, 1)
    for old, mine, theirs in zip(before, network.parameters(), shuffled.parameters(), strict=True):
        assert torch.equal(old, mine)
        assert torch.equal(old.flatten().sort().values, theirs.flatten().sort().values)
    assert not torch.equal(before[0], shuffled[0].weight)
    assert torch.equal(shuffled[0].weight, shuffled_network(network, 1)[0].weight)
    assert not torch.equal(shuffled[0].weight, shuffled_network(network, 2)[0].weight)


def test_bootstrap_covers_the_mean_about_as_often_as_it_says(rng):
    values = torch.from_numpy(rng.standard_normal((400, 60)))
    found = bootstrap_mean(values, draws=400)
    assert_close(found.mean, values.mean(1))
    covered = float(((found.low < 0) & (found.high > 0)).double().mean())
    assert 0.9 < covered < 0.98
    width = float((found.high - found.low).mean())
    assert width == pytest.approx(2 * 1.96 / math.sqrt(60), rel=0.1)
    assert bool(bootstrap_mean(torch.full((1, 3), torch.nan)).mean.isnan().all())


@pytest.mark.parametrize(("n", "at_least"), [(2, 0.45), (3, 0.7), (4, 0.83), (6, 0.9), (8, 0.91), (16, 0.92)])
def test_intervals_of_few_trajectories_are_wide_enough(rng, n, at_least):
    """Percentiles of a normal's level cover 48, 74, 79, 86, 88 and 91 %."""
    values = torch.from_numpy(rng.standard_normal((4000, n)))
    found = bootstrap_mean(values, draws=1000)
    covered = float(((found.low <= 0) & (found.high >= 0)).double().mean())
    assert at_least < covered < 0.97
    assert bool(((values.amin(1) - 1e-9 <= found.low) & (found.high <= values.amax(1) + 1e-9)).all())


def test_a_single_trajectory_has_a_mean_and_no_interval():
    found = bootstrap_mean(torch.tensor([[3.0], [4.0]]))
    assert found.mean.tolist() == [3, 4]
    assert bool(found.low.isnan().all())
    assert bool(found.high.isnan().all())


def test_wrong_use_is_said(gaussian):
    x_t, x0_hat, alphas, sigmas = recording(gaussian)
    with pytest.raises(ShapeError, match=r"x_t must be \(levels, n, d\)"):
        measure_path_pca(x_t[:, 0], alphas, sigmas, gaussian)
    with pytest.raises(ShapeError, match="one number for each of the 21 levels"):
        measure_path_rotation(x_t, alphas[1:], sigmas, gaussian)
    with pytest.raises(ShapeError, match="one number for each of the 21 levels"):
        measure_path_rotation(x_t, alphas[2:], sigmas[2:], gaussian)
    with pytest.raises(InputError, match="sigmas must be finite and at least 0, the lowest is -"):
        measure_path_rotation(x_t, alphas, -sigmas, gaussian)
    with pytest.raises(InputError, match="must end at less noise than it starts"):
        measure_path_rotation(x_t, alphas.flip(0), sigmas.flip(0), gaussian)
    with pytest.raises(ShapeError, match="x0_hat must be one level shorter"):
        measure_alignment(x_t, x_t, alphas, sigmas, gaussian)
    with pytest.raises(InputError, match="needs at least 2 trajectories"):
        measure_alignment(x_t[:, :1], x0_hat[:, :1], alphas, sigmas, gaussian)
    broken = x_t.clone()
    broken[7, 2, 3] = torch.nan
    with pytest.raises(NonFiniteError, match="at level 7"):
        measure_path_pca(broken, alphas, sigmas, gaussian)
    still = x_t.clone()
    still[:, 4] = 1.0
    with pytest.raises(InputError, match="trajectory 4 does not"):
        path_explained(still)
    with pytest.raises(ShapeError, match="shuffled must have the 21 levels"):
        measure_path_pca(x_t, alphas, sigmas, gaussian, shuffled=x_t[1:])
    with pytest.raises(InputError, match="must not both be 0, they are at level 20"):
        measure_path_pca(x_t, torch.zeros(LEVELS), torch.linspace(1, 0, LEVELS), gaussian)
    with pytest.raises(InputError, match="number of components must be at least 1"):
        path_explained(x_t, 0)
    with pytest.raises(InputError, match="at least one harmonic"):
        smooth_path(x_t, harmonics=0)
    with pytest.raises(InputError, match="1 to 24 orthonormal"):
        random_directions(D, 25)
    with pytest.raises(InputError, match="level of an interval"):
        bootstrap_mean(x_t, level=1.0)
    with pytest.raises(InputError, match="at least one trajectory and one draw"):
        bootstrap_mean(x_t, draws=0)
