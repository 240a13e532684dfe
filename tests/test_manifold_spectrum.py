"""Diagnostics of a spectrum against textbook formulas, planted laws, and halves of real data."""

import math

import numpy as np
import pytest
import torch
from helpers import assert_close
from torch import Tensor

from manifold.covariance import CovarianceModel, FullCovariance, LowRankCovariance, fit_covariance, fit_stationary
from manifold.cross_spectrum import CrossSpectrum
from manifold.diagnostics import diagnose, verdict
from manifold.errors import InputError, ShapeError
from manifold.gaussian import GaussianManifold
from manifold.moments import Moments
from manifold.nulls import isotropic
from manifold.power import channel_variance, frequency_power, radial_power
from manifold.reproducibility import _reproducible, convergence, split_half, subspace_overlap
from manifold.rows import ArrayRows, RowSubset
from manifold.selection import fit_auto
from manifold.spectrum import (
    SHARES,
    components_for,
    cumulative_variance,
    effective_rank,
    marchenko_pastur_edge,
    participation_ratio,
    power_law,
)


def model_of(eigvals: np.ndarray, k: int | None = None, tail_var: float = 0.0) -> LowRankCovariance:
    values = torch.as_tensor(eigvals, dtype=torch.float64)
    d = len(values)
    basis = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q
    k = d if k is None else k
    return LowRankCovariance(torch.zeros(d, dtype=torch.float64), values[:k], basis[:, :k], tail_var)


def test_summaries_of_a_known_spectrum():
    model = model_of(np.array([4.0, 2.0, 1.0, 1.0]))
    assert_close(cumulative_variance(model), torch.tensor([0.5, 0.75, 0.875, 1.0], dtype=torch.float64))
    assert components_for(model, (0.5, 0.51, 0.875, 0.99, 1.0)) == (1, 2, 3, 4, 4)
    assert participation_ratio(model) == pytest.approx(64 / 22)
    entropy = -(0.5 * math.log(0.5) + 0.25 * math.log(0.25) + 0.25 * math.log(0.125))
    assert effective_rank(model) == pytest.approx(math.exp(entropy))


def test_the_tail_counts_with_all_its_directions():
    whole = model_of(np.array([4.0, 2.0, 1.0, 1.0, 1.0]))
    short = model_of(np.array([4.0, 2.0, 1.0, 1.0, 1.0]), k=2, tail_var=1.0)
    assert participation_ratio(short) == pytest.approx(participation_ratio(whole))
    assert effective_rank(short) == pytest.approx(effective_rank(whole))
    assert_close(cumulative_variance(short), cumulative_variance(whole)[:2])
    assert components_for(short, (0.5, 0.9)) == (2, None)
    assert participation_ratio(model_of(np.ones(7))) == pytest.approx(7)
    assert effective_rank(model_of(np.ones(7))) == pytest.approx(7)
    with pytest.raises(InputError, match="must lie above 0"):
        components_for(short, (0.0,))


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.3])
def test_power_law_finds_the_exponent(exponent):
    fit = power_law(torch.arange(1, 501, dtype=torch.float64) ** -exponent * 7, 10, 400)
    assert fit.exponent == pytest.approx(exponent, abs=1e-3)
    assert fit.low <= fit.exponent <= fit.high
    assert fit.high - fit.low < 0.01
    assert (fit.first, fit.last) == (10, 400)
    assert fit.misfit < 1e-3


def test_power_law_interval_covers_and_a_curve_widens_it(rng):
    """Of noisy laws, about 95 % of the intervals hold the truth; a spectrum that is no power law says so."""
    covered = 0
    for _ in range(200):
        values = np.arange(1, 301) ** -1.2 * np.exp(0.3 * rng.standard_normal(300))
        fit = power_law(torch.from_numpy(values), 1, 300)
        covered += fit.low <= 1.2 <= fit.high
    assert 175 <= covered <= 200
    bent = power_law(torch.exp(-torch.arange(1, 301, dtype=torch.float64) / 30), 1, 300)
    assert bent.high - bent.low > 1.0
    assert bent.misfit > 0.3


