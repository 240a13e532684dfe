"""Emergence of modes and perturbation gains: exact on Gaussian models, planted errors seen, nulls without order."""

import math

import numpy as np
import pytest
import torch
from helpers import assert_close
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from scipy.stats import norm, spearmanr, t

from manifold.bootstrap import bootstrap_weights
from manifold.compare import compare_denoisers
from manifold.covariance import FullCovariance, LowRankCovariance
from manifold.emergence import crossing_level, measure_emergence
from manifold.errors import InputError, NonFiniteError, ShapeError
from manifold.gaussian import GaussianManifold
from manifold.nulls import random_directions
from manifold.perturbation import measure_perturbation

D, N = 24, 40


def random_gaussian(seed: int, tail: bool = False) -> GaussianManifold:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64)).Q
    eigvals = torch.logspace(1, -2, D, dtype=torch.float64)
    mean = torch.randn(D, generator=generator, dtype=torch.float64)
    if tail:
        return GaussianManifold(LowRankCovariance(mean, eigvals[:10], basis[:, :10], 0.005))
    return GaussianManifold(FullCovariance(mean, eigvals, basis))


@pytest.fixture
def gaussian(fixed_seed):
    return random_gaussian(fixed_seed)


def levels(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    u = torch.linspace(1, 0, 60, dtype=torch.float64)
    if name == "ve":
        return torch.ones_like(u), 30 * u**4
    if name == "vp":
        return (math.pi / 2 * u**1.5).cos(), (math.pi / 2 * u**1.5).sin()
    return 1 - (0.03 + 0.96 * u**2), 0.03 + 0.96 * u**2  # flow matching that stops at sigma = 0.03


def recording(gaussian, name, n=N):
    """A trajectory of every state from the marginal at the first level."""
    alphas, sigmas = levels(name)
    x_T = alphas[0] * gaussian.sample(n) + sigmas[0] * torch.randn(n, D, dtype=torch.float64)
    path = gaussian.trajectory(x_T, float(alphas[0]), float(sigmas[0]), alphas, sigmas)
    return path.x_t, path.x0_hat[:-1], alphas, sigmas


@pytest.mark.parametrize("name", ["vp", "ve", "flow"])
@pytest.mark.parametrize("share", [0.5, 1 / math.sqrt(2)])
def test_a_gaussian_emerges_where_predicted(gaussian, name, share):
    x_t, x0_hat, alphas, sigmas = recording(gaussian, name)
    found = measure_emergence(x_t, x0_hat, alphas, sigmas, gaussian, modes=12, share=share, draws=20)
    assert_close(found.curve, found.predicted_curve)
    torch.testing.assert_close(found.level, found.predicted, rtol=1e-5, atol=0)
    if name != "flow":  # a last state that still holds noise is itself not wholly decided
        assert_close(found.level, found.predicted)
        assert found.exponent == pytest.approx(0.5, abs=1e-9)
        assert_close(found.predicted, (gaussian.eigvals[:12] * (1 / share**2 - 1)).sqrt())
    torch.testing.assert_close(found.level, found.predicted, rtol=0.01, atol=0)
    torch.testing.assert_close(found.low, found.high, rtol=1e-9, atol=0)  # every resample says the same
    assert found.rank_correlation == 1.0


def test_the_share_is_a_regression_with_intercept(gaussian):
    x_t, x0_hat, alphas, sigmas = recording(gaussian, "ve")
    noisy = x0_hat + 0.3 * torch.randn(x0_hat.shape, dtype=torch.float64) + 5.0
    found = measure_emergence(x_t, noisy, alphas, sigmas, gaussian, modes=[0, 5])
    for column, mode in enumerate((0, 5)):
        vector = gaussian.eigvecs[:, mode].numpy()
        slope = np.polyfit(x_t[-1].numpy() @ vector, noisy[20].numpy() @ vector, 1)[0]
        assert float(found.curve[20, column]) == pytest.approx(slope, rel=1e-9)
    assert bool(((found.low <= found.level) & (found.level <= found.high)).all())
    assert float((found.high - found.low).min()) > 0


def test_the_interval_is_the_percentile_bootstrap_of_refitted_slopes(gaussian):
    """Every resample fitted anew by NumPy, a trajectory drawn twice standing in it twice."""
    x_t, x0_hat, alphas, sigmas = recording(gaussian, "ve")
    noisy = x0_hat + 0.3 * torch.randn(x0_hat.shape, dtype=torch.float64)
    found = measure_emergence(x_t, noisy, alphas, sigmas, gaussian, modes=3, draws=20)
    end, now = (x_t[-1] @ gaussian.eigvecs[:, :3]).numpy(), (noisy @ gaussian.eigvecs[:, :3]).numpy()
    levels = []
    for times in bootstrap_weights(N, 20).int().numpy():
        drawn = np.repeat(np.arange(N), times)
        curves = [np.polyfit(end[drawn, mode], now[:, drawn, mode].T, 1)[0] for mode in range(3)]
        levels.append(crossing_level(torch.from_numpy(np.stack(curves, 1)), found.noise, 0.5).numpy())
    tail = norm.cdf(math.sqrt(N / (N - 1)) * t.ppf(0.025, N - 1))
    low, high = np.nanquantile(levels, [tail, 1 - tail], axis=0)
    np.testing.assert_allclose(found.low, low, rtol=1e-9)
    np.testing.assert_allclose(found.high, high, rtol=1e-9)


def test_random_directions_are_ranked_against_the_predicted_order_not_the_measured_one(gaussian):
    """Predictions that decide the last mode first."""
    x_t, _, alphas, sigmas = recording(gaussian, "ve")
    final = (x_t[-1] - gaussian.mean) @ gaussian.eigvecs
    shares = (1 + (sigmas[:-1, None] ** 2 / gaussian.eigvals.flip(0))).rsqrt()
    x0_hat = gaussian.mean + (shares[:, None] * final) @ gaussian.eigvecs.T
    found = measure_emergence(x_t, x0_hat, alphas, sigmas, gaussian, modes=12, draws=2)
    assert found.rank_correlation == pytest.approx(-1.0)
    expected = spearmanr(found.predicted, found.null_level).statistic
    assert abs(expected) > 0.01
    assert found.null_rank_correlation == pytest.approx(expected)


def test_recorded_predictions_of_another_power_are_seen(gaussian):
    """A Wiener gain with sigma for sigma^2, a classic mistake, gives level ~ lambda instead of its square root."""
    x_t, _, alphas, sigmas = recording(gaussian, "ve")
    final = (x_t[-1] - gaussian.mean) @ gaussian.eigvecs
    wrong = gaussian.eigvals / (gaussian.eigvals + sigmas[:-1, None, None])
    x0_hat = gaussian.mean + (wrong * final) @ gaussian.eigvecs.T
    found = measure_emergence(x_t, x0_hat, alphas, sigmas, gaussian, modes=12)
    assert found.exponent == pytest.approx(1.0, abs=0.02)
    assert float((found.level / found.predicted - 1).abs().max()) > 0.5


def test_random_directions_have_no_order_and_other_samples_nothing_in_common():
    gaussian = random_gaussian(5)
    x_t, x0_hat, alphas, sigmas = recording(gaussian, "ve", n=4000)
    found = measure_emergence(
        x_t, x0_hat, alphas, sigmas, gaussian, modes=24, draws=2, generator=torch.Generator().manual_seed(0)
    )
    assert abs(found.null_rank_correlation) < 0.6 < found.rank_correlation
    spread = [float(one.log().std()) for one in (found.null_level, found.level)]
    assert spread[0] < 0.5 * spread[1]
    assert float(found.permuted_curve.abs().max()) < 0.1
    torch.testing.assert_close(found.null_level, found.null_predicted, rtol=0.1, atol=0)


@pytest.mark.parametrize("tail", [False, True])
def test_the_prediction_for_random_directions_is_a_dense_matrix_ratio(tail):
    gaussian = random_gaussian(3, tail)
    x_t, x0_hat, alphas, sigmas = recording(gaussian, "flow", n=5)
    found = measure_emergence(
        x_t, x0_hat, alphas, sigmas, gaussian, modes=4, draws=2, generator=torch.Generator().manual_seed(1)
    )
    from manifold.nulls import random_directions

    direction = random_directions(D, 4, torch.Generator().manual_seed(1))[:, 2]
    sigma_matrix = gaussian.covariance.apply(lambda v: v, torch.eye(D, dtype=torch.float64))
    values, vectors = torch.linalg.eigh(sigma_matrix)
    a_0, s_0 = float(alphas[-1]), float(sigmas[-1])
    weights = (vectors.T @ direction).square()

    def share(noise: float) -> float:
        """Along the recorded line of flow matching, alpha + sigma = 1."""
        a, s = 1 / (1 + noise), noise / (1 + noise)
        now, last = a**2 * values + s**2, a_0**2 * values + s_0**2
        return float((weights * a * values * (last / now).sqrt() / a_0).sum() / (weights * last / a_0**2).sum())

    expected = brentq(lambda noise: share(noise) - 0.5, 0.05, 50)
    assert float(found.null_predicted[2]) == pytest.approx(expected, rel=2e-3)


def test_crossing_counts_the_last_rise_and_says_nan_where_there_is_none():
    noise = torch.tensor([torch.inf, 8.0, 4.0, 2.0, 1.0], dtype=torch.float64)
    curves = torch.tensor(
        [
            [0.0, 0.6, 0.6, 0.0, 0.0, torch.nan],
            [0.1, 0.7, 0.7, 0.6, -0.2, torch.nan],
            [0.6, 0.2, 0.8, 0.7, 0.2, torch.nan],
            [0.7, 0.6, 0.9, 0.8, 0.8, torch.nan],
            [0.9, 0.8, 1.0, 0.3, 1.2, torch.nan],
        ],
        dtype=torch.float64,
    )
    found = crossing_level(curves, noise, 0.5)
    assert 4 < float(found[0]) < 8
    assert 2 < float(found[1]) < 4
    assert bool(found[[2, 3, 5]].isnan().all()), "above from the start; sinks again; NaN"
    assert 2 < float(found[4]) < 4
    exact = 1 / (1 + (noise[1:] / 3).square()).sqrt()
    assert float(crossing_level(exact[:, None], noise[1:], 0.5)) == pytest.approx(3 * math.sqrt(3), rel=1e-12)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_where_a_curve_leaves_zero_to_one_it_crosses_on_a_straight_line_in_log_noise(share):
    noise = torch.tensor([8.0, 4.0, 1.0, 0.5], dtype=torch.float64)
    curves = torch.tensor([[0.0, -0.25, 0.75, 1.0], [0.1, 0.2, 1.2, 1.1]], dtype=torch.float64)
    expected = [np.exp(np.interp(share, curve[1:3], np.log([4.0, 1.0]))) for curve in curves]
    np.testing.assert_allclose(crossing_level(curves.T, noise, share), expected, rtol=1e-12)


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 5.0), (0.6, 0.8), (1.0, 0.05)])
@pytest.mark.parametrize("tail", [False, True])
def test_gains_of_the_exact_sampler_are_those_predicted(alpha, sigma, tail):
    gaussian = random_gaussian(1, tail)
    x_s = torch.randn(3, 6, 2, 2, dtype=torch.float64)
    found = measure_perturbation(
        lambda x: gaussian.endpoint(x, alpha, sigma), x_s, alpha, sigma, gaussian, modes=[0, 3, 9]
    )
    variances = gaussian.eigvals[[0, 3, 9]]
    assert_close(found.predicted, (variances / (alpha**2 * variances + sigma**2)).sqrt())
    assert_close(found.gain, found.predicted[:, None].expand(3, 3))
    assert float(found.leak.max()) < 1e-9
    assert_close(found.delta, 0.1 * (alpha**2 * variances + sigma**2).sqrt())
    assert_close(found.control_gain, found.control_predicted[:, None].expand(4, 3))
    assert_close(found.control_leak, found.control_leak_predicted[:, None].expand(4, 3))
    if sigma < 5:  # where gains differ, random directions are not kept
        assert float(found.control_leak.min()) > 0.01


