"""The closed form against dense float64 algebra, SciPy's integrator, autograd, and its own limits."""

import math

import numpy as np
import pytest
import torch
from helpers import SHARED, needs_shared
from scipy.integrate import solve_ivp
from torch import Tensor

from manifold.covariance import FullCovariance, LowRankCovariance
from manifold.errors import FormatError, InputError, NonFiniteError, NotFittedError, ShapeError
from manifold.gaussian import GaussianManifold
from manifold.spectrum import participation_ratio

LEVELS = [(1.0, 0.0), (1.0, 0.3), (0.6, 0.8), (0.05, 0.9987), (1.0, 80.0), (0.2, 0.8), (0.0, 1.0)]


def orthonormal(d: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q


@pytest.fixture
def generator(fixed_seed):
    return torch.Generator().manual_seed(fixed_seed)


@pytest.fixture(params=["full", "lowrank", "rank-deficient"])
def manifold(request, generator) -> GaussianManifold:
    d, shape = 12, (3, 2, 2)
    basis, mean = orthonormal(d, generator), torch.randn(d, generator=generator, dtype=torch.float64)
    eigvals = torch.logspace(2, -2, d, dtype=torch.float64)
    if request.param == "lowrank":
        return GaussianManifold(LowRankCovariance(mean, eigvals[:5], basis[:, :5], 0.01), shape=shape)
    if request.param == "rank-deficient":
        eigvals[-3:] = 0
    return GaussianManifold(FullCovariance(mean, eigvals, basis), shape=shape)


def dense(manifold: GaussianManifold) -> Tensor:
    """Sigma as a matrix, from the parts alone."""
    vectors = manifold.eigvecs
    outside = torch.eye(manifold.d, dtype=vectors.dtype) - vectors @ vectors.T
    return vectors @ torch.diag(manifold.eigvals) @ vectors.T + manifold.tail_var * outside


def states(manifold: GaussianManifold, generator: torch.Generator, alpha: float, sigma: float, n: int = 6) -> Tensor:
    x0 = manifold.covariance.sample(n, generator)
    return alpha * x0 + sigma * torch.randn(n, manifold.d, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_denoise_is_the_dense_wiener_filter(manifold, generator, alpha, sigma):
    x_t, covariance = states(manifold, generator, alpha, sigma), dense(manifold)
    noisy = alpha**2 * covariance + sigma**2 * torch.eye(manifold.d, dtype=torch.float64)
    gain = alpha * covariance @ torch.linalg.pinv(noisy, rtol=1e-12, hermitian=True)
    expected = manifold.mean + (x_t - alpha * manifold.mean) @ gain.T
    torch.testing.assert_close(manifold.denoise(x_t, alpha, sigma), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("alpha", "sigma"), [level for level in LEVELS if level[1] > 0])
def test_log_prob_is_torchs_and_score_its_gradient(manifold, generator, alpha, sigma):
    x_t = states(manifold, generator, alpha, sigma).requires_grad_()
    noisy = alpha**2 * dense(manifold) + sigma**2 * torch.eye(manifold.d, dtype=torch.float64)
    reference = torch.distributions.MultivariateNormal(alpha * manifold.mean, noisy)
    expected = reference.log_prob(x_t)
    torch.testing.assert_close(manifold.log_prob(x_t, alpha, sigma), expected, rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad(expected.sum(), x_t)
    torch.testing.assert_close(manifold.score(x_t, alpha, sigma), gradient, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("alpha", "sigma"), [level for level in LEVELS if min(level) > 0])
def test_denoise_obeys_tweedie(manifold, generator, alpha, sigma):
    x_t = states(manifold, generator, alpha, sigma)
    tweedie = (x_t + sigma**2 * manifold.score(x_t, alpha, sigma)) / alpha
    torch.testing.assert_close(manifold.denoise(x_t, alpha, sigma), tweedie, rtol=1e-8, atol=1e-8)


def variance_preserving(t: float) -> tuple[float, float, float, float]:
    """alpha, sigma, d alpha / dt, d sigma / dt of the cosine schedule."""
    return (
        np.cos(np.pi * t / 2),
        np.sin(np.pi * t / 2),
        -np.pi / 2 * np.sin(np.pi * t / 2),
        np.pi / 2 * np.cos(np.pi * t / 2),
    )


def variance_exploding(t: float) -> tuple[float, float, float, float]:
    return 1.0, 80 * t, 0.0, 80.0


def flow_matching(t: float) -> tuple[float, float, float, float]:
    return 1 - t, t, -1.0, 1.0


@pytest.mark.parametrize("schedule", [variance_preserving, variance_exploding, flow_matching])
@pytest.mark.parametrize(("begin", "end"), [(1.0, 0.02), (0.7, 0.3), (0.1, 0.9)])
def test_solve_is_the_integrated_probability_flow(schedule, begin, end):
    """dx/dt = (alpha'/alpha) mu-free drift: E[alpha' x0 + sigma' eps | x_t], by SciPy from eigenvalue to eigenvalue."""
    eigvals = torch.tensor([1e4, 37.0, 1.0, 1e-3, 0.0], dtype=torch.float64)
    mean = torch.tensor([3.0, -1.0, 0.5, 2.0, 1.0], dtype=torch.float64)
    manifold = GaussianManifold(FullCovariance(mean, eigvals, torch.eye(5, dtype=torch.float64)))
    start = np.array([5.0, -3.0, 0.7, 1.1, 0.9])

    def flow(t: float, x: np.ndarray) -> np.ndarray:
        alpha, sigma, d_alpha, d_sigma = schedule(t)
        variance = alpha**2 * eigvals.numpy() + sigma**2
        y = x - alpha * mean.numpy()
        x0 = mean.numpy() + alpha * eigvals.numpy() / variance * y
        eps = sigma / variance * y
        return d_alpha * x0 + d_sigma * eps

    expected = solve_ivp(flow, (begin, end), start, method="DOP853", rtol=1e-11, atol=1e-13).y[:, -1]
    (a_s, s_s, *_), (a_t, s_t, *_) = schedule(begin), schedule(end)
    found = manifold.solve(torch.from_numpy(start)[None], a_s, s_s, a_t, s_t)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_solve_composes_and_inverts(manifold, generator):
    x_s = states(manifold, generator, 0.3, 0.95)
    between = manifold.solve(x_s, 0.3, 0.95, 0.8, 0.6)
    composed = manifold.solve(between, 0.8, 0.6, 1.0, 0.1)
    torch.testing.assert_close(composed, manifold.solve(x_s, 0.3, 0.95, 1.0, 0.1), rtol=1e-10, atol=1e-10)
    back = manifold.solve(composed, 1.0, 0.1, 0.3, 0.95)
    torch.testing.assert_close(back, x_s, rtol=1e-9, atol=1e-9)


def test_solve_carries_pure_noise_to_the_data_without_a_singularity(manifold, generator):
    noise = torch.randn(20_000, manifold.d, generator=generator, dtype=torch.float64)
    images = manifold.solve(noise, 0.0, 1.0, 1.0, 0.0)
    assert bool(images.isfinite().all())
    error = torch.cov(images.T) - dense(manifold)
    assert float(error.norm() / dense(manifold).norm()) < 0.03
    torch.testing.assert_close(images.mean(0), manifold.mean, rtol=0, atol=0.3)


def test_endpoint_keeps_variance_where_denoise_shrinks(manifold, generator):
    x_t = states(manifold, generator, 1.0, 5.0, n=20_000)
    total = float(dense(manifold).trace())
    assert abs(float(manifold.endpoint(x_t, 1.0, 5.0).var(0).sum()) / total - 1) < 0.05
    assert float(manifold.denoise(x_t, 1.0, 5.0).var(0).sum()) < 0.9 * total


def test_a_level_for_each_row_equals_row_by_row(manifold, generator):
    x_t = states(manifold, generator, 0.5, 0.5, n=3)
    alpha, sigma = torch.tensor([0.9, 0.5, 1.0]), torch.tensor([0.1, 0.7, 20.0])
    for method in (manifold.denoise, manifold.score, manifold.endpoint):
        together = method(x_t, alpha, sigma)
        alone = torch.cat([method(x_t[i : i + 1], float(alpha[i]), float(sigma[i])) for i in range(3)])
        torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_shape_and_type_come_back(manifold, generator, dtype):
    x_t = states(manifold, generator, 1.0, 1.0).view(6, 3, 2, 2)
    single = manifold.to(dtype=torch.float32)
    found = single.denoise(x_t.to(dtype), 1.0, 1.0)
    assert (found.shape, found.dtype) == (x_t.shape, dtype)
    limit = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 2e-1}[dtype]
    torch.testing.assert_close(found.double(), manifold.denoise(x_t, 1.0, 1.0), rtol=limit, atol=limit)


def test_gradients_flow_through_the_denoiser(manifold, generator):
    x_t = states(manifold, generator, 0.8, 0.6, n=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: manifold.denoise(x, 0.8, 0.6), (x_t,))


@pytest.mark.parametrize("informed", [False, True])
@pytest.mark.parametrize(("alpha", "sigma"), [(0.6, 0.8), (1.0, 5.0), (1.0, 1e-2)])
def test_gradients_by_the_level_where_a_direction_has_no_variance(manifold, generator, alpha, sigma, informed):
    x_t = states(manifold, generator, alpha, sigma, n=2)
    network = x_t.flip(0) if informed else None
    level = torch.tensor([alpha, sigma], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda one: manifold.endpoint(x_t, *one, x0_hat=network), (level,))
    assert torch.autograd.gradcheck(
        lambda one: manifold.posterior(x_t, *one).sample(1, torch.Generator().manual_seed(0)), (level,)
    )
    assert torch.autograd.gradcheck(
        lambda one: manifold.trajectory(x_t, *one, [1.0, 0.8], [0.0, 0.6]).x_t, (level,), atol=1e-4
    )


def test_what_a_network_adds_keeps_its_digits_in_float32(generator):
    """Where the noise is far above a variance, 1 - sigma^2 / v has none left."""
    variances = torch.logspace(-5, -8, 12, dtype=torch.float64)
    manifold = GaussianManifold(FullCovariance(torch.zeros(12).double(), variances, orthonormal(12, generator)))
    x_t, network = torch.randn(2, 6, 12, dtype=torch.float64, generator=generator)
    expected = manifold.endpoint(x_t, 1.0, 1.0, network)
    found = manifold.to(dtype=torch.float32).endpoint(x_t.float(), 1.0, 1.0, network.float())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)


def test_fit_equals_numpy_over_any_batches(generator):
    latents = torch.randn(400, 3, 2, 2, generator=generator, dtype=torch.float64) * 3 + 2
    whole = GaussianManifold.fit(latents)
    parts = GaussianManifold.fit(iter(latents.split(37)))
    flat = latents.flatten(1).numpy()
    for fitted in (whole, parts):
        assert fitted.shape == (3, 2, 2)
        assert fitted.count == 400
        np.testing.assert_allclose(fitted.eigvals, np.linalg.eigvalsh(np.cov(flat.T))[::-1], rtol=1e-5)
        np.testing.assert_allclose(fitted.mean, flat.mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [None, 4])
def test_type_of_a_fit_is_the_one_asked_for(generator, rank):
    """float32 whatever the rows; float64 keeps the digits of rows far from zero, and variances far below the largest."""
    scale = torch.logspace(0, -5, 8, dtype=torch.float64)
    latents = 1e3 + torch.randn(300, 8, generator=generator, dtype=torch.float64) * scale
    variances = np.linalg.eigvalsh(np.cov(latents.numpy().T))[::-1][:rank].copy()
    narrow, wide = (GaussianManifold.fit(latents, rank=rank, **asked) for asked in ({}, {"dtype": torch.float64}))
    assert (narrow.mean.dtype, narrow.eigvals.dtype, wide.mean.dtype) == (torch.float32, torch.float32, torch.float64)
    np.testing.assert_allclose(wide.mean, latents.numpy().mean(0), rtol=1e-14)
    np.testing.assert_allclose(wide.eigvals, variances, rtol=1e-3 if rank is None else 1e-9)
    assert (narrow.mean.double() - latents.mean(0)).abs().max() > 1e-6
    with pytest.raises(InputError, match="float32 or float64"):
        GaussianManifold.fit(latents, dtype=torch.float16)


def test_rank_leaves_the_rest_to_the_tail(generator):
    latents = torch.randn(400, 12, generator=generator) * torch.arange(12, 0, -1)
    fitted, full = GaussianManifold.fit(latents, rank=4), GaussianManifold.fit(latents)
    assert fitted.k == 4
    assert fitted.tail_var == pytest.approx(float(full.eigvals[4:].mean()), rel=1e-5)
    assert fitted.total_variance == pytest.approx(full.total_variance, rel=1e-5)


def test_save_and_load(manifold, tmp_path, generator):
    named = GaussianManifold(manifold.covariance, shape=(3, 2, 2), count=77, metadata={"encoder": "pixels"})
    named.save(tmp_path / "stats.safetensors")
    loaded = GaussianManifold.load(tmp_path / "stats.safetensors")
    assert (loaded.shape, loaded.count, loaded.metadata) == ((3, 2, 2), 77, {"encoder": "pixels"})
    for name in ("mean", "eigvals", "eigvecs"):
        assert torch.equal(getattr(loaded, name), getattr(manifold, name))
    assert loaded.tail_var == manifold.tail_var


def test_sample_has_the_latent_shape_and_is_seeded(manifold):
    drawn = manifold.sample(5, torch.Generator().manual_seed(3))
    assert drawn.shape == (5, 3, 2, 2)
    assert torch.equal(drawn, manifold.sample(5, torch.Generator().manual_seed(3)))


def test_sample_covariance(manifold, generator):
    drawn = manifold.sample(50_000, generator).flatten(1)
    assert float((torch.cov(drawn.T) - dense(manifold)).norm() / dense(manifold).norm()) < 0.02


def test_classic_mistakes_fail_where_ours_passes(generator):
    """alpha mistaken for alpha squared, and variance for standard deviation, are caught by the Wiener test's tolerance."""
    eigvals = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
    manifold = GaussianManifold(FullCovariance(torch.zeros(3).double(), eigvals, torch.eye(3, dtype=torch.float64)))
    x_t, alpha, sigma = torch.randn(5, 3, generator=generator, dtype=torch.float64), 0.6, 0.8
    right = x_t * (alpha * eigvals / (alpha**2 * eigvals + sigma**2))
    squared = x_t * (alpha**2 * eigvals / (alpha**4 * eigvals + sigma**2))
    deviation = x_t * (alpha * eigvals.sqrt() / (alpha**2 * eigvals.sqrt() + sigma**2))
    found = manifold.denoise(x_t, alpha, sigma)
    torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-12)
    for wrong in (squared, deviation):
        assert float((found - wrong).abs().max()) > 1e-2


