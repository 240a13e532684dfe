"""Latents against CLIP embeddings, recomputed with scikit-learn from what lies on disk."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from images import encoded, picture
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.neighbors import NearestNeighbors
from tiny_clip import projection_model

from index.clip import ClipStore, embed_workspace
from index.coordinates import eigen_coordinates
from index.encode import encode_images
from index.fit import fit_workspace
from index.spaces import compare_spaces
from manifold.errors import InputError, NotFittedError

COUNT = 120


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """Pixels of pictures in three groups of brightness, which are their labels."""
    root = tmp_path_factory.mktemp("spaces")
    images, labels = [], []
    for number in range(COUNT):
        label = number % 3
        shown = np.clip(picture(16, 16, number).astype(int) // 3 + 80 * label, 0, 255).astype(np.uint8)
        noise = np.random.default_rng(number).normal(0, 30, (4, 4, 3)).repeat(4, 0).repeat(4, 1)
        images.append({"bytes": encoded(np.clip(shown + noise, 0, 255).astype(np.uint8)), "path": f"{number}.png"})
        labels.append(label)
    pq.write_table(pa.table({"image": images, "label": labels}), root / "pictures.parquet")
    made = encode_images(root / "pictures.parquet", root / "ws", size=16, shard_rows=50, workers=0).root
    fit_workspace(made)
    embed_workspace(made, projection_model(), workers=0)
    return made


def test_every_number_is_that_of_scikit_learn(workspace):
    found = compare_spaces(workspace, ks=(1, 5), directions=4)
    coordinates = eigen_coordinates(workspace).double().numpy()
    embeddings = ClipStore.open(workspace).embeddings().astype(np.float64)
    lists = [NearestNeighbors(n_neighbors=5).fit(rows).kneighbors()[1] for rows in (coordinates, embeddings)]
    labels = np.arange(COUNT) % 3
    assert [agreement.k for agreement in found.neighbours] == [1, 5]
    for agreement in found.neighbours:
        k = agreement.k
        shared = [len(set(a[:k]) & set(b[:k])) / k for a, b in zip(*lists, strict=True)]
        assert agreement.overlap == pytest.approx(np.mean(shared))
        assert agreement.chance == pytest.approx(k / (COUNT - 1))
        assert abs(agreement.null_mean - agreement.chance) < 4 * agreement.null_sd
        edges = [{(i, j) for i in range(COUNT) for j in ids[i, :k] if i < j and i in ids[j, :k]} for ids in lists]
        assert agreement.mutual == pytest.approx(len(edges[0] & edges[1]) / len(edges[0] | edges[1]))
        assert agreement.mutual_null < 0.5 * agreement.mutual
        assert agreement.same_label_latent == pytest.approx((labels[lists[0][:, :k]] == labels[:, None]).mean())
        assert agreement.same_label_clip == pytest.approx((labels[lists[1][:, :k]] == labels[:, None]).mean())
        assert agreement.same_label_chance == pytest.approx(39 / 119)
    assert (found.train, found.test, found.count) == (96, 24, COUNT)
    # The ridge regression again, with the rows split as the comparison says it does.
    order = np.random.default_rng(0).permutation(COUNT)
    test, train = np.sort(order[:24]), np.sort(order[24:])
    pca = PCA(4).fit(embeddings)
    scores = pca.transform(embeddings)
    penalties = np.mean(np.linalg.svd(coordinates[train] - coordinates[train].mean(0))[1] ** 2) * np.logspace(-4, 4, 17)
    ridge = RidgeCV(alphas=penalties, alpha_per_target=True).fit(coordinates[train], scores[train])
    expected = r2_score(scores[test], ridge.predict(coordinates[test]), multioutput="raw_values")
    np.testing.assert_allclose([told.r2 for told in found.directions], expected, atol=2e-4)
    np.testing.assert_allclose([told.share for told in found.directions], pca.explained_variance_ratio_, rtol=1e-5)
    assert found.told == pytest.approx(np.average(expected, weights=pca.explained_variance_), abs=2e-4)


def test_a_linear_view_of_the_pixels_is_told_and_shuffled_rows_are_not(workspace):
    found = compare_spaces(workspace, ks=(5,), directions=3)
    assert found.directions[0].r2 > 0.9
    assert found.directions[0].null_r2 < 0.5  # the luckiest of 20 on 24 rows
    assert found.neighbours[0].overlap > found.neighbours[0].null_mean + 10 * found.neighbours[0].null_sd
    assert compare_spaces(workspace, ks=(5,), directions=3) == found


def test_what_cannot_be_compared_is_said(workspace, tmp_path):
    with pytest.raises(InputError, match="between 1 and 119"):
        compare_spaces(workspace, ks=(120,))
    with pytest.raises(InputError, match="between 1 and CLIP's 20"):
        compare_spaces(workspace, ks=(3,), directions=21)
    bare = encode_images(workspace.parent / "pictures.parquet", tmp_path / "ws", size=16, workers=0).root
    with pytest.raises(NotFittedError, match="no CLIP embeddings yet"):
        compare_spaces(bare)
    embed_workspace(bare, projection_model(), [workspace.parent / "pictures.parquet"], workers=0)
    with pytest.raises(NotFittedError, match="no statistics yet"):
        compare_spaces(bare)


def test_the_clip_space_can_be_mapped(workspace):
    from index.projection import project_map

    made = project_map(workspace, "pca", space="clip", neighbours=5)
    assert made.path.name == "map-clip.parquet"
    embeddings = ClipStore.open(workspace).embeddings().astype(np.float64)
    np.testing.assert_allclose(np.abs(made.points), np.abs(PCA(2).fit_transform(embeddings)), atol=1e-6)
    distances, ids = NearestNeighbors(n_neighbors=5, metric="cosine").fit(embeddings).kneighbors()
    np.testing.assert_array_equal(made.neighbours.ids, ids)
    np.testing.assert_allclose(made.neighbours.distances, distances, atol=1e-6)
