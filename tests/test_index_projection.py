"""Maps: columns as embedding-atlas reads them, exact neighbours, two runs the same, and structure kept."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import make_workspace
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from index import projection
from index.coordinates import eigen_coordinates, principal_scores
from index.fit import fit_workspace
from index.projection import project_map
from index.workspace import Workspace
from manifold.errors import InputError, MissingExtraError, NotFittedError

needs_umap = pytest.mark.skipif(
    importlib.util.find_spec("umap") is None, reason="needs umap-learn: pip install 'latent-manifold[map]'"
)
COUNT, D = 90, 48


@pytest.fixture(scope="module")
def clusters() -> np.ndarray:
    """Three groups of 30 rows, far apart in 48 dimensions."""
    rng = np.random.default_rng(3)
    centres = 6 * rng.standard_normal((3, D))
    return (np.repeat(centres, COUNT // 3, axis=0) + rng.standard_normal((COUNT, D))).astype(np.float16)


@pytest.fixture(scope="module")
def workspace(clusters, tmp_path_factory) -> Path:
    labels = np.repeat([0, 1, 2], COUNT // 3).tolist()
    root = make_workspace(tmp_path_factory.mktemp("map") / "ws", clusters, (3, 4, 4), labels, shard_rows=40).root
    fit_workspace(root)
    return root


def test_eigen_coordinates_are_those_of_pca_in_row_order(workspace, clusters):
    found = eigen_coordinates(workspace, k=5).numpy()
    expected = PCA(5).fit_transform(clusters.astype(np.float64))
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found, expected * signs, atol=1e-3)


def test_the_table_has_the_columns_that_embedding_atlas_reads(workspace, clusters):
    made = project_map(workspace, "pca", neighbours=6)
    assert made.path == workspace / "map" / "map.parquet"
    table = pq.read_table(made.path)
    assert table.num_rows == COUNT
    assert {"image_path", "key", "label", "projection_x", "projection_y", "neighbors"} == set(table.column_names)
    kind = table.schema.field("neighbors").type
    assert pa.types.is_struct(kind)
    assert {field.name: field.type.value_type for field in kind} == {"ids": pa.int64(), "distances": pa.float64()}
    rows = table.to_pylist()
    assert [row["image_path"] for row in rows] == [f"{number:06d}.png" for number in range(COUNT)]
    assert [row["label"] for row in rows] == np.repeat([0, 1, 2], COUNT // 3).tolist()
    coordinates = eigen_coordinates(workspace).double().numpy()
    distances, ids = NearestNeighbors(n_neighbors=6, algorithm="brute").fit(coordinates).kneighbors()
    assert [row["neighbors"]["ids"] for row in rows] == ids.tolist()
    np.testing.assert_allclose([row["neighbors"]["distances"] for row in rows], distances, rtol=1e-5)
    facts = json.loads(table.schema.metadata[b"manifold"])
    assert facts["method"] == "pca"
    assert facts["space"] == "latent"


def test_pca_is_the_two_leading_coordinates(workspace, clusters):
    made = project_map(workspace, "pca")
    np.testing.assert_allclose(made.points, eigen_coordinates(workspace, k=2).numpy(), rtol=1e-5, atol=1e-5)


def test_principal_scores_are_those_of_scikit_learn(rng):
    rows = rng.standard_normal((50, 7)) * np.arange(1, 8) + 3
    reference = PCA(2).fit(rows)
    found, variances = principal_scores(rows, 2)
    np.testing.assert_allclose(np.abs(found), np.abs(reference.transform(rows)), rtol=1e-8)
    np.testing.assert_allclose(variances, reference.explained_variance_ * 49 / 50)


@needs_umap
def test_umap_keeps_the_groups_and_is_the_same_twice(workspace, tmp_path):
    copy = tmp_path / "ws"
    shutil.copytree(workspace, copy)
    made, again = project_map(copy, neighbours=8, seed=4), project_map(workspace, neighbours=8, seed=4)
    np.testing.assert_array_equal(made.points, again.points)
    assert made.path.read_bytes() == again.path.read_bytes()
    labels = made.labels
    _, ids = NearestNeighbors(n_neighbors=5).fit(made.points).kneighbors()
    assert (labels[ids] == labels[:, None]).mean() > 0.99
    other = project_map(copy, neighbours=8, seed=5)
    assert np.abs(other.points - made.points).max() > 0
    np.testing.assert_array_equal(other.neighbours.ids, made.neighbours.ids)


@needs_umap
def test_umap_needs_no_more_neighbours_than_there_are_rows(rng, tmp_path):
    root = make_workspace(tmp_path / "ws", rng.standard_normal((6, 12)), (3, 2, 2)).root
    fit_workspace(root)
    made = project_map(root, neighbours=15)
    assert made.neighbours.ids.shape == (6, 5)
    assert np.isfinite(made.points).all()


def test_without_umap_the_error_names_the_extra(workspace, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'latent-manifold\[map\]'"):
        project_map(workspace)
    project_map(workspace, "pca")


def test_what_cannot_be_mapped_is_said(workspace, rng, tmp_path):
    with pytest.raises(InputError, match="umap or pca"):
        project_map(workspace, "tsne")
    with pytest.raises(InputError, match="at least 2"):
        project_map(workspace, "pca", neighbours=1)
    root = make_workspace(tmp_path / "few", rng.standard_normal((3, 12)), (3, 2, 2)).root
    with pytest.raises(InputError, match="at least 4 images"):
        project_map(root, "pca")
    fit_workspace(make_workspace(tmp_path / "line", rng.standard_normal((9, 12)), (3, 2, 2)).root, rank=1)
    with pytest.raises(InputError, match=r"needs two directions, .* has one"):
        project_map(tmp_path / "line", "pca")
    root = make_workspace(tmp_path / "unfitted", rng.standard_normal((9, 12)), (3, 2, 2)).root
    with pytest.raises(NotFittedError, match="manifold fit"):
        project_map(root, "pca")
    with pytest.raises(NotFittedError, match="manifold clip"):
        project_map(workspace, "pca", space="clip")


def test_a_map_leaves_no_temporary_files_and_the_workspace_whole(workspace):
    from index.verify import verify_workspace

    project_map(workspace, "pca")
    assert not list(workspace.rglob(".tmp*"))
    assert verify_workspace(workspace).whole
    assert projection.map_path(Workspace.open(workspace), "clip").name == "map-clip.parquet"