def test_power_law_refuses_what_it_cannot_fit():
    with pytest.raises(InputError, match="at least 8 ranks between 1 and 20, it got 5 to 10"):
        power_law(torch.ones(20), 5, 10)
    with pytest.raises(InputError, match="must be positive"):
        power_law(torch.zeros(20), 1, 20)


@pytest.mark.parametrize(("n", "d"), [(2000, 400), (400, 400), (300, 900)])
def test_marchenko_pastur_edge_of_pure_noise_and_of_planted_spikes(rng, n, d):
    noise = rng.standard_normal((n, d)) * 1.7
    eigvals = torch.from_numpy(np.linalg.eigvalsh(np.cov(noise.T))[::-1].copy())
    edge = marchenko_pastur_edge(eigvals, n, d)
    assert edge.noise_var == pytest.approx(1.7**2, rel=0.03)
    assert edge.edge == pytest.approx(float(eigvals[0]), rel=0.05)
    assert edge.above <= 2
    noise[:, :3] *= 6
    spiked = torch.from_numpy(np.linalg.eigvalsh(np.cov(noise.T))[::-1].copy())
    assert 3 <= marchenko_pastur_edge(spiked, n, d).above <= 5
    with pytest.raises(InputError, match="needs all"):
        marchenko_pastur_edge(eigvals[:20], n, d)


def test_power_spectra_are_variances_of_fourier_coefficients(rng):
    shape = (2, 5, 6)
    rows = rng.standard_normal((4000, 60)) @ rng.standard_normal((60, 60))
    moments = Moments(60, precision="exact")
    moments.update(rows)
    model = fit_covariance(moments, dtype=torch.float64)
    waves = np.fft.fft2((rows - rows.mean(0)).reshape(-1, *shape), norm="ortho")
    expected = torch.from_numpy((np.abs(waves) ** 2).sum(0) / 3999)
    assert_close(frequency_power(model, shape), expected)
    variance = torch.from_numpy(rows.var(0, ddof=1).reshape(2, -1).mean(1))
    assert_close(channel_variance(model, shape), variance)
    rings = radial_power(model, shape)
    assert int(rings.coefficients.sum()) == 30
    assert rings.coefficients[0] == 1
    assert float(rings.frequency[0]) == 0.0
    assert_close((rings.power * rings.coefficients).sum(1), expected.sum((1, 2)))
    low = LowRankCovariance(model.mean, model.eigvals[:4], model.eigvecs[:, :4], 0.5)
    dense = low.apply(lambda v: v, torch.eye(60, dtype=torch.float64)).numpy()
    fourier = np.fft.fft2(np.eye(60).reshape(60, *shape), norm="ortho").reshape(60, 60)
    reference = np.einsum("ia,ij,jb->ab", fourier.conj(), dense, fourier).diagonal().real
    assert_close(frequency_power(low, shape).flatten(), torch.from_numpy(reference.copy()), scale=100.0)


@pytest.mark.parametrize("shape", [(2, 5, 6), (1, 8, 3), (1, 2, 9)])
def test_rings_are_as_wide_as_one_step_of_the_longer_side(shape, rng, monkeypatch):
    """Frequency by frequency in a loop; and eigenvectors taken three at a time give the same power."""
    _, height, width = shape
    d = math.prod(shape)
    model = model_of(np.sort(rng.random(d) + 0.1)[::-1].copy(), k=d - 2, tail_var=0.05)
    power, steps = frequency_power(model, shape), max(height, width)
    rings: dict[int, list[tuple[float, Tensor]]] = {}
    for y in range(height):
        for x in range(width):
            radius = math.hypot(min(y, height - y) / height, min(x, width - x) / width)
            rings.setdefault(round(radius * steps), []).append((radius, power[:, y, x]))
    found = radial_power(model, shape)
    assert found.coefficients.tolist() == [len(rings[number]) for number in sorted(rings)]
    for place, number in enumerate(sorted(rings)):
        radii, values = zip(*rings[number], strict=True)
        assert float(found.frequency[place]) == pytest.approx(np.mean(radii))
        assert_close(found.power[:, place], torch.stack(values).mean(0))
    monkeypatch.setattr("manifold.power._BATCH_VALUES", 3 * d)
    assert_close(frequency_power(model, shape), power)


