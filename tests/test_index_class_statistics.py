"""Statistics of classes beside those of all rows: as NumPy has them, resumed, extended, shrunk, verified."""

import json

import numpy as np
import pytest
import torch
from helpers import assert_close, make_workspace

from index.fit import fit_workspace
from index.latents import LatentStore
from index.remove import remove_images
from index.statistics import load_class_statistics
from index.verify import verify_workspace
from index.workspace import Workspace
from manifold.class_flow import ClassFlow
from manifold.errors import InputError, ManifoldWarning, MismatchError, NotFittedError
from manifold.guidance import ClassGuidance

NAMES = ("moments.safetensors", "stats.safetensors", "class_means.safetensors", "class_moments.safetensors")


@pytest.fixture
def labels(rng):
    found = rng.integers(0, 3, 300).tolist()
    found[7] = None
    return found


@pytest.fixture
def latents(rng, labels):
    shift = np.array([2.0 if label is None else float(label) for label in labels])
    return (rng.standard_normal((300, 12)) @ rng.standard_normal((12, 12)) + 6 * shift[:, None]).astype(np.float16)


@pytest.fixture
def root(tmp_path, latents, labels):
    return make_workspace(tmp_path / "ws", latents, shape=(3, 2, 2), labels=labels, shard_rows=90).root


def of_class(latents, labels, label):
    return latents[[one == label for one in labels]].astype(np.float64)


def test_each_class_has_its_own_gaussian(root, latents, labels):
    fit_workspace(root)
    found = load_class_statistics(root)
    assert found.labels == (0, 1, 2)
    assert not found.pooled
    for place, label in enumerate(found.labels):
        mine = of_class(latents, labels, label)
        assert found.counts[place] == len(mine)
        assert_close(found.means[place], torch.from_numpy(mine.mean(0)))
        eigvals = np.linalg.eigvalsh(np.cov(mine.T))[::-1].copy()
        assert_close(found.manifolds[label].eigvals, torch.from_numpy(eigvals))
        assert found.manifolds[label].shape == (3, 2, 2)
    states = torch.from_numpy(latents).float()
    told = ClassGuidance(found.mixture()).log_prob(1, states, 1.0, 0.5).exp() > 0.5
    assert (told.numpy() == np.array([label == 1 for label in labels])).mean() > 0.9
    flow = ClassFlow(fit_workspace(root), found.manifolds, [0, 1])
    assert flow.solve(states[:2], 0.1, 1.0, 1.0, 0.1).shape == (2, 12)


def test_or_the_covariance_that_all_share(root, latents, labels, monkeypatch):
    fit_workspace(root, class_covariances=False, precision="exact")
    assert not (root / "stats" / "class_moments.safetensors").exists()
    found = load_class_statistics(root)
    assert found.pooled
    within = latents.astype(np.float64)
    for label in (None, 0, 1, 2):
        mine = [one == label for one in labels]
        within[mine] -= within[mine].mean(0)
    eigvals = np.linalg.eigvalsh(within.T @ within / 299)[::-1].copy()
    for label in found.labels:
        assert_close(found.manifolds[label].eigvals, torch.from_numpy(eigvals))
        assert_close(found.manifolds[label].mean, torch.from_numpy(of_class(latents, labels, label).mean(0)))
    with pytest.raises(NotFittedError, match="--class-covariances"):
        load_class_statistics(root, pooled=False)
    fit_workspace(root, class_covariances=True, precision="exact")
    assert not load_class_statistics(root).pooled
    assert load_class_statistics(root, pooled=True).pooled
    import index.streaming

    monkeypatch.setattr(index.streaming, "_CLASS_COVARIANCES_UP_TO", 1000)
    fit_workspace(root)
    assert load_class_statistics(root).pooled, "too large to be kept without being asked for"


@pytest.mark.parametrize("model", ["auto", "stationary", "lowrank"])
def test_whatever_the_model_counts_and_means_are_kept(root, latents, labels, model):
    fit_workspace(root, model=model)
    found = load_class_statistics(root, pooled=True)
    assert_close(found.means[2], torch.from_numpy(of_class(latents, labels, 2).mean(0)))
    assert verify_workspace(root).whole


