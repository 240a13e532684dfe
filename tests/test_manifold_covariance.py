"""Every covariance model against its dense form, one battery for all."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_close, needs_cuda

from manifold.covariance import (
    CovarianceModel,
    FullCovariance,
    LowRankCovariance,
    StationaryCovariance,
    blend_with_stationary,
    default_rank,
    fit_covariance,
    fit_lowrank,
    fit_stationary,
    ledoit_wolf_intensity,
    load,
    oas_intensity,
)
from manifold.cross_spectrum import CrossSpectrum
from manifold.errors import (
    FormatError,
    InputError,
    ManifoldWarning,
    MismatchError,
    NonFiniteError,
    NotFittedError,
    NotPSDError,
    ShapeError,
)
from manifold.files import save_tensors
from manifold.gaussian import GaussianManifold
from manifold.moments import Moments
from manifold.rows import ArrayRows

DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, needs_cuda])]
SHAPE = (2, 4, 5)
D = math.prod(SHAPE)


def data(n: int = 300) -> np.ndarray:
    rng = np.random.default_rng(5)
    mixing = rng.standard_normal((D, D)) * np.arange(1, D + 1) ** -0.5
    return rng.standard_normal((n, D)) @ mixing + rng.standard_normal(D)


def moments_of(rows: np.ndarray, precision: str = "exact") -> Moments:
    moments = Moments(rows.shape[1], precision=precision)
    moments.update(rows)
    return moments


def spectrum_of(rows: np.ndarray, shape: tuple[int, int, int] = SHAPE) -> CrossSpectrum:
    return CrossSpectrum.of(ArrayRows(rows), shape)


def dense_stationary(rows: np.ndarray, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance averaged over all cyclic shifts of all images, written out in loops."""
    c, h, w = shape
    images = rows.reshape(-1, c, h, w).astype(np.float64)
    mean = images.mean((0, 2, 3))
    deviations = images - mean[:, None, None]
    covariance = np.zeros((c * h * w,) * 2)
    for dy in range(h):
        for dx in range(w):
            flat = np.roll(deviations, (dy, dx), axis=(2, 3)).reshape(len(images), -1)
            covariance += flat.T @ flat / (h * w)
    return np.repeat(mean, h * w), covariance / (len(images) - 1)


def make(name: str, dtype: torch.dtype = torch.float64) -> tuple[CovarianceModel, np.ndarray, np.ndarray]:
    """A model with its mean and dense covariance, the latter two from NumPy alone."""
    rows = data()
    mean, sample = rows.mean(0), np.cov(rows.T)
    eigvals, eigvecs = np.linalg.eigh(sample)
    if name.startswith("full"):
        return fit_covariance(moments_of(rows), dtype=dtype), mean, sample
    if name.startswith("lowrank"):
        rank = int(name.removeprefix("lowrank-"))
        top = eigvecs[:, -rank:]
        tail = eigvals[:-rank].mean() if rank < D else 0.0
        dense = top * eigvals[-rank:] @ top.T + tail * (np.eye(D) - top @ top.T)
        return fit_covariance(moments_of(rows), "lowrank", rank, dtype=dtype), mean, dense
    if name == "streamed":
        top = eigvecs[:, -7:]
        dense = top * eigvals[-7:] @ top.T + eigvals[:-7].mean() * (np.eye(D) - top @ top.T)
        return fit_lowrank(ArrayRows(rows), 7, dtype=dtype), mean, dense
    stationary_mean, stationary = dense_stationary(rows, SHAPE)
    assert name == "stationary"
    return fit_stationary(spectrum_of(rows), smoothing=0, dtype=dtype), stationary_mean, stationary


NAMES = ["full", "lowrank-1", "lowrank-7", "lowrank-39", "lowrank-40", "streamed", "stationary"]
# The stream multiplies in float32; the stationary fit adds 1e-6 of each frequency's mean power.
SLACK = {"streamed": 1e5, "stationary": 2e5}