def test_controls_are_pushed_in_standard_deviations_of_the_state_along_them(gaussian):
    found = measure_perturbation(
        lambda x: x,
        torch.randn(2, D, dtype=torch.float64),
        0.6,
        0.8,
        gaussian,
        generator=torch.Generator().manual_seed(2),
    )
    directions = random_directions(D, 4, torch.Generator().manual_seed(2))
    eye = torch.eye(D, dtype=torch.float64)
    noisy = 0.6**2 * gaussian.covariance.apply(lambda v: v, eye) + 0.8**2 * eye
    assert_close(found.control_delta, 0.1 * (directions.T @ noisy @ directions).diagonal().sqrt())


def test_gains_of_an_integrated_flow(gaussian):
    """The ODE dx/dsigma = (x - x0_hat) / sigma solved by SciPy, which knows nothing of the closed form's square root."""
    mean, eigvals, vectors = gaussian.mean.numpy(), gaussian.eigvals.numpy(), gaussian.eigvecs.numpy()

    def sampler(x: torch.Tensor) -> torch.Tensor:
        def slope(sigma, flat):
            c = (flat.reshape(-1, D) - mean) @ vectors
            return ((c * sigma / (eigvals + sigma**2)) @ vectors.T).ravel()

        solved = solve_ivp(slope, (2.0, 0.0), x.numpy().ravel(), rtol=1e-10, atol=1e-12).y[:, -1]
        return torch.from_numpy(solved).view(x.shape)

    x_s = torch.randn(2, D, dtype=torch.float64)
    found = measure_perturbation(sampler, x_s, 1.0, 2.0, gaussian, modes=(0, 12, 23), controls=1)
    torch.testing.assert_close(found.gain, found.predicted[:, None].expand(3, 2), rtol=1e-6, atol=1e-8)
    assert float(found.leak.max()) < 1e-6


