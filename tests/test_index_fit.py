"""Statistics of a workspace equal NumPy's, resume where they stopped, and refuse what they cannot use."""

import io

import numpy as np
import pytest
import torch
from helpers import make_workspace

from index.fit import fit_workspace, judge_workspace
from index.latents import LatentStore, latents_file
from index.verify import verify_workspace
from index.workspace import Workspace
from manifold.errors import InputError, ManifoldWarning, NonFiniteError
from manifold.gaussian import GaussianManifold
from manifold.moments import Moments


@pytest.fixture
def latents(rng):
    mixing = rng.standard_normal((12, 12))
    return (rng.standard_normal((300, 12)) @ mixing + 5).astype(np.float16)


@pytest.fixture
def root(tmp_path, latents):
    return make_workspace(tmp_path / "ws", latents, shape=(3, 2, 2), shard_rows=90).root


def test_equals_numpy(root, latents):
    fitted = fit_workspace(root, precision="exact")
    double = latents.astype(np.float64)
    eigvals = np.linalg.eigvalsh(np.cov(double.T))[::-1]
    np.testing.assert_allclose(fitted.mean, double.mean(0), rtol=1e-6)
    np.testing.assert_allclose(fitted.eigvals, eigvals, rtol=1e-5)
    assert fitted.shape == (3, 2, 2)
    assert fitted.count == 300


@pytest.mark.parametrize("model", [None, "lowrank", "stationary", "auto"])
def test_latents_that_are_all_equal_are_refused_and_nothing_is_written(tmp_path, model):
    root = make_workspace(tmp_path / "ws", np.full((40, 12), 0.3, dtype=np.float16), shape=(3, 2, 2)).root
    with pytest.raises(InputError, match="are equal"):
        fit_workspace(root, model=model)
    assert not Workspace.open(root).stats_path.exists()


def test_saved_equals_returned(root):
    fitted = fit_workspace(root, rank=5)
    loaded = GaussianManifold.load(Workspace.open(root).stats_path)
    assert torch.equal(loaded.eigvecs, fitted.eigvecs)
    assert (loaded.k, loaded.tail_var, loaded.shape, loaded.count) == (5, fitted.tail_var, (3, 2, 2), 300)
    assert "pixels" in loaded.metadata["encoder"]


def test_a_second_fit_reads_no_latents(root, monkeypatch):
    first = fit_workspace(root)

    def refuse(self, *arguments):
        raise AssertionError("latents were read again")

    monkeypatch.setattr(LatentStore, "batches", refuse)
    assert torch.equal(fit_workspace(root).eigvals, first.eigvals)


def test_a_stopped_fit_resumes_to_the_same_bytes(root, tmp_path, latents, monkeypatch):
    import index.streaming

    whole = make_workspace(tmp_path / "whole", latents, shape=(3, 2, 2), shard_rows=90).root
    fit_workspace(whole)
    monkeypatch.setattr(index.streaming, "_SAVE_EVERY_S", 0.0)

    def stop(stage: str, done: int, total: int) -> None:
        if done > 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_workspace(root, progress=stop)
    moments, _ = Moments.load(root / "stats" / "moments.safetensors")
    assert moments.count == 180, "two shards of ninety were saved"
    fit_workspace(root)
    for name in ("moments.safetensors", "stats.safetensors"):
        assert (root / "stats" / name).read_bytes() == (whole / "stats" / name).read_bytes()


def test_damaged_moments_are_computed_again_with_a_warning(root):
    first = fit_workspace(root)
    path = root / "stats" / "moments.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(ManifoldWarning, match="computed again from the latents"):
        again = fit_workspace(root)
    assert torch.equal(again.eigvals, first.eigvals)
    assert verify_workspace(root).whole


def test_nan_in_latents_is_refused_with_the_row_named(root):
    path = latents_file(root, 2)
    array = np.load(path)
    array[15, 3] = np.nan
    buffer = io.BytesIO()
    np.save(buffer, array)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(NonFiniteError, match="row 195 of the stream"):
        fit_workspace(root)