def test_errors_say_what_came(manifold):
    good = torch.zeros(2, 12, dtype=torch.float64)
    with pytest.raises(ShapeError, match=r"\(n, 12\) or \(n, 3, 2, 2\), they have \(2, 13\)"):
        manifold.denoise(torch.zeros(2, 13), 1.0, 1.0)
    with pytest.raises(ShapeError, match=r"sigma must be a number or \(2,\), it has shape \(3,\)"):
        manifold.denoise(good, 1.0, torch.ones(3))
    with pytest.raises(InputError, match=r"sigma must be finite and at least 0, it is -1.0"):
        manifold.denoise(good, 1.0, -1.0)
    with pytest.raises(InputError, match="must not both be 0"):
        manifold.solve(good, 0.0, 0.0, 1.0, 0.0)
    with pytest.raises(ShapeError, match="has 27 values, the covariance has 12"):
        GaussianManifold(manifold.covariance, shape=(3, 3, 3))
    with pytest.raises(NotFittedError, match="at least 2"):
        GaussianManifold.fit(torch.zeros(1, 4))
    with pytest.raises(NonFiniteError, match="row 1"):
        GaussianManifold.fit(torch.tensor([[0.0, 1.0], [float("nan"), 1.0]]))


def test_no_density_without_noise_in_a_flat_direction():
    flat = GaussianManifold(FullCovariance(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.eye(2)))
    with pytest.raises(InputError, match="use sigma > 0"):
        flat.score(torch.zeros(1, 2), 1.0, 0.0)
    with pytest.raises(InputError, match="use sigma > 0"):
        flat.log_prob(torch.zeros(1, 2))
    assert torch.equal(flat.denoise(torch.tensor([[2.0, 3.0]]), 1.0, 0.0), torch.tensor([[2.0, 0.0]]))


