"""The posterior over a collection beside Bayes' rule in float64, where float32 products cannot tell rows apart."""

import numpy as np
import pytest
import torch
from scipy.special import softmax

from index.posterior import posterior
from manifold.rows import ArrayRows


class Rows(ArrayRows):
    """An array as a store that also reads single rows."""

    def read(self, numbers):
        return self._array[numbers]


class CountedRows(Rows):
    """And counts them."""

    count = 0

    def read(self, numbers):
        self.count += len(numbers)
        return super().read(numbers)


def by_bayes(x, x_t, sigma, k):
    """Ids and probabilities by a sum over all rows in float64, ties by row number."""
    squared = np.square(x_t.double().numpy()[:, None] - x.astype(np.float64)[None]).sum(2)
    shares = softmax(-squared / (2 * sigma[:, None] ** 2), axis=1)
    ids = np.argsort(squared, axis=1, kind="stable")[:, :k]
    return ids, np.take_along_axis(shares, ids, axis=1)


def asked(x, x_t, sigma, k, alpha=1.0):
    return posterior(Rows(x), torch.from_numpy(x.astype(np.float64).mean(0)).float(), x_t,
                     np.full(len(x_t), alpha), sigma, k)  # fmt: skip


@pytest.mark.parametrize("sigma", [0.003, 0.01, 0.1, 1.0, 10.0, 300.0])
def test_more_equal_rows_than_are_asked_for(sigma):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 768)).astype(np.float16)
    x[100:300] = x[100]
    x_t = torch.from_numpy((x[100] + 0.01 * rng.standard_normal((3, 768))).astype(np.float32))
    levels = np.full(3, sigma)
    ids, probabilities = asked(x, x_t, levels, 10)
    wanted_ids, wanted = by_bayes(x, x_t, levels, 10)
    np.testing.assert_array_equal(ids, wanted_ids)
    np.testing.assert_allclose(probabilities, wanted, rtol=1e-3)
    every_id, every = asked(x, x_t, levels, 300)
    np.testing.assert_array_equal(every_id[:, :10], ids)
    np.testing.assert_allclose(every[:, :10], probabilities, rtol=1e-3)


@pytest.mark.parametrize("offset", [0.0, 500.0])
def test_rows_that_nearly_coincide_under_noise_of_any_size(offset):
    """A cloud so dense that its rows differ by a few units in the last place of float16."""
    rng = np.random.default_rng(1)
    x = (offset + rng.standard_normal(256) + 1e-3 * rng.standard_normal((500, 256))).astype(np.float16)
    sigma = np.geomspace(1e-3, 1e4, 15)
    x_t = torch.from_numpy((x[:15] + sigma[:, None] * rng.standard_normal((15, 256))).astype(np.float32))
    ids, probabilities = asked(x, x_t, sigma, 20)
    wanted_ids, wanted = by_bayes(x, x_t, sigma, 20)
    np.testing.assert_array_equal(ids, wanted_ids)
    np.testing.assert_allclose(probabilities, wanted, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("k", [3, 50])
def test_rows_that_nearly_coincide_far_from_the_mean(k):
    """Two clouds apart: float32 products are off by more than the rows of one cloud differ in their distance."""
    rng = np.random.default_rng(5)
    centre = 100 * rng.choice([-1.0, 1.0], 256)
    x = (centre * rng.choice([-1.0, 1.0], (600, 1)) + 0.1 * rng.standard_normal((600, 256))).astype(np.float16)
    x_t = torch.from_numpy((x[:12] + 0.5 * rng.standard_normal((12, 256))).astype(np.float32))
    levels = np.full(12, 0.5)
    ids, probabilities = asked(x, x_t, levels, k)
    wanted_ids, wanted = by_bayes(x, x_t, levels, k)
    np.testing.assert_array_equal(ids, wanted_ids)
    np.testing.assert_allclose(probabilities, wanted, rtol=1e-2)


def test_where_all_rows_are_weighty_few_are_read_again():
    """Long rows under much noise: float32 cannot vouch for any probability, and float64 products can for nearly all."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((300, 20_000)).astype(np.float16)
    for sigma in (20.0, 30.0, 40.0):
        x_t = torch.from_numpy((x[:4] + sigma * rng.standard_normal((4, 20_000))).astype(np.float32))
        levels, store = np.full(4, sigma), CountedRows(x)
        ids, probabilities = posterior(store, torch.zeros(20_000), x_t, np.ones(4), levels, 3)
        wanted_ids, wanted = by_bayes(x, x_t, levels, 3)
        np.testing.assert_array_equal(ids, wanted_ids)
        np.testing.assert_allclose(probabilities, wanted, rtol=1e-3, atol=1e-12)
        assert store.count < 4 * 100


def test_many_states_near_to_many_rows_are_asked_in_parts(monkeypatch):
    monkeypatch.setattr("index.posterior._HELD", 2000)
    rng = np.random.default_rng(4)
    x = np.repeat(rng.standard_normal((2, 32)), 150, axis=0).astype(np.float16)
    x_t = torch.from_numpy((x[:40] + 0.1 * rng.standard_normal((40, 32))).astype(np.float32))
    levels = np.full(40, 0.1)
    ids, probabilities = asked(x, x_t, levels, 5)
    wanted_ids, wanted = by_bayes(x, x_t, levels, 5)
    np.testing.assert_array_equal(ids, wanted_ids)
    np.testing.assert_allclose(probabilities, wanted, rtol=1e-3)


def test_neither_how_many_states_come_nor_where_they_are_cut_changes_a_bit():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((900, 64)).astype(np.float16)
    x_t = torch.from_numpy(rng.standard_normal((1500, 64)).astype(np.float32))
    sigma = np.geomspace(0.05, 50, 1500)
    ids, probabilities = asked(x, x_t, sigma, 5)
    wanted_ids, wanted = by_bayes(x, x_t, sigma, 5)
    np.testing.assert_array_equal(ids, wanted_ids)
    np.testing.assert_allclose(probabilities, wanted, rtol=1e-3)
    for part in (slice(0, 1), slice(700, 1400), slice(1499, 1500)):
        some, shares = asked(x, x_t[part], sigma[part], 5)
        np.testing.assert_array_equal(some, ids[part])
        np.testing.assert_array_equal(shares, probabilities[part])


@pytest.mark.parametrize("sigma", [0.5, 5.0, 50.0])
def test_states_have_the_same_bits_alone_and_on_any_number_of_threads(sigma):
    """Over many batches of rows, most of which no state is near to."""
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((20_000, 48)) * 3 / np.arange(1, 49)).astype(np.float16)
    x_t = torch.from_numpy((x[:60] + sigma * rng.standard_normal((60, 48))).astype(np.float32))
    levels, threads = np.full(60, sigma), torch.get_num_threads()
    ids, probabilities = asked(x, x_t, levels, 10)
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            for size in (1, 7, 60):
                for low in range(0, 60, size):
                    part = slice(low, low + size)
                    some, shares = asked(x, x_t[part], levels[part], 10)
                    np.testing.assert_array_equal(some, ids[part])
                    np.testing.assert_array_equal(shares, probabilities[part])
    finally:
        torch.set_num_threads(threads)
