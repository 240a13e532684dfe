"""Search on a CUDA device: coordinates projected by torch, neighbours found there by faiss-gpu's exact scan.

    manifold's index file  ->  its eigen-coordinates as float16 on the device  ->  faiss.bfKnn

A device scans exactly what a processor must search cleverly, so every kind of index is held alike there: decoded, 2 bytes a
coordinate. Nothing moves to a device by itself: its memory usually belongs to the model being sampled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from manifold.errors import InputError, MissingExtraError

from . import faiss_io
from .cpu_index import CpuIndex

__all__ = ["GpuIndex", "to_gpu"]

_MOST_NEIGHBOURS = 2048
"""What faiss-gpu can select at once; more are found on the processor."""
_PORTION = 65_536


class GpuIndex:
    """An index whose coordinates lie on a device, searched like a `CpuIndex`.

    Arguments
        index: of `faiss_io.read_index`; it stays usable. device: a torch device, CUDA for faiss-gpu.

    Memory on the device: 2 k bytes a row, and 4 d k for the basis.
    """

    def __init__(self, index: Any, device: torch.device) -> None:
        self.on_cpu = index
        self._here = CpuIndex(index)
        mean, vectors = faiss_io.basis(index)
        self._mean, self._vectors = (torch.from_numpy(part).to(device) for part in (mean, vectors))
        self._rows = torch.empty(index.ntotal, vectors.shape[1], dtype=torch.float16, device=device)
        for start in range(0, index.ntotal, _PORTION):
            count = min(_PORTION, index.ntotal - start)
            self._rows[start : start + count] = torch.from_numpy(faiss_io.coordinates(index, start, count)).to(device)
        self._resources = faiss_io.gpu_resources()

    def nearest(self, vectors: np.ndarray | Tensor, k: int) -> np.ndarray:
        """Row numbers (n, k) of the vectors nearest in the coordinates; -1 where there are fewer than k rows."""
        if k > _MOST_NEIGHBOURS:
            return self._here.nearest(np.asarray(vectors), k)
        wanted = min(k, len(self._rows))
        centred = torch.as_tensor(vectors).to(self._mean) - self._mean
        queries = (centred @ self._vectors).half().contiguous()
        found = torch.empty(len(queries), wanted, dtype=torch.int64, device=self._rows.device)
        distances = torch.empty(found.shape, dtype=torch.float32, device=self._rows.device)
        stream = torch.cuda.current_stream(self._rows.device).cuda_stream if self._rows.is_cuda else 0
        if len(queries):
            faiss_io.knn_on_gpu(self._resources, queries, self._rows, found, distances, stream)
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        ids[:, :wanted] = found.cpu().numpy()
        return ids


def to_gpu(index: Any, device: str = "cuda") -> GpuIndex:
    """Copy an index to a CUDA device.

    Raises: InputError if torch finds no such device, or the coordinates do not fit into its free memory; MissingExtraError if
        the FAISS installed has no GPU part.
    """
    wanted = torch.device(device, 0) if device == "cuda" else torch.device(device)
    if wanted.type != "cuda" or not torch.cuda.is_available():
        raise InputError(
            f"an index is copied to a CUDA device, {device} is none or is not here; search without a device"
        )
    if not faiss_io.has_gpu():
        raise MissingExtraError(
            "searching on a GPU needs faiss-gpu or faiss-gpu-cuvs in place of faiss-cpu; install it"
        )
    needed = 2 * index.ntotal * faiss_io.storage_of(index).d
    free, _ = torch.cuda.mem_get_info(wanted)
    if needed > free:
        raise InputError(
            f"the coordinates need {needed / 2**30:.1f} GiB on {device}, {free / 2**30:.1f} GiB are free; "
            "search without a device, or build the index with a lower --rank"
        )
    return GpuIndex(index, wanted)