def test_a_file_that_holds_no_manifold(manifold, tmp_path):
    manifold.covariance.save(tmp_path / "bare.safetensors", {})
    with pytest.raises(FormatError, match="nothing else of a manifold"):
        GaussianManifold.load(tmp_path / "bare.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"12345")
    with pytest.raises(FormatError, match=r"cut.safetensors is damaged"):
        GaussianManifold.load(tmp_path / "cut.safetensors")
    facts = '{"shape": [5, 1, 1], "count": 3, "about": {}}'
    manifold.covariance.save(tmp_path / "other.safetensors", {"manifold": facts})
    with pytest.raises(FormatError, match=r"other.safetensors holds parts that do not make a manifold: .* 5 values"):
        GaussianManifold.load(tmp_path / "other.safetensors")


def test_a_trajectory_of_one_point_has_no_plane(manifold):
    with pytest.raises(InputError, match="at least 2 levels, it got 1"):
        manifold.rotation(torch.randn(2, manifold.d), levels=1)


@needs_shared
@pytest.mark.slow
def test_denoising_error_on_held_out_cifar():
    """DESIGN figures (50,000 fitted, test set) within 3 %: here 45,000 fitted, 5,000 held out; worst 2.0 % at sigma = 5."""
    import io

    import pyarrow.parquet as pq
    from PIL import Image

    column = pq.read_table(SHARED / "cifar10-train.parquet", columns=["image"]).column("image")
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(one["bytes"].as_py()))) for one in column])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    fitted = GaussianManifold.fit(images[:45_000])
    held_out = images[45_000:]
    generator = torch.Generator().manual_seed(0)
    published = {0.5: 0.0207, 1.0: 0.0395, 2.0: 0.0679, 5.0: 0.1179, 10.0: 0.1659}
    for sigma, expected in published.items():
        noisy = held_out + sigma * torch.randn(held_out.shape, generator=generator)
        error = float((fitted.denoise(noisy, 1.0, sigma) - held_out).square().mean())
        assert error == pytest.approx(expected, rel=0.03), f"sigma = {sigma}"


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_a_networks_prediction_mends_the_endpoint_of_data_with_another_mean(manifold, generator, alpha, sigma):
    """Exact for such data; without the prediction, or with it taken as the end, it is not."""
    old = manifold.covariance
    shift = torch.randn(manifold.d, generator=generator, dtype=torch.float64)
    if isinstance(old, FullCovariance):
        moved = FullCovariance(old.mean + shift, old.eigvals, old.eigvecs)
    else:
        moved = LowRankCovariance(old.mean + shift, old.eigvals, old.eigvecs, old.tail_var)
    truth = GaussianManifold(moved, shape=manifold.shape)
    x_t = states(truth, generator, alpha, sigma)
    network = truth.denoise(x_t, alpha, sigma)
    expected = truth.solve(x_t, alpha, sigma, 1.0, 0.0)
    mended = manifold.endpoint(x_t, alpha, sigma, network)
    torch.testing.assert_close(mended, expected, rtol=1e-9, atol=1e-9)
    if sigma > 0:
        assert (manifold.endpoint(x_t, alpha, sigma) - expected).abs().max() > 1e-3
        assert (network - expected).abs().max() > 1e-3
    pictures = manifold.endpoint(x_t.view(-1, 3, 2, 2), alpha, sigma, network.view(-1, 3, 2, 2))
    torch.testing.assert_close(pictures.flatten(1), mended)


