"""The stationary model against shifted images in loops, and its smoothing, resizing and blends."""

import math

import numpy as np
import pytest
import torch
from helpers import SHARED, assert_close, needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st

from manifold.covariance import (
    LowRankCovariance,
    StationaryCovariance,
    blend_with_stationary,
    fit_covariance,
    fit_stationary,
    score_blends,
    score_lowrank_blends,
)
from manifold.covariance.fit_stationary import SMOOTHINGS, choose_smoothing, smooth
from manifold.cross_spectrum import CrossSpectrum
from manifold.errors import InputError, MismatchError, NonFiniteError, NotFittedError, ShapeError
from manifold.likelihood import EigenScore, mean_log_likelihood
from manifold.moments import Moments
from manifold.rows import ArrayRows, RowSubset
from manifold.selection import fit_auto

SHAPES = [(1, 4, 4), (2, 3, 5), (3, 4, 6), (2, 1, 7), (2, 6, 1)]


def images(shape: tuple[int, int, int], n: int = 60, seed: int = 0, exponent: float = 1.0) -> np.ndarray:
    """Periodic images with power falling as frequency^(-2 exponent) and channels mixed."""
    rng = np.random.default_rng(seed)
    c, h, w = shape
    radius = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)[None])
    gain = (radius + 0.1) ** -exponent
    white = rng.standard_normal((n, c, h, w))
    coloured = np.fft.ifft2(np.fft.fft2(white) * gain).real
    mixing = np.random.default_rng(99).standard_normal((c, c)) + 2 * np.eye(c)
    return (np.einsum("ij,njhw->nihw", mixing, coloured) + np.arange(c)[:, None, None]).reshape(n, -1)


def gaussian_log_likelihood(rows: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    deviations = rows - mean
    solved = np.linalg.solve(covariance, deviations.T).T
    log_det = np.linalg.slogdet(covariance)[1]
    return float(-0.5 * ((deviations * solved).sum(1).mean() + log_det + rows.shape[1] * math.log(2 * math.pi)))


@pytest.mark.parametrize("shape", SHAPES)
def test_cross_spectrum_is_the_mean_product_of_transforms(shape):
    rows = images(shape)
    spectrum = CrossSpectrum.of(ArrayRows(rows), shape)
    stack = rows.reshape(-1, *shape)
    mean = stack.mean((0, 2, 3))
    waves = np.fft.rfft2(stack - mean[:, None, None], norm="ortho")
    expected = np.einsum("nihw,njhw->hwij", waves, waves.conj()) / len(rows)
    np.testing.assert_allclose(spectrum.mean(), mean, atol=1e-12)
    np.testing.assert_allclose(spectrum.matrices(), expected, atol=1e-10 * np.abs(expected).max())


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 40), max_size=5), offset=st.sampled_from([0.0, 1e4]))
def test_cross_spectrum_does_not_depend_on_batches_or_merging(cuts, offset):
    shape = (2, 3, 4)
    rows = images(shape, 40) + offset
    whole = CrossSpectrum.of(ArrayRows(rows), shape)
    parts, merged = CrossSpectrum(shape), CrossSpectrum(shape)
    for piece in np.split(rows, sorted(cuts)):
        parts.update(piece)
        other = CrossSpectrum(shape)
        other.update(piece)
        merged.merge(other)
    for found in (parts, merged):
        assert found.count == 40
        assert float((found.matrices() - whole.matrices()).abs().max()) < 1e-9 * float(whole.matrices().abs().max())
        np.testing.assert_allclose(found.mean(), whole.mean(), rtol=1e-12, atol=1e-12)
    held_out = np.delete(rows, range(1, 40, 4), axis=0)
    others = CrossSpectrum.of(ArrayRows(held_out), shape).matrices()
    assert_close(torch.view_as_real(parts.matrices((0, 2, 3))), torch.view_as_real(others), scale=10 * (1 + offset))


