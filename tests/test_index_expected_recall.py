"""The expected recall against what is found in Gaussian data by brute force."""

import numpy as np
import pytest

from index.expected_recall import expected_recall, gathered


def found_recall(eigvals, k, error_share, n, candidates, rng, queries=150):
    x = rng.standard_normal((n, len(eigvals))) * np.sqrt(eigvals)
    q = rng.standard_normal((queries, len(eigvals))) * np.sqrt(eigvals)
    share = 1 - error_share
    stored = share * x[:, :k] + np.sqrt(error_share * share * eigvals[:k]) * rng.standard_normal((n, k))
    true = (x**2).sum(1) - 2 * q @ x.T
    near = (stored**2).sum(1) - 2 * q[:, :k] @ stored.T
    kept = [np.isin(np.argsort(t)[:10], np.argsort(a)[:candidates]).mean() for t, a in zip(true, near, strict=True)]
    return float(np.mean(kept))


@pytest.mark.parametrize("power", [1.0, 1.6])
@pytest.mark.parametrize(("k", "error_share"), [(16, 0.0), (48, 0.0), (120, 0.0), (48, 0.1), (48, 0.3)])
def test_agrees_with_brute_force_on_gaussian_data(power, k, error_share, rng):
    eigvals = np.arange(1, 401) ** -power
    errors = eigvals.copy()
    errors[:k] *= error_share
    expected = expected_recall(eigvals, errors, 8000, 50)
    assert expected == pytest.approx(found_recall(eigvals, k, error_share, 8000, 50, rng), abs=0.1)


def test_exact_coordinates_find_what_faiss_found():
    """The shares that FAISS found among 20,000 Gaussian rows, as the module states them."""
    eigvals = 1 / np.arange(1, 4097)
    for k, found in ((64, 0.965), (96, 0.984), (128, 0.995), (192, 0.999)):
        errors = np.where(np.arange(4096) < k, 0.0, eigvals)
        assert expected_recall(eigvals, errors, 20_000, 50) == pytest.approx(found, abs=0.005)


def test_gathered_modes_stand_for_nearly_equal_ones():
    """Each for its share of the variance, none for modes more than 5 % apart; and the recall expected is the same."""
    eigvals = np.r_[1 / np.arange(1, 4001), np.zeros(96)]
    variances, weights = gathered(eigvals, 100)
    np.testing.assert_array_equal(variances[:100], eigvals[:100])
    assert set(weights[:100]) == {1}
    assert len(variances) < 200
    stops = np.cumsum(weights).astype(int)
    assert stops[-1] == 4000
    for start, stop, variance in zip(stops - weights.astype(int), stops, variances, strict=True):
        assert eigvals[start] <= 1.05 * eigvals[stop - 1] * (1 + 1e-12)
        assert variance == pytest.approx(eigvals[start:stop].mean())
    errors, few = (np.where(np.arange(len(one)) < 100, 0.0, one) for one in (eigvals, variances))
    whole = expected_recall(eigvals, errors, 20_000, 50)
    assert expected_recall(variances, few, 20_000, 50, weights=weights) == pytest.approx(whole, abs=0.002)


def test_grows_with_coordinates_and_candidates_and_falls_with_rows():
    eigvals = 1 / np.arange(1, 1001)

    def at(k=64, candidates=50, count=10**5):
        return expected_recall(eigvals, np.where(np.arange(1000) < k, 0.0, eigvals), count, candidates)

    for values in (
        [at(k=k) for k in (8, 16, 32, 64, 128, 256)],
        [at(candidates=candidates) for candidates in (10, 20, 50, 100, 500)],
        [at(count=count) for count in (10**8, 10**7, 10**6, 10**5, 10**4)],
    ):
        assert values == sorted(values)
        assert values[-1] - values[0] > 0.01


def test_limits():
    eigvals = 1 / np.arange(1, 101)
    assert expected_recall(eigvals, 0 * eigvals, 10**6, 10) > 0.95
    assert expected_recall(eigvals, eigvals, 10**6, 10) < 0.01
    assert expected_recall(eigvals, eigvals, 100, 50) == 1.0
    assert expected_recall(np.zeros(5), np.zeros(5), 10**6, 10) == 1.0