def test_states_of_another_layout_are_refused_though_they_hold_as_many_values():
    manifold = GaussianManifold.fit(torch.randn(60, 4, 4, 6, generator=torch.Generator().manual_seed(0)))
    manifold.denoise(torch.zeros(1, 4, 4, 6), 1.0, 1.0)
    manifold.denoise(torch.zeros(1, 96), 1.0, 1.0)
    for turned in (torch.zeros(1, 4, 6, 4), torch.zeros(1, 6, 4, 4)):
        with pytest.raises(ShapeError, match=r"\(n, 4, 4, 6\)"):
            manifold.denoise(turned, 1.0, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_and_data_whose_squares_leave_the_type_are_refused(dtype):
    """They would come out as the mean, or as NaN, without a word."""
    fitted = GaussianManifold.fit(torch.randn(50, 4, dtype=dtype), dtype=dtype)
    x_t = torch.randn(2, 4, dtype=dtype)
    most = {torch.float32: 1e18, torch.float64: 1e150}[dtype]
    for levels in ((10 * most, 1.0), (1.0, 10 * most)):
        with pytest.raises(InputError, match=r"must be at most 1e\+"):
            fitted.denoise(x_t, *levels)
    with pytest.raises(InputError, match="must not both be below 1e-"):
        fitted.denoise(x_t, 0.1 / most, 0.1 / most)
    torch.testing.assert_close(fitted.denoise(x_t, 1.0, 0.1 / most), x_t)
    scale = most / 100
    torch.testing.assert_close(fitted.denoise(scale * x_t, scale, scale), fitted.denoise(x_t, 1.0, 1.0))
    small = {torch.float32: 1e-20, torch.float64: 1e-154}[dtype]
    with pytest.raises(InputError, match=r"too small for .* multiply the data by a constant first"):
        GaussianManifold.fit(small * torch.randn(50, 4, dtype=torch.float64), dtype=dtype)


def test_slopes_are_checked_as_levels_are():
    fitted = GaussianManifold.fit(torch.randn(50, 4))
    with pytest.raises(ShapeError, match=r"d_alpha must be a number or \(2,\)"):
        fitted.velocity(torch.randn(2, 4), 0.6, 0.8, torch.ones(3), 1.0)
    with pytest.raises(InputError, match="d_sigma must be finite"):
        fitted.velocity(torch.randn(2, 4), 0.6, 0.8, -1.0, math.nan)


def test_images_of_another_shape_than_the_one_named_are_refused():
    with pytest.raises(ShapeError, match=r"of the shape \(3, 8, 4\), some are \(3, 4, 8\)"):
        GaussianManifold.fit(torch.randn(20, 3, 4, 8), shape=(3, 8, 4))
    with pytest.raises(ShapeError, match=r"of the shape \(3, 4, 8\), some are \(3, 8, 4\)"):
        GaussianManifold.fit([torch.randn(20, 3, 4, 8), torch.randn(20, 3, 8, 4)])
    assert GaussianManifold.fit([torch.randn(20, 3, 4, 8), torch.randn(20, 96)]).shape == (3, 4, 8)


@pytest.mark.parametrize("levels", [(math.nan, 1.0), (1.0, math.inf), (-1.0, 1.0)])
def test_divergences_at_no_level_are_refused(levels):
    fitted = GaussianManifold.fit(torch.randn(50, 4))
    with pytest.raises(InputError, match="finite and at least 0"):
        fitted.kl_divergence(fitted, *levels)


@pytest.mark.parametrize("scale", [1e-90, 1.0, 1e80])
def test_the_participation_ratio_has_no_scale(scale):
    eigvals = scale**2 * torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    model = FullCovariance(torch.zeros(3, dtype=torch.float64), eigvals, torch.eye(3, dtype=torch.float64))
    assert participation_ratio(model) == pytest.approx(49 / 21)


def test_a_prediction_for_other_states_is_refused():
    fitted = GaussianManifold.fit(torch.randn(50, 4))
    for n in (1, 3):
        with pytest.raises(ShapeError, match=f"for each of 2 states, there are {n}"):
            fitted.endpoint(torch.randn(2, 4), 0.6, 0.8, torch.randn(n, 4))


def test_arrays_are_refused_as_states():
    fitted = GaussianManifold.fit(torch.randn(50, 4))
    for method in (fitted.denoise, fitted.score, fitted.endpoint):
        with pytest.raises(InputError, match="must be torch tensors, they are ndarray"):
            method(np.zeros((2, 4)), 0.6, 0.8)