def test_cross_spectrum_of_a_fold_about_another_centre():
    """As cross-validation takes it: every fourth row, about the mean of the others."""
    rows, centre = images((2, 3, 4), 40), np.array([0.7, -1.3])
    waves = np.fft.rfft2(rows[1::4].reshape(-1, 2, 3, 4) - centre[:, None, None], norm="ortho")
    expected = np.einsum("nihw,njhw->hwij", waves, waves.conj()) / 10
    found = CrossSpectrum.of(ArrayRows(rows), (2, 3, 4)).matrices((1,), torch.from_numpy(centre))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("shape", SHAPES)
def test_likelihood_is_that_of_the_dense_covariance(shape):
    rows = images(shape, 300)
    model = fit_stationary(CrossSpectrum.of(ArrayRows(rows), shape), smoothing=0.5, dtype=torch.float64)
    dense = model.apply(lambda v: v, torch.eye(model.d, dtype=torch.float64)).numpy()
    assert np.abs(dense - dense.T).max() < 1e-10 * dense.max()
    expected = gaussian_log_likelihood(rows, model.mean.numpy(), dense)
    assert mean_log_likelihood(model, ArrayRows(rows)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_smoothing_keeps_total_power_hermitian_and_conjugate(shape, smoothing):
    spectrum = CrossSpectrum.of(ArrayRows(images(shape)), shape)
    smoothed = smooth(spectrum.matrices(), shape[2], smoothing)
    assert float((smoothed - smoothed.mH).abs().max()) < 1e-12 * float(smoothed.abs().max())
    power = [m.diagonal(dim1=-2, dim2=-1).real.mean(-1) for m in (smoothed, spectrum.matrices())]
    torch.testing.assert_close(power[0], power[1], rtol=1e-9, atol=0)
    mirrored = smoothed[(-torch.arange(shape[1])) % shape[1], 0].conj()
    assert float((smoothed[:, 0] - mirrored).abs().max()) < 1e-12 * float(smoothed.abs().max())
    assert float(torch.linalg.eigvalsh(smoothed).min()) > 0


def test_smoothing_is_chosen_to_help_when_images_are_few_and_to_yield_when_they_are_many():
    shape = (4, 8, 8)
    few, many = images(shape, 24), images(shape, 20_000, seed=1)
    held_out = ArrayRows(images(shape, 2000, seed=2))
    spectrum = CrossSpectrum.of(ArrayRows(few), shape)
    chosen = choose_smoothing(spectrum)
    assert chosen > 0
    raw, smoothed = (
        mean_log_likelihood(fit_stationary(spectrum, smoothing=s, dtype=torch.float64), held_out) for s in (0.0, chosen)
    )
    assert smoothed > raw
    assert choose_smoothing(CrossSpectrum.of(ArrayRows(many), shape)) <= chosen


def test_resized_model_is_the_model_of_larger_images():
    """The same density at the same frequency: fitted at 8 and resized, it is close to one fitted at 16."""
    small = fit_stationary(CrossSpectrum.of(ArrayRows(images((2, 8, 8), 3000)), (2, 8, 8)), smoothing=0)
    large = fit_stationary(CrossSpectrum.of(ArrayRows(images((2, 16, 16), 3000)), (2, 16, 16)), smoothing=0)
    resized = small.resized(16, 16)
    assert resized.shape == (2, 16, 16)
    ratio = resized.power()[:, ::2, ::2] / large.power()[:, ::2, ::2]
    assert float((ratio - 1).abs().max()) < 0.2
    same = small.resized(8, 8)
    torch.testing.assert_close(same.spectrum, small.spectrum, rtol=1e-5, atol=1e-6)
    odd = small.resized(5, 7)
    y = torch.randn(3, odd.d)
    assert odd.apply(torch.sqrt, y).shape == (3, 70)
    assert float(odd.eigvals.min()) >= 0
    with pytest.raises(ShapeError, match="must be positive"):
        small.resized(0, 4)


def test_channels_that_repeat_each_other_keep_their_likelihood_in_float32(rng, tmp_path):
    """Variances a ten-millionth of the largest survive float32, saving and loading."""
    from manifold.covariance import load

    rows = rng.standard_normal((200, 1, 4, 4)).repeat(6, axis=1) + 1e-6 * rng.standard_normal((200, 6, 4, 4))
    store = ArrayRows(rows.reshape(200, -1))
    exact = fit_stationary(CrossSpectrum.of(store, (6, 4, 4)), smoothing=0, dtype=torch.float64)
    narrow = fit_stationary(CrossSpectrum.of(store, (6, 4, 4)), smoothing=0)
    narrow.save(tmp_path / "model", {})
    for model in (narrow, load(tmp_path / "model")[0], exact.to(dtype=torch.float32)):
        assert model.mean.dtype == torch.float32
        torch.testing.assert_close(model.eigvals, exact.eigvals.float(), rtol=1e-5, atol=0)
        assert float(model.log_det()) == pytest.approx(float(exact.log_det()), rel=1e-5)


def test_blend_scores_are_log_likelihoods_of_dense_blends():
    shape = (2, 3, 4)
    rows, other = images(shape, 200), images(shape, 50, seed=3)
    target = fit_stationary(CrossSpectrum.of(ArrayRows(rows), shape), dtype=torch.float64)
    dense = target.apply(lambda v: v, torch.eye(24, dtype=torch.float64)).numpy()
    for train in (rows, rows[:10]):  # more and fewer rows than dimensions
        for score in score_blends(ArrayRows(train), ArrayRows(other), target, (0.0, 0.2, 0.7, 1.0)):
            w = score.weight
            mean = (1 - w) * train.mean(0) + w * target.mean.numpy()
            if w == 0.0 and len(train) < 24:
                assert score.log_likelihood == -math.inf
                continue
            expected = gaussian_log_likelihood(other, mean, (1 - w) * np.cov(train.T) + w * dense)
            assert score.log_likelihood == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("n", [15, 200])
@pytest.mark.parametrize("rank", [1, 6])
def test_lowrank_blends_are_dense_blends(n, rank):
    """Scores by Woodbury's identity and the decomposed blend, against the dense matrix."""
    shape = (2, 3, 4)
    rows, other = images(shape, n), images(shape, 50, seed=3)
    spectrum, moments = CrossSpectrum.of(ArrayRows(rows), shape), Moments(24, precision="exact")
    moments.update(rows)
    target = fit_stationary(spectrum, dtype=torch.float64)
    low = fit_covariance(moments, "lowrank", rank, dtype=torch.float64)
    eye = torch.eye(24, dtype=torch.float64)
    parts = [model.apply(lambda v: v, eye).numpy() for model in (low, target)]
    for score in score_lowrank_blends(low, ArrayRows(other), target, (0.02, 0.3, 1.0)):
        w = score.weight
        mean = (1 - w) * rows.mean(0) + w * target.mean.numpy()
        dense = (1 - w) * parts[0] + w * parts[1]
        assert score.log_likelihood == pytest.approx(gaussian_log_likelihood(other, mean, dense), rel=1e-8)
        blend = blend_with_stationary(moments, spectrum, w, rank=rank, dtype=torch.float64)
        np.testing.assert_allclose(blend.apply(lambda v: v, eye), dense, rtol=0, atol=1e-10 * dense.max())
        np.testing.assert_allclose(blend.mean, mean, rtol=1e-12)
    with pytest.raises(InputError, match="must lie above 0"):
        score_lowrank_blends(low, ArrayRows(other), target, (0.0,))
    narrow = LowRankCovariance(torch.zeros(4), torch.ones(1), torch.eye(4)[:, :1], 1.0)
    with pytest.raises(MismatchError, match="d = 4 and d = 24"):
        score_lowrank_blends(narrow, ArrayRows(other), target)


def test_auto_shrinks_a_lowrank_model_toward_the_stationary_one(rng):
    """Stationary images and one pattern that is not: neither model alone holds both."""
    shape = (2, 4, 4)
    pattern = rng.standard_normal(32) * 4
    rows = images(shape, 60) + rng.standard_normal((60, 1)) * pattern
    chosen = fit_auto(ArrayRows(rows), shape)
    best = chosen.candidates[0]
    assert best.name.endswith("toward stationary")
    assert any(one.name == "lowrank toward stationary" for one in chosen.candidates)
    assert 0 < best.weight < 1
    assert chosen.model.k == 32
    assert f"weight {best.weight:.3g}" in chosen.reason


@pytest.mark.parametrize("n", [15, 200])
def test_eigen_scores_are_log_likelihoods_of_dense_models(n):
    from manifold.covariance import fit_covariance

    rows, other = images((2, 3, 4), n), images((2, 3, 4), 50, seed=3)
    moments = Moments(24, precision="exact")
    moments.update(rows)
    score = EigenScore.of(fit_covariance(moments, dtype=torch.float64), ArrayRows(other))
    sample = np.cov(rows.T)
    eigvals, eigvecs = np.linalg.eigh(sample)
    for rank, shrinkage in ((24, 0.3), (5, 0.0), (5, 0.5), (min(n - 1, 24), 1.0)):
        top, kept = eigvecs[:, ::-1][:, :rank], eigvals[::-1][:rank]
        tail = eigvals[::-1][rank:].mean() if rank < 24 else 0.0
        dense = (top * kept) @ top.T + tail * (np.eye(24) - top @ top.T)
        dense = (1 - shrinkage) * dense + shrinkage * np.trace(sample) / 24 * np.eye(24)
        expected = gaussian_log_likelihood(other, rows.mean(0), dense)
        assert score.mean_log_likelihood(rank, shrinkage) == pytest.approx(expected, rel=1e-8)
    if n < 24:
        assert score.mean_log_likelihood(n - 1, 0.0) == -math.inf


def test_likelihoods_add_up_over_batches(monkeypatch):
    monkeypatch.setattr("manifold.likelihood._BATCH_VALUES", 7 * 24)
    rows, other = images((2, 3, 4), 200), images((2, 3, 4), 60, seed=3)
    moments = Moments(24, precision="exact")
    moments.update(rows)
    model = fit_covariance(moments, dtype=torch.float64)
    covariance = np.cov(rows.T)
    expected = gaussian_log_likelihood(other, rows.mean(0), covariance)
    assert mean_log_likelihood(model, ArrayRows(other)) == pytest.approx(expected, rel=1e-8)
    score = EigenScore.of(model, ArrayRows(other))
    assert score.mean_log_likelihood(24, 0.0) == pytest.approx(expected, rel=1e-8)
    eigvals, eigvecs = (part[..., ::-1] for part in np.linalg.eigh(covariance))
    tail = eigvals[5:].mean()
    dense = (eigvecs[:, :5] * (eigvals[:5] - tail)) @ eigvecs[:, :5].T + tail * np.eye(24)
    expected = gaussian_log_likelihood(other, rows.mean(0), dense)
    assert score.mean_log_likelihood(5, 0.0) == pytest.approx(expected, rel=1e-8)


def test_auto_finds_the_kind_of_data_it_is_given(rng):
    shape = (2, 4, 4)
    stationary = fit_auto(ArrayRows(images(shape, 100)), shape)
    assert stationary.candidates[0].name == "stationary"
    assert isinstance(stationary.model, StationaryCovariance)
    assert "stationary gives 20 rows left out the highest likelihood" in stationary.reason
    factors = rng.standard_normal((400, 3)) @ rng.standard_normal((3, 32)) * 3 + rng.standard_normal((400, 32)) * 0.1
    lowrank = fit_auto(ArrayRows(factors), shape)
    assert lowrank.candidates[0].name.startswith("lowrank")
    assert lowrank.candidates[0].rank == 4
    assert lowrank.model.k == 4
    mixing = np.linalg.qr(rng.standard_normal((32, 32)))[0] * np.arange(1, 33) ** -1.0
    full = fit_auto(ArrayRows(rng.standard_normal((4000, 32)) @ mixing.T), shape)
    assert full.candidates[0].name.startswith("full")
    assert full.model.k == 32
    for chosen in (stationary, lowrank, full):
        scores = [candidate.log_likelihood for candidate in chosen.candidates]
        assert scores == sorted(scores, reverse=True)
        assert f"{len(scores)} models compared" in chosen.reason
        assert chosen.model.count in (100, 400, 4000)


def test_auto_scores_are_those_of_models_fitted_without_the_rows_left_out():
    """The winner's score, computed again from a dense covariance of four rows in five."""
    rows = images((2, 3, 4), 400)
    chosen = fit_auto(ArrayRows(rows))
    best = next(c for c in chosen.candidates if c.name == "full")
    train, held_out = (
        np.concatenate(list(RowSubset(ArrayRows(rows), 5, parts).batches(64))).astype(np.float64)
        for parts in (range(4), [4])
    )
    assert (len(train), len(held_out)) == (320, 80)
    expected = gaussian_log_likelihood(held_out, train.mean(0), np.cov(train.T))
    assert best.log_likelihood == pytest.approx(expected, rel=1e-5)
    assert all(c.name != "stationary" for c in chosen.candidates)


def test_wide_data_take_the_matrix_free_route(monkeypatch):
    import manifold.selection

    monkeypatch.setattr(manifold.selection, "DENSE_LIMIT", 10)
    rows = images((2, 4, 4), 60)
    chosen = fit_auto(ArrayRows(rows), (2, 4, 4))
    assert chosen.candidates[0].name == "stationary"
    chosen = fit_auto(ArrayRows(rows))
    assert chosen.candidates[0].name.startswith(("full", "lowrank"))
    assert chosen.model.count == 60


@needs_shared
def test_on_real_latents_stationary_beats_every_shrinkage_of_full_and_lowrank():
    """Must hold: 100 rows to fit, 700 to judge."""
    rows = np.load(SHARED / "flux2-latents.npy")
    train, held_out = ArrayRows(rows[:100]), ArrayRows(rows[100:])
    model = fit_stationary(CrossSpectrum.of(train, (32, 16, 16)))
    ours = mean_log_likelihood(model, held_out) / 8192
    from manifold.covariance import fit_lowrank

    # 99 eigenpairs and an isotropic rest: with shrinkage this is the full sample covariance, shrunk.
    score = EigenScore.of(fit_lowrank(train, 99, dtype=torch.float64), held_out)
    rivals = [score.mean_log_likelihood(k, a) / 8192 for k in (4, 16, 64, 99) for a in np.linspace(0.01, 1, 100)]
    assert ours > max(rivals) + 0.25
    assert ours == pytest.approx(-0.910, abs=0.005)


def test_wrong_use_gets_a_sentence():
    with pytest.raises(ShapeError, match=r"needs the shape \(C, H, W\)"):
        CrossSpectrum((3, 4))
    spectrum = CrossSpectrum((1, 2, 2))
    with pytest.raises(NotFittedError, match="at least one row"):
        spectrum.mean()
    with pytest.raises(NotFittedError, match="at least 8 images here, 0 came"):
        fit_stationary(spectrum)
    with pytest.raises(ShapeError, match=r"must be \(n, 4\)"):
        spectrum.update(np.zeros((2, 5)))
    with pytest.raises(NonFiniteError, match="row 1 of this batch"):
        spectrum.update(np.array([[0.0] * 4, [np.nan] * 4]))
    spectrum.update(np.random.default_rng(0).standard_normal((9, 4)))
    with pytest.raises(InputError, match="must not be negative"):
        fit_stationary(spectrum, smoothing=-1)
    with pytest.raises(MismatchError, match="must be of one shape"):
        spectrum.merge(CrossSpectrum((1, 2, 3)))
    with pytest.raises(ShapeError, match="must be"):
        StationaryCovariance(torch.zeros(2), torch.zeros(2, 2, 1, 1, dtype=torch.complex64), 2)
    with pytest.raises(InputError, match="at least 20 rows"):
        fit_auto(ArrayRows(np.zeros((5, 4))))
    moments = Moments(4)
    moments.update(np.zeros((3, 4)))
    with pytest.raises(MismatchError, match="must be of the same rows"):
        blend_with_stationary(moments, spectrum, 0.5)
    assert len(RowSubset(ArrayRows(np.zeros((9, 4))), 2, [0])) == 5


def test_a_class_resized_keeps_its_own_mean_of_each_channel():
    rows = np.random.default_rng(0).standard_normal((40, 2 * 4 * 4)) + 3
    model = fit_stationary(CrossSpectrum.of(ArrayRows(rows), (2, 4, 4)), dtype=torch.float64)
    moved = model.to()
    moved.mean = model.mean + torch.arange(32, dtype=torch.float64)
    expected = moved.mean.view(2, 16).mean(1)
    assert_close(moved.resized(6, 5).mean, expected.repeat_interleave(30))
