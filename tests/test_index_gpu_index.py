"""Search on a GPU against search on the processor; without a GPU, everything but the kernel, and what is said."""

import faiss
import numpy as np
import pytest
import torch
from helpers import make_workspace

from index import faiss_io, gpu_index
from index.build import build_index
from index.cpu_index import CpuIndex
from index.fit import fit_workspace
from index.gpu_index import GpuIndex, to_gpu
from index.search import Searcher
from manifold.errors import InputError, MissingExtraError

needs_faiss_gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() and faiss.get_num_gpus()), reason="needs a CUDA device and faiss-gpu"
)
D, K, N = 40, 16, 2500


@pytest.fixture
def rows(rng):
    return (rng.standard_normal((N, D)) / np.arange(1, D + 1) + 3).astype(np.float32)


def built(kind, rows):
    vectors = np.eye(D, K, dtype=np.float32)
    index = faiss_io.new_index(
        np.full(D, 3, dtype=np.float32), vectors, kind, eigvals=1 / np.arange(1, K + 1) ** 2, lists=16, groups=8
    )
    coords = faiss_io.eigen_coordinates(index, rows)
    faiss_io.train(index, coords)
    faiss_io.take(index, coords)
    faiss_io.set_effort(index, 512)
    return index


@needs_faiss_gpu
@pytest.mark.parametrize("kind", faiss_io.KINDS)
def test_the_gpu_finds_what_the_processor_finds(kind, rows):
    index = built(kind, rows)
    on_gpu = to_gpu(index)
    for k in (10, N + 5):
        here, there = CpuIndex(index).nearest(rows[:50], k), on_gpu.nearest(rows[:50], k)
        shared = [np.isin(a, b).mean() for a, b in zip(here, there, strict=True)]
        assert np.mean(shared) > 0.95


@pytest.fixture
def kernel_in_torch(monkeypatch):
    """A brute force in torch stands in for the kernel: projection, decoding and shapes are ours, and are what is tested."""

    def kernel(resources, queries, held, ids, distances, stream):
        assert queries.dtype == held.dtype == torch.float16
        far, nearest = torch.cdist(queries.float(), held.float()).topk(ids.shape[1], largest=False)
        ids.copy_(nearest)
        distances.copy_(far)

    monkeypatch.setattr(faiss_io, "knn_on_gpu", kernel)
    monkeypatch.setattr(faiss_io, "gpu_resources", lambda: None)


def test_a_searcher_with_a_device_finds_the_same(tmp_path, rng, kernel_in_torch, monkeypatch):
    latents = (rng.standard_normal((800, 48)) / np.arange(1, 49)).astype(np.float16)
    root = make_workspace(tmp_path / "ws", latents, shape=(3, 4, 4)).root
    fit_workspace(root)
    build_index(root)
    with pytest.raises(InputError, match="copied to a CUDA device, cpu is none"):
        Searcher.open(root, device="cpu")
    asked = []

    def copied(index, device):
        asked.append(device)
        return GpuIndex(index, torch.device("cpu"))

    monkeypatch.setattr(gpu_index, "to_gpu", copied)
    x_t = torch.from_numpy(latents[::50]).float() + 0.1
    here, there = Searcher.open(root).search(x_t, 1.0, 0.1), Searcher.open(root, device="cuda:1").search(x_t, 1.0, 0.1)
    assert asked == ["cuda:1"]
    np.testing.assert_array_equal(here.ids, there.ids)
    np.testing.assert_array_equal(here.scores, there.scores)


@pytest.mark.parametrize("kind", faiss_io.KINDS)
def test_all_but_the_kernel(kind, rows, kernel_in_torch):
    index = built(kind, rows)
    held = GpuIndex(index, torch.device("cpu"))
    far = np.linalg.norm((rows[:20, None, :K] - 3) - faiss_io.coordinates(index, 0, N)[None], axis=2)
    found = held.nearest(rows[:20], 10)
    shared = [np.isin(np.argsort(row)[:10], ids).mean() for row, ids in zip(far, found, strict=True)]
    assert np.mean(shared) > 0.95
    more = held.nearest(rows[:3], N + 5)
    assert [len(set(ids[ids >= 0].tolist())) for ids in more] == [N, N, N]


def test_what_is_missing_is_said(rows, monkeypatch):
    index = built("Flat", rows)
    with pytest.raises(InputError, match="copied to a CUDA device, cpu is none"):
        to_gpu(index, "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    with pytest.raises(MissingExtraError, match="needs faiss-gpu or faiss-gpu-cuvs in place of faiss-cpu"):
        to_gpu(index)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    with pytest.raises(InputError, match=r"need 0.0 GiB on cuda, 0.0 GiB are free"):
        to_gpu(index)