@pytest.mark.parametrize("width", [5, 6])
def test_power_of_the_stationary_model(rng, width):
    shape = (2, 4, width)
    rows = rng.standard_normal((200, 8 * width))
    model = fit_stationary(CrossSpectrum.of(ArrayRows(rows), shape), smoothing=0, dtype=torch.float64)
    stack = rows.reshape(-1, *shape)
    waves = np.fft.fft2(stack - stack.mean((0, 2, 3))[:, None, None], norm="ortho")
    expected = torch.from_numpy((np.abs(waves) ** 2).sum(0) / 199)
    torch.testing.assert_close(frequency_power(model, shape), expected, rtol=1e-5, atol=0)
    with pytest.raises(ShapeError, match="use `resized`"):
        frequency_power(model, (2, width, 4))
    with pytest.raises(ShapeError, match="has 6 values"):
        frequency_power(model, (1, 2, 3))


def test_power_of_an_unknown_model_is_refused():
    class Other(CovarianceModel):
        mean = torch.zeros(6)
        apply = trace = to = tensors = None

    with pytest.raises(InputError, match="not Other"):
        frequency_power(Other(), (1, 2, 3))


def test_subspace_overlap_of_known_bases():
    eye = torch.eye(6, dtype=torch.float64)
    assert_close(subspace_overlap(eye[:, :3], eye[:, :3]), torch.ones(3, dtype=torch.float64))
    assert_close(subspace_overlap(eye[:, :3], eye[:, 3:]), torch.zeros(3, dtype=torch.float64))
    swapped = subspace_overlap(eye[:, [0, 1, 2]], eye[:, [1, 0, 5]])
    assert_close(swapped, torch.tensor([0.0, 1.0, 2 / 3], dtype=torch.float64))


def planted(rng: np.random.Generator, n: int, d: int = 40, strong: int = 6) -> np.ndarray:
    """`strong` directions far above a flat rest: exactly those can be reproduced."""
    scale = np.r_[np.linspace(30, 12, strong), np.ones(d - strong)]
    return (rng.standard_normal((n, d)) * scale) @ np.linalg.qr(rng.standard_normal((d, d)))[0].T


@pytest.mark.parametrize("limit", [4096, 10])
def test_halves_agree_on_the_planted_directions_only(rng, limit, monkeypatch):
    import manifold.reproducibility

    monkeypatch.setattr(manifold.reproducibility, "DENSE_LIMIT", limit)
    rows = planted(rng, 400)
    split = split_half(ArrayRows(rows), 30)
    assert split.rows == 200
    assert 6 <= split.reproducible <= 8
    halves = [np.concatenate(list(RowSubset(ArrayRows(rows), 2, [half]).batches(64))) for half in (0, 1)]
    reference = [np.linalg.eigh(np.cov(half.T))[1][:, ::-1][:, :6] for half in halves]
    expected = np.linalg.norm(reference[0].T @ reference[1]) ** 2 / 6
    assert float(split.overlap[5]) == pytest.approx(expected, rel=1e-4)


def test_halves_agree_where_classes_take_turns(rng):
    """Even rows of one class and odd rows of another: halves that followed the numbers would hold one class each."""
    steep = rng.standard_normal((4000, 6)) * 4.0 ** -np.arange(6)
    steep[1::2] = steep[1::2, ::-1]
    by_number = [np.linalg.eigh(np.cov(steep[half::2].T))[1][:, ::-1][:, :3] for half in (0, 1)]
    assert np.linalg.norm(by_number[0].T @ by_number[1]) ** 2 / 3 < 0.1
    assert float(split_half(ArrayRows(steep)).overlap[1]) > 0.95


def test_noise_is_not_reproducible_and_all_directions_can_be(rng):
    assert split_half(ArrayRows(rng.standard_normal((60, 40)))).reproducible <= 1
    steep = rng.standard_normal((4000, 6)) * 4.0 ** -np.arange(6)
    assert split_half(ArrayRows(steep)).reproducible == 6
    with pytest.raises(InputError, match="at least 4 rows"):
        split_half(ArrayRows(np.zeros((3, 2))))
    with pytest.raises(InputError, match="between 0 and 1"):
        split_half(ArrayRows(steep), threshold=1.0)