@pytest.mark.parametrize("rank", [0, 13])
def test_rank_out_of_range(root, rank):
    with pytest.raises(InputError, match=f"between 1 and d = 12, it is {rank}"):
        fit_workspace(root, rank=rank)


def test_an_unfinished_workspace_is_refused(root):
    Workspace.open(root).commit(complete=False, next_input=120)
    with pytest.raises(InputError, match="is incomplete: 120 of 300 inputs are encoded"):
        fit_workspace(root)


def test_above_the_limit_a_lowrank_model_needs_no_matrix(root, latents, monkeypatch):
    import index.fit

    monkeypatch.setattr(index.fit, "_MOMENTS_UP_TO", 8)
    fitted = fit_workspace(root, rank=4)
    eigvals = np.linalg.eigvalsh(np.cov(latents.astype(np.float64).T))[::-1]
    np.testing.assert_allclose(fitted.eigvals, eigvals[:4], rtol=1e-3)
    assert not Workspace.open(root).moments_path.exists()
    assert verify_workspace(root).whole
    with pytest.raises(InputError, match="does not fit into memory; fit --model lowrank"):
        fit_workspace(root, model="full")


def test_few_images_of_many_values_cost_neither_their_square_in_time_nor_on_the_disk(tmp_path, rng):
    side = 40  # d = 4,800: dense would be 92 MB of moments
    latents = (rng.standard_normal((30, 3 * side**2)) * 2 + 5).astype(np.float16)
    make_workspace(tmp_path / "ws", latents, shape=(3, side, side))
    fitted = fit_workspace(tmp_path / "ws")
    double = latents.astype(np.float64)
    squares = np.linalg.svd(double - double.mean(0), compute_uv=False) ** 2
    np.testing.assert_allclose(fitted.eigvals, squares[:29] / 29, rtol=1e-6)
    assert Workspace.open(tmp_path / "ws").moments_path.stat().st_size < 3 * latents.nbytes
    assert fitted.k == 29
    assert verify_workspace(tmp_path / "ws").whole


def test_auto_says_what_it_compared(root):
    fitted = fit_workspace(root, model="auto")
    assert "models compared" in fitted.metadata["selection"]
    assert GaussianManifold.load(Workspace.open(root).stats_path).metadata["selection"] == fitted.metadata["selection"]


def test_a_spectrum_below_the_precision_is_said(tmp_path, rng):
    """Values that repeat each other but for two rows: lost in float32, seen in float64."""
    values = np.round(rng.standard_normal((500, 2)) * 100)
    twice = np.concatenate([values, values], 1)
    twice[[7, 300], [2, 3]] += 0.25
    root = make_workspace(tmp_path / "ws", twice, shape=(1, 2, 2)).root
    with pytest.warns(ManifoldWarning, match='of 4 directions .* fit with precision="exact"'):
        fit_workspace(root)
    eigvals = np.linalg.eigvalsh(np.cov(twice.T))[::-1]
    np.testing.assert_allclose(fit_workspace(root, precision="exact").eigvals, eigvals, rtol=0.01)


def test_greyscale_images_are_no_fault_of_precision(tmp_path, rng):
    grey = rng.standard_normal((400, 1, 4)) * [3, 2, 1, 0.5]
    root = make_workspace(tmp_path / "ws", np.repeat(grey, 3, 1).reshape(400, 12), shape=(3, 2, 2)).root
    assert (fit_workspace(root).eigvals[4:] < 1e-5).all()


def test_judging_tells_how_far_it_is(root):
    fit_workspace(root)
    told = []
    sentence = judge_workspace(root, progress=lambda stage, done, total: told.append((stage, done, total)))
    assert sentence == judge_workspace(root)
    assert told[-1] == ("judge", 600, 600)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert len(told) > 4
