"""Likelihoods against SciPy's density, near-duplicates against brute force, clusters of planted groups."""

import numpy as np
import pytest
import torch
from manifold_apps.run import run_images
from PIL import Image
from scipy.stats import multivariate_normal

from index import Workspace
from index.clusters import cluster_rows
from index.health import near_duplicates, reason_counts
from index.likelihoods import log_likelihoods
from index.statistics import load_manifold
from manifold.errors import InputError


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    root = tmp_path_factory.mktemp("health")
    (root / "pictures").mkdir()
    rng = np.random.default_rng(3)
    for number in range(90):
        coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)).resize(
            (6, 6), Image.Resampling.BICUBIC
        )
        coarse.save(root / "pictures" / f"{number:03d}.png")
        if number in (10, 40):
            nearly = np.clip(np.asarray(coarse).astype(int) + rng.integers(-2, 3, (6, 6, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(nearly).save(root / "pictures" / f"{number:03d}-copy.png")
    board = (np.indices((6, 6)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(np.repeat(board[..., None], 3, axis=2)).save(root / "pictures" / "board.png")
    return run_images(root / "pictures", root / "ws", encoder="pixels", size=6, workers=0)


def latents(workspace: Workspace) -> np.ndarray:
    return workspace.latents.read(np.arange(len(workspace.latents))).astype(np.float64)


def test_likelihoods_are_those_of_the_gaussian_written_out(workspace):
    fitted = load_manifold(workspace).to(dtype=torch.float64)
    rank, d = 12, fitted.d
    values, vectors = fitted.eigvals.numpy()[:rank], fitted.eigvecs.numpy()[:, :rank]
    tail = (fitted.total_variance - values.sum()) / (d - rank)
    covariance = (vectors * (values - tail)) @ vectors.T + tail * np.eye(d)
    wanted = multivariate_normal(fitted.mean.numpy(), covariance).logpdf(latents(workspace))
    np.testing.assert_allclose(log_likelihoods(workspace, k=rank).numpy(), wanted, rtol=1e-4)


def test_a_strange_picture_comes_last(workspace):
    """Among smooth pictures a chessboard, once it has no direction of its own: with many, it takes one."""
    found = log_likelihoods(workspace, k=6)
    keys = workspace.latents.metadata(["key"]).column("key").to_pylist()
    assert keys[int(found.argmin())] == "board"
    with pytest.raises(InputError, match="rank must lie between"):
        log_likelihoods(workspace, k=10_000)


@pytest.mark.parametrize("threshold", [0.02, 0.1, 0.35])
def test_near_duplicates_are_those_of_brute_force(workspace, threshold):
    rows = latents(workspace)
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    typical = np.sqrt(2 * load_manifold(workspace).total_variance)
    first, second = np.nonzero(np.triu(distances <= threshold * typical, 1))
    found = near_duplicates(workspace, threshold)
    assert {tuple(pair) for pair in found.pairs} == set(zip(first.tolist(), second.tolist(), strict=True))
    assert found.typical == pytest.approx(typical)
    np.testing.assert_allclose(found.distances, [distances[a, b] for a, b in found.pairs], atol=1e-9)
    assert (np.diff(found.relative) >= 0).all()


def test_the_planted_copies_are_found(workspace):
    keys = workspace.latents.metadata(["key"]).column("key").to_pylist()
    named = {frozenset(keys[row] for row in pair) for pair in near_duplicates(workspace, 0.1).pairs}
    assert named == {frozenset({"010", "010-copy"}), frozenset({"040", "040-copy"})}
    with pytest.raises(InputError, match="above 0 and below 1"):
        near_duplicates(workspace, 1.0)


def test_reasons_are_counted_most_frequent_first():
    rejects = [{"reason": reason} for reason in ("truncated", "empty file", "truncated", "damaged")]
    assert list(reason_counts(rejects).items()) == [("truncated", 2), ("damaged", 1), ("empty file", 1)]


def test_planted_groups_are_told_apart(rng):
    centres = 20 * np.eye(3, 5)
    truth = np.repeat([0, 1, 2], [50, 30, 20])
    rows = centres[truth] + rng.normal(size=(100, 5))
    assert np.array_equal(cluster_rows(rows, 3), truth), "numbered by size"
    assert np.array_equal(cluster_rows(rows, 3), cluster_rows(rows, 3))
    with pytest.raises(InputError, match="must number 1 to 100"):
        cluster_rows(rows, 101)