@pytest.mark.parametrize("limit", [4096, 10])
def test_directions_without_variance_are_not_compared(rng, limit, monkeypatch):
    """A border of one colour has the same null space in both halves, which says nothing of the data."""
    import manifold.reproducibility

    monkeypatch.setattr(manifold.reproducibility, "DENSE_LIMIT", limit)
    steep = np.zeros((400, 20), dtype=np.float32)
    steep[:, :3] = rng.standard_normal((400, 3)) * [4.0, 2.0, 1.0]
    split = split_half(ArrayRows(steep))
    assert (len(split.overlap), split.reproducible) == (3, 3)
    assert split.chance.tolist() == pytest.approx([1 / 3, 2 / 3, 1.0])
    flat = np.ones((400, 64), dtype=np.float32)
    flat[:, :10] = rng.standard_normal((400, 10))  # no direction of these ten is better than another
    assert split_half(ArrayRows(flat)).reproducible == 0
    still = split_half(ArrayRows(np.ones((20, 5), dtype=np.float32)))
    assert (len(still.overlap), still.reproducible) == (0, 0)


def test_reproducible_directions_end_where_halves_part_for_good(rng):
    """Directions that swap leave their common space as it is; one that is just found again much later is no answer."""
    good, bad = [0.95], [0.85]
    assert _reproducible(good * 9 + bad * 2 + good * 29, 0.9) == 40
    assert _reproducible(bad * 3 + good * 5, 0.9) == 8
    assert _reproducible(good * 50 + bad * 20 + good * 900, 0.9) == 50
    assert _reproducible(bad * 26 + [0.995] + good * 2, 0.9) == 29
    assert _reproducible(bad * 30, 0.9) == _reproducible([], 0.9) == 0
    flat = 0.01 * rng.standard_normal((600, 40))
    flat[:, :20] += rng.standard_normal((600, 20))  # no direction of these twenty before another
    assert 20 <= split_half(ArrayRows(flat)).reproducible <= 22


def test_verdicts():
    rng = np.random.default_rng(4)

    def judge(rows: np.ndarray, rank: int = 1024) -> str:
        moments = Moments(rows.shape[1])
        moments.update(rows)
        split = split_half(ArrayRows(rows), rank)
        return verdict(diagnose(fit_covariance(moments), len(rows), split=split))

    bordered = np.zeros((4000, 9))
    bordered[:, :6] = rng.standard_normal((4000, 6)) * 4.0 ** -np.arange(6)
    assert judge(bordered).startswith("4,000 rows are enough for all 6 of 9 directions that vary: ")
    some = judge(planted(rng, 400))
    assert some.startswith("400 rows are enough for the leading ")
    assert "of 40 directions, 98." in some or "of 40 directions, 99." in some
    assert "agree on them to 90%" in some
    assert "do not agree on even the first of 200" in judge(rng.standard_normal((20, 200)))
    steep = rng.standard_normal((4000, 6)) * 4.0 ** -np.arange(6)
    assert judge(steep) == "4,000 rows are enough for all 6 directions: two halves of the data agree on them to 90%."
    assert "at least 3 of 6 directions" in judge(steep, rank=3)
    moments = Moments(6)
    moments.update(steep)
    two = fit_covariance(moments, "lowrank", 2)
    told = verdict(diagnose(two, 4000, split=split_half(ArrayRows(steep), 3)))
    share = np.linalg.eigvalsh(np.cov(steep.T))[::-1][:2].sum() / np.trace(np.cov(steep.T))
    assert f"at least 3 of 6 directions, over {share:.1%} of the variance" in told, "two are known, three agree"
    with pytest.raises(InputError, match="pass split="):
        verdict(diagnose(model_of(np.ones(4)), 10))