def check(actual: torch.Tensor, expected: np.ndarray, name: str) -> None:
    expected = torch.from_numpy(np.asarray(expected))
    assert_close(actual, expected, scale=float(expected.abs().max()) * SLACK.get(name, 1.0))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_model_equals_its_dense_form(name, device):
    model, mean, dense = make(name)
    model = model.to(device)
    eigvals, eigvecs = np.linalg.eigh(dense)
    eye = torch.eye(D, dtype=torch.float64, device=device)
    check(model.mean, mean, name)
    check(model.apply(lambda v: v, eye), dense, name)
    check(model.apply(lambda v: 1 / (v + 0.5), eye), np.linalg.inv(dense + 0.5 * np.eye(D)), name)
    check(model.apply(torch.sqrt, eye), (eigvecs * np.sqrt(eigvals)) @ eigvecs.T, name)
    check(model.trace(lambda v: v), np.trace(dense), name)
    check(model.log_det(), np.linalg.slogdet(dense)[1], name)
    explicit = model.eigvals.numel()
    assert torch.equal(model.eigvals, model.eigvals.sort(descending=True).values)
    if name != "streamed":
        check(model.eigvals, eigvals[::-1][:explicit].copy(), name)


@pytest.mark.parametrize("name", NAMES)
def test_gains_broadcast_over_rows_and_levels(name):
    model, _, _ = make(name)
    y = torch.randn(3, D, dtype=torch.float64)
    levels = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    one = [model.apply(lambda v, s=s: v / (v + s), y) for s in levels]
    every = model.apply(lambda v: v / (v + levels[:, None, None]), y)
    assert every.shape == (3, 3, D)
    assert_close(every, torch.stack(one))
    by_row = model.apply(lambda v: v / (v + levels[:, None]), y)
    assert_close(by_row, torch.stack([one[i][i] for i in range(3)]))
    traces = model.trace(lambda v: v / (v + levels[:, None]))
    assert_close(traces, torch.stack([model.trace(lambda v, s=s: v / (v + s)) for s in levels]))


@pytest.mark.parametrize("name", NAMES)
def test_samples_have_the_model_s_moments(name):
    model, mean, dense = make(name)
    draws = model.sample(60_000, torch.Generator().manual_seed(1)).numpy()
    spread = np.sqrt(np.outer(dense.diagonal(), dense.diagonal()) / 60_000)
    assert np.abs(draws.mean(0) - mean).max() < 6 * np.sqrt(dense.diagonal().max() / 60_000)
    assert (np.abs(np.cov(draws.T) - dense) / spread).max() < 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_save_and_load_give_the_same_bits(name, dtype, tmp_path):
    model, _, _ = make(name, dtype)
    path = tmp_path / "stats.safetensors"
    model.save(path, {"encoder": "pixels", "size": 32})
    again, metadata = load(path)
    assert metadata == {"encoder": "pixels", "size": 32}
    assert type(again) is type(model)
    assert again.count == 300
    y = torch.randn(4, D, dtype=dtype)
    assert torch.equal(again.mean, model.mean)
    assert torch.equal(again.eigvals, model.eigvals)
    assert torch.equal(again.apply(torch.sqrt, y), model.apply(torch.sqrt, y))
    before = path.read_bytes()
    again.save(path, metadata)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", NAMES)
def test_float32_stays_close_and_does_not_touch_the_original(name):
    model, _, _ = make(name)
    narrow = model.to(dtype=torch.float32)
    y = torch.randn(5, D, dtype=torch.float64)
    assert narrow.mean.dtype == narrow.eigvals.dtype == torch.float32
    assert model.mean.dtype == torch.float64
    assert_close(narrow.apply(torch.sqrt, y.float()), model.apply(torch.sqrt, y))


def test_eigenvector_signs_do_not_depend_on_the_solver():
    model = fit_covariance(moments_of(data()), dtype=torch.float64)
    largest = model.eigvecs.gather(0, model.eigvecs.abs().argmax(0, keepdim=True))
    assert bool((largest > 0).all())
    assert_close(model.eigvecs.T @ model.eigvecs, torch.eye(D, dtype=torch.float64))


