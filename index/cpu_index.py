"""Search on the processor: a query's coordinates, and the rows near to it there.

    vectors  ->  U^T (x - mu)  ->  FAISS

A query's candidates must not depend on what else is asked with it, nor on the number of threads: each is projected by itself
(`faiss_io.products`), and `faiss_io.search` keeps FAISS from products over many queries.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import faiss_io

__all__ = ["CpuIndex"]


class CpuIndex:
    """An index ready to be searched.

    Arguments
        index: of `faiss_io`; it stays usable.

    Memory: 4 d k bytes for a basis that is quick to read.
    """

    def __init__(self, index: Any) -> None:
        self.on_cpu = index
        self._mean, vectors = faiss_io.basis(index)
        self._rows = np.ascontiguousarray(vectors.T)
        self._storage, self._change = faiss_io.storage_of(index), faiss_io.rearrangement(index)

    def nearest(self, vectors: np.ndarray, k: int) -> np.ndarray:
        """Row numbers (n, k) of the vectors nearest in the coordinates; -1 only where there are fewer than k rows."""
        coords = faiss_io.products(np.subtract(vectors, self._mean, dtype=np.float32), self._rows)
        return faiss_io.search(self._storage, self._change(coords), k)