def test_diagnose_gathers_everything(rng):
    rows = planted(rng, 2000, d=48, strong=20)
    moments = Moments(48)
    moments.update(rows)
    model = fit_covariance(moments)
    found = diagnose(model, 2000, shape=(3, 4, 4), split=split_half(ArrayRows(rows)), first=2, last=19)
    assert found.components == components_for(model, SHARES)
    assert found.noise_edge is not None
    assert found.noise_edge.above == 20
    assert (found.power_law.first, found.power_law.last) == (2, 19)
    assert found.channel_variance.shape == (3,)
    assert found.radial_power.power.shape[0] == 3
    assert found.trace == pytest.approx(np.trace(np.cov(rows.T)), rel=1e-5)
    low = diagnose(fit_covariance(moments, "lowrank", 5), 2000)
    assert low.noise_edge is None
    assert low.power_law is None
    assert low.radial_power is None
    with pytest.raises(InputError, match="at least 2, it is 1"):
        diagnose(model, 1)


def test_convergence_approaches_the_whole(rng):
    rows = planted(rng, 3200)
    points = convergence(ArrayRows(rows), 6, first=1, last=30)
    assert [point.count for point in points] == [200, 400, 800, 1600, 3200]
    assert points[-1].overlap == pytest.approx(1.0)
    assert points[0].overlap < points[2].overlap <= 1.0
    variances = np.linalg.eigvalsh(np.cov(rows.T))[::-1]
    assert points[-1].largest == pytest.approx(variances[0], rel=1e-4)
    assert points[-1].trace == pytest.approx(variances.sum(), rel=1e-4)
    law = power_law(torch.from_numpy(variances.copy()), 1, 30)
    assert points[-1].exponent == pytest.approx(law.exponent, rel=1e-4)
    assert points[-1].participation_ratio == pytest.approx(
        np.trace(np.cov(rows.T)) ** 2 / np.linalg.norm(np.cov(rows.T)) ** 2, rel=1e-4
    )
    assert all(point.exponent is not None for point in points)
    assert all(6 <= point.above_noise <= 7 for point in points)
    cumulative = np.linalg.eigvalsh(np.cov(rows.T))[::-1].cumsum() / np.trace(np.cov(rows.T))
    assert points[-1].components == tuple(int((cumulative < share).sum()) + 1 for share in SHARES)
    assert convergence(ArrayRows(rows[:64]), 6, first=1, last=30)[0].exponent is None
    with pytest.raises(InputError, match="one_in must hold 1"):
        convergence(ArrayRows(rows), one_in=(2, 4))


def test_full_covariance_of_identity_is_flat():
    model = FullCovariance(torch.zeros(12), torch.ones(12), torch.eye(12))
    rings = radial_power(model, (3, 2, 2))
    torch.testing.assert_close(rings.power, torch.ones_like(rings.power))


def test_the_line_of_a_power_law_is_the_law_itself():
    """On an exact power law the drawn line meets the first and the last eigenvalue."""
    from manifold.spectrum import power_law_line

    eigvals = 7.0 * torch.arange(1, 201, dtype=torch.float64) ** -1.3
    law = power_law(eigvals, 10, 120)
    ranks, heights = power_law_line(eigvals, law)
    assert ranks == (10, 120)
    np.testing.assert_allclose(heights, [float(eigvals[9]), float(eigvals[119])], rtol=1e-10)


def test_a_model_without_preferred_directions_has_diagnostics():
    flat = isotropic(GaussianManifold.fit(torch.randn(40, 12, generator=torch.Generator().manual_seed(0))))
    found = diagnose(flat.covariance, 40, shape=(3, 2, 2))
    assert (found.components, found.power_law, found.noise_edge) == ((None,) * 5, None, None)
    assert found.trace == pytest.approx(flat.total_variance)
    assert found.largest == pytest.approx(flat.total_variance / 12)
    assert (found.participation_ratio, found.effective_rank) == (pytest.approx(12), pytest.approx(12))


def test_rows_that_are_all_equal_have_no_spectrum():
    rows = torch.ones(40, 12)
    with pytest.raises(InputError, match="are all equal"):
        diagnose(GaussianManifold.fit(rows).covariance, 40)
    for shape in (None, (3, 2, 2)):
        with pytest.raises(InputError, match="all rows are equal"):
            fit_auto(ArrayRows(rows), shape)


def test_convergence_of_hardly_any_rows_is_refused():
    with pytest.raises(InputError, match="at least 4 rows, there are 3"):
        convergence(ArrayRows(np.zeros((3, 8), np.float32)), 6, first=1, last=3)
