"""The mixture against torch.distributions and autograd, its limits, and EM against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from helpers import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture as Reference

from manifold.class_gaussians import _moved
from manifold.covariance import FullCovariance, LowRankCovariance, StationaryCovariance
from manifold.errors import FormatError, InputError, MismatchError, NonFiniteError, NotFittedError, ShapeError
from manifold.files import load_tensors, save_tensors
from manifold.gaussian import GaussianManifold
from manifold.mixture import GaussianMixture
from manifold.mixture_fit import fit_mixture
from manifold.moments import Moments

WEIGHTS = [0.5, 0.2, 0.3]


def component(seed, d=6, k=None, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    eigvals = torch.logspace(1, -1, d, dtype=torch.float64)
    mean = spread * torch.randn(d, generator=generator, dtype=torch.float64)
    if k is None:
        return FullCovariance(mean, eigvals, basis)
    return LowRankCovariance(mean, eigvals[:k], basis[:, :k], 0.2)


def mixture(k=None):
    return GaussianMixture([component(seed, k=k) for seed in range(3)], WEIGHTS)


def reference(model, alpha, sigma):
    eye = torch.eye(model.d, dtype=torch.float64)
    means = torch.stack([alpha * one.mean for one in model.components])
    noisy = torch.stack([alpha**2 * one.apply(lambda v: v, eye) + sigma**2 * eye for one in model.components])
    return torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor(WEIGHTS, dtype=torch.float64)),
        torch.distributions.MultivariateNormal(means, noisy),
    )


@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.0), (1.0, 0.1), (0.6, 0.8), (0.05, 1.0), (0.0, 1.0), (1.0, 50.0)])
def test_log_prob_score_and_denoise(k, alpha, sigma):
    model, dist = mixture(k), reference(mixture(k), alpha, sigma)
    x_t = alpha * model.sample(10, torch.Generator().manual_seed(1)) + sigma * torch.randn(10, 6, dtype=torch.float64)
    x_t = x_t.requires_grad_()
    expected = dist.log_prob(x_t)
    assert_close(model.log_prob(x_t.detach(), alpha, sigma), expected.detach())
    (gradient,) = torch.autograd.grad(expected.sum(), x_t)
    x_t = x_t.detach()
    assert_close(model.score(x_t, alpha, sigma), gradient)
    if alpha and sigma:
        assert_close(model.denoise(x_t, alpha, sigma), (x_t + sigma**2 * gradient) / alpha, scale=30.0 / alpha)
    if not sigma:
        assert_close(model.denoise(x_t, alpha, sigma), x_t)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0.01, 100), st.sampled_from([None, 2]))
def test_one_component_is_the_gaussian(seed, alpha, sigma, k):
    one = component(seed, k=k)
    manifold, single = GaussianManifold(one), GaussianMixture([one], [7.0])
    x_t = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * (1 + sigma)
    assert_close(single.denoise(x_t, alpha, sigma), manifold.denoise(x_t, alpha, sigma))
    assert_close(single.score(x_t, alpha, sigma), manifold.score(x_t, alpha, sigma))
    assert_close(single.log_prob(x_t, alpha, sigma), manifold.log_prob(x_t, alpha, sigma))


def test_split_component_changes_nothing():
    one = component(4)
    x_t = torch.randn(4, 6, dtype=torch.float64)
    doubled = GaussianMixture([one, one, one], WEIGHTS)
    assert_close(doubled.denoise(x_t, 0.7, 0.5), GaussianManifold(one).denoise(x_t, 0.7, 0.5))
    assert_close(
        doubled.responsibilities(x_t, 0.7, 0.5), torch.tensor(WEIGHTS).double().expand(4, 3).clone(), scale=1e3
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sigma", [1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6])
def test_finite_at_all_noise_levels(dtype, sigma):
    model = GaussianMixture([one.to(dtype=dtype) for one in mixture(2).components], WEIGHTS)
    x_t = torch.randn(5, 6, dtype=dtype) * (10 + sigma)
    shares = model.responsibilities(x_t, 1.0, sigma)
    assert bool(shares.isfinite().all() and model.denoise(x_t, 1.0, sigma).isfinite().all())
    torch.testing.assert_close(shares.sum(1), torch.ones(5, dtype=torch.float64))
    if sigma == 1e6:
        torch.testing.assert_close(shares[0], torch.tensor(WEIGHTS).double(), rtol=0, atol=2e-4)


def test_levels_per_row_shapes_and_types():
    model = GaussianMixture(mixture().components, WEIGHTS, shape=(6, 1, 1))
    x_t = torch.randn(3, 6, 1, 1).half()
    alpha, sigma = torch.tensor([0.5, 1.0, 0.9]), torch.tensor([1.0, 2.0, 0.1])
    found = model.denoise(x_t, alpha, sigma)
    assert (found.shape, found.dtype) == (x_t.shape, torch.float16)
    for row in range(3):
        alone = model.denoise(x_t[row : row + 1], float(alpha[row]), float(sigma[row]))
        torch.testing.assert_close(found[row : row + 1], alone)
    assert model.sample(4).shape == (4, 6, 1, 1)


def test_classes_from_their_moments():
    generator = torch.Generator().manual_seed(0)
    classes = [
        torch.randn(n, 5, generator=generator, dtype=torch.float64) * (1 + j) + 4 * j for j, n in enumerate((300, 100))
    ]
    moments = [Moments(5, precision="exact") for _ in classes]
    for one, rows in zip(moments, classes, strict=True):
        one.update(rows)
    model = GaussianMixture.from_moments(moments)
    assert model.weights.tolist() == [0.75, 0.25]
    x_t = torch.cat(classes)[::40]
    density = [
        np.log(share) + torch.distributions.MultivariateNormal(rows.mean(0), torch.cov(rows.T)).log_prob(x_t).numpy()
        for share, rows in zip((0.75, 0.25), classes, strict=True)
    ]
    np.testing.assert_allclose(model.log_prob(x_t), np.logaddexp(*density), rtol=1e-4)


def stationary_mixture():
    """Three components of one value a channel at 2 x 3 places, whose dense matrices are known."""
    waves = [torch.rand(2, 2, 1, 1, generator=torch.Generator().manual_seed(j), dtype=torch.float64) for j in range(3)]
    parts = [
        StationaryCovariance(torch.tensor([float(j)], dtype=torch.float64), (one + one.flip(0)) / 2 + 0.1, 3)
        for j, one in enumerate(waves)
    ]
    return GaussianMixture(parts, WEIGHTS, shape=(1, 2, 3))


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.1), (0.6, 0.8), (0.0, 1.0)])
def test_components_without_eigenvectors(alpha, sigma):
    model = stationary_mixture()
    dist = reference(model, alpha, sigma)
    x_t = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    expected = dist.log_prob(x_t)
    (gradient,) = torch.autograd.grad(expected.sum(), x_t)
    x_t = x_t.detach()
    assert_close(model.log_prob(x_t, alpha, sigma), expected.detach())
    assert_close(model.score(x_t, alpha, sigma), gradient)
    if alpha:
        assert_close(model.denoise(x_t, alpha, sigma), (x_t + sigma**2 * gradient) / alpha, scale=30.0 / alpha)


def test_gradients_flow_through_the_denoiser():
    x_t = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    for model in (mixture(), mixture(2), stationary_mixture()):
        assert torch.autograd.gradcheck(lambda x, model=model: model.denoise(x, 0.8, 0.6), (x_t,))


@pytest.mark.parametrize("make", [lambda: mixture(), lambda: mixture(2), stationary_mixture])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_save_and_load_give_the_same_bits(make, dtype, tmp_path):
    made = make()
    model = GaussianMixture(made.components, WEIGHTS, shape=(1, 2, 3), metadata={"encoder": "pixels"}).to(dtype=dtype)
    model.save(tmp_path / "mixture.safetensors")
    loaded = GaussianMixture.load(tmp_path / "mixture.safetensors")
    assert (loaded.shape, loaded.metadata) == ((1, 2, 3), {"encoder": "pixels"})
    assert torch.equal(loaded.weights, model.weights)
    assert [type(one) for one in loaded.components] == [type(one) for one in model.components]
    x_t = torch.randn(4, 1, 2, 3, dtype=dtype)
    assert torch.equal(loaded.denoise(x_t, 0.8, 0.6), model.denoise(x_t, 0.8, 0.6))
    assert torch.equal(loaded.log_prob(x_t, 0.8, 0.6), model.log_prob(x_t, 0.8, 0.6))
    again = tmp_path / "again.safetensors"
    loaded.save(again)
    assert again.read_bytes() == (tmp_path / "mixture.safetensors").read_bytes()


def test_files_that_hold_no_mixture(tmp_path):
    with pytest.raises(FileNotFoundError):
        GaussianMixture.load(tmp_path / "none.safetensors")
    GaussianManifold(component(0)).save(tmp_path / "one.safetensors")
    with pytest.raises(FormatError, match=r"one.safetensors must hold a mixture of Gaussians"):
        GaussianMixture.load(tmp_path / "one.safetensors")
    mixture().save(tmp_path / "whole.safetensors")
    content = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[:-10])
    with pytest.raises(FormatError, match=r"cut.safetensors is damaged"):
        GaussianMixture.load(tmp_path / "cut.safetensors")
    tensors, metadata = load_tensors(tmp_path / "whole.safetensors")
    for name, value, message in [
        ("1.mean", None, "must hold mean and does not"),
        ("weights", torch.ones(2), "do not make a mixture: weights must be 3 positive numbers"),
    ]:
        changed = {key: one for key, one in tensors.items() if key != name}
        save_tensors(tmp_path / "changed.safetensors", changed if value is None else {**changed, name: value}, metadata)
        with pytest.raises(FormatError, match=message):
            GaussianMixture.load(tmp_path / "changed.safetensors")
    save_tensors(tmp_path / "new.safetensors", tensors, {**metadata, "models": '["of tomorrow"]'})
    with pytest.raises(FormatError, match="it holds 'of tomorrow'"):
        GaussianMixture.load(tmp_path / "new.safetensors")


def three_clouds(n=1500, d=8):
    generator = torch.Generator().manual_seed(5)
    parts = []
    for number in range(3):
        scales = torch.ones(d, dtype=torch.float64).roll(number) * torch.linspace(0.3, 2, d).double().roll(2 * number)
        parts.append(torch.randn(n // 3, d, generator=generator, dtype=torch.float64) * scales + 4 * (number - 1))
    return torch.cat(parts)


def test_em_reaches_scikit_learns_likelihood_and_never_falls():
    rows = three_clouds()
    fit = fit_mixture(rows, 3, generator=torch.Generator().manual_seed(0), tolerance=1e-7)
    expected = Reference(3, random_state=0, n_init=3, tol=1e-7, reg_covar=1e-9).fit(rows.numpy())
    assert fit.converged
    assert fit.log_likelihood[-1] == pytest.approx(expected.lower_bound_, rel=1e-4)
    assert min(np.diff(fit.log_likelihood)) > -1e-9
    assert float(fit.mixture.log_prob(rows).mean()) == pytest.approx(fit.log_likelihood[-1], rel=1e-5)
    np.testing.assert_allclose(sorted(fit.mixture.weights.tolist()), sorted(expected.weights_), rtol=1e-3)


def test_every_seed_finds_clusters_that_one_start_often_misses():
    centers = 8 * torch.randn(6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    spread = torch.randn(600, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rows = centers.repeat(100, 1) + spread
    best = Reference(6, random_state=0, n_init=20, reg_covar=1e-9).fit(rows.numpy()).lower_bound_
    for seed in range(12):
        fit = fit_mixture(rows, 6, generator=torch.Generator().manual_seed(seed))
        assert fit.log_likelihood[-1] == pytest.approx(best, abs=5e-3)
    once, again = fit_mixture(rows, 6), fit_mixture(rows, 6)
    assert once.log_likelihood == again.log_likelihood


def test_mixture_predicts_clustered_data_better_than_one_gaussian():
    rows = three_clouds()
    held_out = rows[::5]
    train = torch.cat([rows[start::5] for start in range(1, 5)])
    fit = fit_mixture(train, 3, rank=5, generator=torch.Generator().manual_seed(0))
    single = GaussianManifold.fit(train)
    x_t = held_out + 2 * torch.randn(held_out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    errors = [float((model.denoise(x_t, 1.0, 2.0) - held_out).square().mean()) for model in (fit.mixture, single)]
    assert errors[0] < 0.9 * errors[1]


def test_fewer_rows_than_dimensions_stay_on_the_lower_limit():
    rows = torch.cat([torch.randn(12, 20), torch.randn(12, 20) + 30])
    fit = fit_mixture(rows, 2, rank=10, generator=torch.Generator().manual_seed(0))
    assert fit.raised >= 0
    assert bool(fit.mixture.log_prob(rows).isfinite().all())
    assert all(float(one.eigvals.min()) >= 0.99 * float(one.tail_var) for one in fit.mixture.components)


@pytest.mark.parametrize("scale", [1e-60, 1e-25, 1e25, 1e60])
def test_data_of_any_size_are_fitted_alike(scale):
    rows = three_clouds()
    plain, scaled = (fit_mixture(one, 3, dtype=torch.float64) for one in (rows, rows * scale))
    moved = rows.shape[1] * math.log(scale)
    assert scaled.log_likelihood[-1] + moved == pytest.approx(plain.log_likelihood[-1], rel=1e-9)
    assert_close(scaled.mixture.denoise(rows * scale, 1.0, scale) / scale, plain.mixture.denoise(rows, 1.0, 1.0))
    with pytest.raises(
        (InputError, NonFiniteError), match=r"multiply them by a constant|divide the data by a constant"
    ):
        fit_mixture(rows * scale, 3)


@pytest.mark.parametrize("each", [True, False])
def test_only_states_that_need_it_are_taken_in_float64(each, monkeypatch):
    """And none of them comes out otherwise for the company it was asked in."""
    model = GaussianMixture([component(seed, d=40, k=5, spread=0.1) for seed in range(3)], WEIGHTS).to(
        dtype=torch.float32
    )
    x_t = torch.randn(9, 40)
    x_t[[2, 7]] *= 1e4
    sigma = torch.full((9,), 0.5) if each else 0.5
    alone = torch.cat([model.log_prob(x_t[row : row + 1], 1.0, 0.5) for row in range(9)])
    taken, quadratic = [], LowRankCovariance.quadratic

    def counted(self, f, y):
        taken.append(len(y))
        return quadratic(self, f, y)

    monkeypatch.setattr(LowRankCovariance, "quadratic", counted)
    found = model.log_prob(x_t, 1.0, sigma)
    assert taken == [2, 2, 2]
    torch.testing.assert_close(found, alone, rtol=1e-6, atol=1e-5)
    exact = reference(model.to(dtype=torch.float64), 1.0, 0.5).log_prob(x_t.double())
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=0.05)


def test_wrong_use_is_said():
    with pytest.raises(InputError, match="at least one component"):
        GaussianMixture([])
    with pytest.raises(MismatchError, match=r"they have \[5, 6\]"):
        GaussianMixture([component(0), component(1, d=5)])
    with pytest.raises(MismatchError, match=r"of one type, they are \['torch.float32', 'torch.float64'\]"):
        GaussianMixture([component(0), component(1).to(dtype=torch.float32)])
    with pytest.raises(InputError, match="3 positive numbers"):
        GaussianMixture(mixture().components, [1.0, 0.0, 1.0])
    with pytest.raises(ShapeError, match="has 7 values, the components have 6"):
        GaussianMixture(mixture().components, WEIGHTS, shape=(7, 1, 1))
    with pytest.raises(ShapeError, match=r"they have \(2, 7\)"):
        mixture().denoise(torch.zeros(2, 7), 1.0, 1.0)
    flat = FullCovariance(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.eye(2))
    with pytest.raises(InputError, match="use sigma > 0"):
        GaussianMixture([flat]).log_prob(torch.zeros(1, 2))
    with pytest.raises(NotFittedError, match="class 0 has 0 rows"):
        GaussianMixture.from_moments([Moments(3)])
    with pytest.raises(InputError, match="between 1 and half of the 4 rows, it is 3"):
        fit_mixture(torch.randn(4, 2), 3)
    with pytest.raises(InputError, match="fewer than 3 different values"):
        fit_mixture(torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(5, 1), 3)
    lonely = torch.cat([torch.randn(50, 2, generator=torch.Generator().manual_seed(0)), torch.full((1, 2), 1e4)])
    with pytest.raises(NotFittedError, match="is left with 1 rows"):
        fit_mixture(lonely, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("n", "d"), [(100, 400), (60, 60)])
def test_fewer_rows_than_directions_are_fitted_at_the_default_rank(n, d):
    """The rows span all that varies, nothing is left over, and the limit is a share of the largest eigenvalue."""
    rows = torch.cat([torch.randn(n // 2, d), torch.randn(n // 2, d) + 5])
    fit = fit_mixture(rows, 2)
    largest = float(GaussianManifold.fit(rows, rank=2).eigvals[0])
    for one in fit.mixture.components:
        assert float(one.eigvals.min()) >= 0.99e-6 * largest
    assert bool(fit.mixture.log_prob(rows).isfinite().all())
    x_t = rows + torch.randn_like(rows)
    assert float((fit.mixture.denoise(x_t, 1.0, 1.0) - rows).square().mean()) < float((x_t - rows).square().mean())


def test_components_that_share_tensors_are_saved_each_with_its_own_mean(tmp_path):
    """As the classes of a collection do, whose covariance within classes is one."""
    generator = torch.Generator().manual_seed(0)
    cross = torch.randn(4, 3, 2, 2, dtype=torch.complex128, generator=generator)
    spectrum = cross @ cross.mH
    spectrum[:, [0, -1]] = (spectrum + spectrum[(-torch.arange(4)) % 4].conj())[:, [0, -1]] / 2
    everything = GaussianManifold(
        StationaryCovariance(torch.zeros(2, dtype=torch.float64), spectrum, 4), shape=(2, 4, 4)
    )
    means = 3 * torch.randn(3, 32, dtype=torch.float64, generator=generator)
    for model in (everything, GaussianManifold(component(1, d=32)), GaussianManifold(component(1, d=32, k=5))):
        shared = [_moved(model.covariance, mean) for mean in means]
        classes = GaussianMixture(shared, WEIGHTS)
        classes.save(tmp_path / "mixture.safetensors")
        again = GaussianMixture.load(tmp_path / "mixture.safetensors")
        x_t = torch.randn(4, 32, dtype=torch.float64, generator=generator)
        assert_close(again.denoise(x_t, 0.8, 0.6), classes.denoise(x_t, 0.8, 0.6))
        assert torch.equal(torch.stack([one.mean for one in again.components]), means)


def test_equal_rows_are_no_mixture_and_gradients_are_left_out():
    with pytest.raises(InputError, match="all rows are equal"):
        fit_mixture(torch.ones(20, 3), 1)
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    with_gradient, without = fit_mixture(rows.clone().requires_grad_(), 2), fit_mixture(rows, 2)
    assert with_gradient.log_likelihood == without.log_likelihood