def test_fewer_rows_than_dimensions():
    """Directions without data carry no variance; those that have some are right (masked: the null space is arbitrary)."""
    rows = data(12)
    model = fit_covariance(moments_of(rows), dtype=torch.float64)
    reference = np.linalg.eigvalsh(np.cov(rows.T))[::-1].copy()
    assert_close(model.eigvals[:11], torch.from_numpy(reference[:11]))
    assert float(model.eigvals[11:].max()) < 1e-12 * float(model.eigvals[0])
    assert float(model.log_det()) < -1000
    low = fit_covariance(moments_of(rows), "lowrank", 5, dtype=torch.float64)
    check(low.trace(lambda v: v), np.trace(np.cov(rows.T)), "lowrank")
    assert math.isfinite(float(low.log_det()))
    assert fit_lowrank(ArrayRows(rows), 30).k == 11


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(10))
def test_directions_that_rows_do_not_have_are_without_variance(dtype, seed):
    """As few rows as values: round-off is no variance, of either sign."""
    latents = torch.randn(12, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    fitted = GaussianManifold.fit(latents.to(dtype), dtype=dtype)
    assert (fitted.eigvals > 0).tolist() == [True] * 11 + [False]
    with pytest.raises(InputError, match="no density"):
        fitted.log_prob(latents.to(dtype))
    noisy = torch.from_numpy(np.cov(latents.numpy().T) + 0.01 * np.eye(12))
    expected = torch.distributions.MultivariateNormal(latents.mean(0), noisy).log_prob(latents)
    torch.testing.assert_close(fitted.log_prob(latents.to(dtype), 1.0, 0.1).double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("n", [15, 200])
def test_shrinkage_intensities_equal_scikit_learn(n):
    from sklearn.covariance import ledoit_wolf, oas

    rows = data(n)
    moments = moments_of(rows)
    assert oas_intensity(moments) == pytest.approx(oas(rows)[1], rel=1e-9)
    assert ledoit_wolf_intensity(moments, ArrayRows(rows)) == pytest.approx(ledoit_wolf(rows)[1], rel=1e-9)


def test_shrunk_covariance_is_the_convex_combination():
    rows = data(15)
    sample = np.cov(rows.T)
    dense = 0.7 * sample + 0.3 * np.trace(sample) / D * np.eye(D)
    eye = torch.eye(D, dtype=torch.float64)
    full = fit_covariance(moments_of(rows), shrinkage=0.3, dtype=torch.float64)
    check(full.apply(lambda v: v, eye), dense, "full")
    low = fit_covariance(moments_of(rows), "lowrank", 14, shrinkage=0.3, dtype=torch.float64)
    check(low.apply(lambda v: v, eye), dense, "lowrank")
    streamed = fit_lowrank(ArrayRows(rows), 14, shrinkage=0.3, dtype=torch.float64)
    check(streamed.apply(lambda v: v, eye), dense, "streamed")
    assert fit_covariance(moments_of(rows), shrinkage="oas").eigvals[-1] > 0


def test_blend_equals_the_dense_combination():
    rows = data()
    mean, sample = rows.mean(0), np.cov(rows.T)
    spectrum = spectrum_of(rows)
    target = fit_stationary(spectrum, dtype=torch.float64)
    eye = torch.eye(D, dtype=torch.float64)
    model = blend_with_stationary(moments_of(rows), spectrum, 0.3, dtype=torch.float64)
    check(model.mean, 0.7 * mean + 0.3 * target.mean.numpy(), "blend")
    check(model.apply(lambda v: v, eye), 0.7 * sample + 0.3 * target.apply(lambda v: v, eye).numpy(), "blend")
    with pytest.raises(InputError, match="between 0 and 1"):
        blend_with_stationary(moments_of(rows), spectrum, 1.5)
    with pytest.raises(MismatchError, match="must be of the same rows"):
        blend_with_stationary(moments_of(rows[1:]), spectrum, 0.5)


def test_large_d_takes_the_randomised_route(rng, monkeypatch):
    """Above the dense limit, leading eigenpairs come from the block method, equal to the dense ones."""
    import sys

    rows = rng.standard_normal((400, 60)) * np.arange(1, 61) ** -0.8
    exact = fit_covariance(moments_of(rows), "lowrank", 8, dtype=torch.float64)
    monkeypatch.setattr(sys.modules["manifold.covariance.fit"], "DENSE_LIMIT", 10)
    found = fit_covariance(moments_of(rows), "lowrank", 8, dtype=torch.float64)
    torch.testing.assert_close(found.eigvals, exact.eigvals, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.tail_var, exact.tail_var, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.eigvecs, exact.eigvecs, rtol=0, atol=1e-3)


@pytest.fixture
def few_rows_of_many_values(monkeypatch):
    """The route that rows take where they are few and long, for rows of `D` values."""
    import sys

    monkeypatch.setattr(sys.modules["manifold.covariance.fit"], "_DENSE_QUICK", D - 1)


def no_matrix(self, ddof=1):
    raise AssertionError("a d x d matrix was asked for")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("device", DEVICES)
def test_few_rows_are_decomposed_without_a_matrix_of_their_values(few_rows_of_many_values, monkeypatch, device, dtype):
    rows = data(10).astype(dtype)
    kept = rows.copy()
    moments = Moments(D, device=device)
    for part in (rows[:3], rows[3:4], rows[4:]):
        moments.update(part, copy=False)
    monkeypatch.setattr(Moments, "covariance", no_matrix)
    wide = rows.astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(wide.T))
    for rank, known in ((4, 4), (9, 9), (30, 9)):  # ten rows vary in nine directions
        of_moments = fit_covariance(moments, "lowrank", rank, dtype=torch.float64)
        for model in (of_moments, fit_lowrank(ArrayRows(rows), rank, dtype=torch.float64, device=device)):
            assert (model.k, model.count, model.eigvals.device.type) == (known, 10, device)
            assert_close(model.mean.cpu(), torch.from_numpy(wide.mean(0)))
            assert_close(model.eigvals.cpu(), torch.from_numpy(values[::-1][:known].copy()))
            overlap = (model.eigvecs.cpu().T @ torch.from_numpy(vectors[:, ::-1][:, :known].copy())).abs()
            torch.testing.assert_close(overlap, torch.eye(known, dtype=torch.float64), rtol=0, atol=1e-7)
            tail = values[:-known].clip(0).sum() / (D - known)
            assert float(model.tail_var) == pytest.approx(tail, rel=1e-9, abs=1e-12 * values.sum())
    assert np.array_equal(rows, kept)


def test_few_rows_that_repeat_each_other_far_from_zero_have_orthonormal_directions(few_rows_of_many_values):
    rng = np.random.default_rng(1)
    three = 1e4 + rng.standard_normal((3, D)) * np.array([[1.0], [1e-3], [1e-6]])
    rows = np.repeat(three, 3, axis=0)
    model = fit_covariance(moments_of(rows), "lowrank", 8, dtype=torch.float64)
    torch.testing.assert_close(model.eigvecs.T @ model.eigvecs, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-12)
    assert_close(model.eigvals[:2], torch.from_numpy(np.linalg.eigvalsh(np.cov(rows.T))[::-1][:2].copy()))
    assert float(model.eigvals[2:].max()) < 1e-12 * float(model.eigvals[0])


def test_rows_that_were_multiplied_already_take_the_other_route(few_rows_of_many_values):
    rows = data(10)
    held, multiplied = moments_of(rows), moments_of(rows)
    multiplied.flush()
    assert multiplied.rows_held() is None
    assert np.array_equal(held.rows_held(), rows)
    few, dense = (fit_covariance(moments, "lowrank", 9, dtype=torch.float64) for moments in (held, multiplied))
    assert_close(few.eigvals, dense.eigvals)
    torch.testing.assert_close(few.eigvecs, dense.eigvecs, rtol=0, atol=1e-8)


def test_all_directions_of_few_rows_are_the_covariance(few_rows_of_many_values):
    """As many eigenpairs as rows vary in, by default: the same Gaussian as all d of them, most of which are zero."""
    rows = data(10)
    assert (default_rank(10, D), default_rank(D // 2 + 1, D), default_rank(10, 10)) == (9, D, 10)
    assert default_rank(10**6, 16_384) == 1024
    few, full = GaussianManifold.fit(rows), GaussianManifold.from_moments(moments_of(rows), rank=D)
    assert (few.k, full.k) == (9, D)
    states = torch.from_numpy(rows[:5] + 1.0).float()
    for name in ("denoise", "endpoint", "log_prob"):
        one, other = (getattr(manifold, name)(states, 0.8, 0.6) for manifold in (few, full))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert few.total_variance == pytest.approx(full.total_variance)


@pytest.mark.parametrize("seed", range(6))
def test_directions_that_rows_do_not_vary_in_have_no_variance_at_all(few_rows_of_many_values, seed):
    """Not round-off, which would pass for a density; on both routes."""
    rows = np.random.default_rng(seed).standard_normal((10, D))
    halves = moments_of(rows[:5])
    halves.merge(moments_of(rows[5:]))
    held, multiplied = moments_of(rows), moments_of(rows)
    multiplied.flush()
    for moments in (held, multiplied, halves):
        manifold = GaussianManifold.from_moments(moments)
        assert (manifold.k, manifold.tail_var) == (9, 0.0)
        with pytest.raises(InputError, match="no density"):
            manifold.log_prob(torch.from_numpy(rows).float())


def test_few_rows_with_nan_are_refused_by_number(few_rows_of_many_values):
    rows = data(10)
    rows[6, 2] = np.nan
    with pytest.raises(NonFiniteError, match="row 6 holds NaN"):
        fit_lowrank(ArrayRows(rows), 3)


def test_negative_variances_are_repaired_aloud_or_refused():
    eye = torch.eye(3, dtype=torch.float64)
    zero = torch.zeros(3, dtype=torch.float64)
    quiet = FullCovariance(zero, torch.tensor([1.0, 0.5, -1e-9], dtype=torch.float64), eye)
    assert float(quiet.eigvals[-1]) == 0.0
    with pytest.warns(ManifoldWarning, match=r"1 negative variances down to -1e-05"):
        FullCovariance(zero, torch.tensor([1.0, 0.5, -1e-5], dtype=torch.float64), eye)
    with pytest.raises(NotPSDError, match=r"lowest is -0.1 beside a largest of 1"):
        FullCovariance(zero, torch.tensor([1.0, 0.5, -0.1], dtype=torch.float64), eye)
    with pytest.raises(NotPSDError, match="positive semidefinite"):
        StationaryCovariance(zero[:1], -torch.ones(2, 2, 1, 1, dtype=torch.complex128), 2)


def test_wrong_use_gets_a_sentence(tmp_path: Path):
    moments = Moments(4)
    with pytest.raises(NotFittedError, match="at least 2 rows, 0 came"):
        fit_covariance(moments)
    moments.update(torch.randn(10, 4))
    with pytest.raises(InputError, match='must be "full" or "lowrank"'):
        fit_covariance(moments, "diagonal")
    with pytest.raises(InputError, match="between 1 and d = 4, it is 5"):
        fit_covariance(moments, "lowrank", 5)
    with pytest.raises(InputError, match="between 0 and 1, it is 2"):
        fit_covariance(moments, shrinkage=2.0)
    with pytest.raises(InputError, match="between 1 and d = 4, it is 0"):
        fit_lowrank(ArrayRows(torch.randn(10, 4)), 0)
    with pytest.raises(InputError, match="at least 2 rows"):
        fit_lowrank(ArrayRows(torch.randn(1, 4)), 2)
    with pytest.raises(MismatchError, match="the store has 9 of 4"):
        ledoit_wolf_intensity(moments, ArrayRows(torch.randn(9, 4)))
    with pytest.raises(ShapeError, match=r"eigvecs must be .* with k = 2"):
        LowRankCovariance(torch.zeros(4), torch.ones(2), torch.zeros(4, 3))
    with pytest.raises(ShapeError, match=r"mean must be \(d,\)"):
        LowRankCovariance(torch.zeros(4, 1), torch.ones(2), torch.zeros(4, 2))
    with pytest.raises(ShapeError, match="needs 4 eigenvalues"):
        FullCovariance(torch.zeros(4), torch.ones(2), torch.zeros(4, 2))
    path = tmp_path / "stats.safetensors"
    with pytest.raises(FileNotFoundError):
        load(path)
    save_tensors(path, {"mean": torch.zeros(4)}, {"model": "lowrank"})
    with pytest.raises(FormatError, match=r"stats.safetensors must hold eigvals, eigvecs, tail_var"):
        load(path)
    save_tensors(path, {"mean": torch.zeros(4)}, {"model": "stationary"})
    with pytest.raises(FormatError, match=r"stats.safetensors must hold spectrum, width"):
        load(path)
    save_tensors(path, {"mean": torch.zeros(4)}, {})
    with pytest.raises(FormatError, match="must hold a covariance model"):
        load(path)


@pytest.mark.parametrize("precision", ["fast", "exact"])
def test_equal_rows_have_no_variance_rather_than_a_negative_one(precision):
    moments = moments_of(np.tile([0.1, 0.3, 0.7], (1000, 1)), precision)
    model = fit_covariance(moments, dtype=torch.float64)
    assert float(model.eigvals.max()) < 1e-28


def test_variances_that_leave_their_type_are_refused():
    """Infinite variances would make every later answer NaN."""
    rows = 1e25 * data()
    wide = fit_covariance(moments_of(rows), "lowrank", 4, dtype=torch.float64)
    assert_close(wide.eigvals, torch.from_numpy(np.linalg.eigvalsh(np.cov(rows.T))[::-1][:4].copy()), scale=1e-3 * 1e50)
    stationary = fit_stationary(spectrum_of(rows), dtype=torch.float64)
    for refused in (
        lambda: fit_covariance(moments_of(rows)),
        lambda: fit_lowrank(ArrayRows(rows), 4),
        lambda: fit_stationary(spectrum_of(rows)),
        lambda: wide.to(dtype=torch.float32),
        lambda: stationary.to(dtype=torch.float32),
        lambda: LowRankCovariance(torch.zeros(2), torch.tensor([torch.nan]), torch.eye(2)[:, :1]),
    ):
        with pytest.raises(NonFiniteError, match="keep the model in float64"):
            refused()