def test_a_sampler_with_variance_for_standard_deviation_is_seen(gaussian):
    def wrong(x: torch.Tensor) -> torch.Tensor:
        gains = gaussian.eigvals / (gaussian.eigvals + 4.0)
        return gaussian.mean + ((x - gaussian.mean) @ gaussian.eigvecs * gains) @ gaussian.eigvecs.T

    found = measure_perturbation(wrong, torch.randn(2, D, dtype=torch.float64), 1.0, 2.0, gaussian)
    assert found.modes.tolist() == [0, 1, 3, 7, 15]
    assert float((found.gain - found.predicted[:, None]).abs().min()) > 0.03


def test_the_central_difference_drops_what_is_even(gaussian):
    def bent(x: torch.Tensor) -> torch.Tensor:
        return gaussian.endpoint(x, 1.0, 2.0) + 0.3 * (x - x_s).square().sum(1, keepdim=True)

    x_s = torch.randn(2, D, dtype=torch.float64)
    found = measure_perturbation(bent, x_s, 1.0, 2.0, gaussian)
    assert_close(found.gain, found.predicted[:, None].expand(5, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_states_of_half_precision_are_pushed_in_float32(gaussian, dtype):
    x_s = (3 * torch.randn(2, D)).to(dtype)
    found = measure_perturbation(
        lambda x: gaussian.to(dtype=torch.float32).endpoint(x, 1.0, 2.0), x_s, 1.0, 2.0, gaussian
    )
    torch.testing.assert_close(found.gain, found.predicted[:, None].expand(5, 2), rtol=0, atol=1e-4)
    assert float(found.leak.max()) < 1e-4


def test_null_rows_of_the_comparison(gaussian):
    x0 = gaussian.sample(500)
    table = compare_denoisers({"gaussian": gaussian}, x0, [1.0, 1.0], [0.5, 20.0], reference=gaussian, null=True)
    assert [row.name for row in table] == ["gaussian", "null: mean", "null: permuted"] * 2
    for row in table[1::3]:
        assert row.explained_denoiser == pytest.approx(0.0, abs=1e-12)
        assert row.cosine == 0.0
    assert table[4].explained_score > 0.9, "at high noise the mean alone explains the score"
    for row in table[2::3]:
        assert row.explained_denoiser == pytest.approx(-1.0, abs=0.2)
        assert abs(row.cosine) < 0.1
    assert table[0].explained_denoiser == 1.0
    plain = compare_denoisers({"gaussian": gaussian}, x0, [1.0], [0.5], reference=gaussian)
    assert len(plain) == 1


def test_wrong_use_is_said(gaussian):
    x_t, x0_hat, alphas, sigmas = recording(gaussian, "ve")
    with pytest.raises(InputError, match="at least 3 of them, 2 came"):
        measure_emergence(x_t[:, :2], x0_hat[:, :2], alphas, sigmas, gaussian)
    with pytest.raises(InputError, match="share must lie between 0 and 1, it is 1"):
        measure_emergence(x_t, x0_hat, alphas, sigmas, gaussian, share=1.0)
    with pytest.raises(InputError, match="ranks from 0 to 23"):
        measure_emergence(x_t, x0_hat, alphas, sigmas, gaussian, modes=[24])
    with pytest.raises(InputError, match="must hold signal"):
        measure_emergence(x_t, x0_hat, torch.cat([alphas[:-1], alphas.new_zeros(1)]), sigmas, gaussian)
    with pytest.raises(ShapeError, match="x0_hat must be one level shorter"):
        measure_emergence(x_t, x_t, alphas, sigmas, gaussian)
    with pytest.raises(InputError, match=r"need sigma > 0; the levels have sigma \[1.0, 0.0\]"):
        compare_denoisers({"gaussian": gaussian}, x_t[-1], [1.0, 1.0], [1.0, 0.0])
    with pytest.raises(InputError, match="at least once, repeats is 0"):
        compare_denoisers({"gaussian": gaussian}, x_t[-1], [1.0], [1.0], repeats=0)
    x_s = x_t[20]
    with pytest.raises(InputError, match="ranks of eigenvectors from 0 to 23"):
        measure_perturbation(lambda x: x, x_s, 1.0, 1.0, gaussian, modes=[-1])
    with pytest.raises(InputError, match="delta must be above 0"):
        measure_perturbation(lambda x: x, x_s, 1.0, 1.0, gaussian, delta=0.0)
    with pytest.raises(ShapeError, match="must return the shape of its states"):
        measure_perturbation(lambda x: x[:1], x_s, 1.0, 1.0, gaussian)
    with pytest.raises(NonFiniteError, match="the sampler returned NaN"):
        measure_perturbation(lambda x: x * torch.nan, x_s, 1.0, 1.0, gaussian)
    flat = GaussianManifold(FullCovariance(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.eye(2)))
    with pytest.raises(InputError, match="direction without variance cannot be pushed"):
        measure_perturbation(lambda x: x, torch.zeros(1, 2), 1.0, 0.0, flat)
