"""Overlap, mutual pairs and held-out ridge regression against sets, loops and scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics import r2_score

from index import overlap
from index.neighbours import exact_neighbours
from index.overlap import alignment, mutual_pairs, neighbour_overlap, shuffled_lists
from index.ridge import held_out_ridge
from manifold.errors import InputError, NonFiniteError, ShapeError


def lists(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    """Random neighbour lists: no row in its own list, none twice."""
    return np.array([rng.permutation(np.delete(np.arange(n), row))[:k] for row in range(n)])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(4, 25), k=st.integers(1, 3))
def test_overlap_and_pairs_are_those_of_sets(seed, n, k):
    rng = np.random.default_rng(seed)
    a, b = lists(rng, n, 3), lists(rng, n, 3)
    expected = [len(set(a[row, :k]) & set(b[row, :k])) / k for row in range(n)]
    np.testing.assert_array_equal(neighbour_overlap(a, b, k), expected)

    def pairs(ids):
        return {(i, j) for i in range(n) for j in range(i + 1, n) if j in ids[i, :k] and i in ids[j, :k]}

    assert [(code // n, code % n) for code in mutual_pairs(a, k).tolist()] == sorted(pairs(a))
    either = pairs(a) | pairs(b)
    assert alignment(a, b, k) == (len(pairs(a) & pairs(b)) / len(either) if either else 0.0)


def test_a_space_agrees_with_itself_and_with_its_rotation(rng):
    rows = rng.standard_normal((120, 6))
    turned = rows @ np.linalg.qr(rng.standard_normal((6, 6)))[0] * 3 + 5
    a, b = exact_neighbours(rows, 10).ids, exact_neighbours(turned, 10).ids
    assert neighbour_overlap(a, b, 10).mean() == alignment(a, b, 10) == 1


def test_independent_spaces_agree_as_chance_says(rng):
    """The mean over many pairs of independent spaces is k / (n - 1), and so is that of the shuffled null."""
    n, k = 60, 5
    spaces = [exact_neighbours(rng.standard_normal((n, 4)), k).ids for _ in range(40)]
    independent = [neighbour_overlap(a, b, k).mean() for a, b in zip(spaces[::2], spaces[1::2], strict=True)]
    shuffled = [neighbour_overlap(spaces[0], shuffled_lists(spaces[0], rng), k).mean() for _ in range(100)]
    for found in (independent, shuffled):
        error = np.std(found) / len(found) ** 0.5
        assert abs(np.mean(found) - k / (n - 1)) < 4 * error
        assert error < 0.01


def test_shuffled_lists_are_the_same_graph(rng):
    ids = exact_neighbours(rng.standard_normal((40, 3)), 4).ids
    other = shuffled_lists(ids, rng)
    assert sorted(np.bincount(ids.ravel(), minlength=40)) == sorted(np.bincount(other.ravel(), minlength=40))
    assert len(mutual_pairs(ids, 4)) == len(mutual_pairs(other, 4))
    assert not (other == np.arange(40)[:, None]).any()


def test_blocks_change_nothing(rng, monkeypatch):
    a, b = lists(rng, 30, 5), lists(rng, 30, 5)
    whole = neighbour_overlap(a, b, 5)
    monkeypatch.setattr(overlap, "_BLOCK_ENTRIES", 60)
    np.testing.assert_array_equal(neighbour_overlap(a, b, 5), whole)


def test_lists_that_do_not_fit_are_refused(rng):
    a = lists(rng, 10, 3)
    with pytest.raises(ShapeError, match=r"\(10, 3\) and \(10, 2\)"):
        neighbour_overlap(a, a[:, :2], 1)
    with pytest.raises(InputError, match="between 1 and the 3 neighbours"):
        alignment(a, a, 4)


@pytest.mark.parametrize(("n", "p"), [(150, 12), (40, 60)])
def test_ridge_is_that_of_scikit_learn(rng, n, p):
    x = rng.standard_normal((n, p)) * np.linspace(5, 0.1, p) + 3
    y = x @ rng.standard_normal((p, 4)) + rng.standard_normal((n, 4)) * [0.1, 1, 10, 100] + 7
    penalties = np.logspace(-2, 4, 13)
    found = held_out_ridge(x, y, penalties=penalties, shuffles=0, seed=3)
    train, test = found.train, found.test
    assert sorted([*train, *test]) == list(range(n))
    assert len(test) == round(0.2 * n)
    reference = RidgeCV(alphas=penalties, alpha_per_target=True).fit(x[train], y[train])
    np.testing.assert_allclose(found.penalties, reference.alpha_)
    expected = r2_score(y[test], reference.predict(x[test]), multioutput="raw_values")
    np.testing.assert_allclose(found.r2, expected, rtol=1e-8, atol=1e-10)


def test_one_penalty_is_plain_ridge(rng):
    x, y = rng.standard_normal((80, 5)), rng.standard_normal((80, 2))
    y[:, 0] += x[:, 0]
    found = held_out_ridge(x, y, penalties=np.array([2.5]), shuffles=0)
    fit = Ridge(2.5).fit(x[found.train], y[found.train])
    expected = r2_score(y[found.test], fit.predict(x[found.test]), multioutput="raw_values")
    np.testing.assert_allclose(found.r2, expected, rtol=1e-9)


def test_signal_stands_out_from_the_null_and_noise_does_not(rng):
    x = rng.standard_normal((400, 30))
    y = np.column_stack([x[:, 0] + 0.5 * rng.standard_normal(400), rng.standard_normal(400)])
    found = held_out_ridge(x, y, shuffles=50)
    assert found.null_r2.shape == (50, 2)
    assert found.r2[0] > 0.6  # 0.8 without the error of 320 and 80 rows
    assert found.null_r2[:, 0].max() < 0.1
    assert found.null_r2[:, 1].min() <= found.r2[1] <= found.null_r2[:, 1].max() + 0.02
    again = held_out_ridge(x, y, shuffles=50)
    np.testing.assert_array_equal(found.null_r2, again.null_r2)


def test_a_target_without_variance_has_no_r2(rng):
    y = np.column_stack([np.ones(30), rng.standard_normal(30)])
    found = held_out_ridge(rng.standard_normal((30, 3)), y, shuffles=2)
    assert np.isnan(found.r2[0])
    assert np.isfinite(found.r2[1])


def test_ridge_says_what_it_cannot_use(rng):
    x, y = rng.standard_normal((10, 3)), rng.standard_normal((10, 2))
    with pytest.raises(ShapeError, match=r"\(10, 3\) and \(9, 2\)"):
        held_out_ridge(x, y[:9])
    with pytest.raises(InputError, match="at least 2 rows to test"):
        held_out_ridge(x, y, held_out=0.01)
    with pytest.raises(InputError, match="penalties must be above 0"):
        held_out_ridge(x, y, penalties=np.array([0.0, 1.0]))
    y[3, 1] = np.inf
    with pytest.raises(NonFiniteError, match="row 3 of the targets"):
        held_out_ridge(x, y)


@pytest.mark.filterwarnings("error")
def test_equal_points_are_grouped_without_a_warning():
    import torch

    from index.clusters import cluster_rows

    assert len(cluster_rows(torch.ones(12, 3, requires_grad=True), 3)) == 12
