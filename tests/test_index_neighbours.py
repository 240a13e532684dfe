"""Exact neighbour lists against scikit-learn, with ties, offsets and every block size."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from index import neighbours
from index.neighbours import exact_neighbours
from manifold.errors import InputError, NonFiniteError, ShapeError


def reference(rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """All distances in float64 from the differences, sorted by distance and then by row number."""
    distances = np.sqrt(((rows[:, None].astype(np.float64) - rows[None]) ** 2).sum(2))
    np.fill_diagonal(distances, np.inf)
    ids = np.lexsort((np.broadcast_to(np.arange(len(rows)), distances.shape), distances), axis=1)[:, :k]
    return ids, np.take_along_axis(distances, ids, 1)


@pytest.mark.parametrize("block_bytes", [1, 4 * 300 * 7, 2**26])
def test_equal_to_scikit_learn_whatever_the_block(rng, monkeypatch, block_bytes):
    monkeypatch.setattr(neighbours, "_BLOCK_BYTES", block_bytes)
    rows = rng.standard_normal((300, 12)).astype(np.float32)
    found = exact_neighbours(rows, 9)
    distances, ids = NearestNeighbors(n_neighbors=10, algorithm="brute").fit(rows.astype(np.float64)).kneighbors()
    np.testing.assert_array_equal(found.ids, ids[:, :9])
    np.testing.assert_allclose(found.distances, distances[:, :9], rtol=1e-6)


def test_ties_go_to_the_lower_row_and_a_row_is_not_its_own_neighbour(rng):
    rows = rng.integers(0, 3, (60, 3)).astype(np.float32)
    found = exact_neighbours(rows, 59)
    ids, distances = reference(rows, 59)
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_allclose(found.distances, distances, atol=1e-6)
    assert not (found.ids == np.arange(60)[:, None]).any()


def test_a_large_shared_offset_does_not_change_the_lists(rng):
    rows = rng.integers(-8, 9, (200, 6)).astype(np.float32) / 8
    np.testing.assert_array_equal(exact_neighbours(rows + 512, 5).ids, exact_neighbours(rows, 5).ids)


def test_products_alone_would_fail_where_this_passes(rng):
    """Near twins far from the mean: float32 products put wrong rows first and lose the distance."""
    twins = np.repeat(rng.standard_normal((40, 30)) * 100, 2, axis=0)
    rows = (twins + rng.standard_normal((80, 30)) * 1e-3).astype(np.float32)
    found = exact_neighbours(rows, 1)
    _, distances = reference(rows, 1)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-3)
    points = torch.from_numpy(rows)
    products = (points.square().sum(1)[:, None] + points.square().sum(1) - 2 * points @ points.T).fill_diagonal_(1e9)
    naive = products.clamp_min(0).sqrt().min(1).values.numpy()
    assert np.abs(naive / distances[:, 0] - 1).max() > 0.1


def test_progress_reaches_the_end(rng):
    seen = []
    exact_neighbours(rng.standard_normal((50, 4)), 3, progress=lambda *step: seen.append(step))
    assert seen[0] == ("neighbours", 0, 50)
    assert seen[-1] == ("neighbours", 50, 50)


def test_what_cannot_be_used_is_said(rng):
    rows = rng.standard_normal((10, 3))
    with pytest.raises(InputError, match="between 1 and 9"):
        exact_neighbours(rows, 10)
    with pytest.raises(ShapeError, match=r"\(n, d\)"):
        exact_neighbours(rows[0], 1)
    rows[4, 1] = np.nan
    with pytest.raises(NonFiniteError, match="row 4"):
        exact_neighbours(rows, 2)


@pytest.mark.parametrize("case", ["two far groups", "near duplicates", "many equal rows", "float64"])
def test_lists_are_exact_where_products_in_float32_cannot_tell(rng, case):
    if case == "two far groups":
        rows = np.repeat([[100.0] * 8, [-100.0] * 8], 150, axis=0) + 0.01 * rng.standard_normal((300, 8))
    elif case == "near duplicates":
        unit = rng.standard_normal((3, 256))
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        rows = (np.repeat(unit, 80, axis=0) + 3e-5 * rng.standard_normal((240, 256))).astype(np.float32)
    elif case == "many equal rows":
        rows = np.repeat(rng.standard_normal((2, 5)), 60, axis=0)
    else:
        rows = np.array([[1.0], [1 + 1e-9], [1 + 3e-9], [1 + 7e-9]])
    k = min(10, len(rows) - 1)
    found = exact_neighbours(rows, k)
    ids, distances = reference(rows, k)
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-9, atol=1e-15)
