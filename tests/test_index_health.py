"""Likelihoods against SciPy's density, reasons counted, clusters of planted groups."""

import numpy as np
import pytest
import torch
from helpers import make_workspace
from manifold_apps.run import run_images
from PIL import Image
from scipy.stats import multivariate_normal

from index import Workspace
from index.clusters import cluster_rows
from index.fit import fit_workspace
from index.health import reason_counts
from index.likelihoods import _tail, log_likelihoods
from index.statistics import load_manifold
from manifold.covariance import LowRankCovariance
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


@pytest.mark.parametrize("n", [3, 5, 12])
def test_a_few_images_have_likelihoods(n, tmp_path, rng):
    """They vary in fewer directions than usually stand for the whole: half of these are taken."""
    rows = (5 * rng.standard_normal((n, 48))).astype(np.float16)
    root = make_workspace(tmp_path / "ws", rows, shape=(3, 4, 4)).root
    fit_workspace(root)
    exact = rows.astype(np.float64)
    mean, covariance = exact.mean(0), np.cov(exact.T)
    values, vectors = np.linalg.eigh(covariance)
    values, vectors, rank = values[::-1], vectors[:, ::-1], (n - 1) // 2
    tail = values[rank:].sum() / (48 - rank)
    dense = (vectors[:, :rank] * (values[:rank] - tail)) @ vectors[:, :rank].T + tail * np.eye(48)
    np.testing.assert_allclose(log_likelihoods(root), multivariate_normal(mean, dense).logpdf(exact), rtol=1e-4)


def test_a_small_tail_is_summed_not_left_over():
    """A millionth of the variance beyond the rank: the total less the leading ones would keep no digit of it in float32."""
    eigvals = torch.cat([torch.linspace(2000, 1, 256), torch.full((100,), 0.0006)])
    model = LowRankCovariance(torch.zeros(1000), eigvals, torch.eye(1000)[:, :356], 0.0002)
    expected = (100 * 0.0006 + 644 * 0.0002) / 744
    assert _tail(model, 256) == pytest.approx(expected, rel=1e-6)


def test_two_images_have_no_density(tmp_path):
    latents = np.repeat(np.array([1, 2], dtype=np.float16)[:, None], 48, axis=1)
    root = make_workspace(tmp_path / "ws", latents, shape=(3, 4, 4)).root
    fit_workspace(root)
    with pytest.raises(InputError, match="add images with manifold add"):
        log_likelihoods(root)


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
