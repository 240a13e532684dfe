"""Groups of near-duplicates against SciPy's connected components over all pairs in float64."""

import numpy as np
import pytest
from helpers import make_workspace
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist

import index.duplicates
from index.add import add_images
from index.build import build_index
from index.duplicates import default_threshold, find_duplicates
from index.encode import encode_images
from index.faiss_io import KINDS
from index.fit import fit_workspace
from manifold.errors import InputError, NotFittedError


def reference(latents: np.ndarray, threshold: float) -> list[list[int]]:
    """Components of at least two rows, largest first, then by first row."""
    double = latents.astype(np.float64)
    count, labels = connected_components(cdist(double, double) <= threshold, directed=False)
    groups = [np.flatnonzero(labels == label).tolist() for label in range(count)]
    return sorted((group for group in groups if len(group) > 1), key=lambda group: (-len(group), group[0]))


def doubled(rng, n: int = 500, d: int = 40) -> np.ndarray:
    """Rows, equal copies of some, noisy copies of others, and a chain whose links are near and whose ends are not."""
    rows = rng.standard_normal((n, d)) * 3 / np.arange(1, d + 1) ** 0.5
    copies = rows[rng.integers(0, n, 60)]
    noisy = rows[rng.integers(0, n, 80)] + 0.05 * rng.standard_normal((80, d))
    chain = rows[7] + np.arange(1, 15)[:, None] * 0.1 * rng.standard_normal(d)
    everything = np.concatenate([rows, copies, noisy, chain]).astype(np.float16)
    return everything[rng.permutation(len(everything))]


@pytest.fixture
def latents(rng):
    return doubled(rng)


@pytest.fixture
def root(tmp_path, latents):
    root = make_workspace(tmp_path / "ws", latents, labels=list(range(len(latents))), shard_rows=200).root
    fit_workspace(root)
    build_index(root, rank=16)
    return root


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 1.0, 2.5, 4.0, 1e3])
def test_groups_are_connected_components(root, latents, threshold, monkeypatch):
    monkeypatch.setattr(index.duplicates, "_BLOCK", 64)
    monkeypatch.setattr(index.duplicates, "_TILE", 100)
    monkeypatch.setattr(index.duplicates, "_MEASURED_AT_ONCE", 50)
    found = find_duplicates(root, threshold=threshold)
    assert [group.tolist() for group in found.groups] == reference(latents, threshold)
    assert found.threshold == threshold


def test_default_threshold_is_from_the_data(root, latents):
    found = find_duplicates(root)
    rms = np.sqrt(2 * np.cov(latents.astype(np.float64).T).trace())
    assert found.typical_distance == pytest.approx(rms, rel=1e-5)
    assert found.threshold == pytest.approx(0.1 * rms, rel=1e-5)
    assert default_threshold(rms**2 / 2) == pytest.approx(0.1 * rms)
    assert [group.tolist() for group in found.groups] == reference(latents, found.threshold)
    assert found.surplus == sum(len(group) - 1 for group in found.groups)


def test_distances_are_from_the_first_of_the_group(root, latents):
    double = latents.astype(np.float64)
    found = find_duplicates(root)
    for group, distances in zip(found.groups, found.distances, strict=True):
        np.testing.assert_allclose(distances, np.linalg.norm(double[group] - double[group[0]], axis=1))
    assert max(map(max, found.distances)) > found.threshold, "a chain is longer than its links"


def test_a_table_names_the_images(root):
    found = find_duplicates(root)
    table = found.table()
    assert table.column_names[:3] == ["group", "row", "distance"]
    assert table.column("row").to_pylist() == np.concatenate(found.groups).tolist()
    assert table.column("label").to_pylist() == table.column("row").to_pylist()
    expected = [number for number, group in enumerate(found.groups) for _ in group]
    assert table.column("group").to_pylist() == expected
    assert find_duplicates(root, threshold=0.001).table().num_rows < len(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_index_gives_the_same(root, latents, kind):
    build_index(root, kind=kind)
    assert [group.tolist() for group in find_duplicates(root, threshold=0.5).groups] == reference(latents, 0.5)


def test_an_offset_and_an_older_basis_change_nothing(tmp_path, rng):
    latents = (doubled(rng).astype(np.float64) + 200).astype(np.float16)
    folder = tmp_path / "vectors"
    folder.mkdir()
    np.save(folder / "a_0.npy", latents[:400])
    root = encode_images(folder, tmp_path / "ws").root
    fit_workspace(root)
    build_index(root, rank=30)
    np.save(folder / "a_1.npy", latents[400:])
    add_images(folder, root)
    for threshold in (0.0, 0.6):
        found = find_duplicates(root, threshold=threshold)
        assert [group.tolist() for group in found.groups] == reference(latents, threshold)


def test_a_collection_without_duplicates(tmp_path, rng):
    root = make_workspace(tmp_path / "ws", rng.standard_normal((100, 30))).root
    fit_workspace(root)
    build_index(root)
    found = find_duplicates(root)
    assert found.groups == ()
    assert found.table().num_rows == 0
    assert found.surplus == 0


def test_progress_and_errors(root, tmp_path, rng):
    told = []
    find_duplicates(root, progress=lambda *now: told.append(now))
    stages = [stage for stage, _, _ in told]
    assert stages == sorted(stages, reverse=True), "first project, then compare"
    assert told[-1][1] == told[-1][2]
    with pytest.raises(InputError, match="must be a distance between 0 and 1e\\+100, it is -1"):
        find_duplicates(root, threshold=-1)
    bare = make_workspace(tmp_path / "bare", rng.standard_normal((10, 5))).root
    fit_workspace(bare)
    with pytest.raises(NotFittedError, match="has no index yet"):
        find_duplicates(bare)