def test_labels_change_no_bit_of_the_moments_of_all(root, tmp_path, latents):
    plain = make_workspace(tmp_path / "plain", latents, shape=(3, 2, 2), shard_rows=90).root
    fit_workspace(root)
    fit_workspace(plain)
    for name in ("moments.safetensors",):
        assert (root / "stats" / name).read_bytes() == (plain / "stats" / name).read_bytes()
    assert not (plain / "stats" / "class_means.safetensors").exists()
    with pytest.raises(NotFittedError, match="its images need labels"):
        load_class_statistics(plain)
    with pytest.raises(InputError, match="has no labels"):
        fit_workspace(plain, class_covariances=True)


@pytest.mark.parametrize("stop", [100, 200, 290])
def test_a_stopped_fit_resumes_to_the_same_bytes(root, tmp_path, latents, labels, monkeypatch, stop):
    import index.streaming

    whole = make_workspace(tmp_path / "whole", latents, shape=(3, 2, 2), labels=labels, shard_rows=90).root
    fit_workspace(whole)
    monkeypatch.setattr(index.streaming, "_SAVE_EVERY_S", 0.0)

    def stop_at(stage: str, done: int, total: int) -> None:
        if done > stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_workspace(root, progress=stop_at)
    if stop == 200:  # killed between the files of one save: one of them is behind
        (root / "stats" / "class_means.safetensors").unlink()
    fit_workspace(root)
    for name in NAMES:
        assert (root / "stats" / name).read_bytes() == (whole / "stats" / name).read_bytes(), name


def test_a_second_fit_reads_no_latents(root, monkeypatch):
    fit_workspace(root)

    def refuse(self, *arguments):
        raise AssertionError("latents were read again")

    monkeypatch.setattr(LatentStore, "batches", refuse)
    fit_workspace(root)


def test_after_a_removal_they_are_of_what_is_left(root, tmp_path, latents, labels):
    fit_workspace(root)
    gone = [3, 95, 96, 250]
    remove_images(root, [f"{number:06d}" for number in gone])
    kept = [number for number in range(300) if number not in gone]
    left = [labels[number] for number in kept]
    rest = make_workspace(tmp_path / "rest", latents[kept], shape=(3, 2, 2), labels=left, shard_rows=90).root
    fit_workspace(rest)
    found, expected = load_class_statistics(root), load_class_statistics(rest)
    assert found.counts == expected.counts
    assert torch.equal(found.means, expected.means)
    assert_close(found.manifolds[1].eigvals, expected.manifolds[1].eigvals)
    assert verify_workspace(root).whole


def test_verify_finds_statistics_of_other_latents(root):
    fit_workspace(root)
    path = root / "stats" / "class_means.safetensors"
    from manifold.class_means import ClassMeans

    means, metadata = ClassMeans.load(path)
    means.save(path, {"shards": json.dumps([*json.loads(metadata["shards"])[:-1], "other"])})
    assert any("class_means.safetensors was made from other latents" in one for one in verify_workspace(root).problems)
    with pytest.raises(MismatchError, match="is of other latents"):
        load_class_statistics(root)
    means.update(np.zeros((1, 12)), np.array([1]))
    means.save(path, metadata)
    assert any("was made from 301 rows, the workspace has 300" in one for one in verify_workspace(root).problems)
    path.write_bytes(b"damaged")
    with pytest.warns(ManifoldWarning, match="computed again from the latents"):
        fit_workspace(root)
    assert verify_workspace(root).whole


def test_labels_without_end_are_no_classes(tmp_path, latents, monkeypatch):
    import index.streaming

    monkeypatch.setattr(index.streaming, "_CLASS_MEANS_UP_TO", 1000)
    root = make_workspace(tmp_path / "ws", latents, shape=(3, 2, 2), labels=list(range(300))).root
    with pytest.warns(ManifoldWarning, match="300 different labels"):
        fit_workspace(root)
    assert Workspace.open(root).moments_path.exists()
    assert not (root / "stats" / "class_means.safetensors").exists()


def test_a_class_of_one_row_has_no_covariance_of_its_own(tmp_path, latents):
    root = make_workspace(tmp_path / "ws", latents, shape=(3, 2, 2), labels=[0] * 299 + [5]).root
    fit_workspace(root)
    with pytest.raises(NotFittedError, match="class 5 has one row"):
        load_class_statistics(root)
    assert load_class_statistics(root, pooled=True).labels == (0, 5)
