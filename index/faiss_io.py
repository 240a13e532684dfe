"""The one file that imports FAISS: a self-contained index over eigen-coordinates, and its file.

    IndexPreTransform( CenteringTransform(mu), LinearTransform(U^T), quantiser )

The mean is subtracted by the centring transform, not by a bias of the linear one: FAISS reverses the first when it
reconstructs a vector and forgets the second. Centring first also keeps distances exact where vectors share a large offset.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np

from manifold.errors import FormatError

__all__ = ["KINDS", "coordinates", "nearest", "new_index", "read_index", "version", "write_index"]

KINDS = {"Flat": 4, "SQfp16": 2, "SQ8": 1}
"""Quantisers of the coordinates, and the bytes each spends on one of them."""


def version() -> str:
    """The FAISS release in use."""
    return str(faiss.__version__)


def new_index(mean: np.ndarray, eigvecs: np.ndarray, kind: str) -> Any:
    """An empty index over the k coordinates U^T (x - mu).

    Arguments
        mean: (d,) float32. eigvecs: (d, k) float32, orthonormal columns. kind: one of `KINDS`.
    """
    d, k = eigvecs.shape
    centering = faiss.CenteringTransform(d)
    faiss.copy_array_to_vector(np.ascontiguousarray(mean, dtype=np.float32), centering.mean)
    centering.is_trained = True
    projection = faiss.LinearTransform(d, k, False)
    faiss.copy_array_to_vector(np.ascontiguousarray(eigvecs.T, dtype=np.float32).ravel(), projection.A)
    projection.is_trained = True
    projection.set_is_orthonormal()
    if kind == "Flat":
        quantiser: Any = faiss.IndexFlatL2(k)
    else:
        codec = {"SQfp16": faiss.ScalarQuantizer.QT_fp16, "SQ8": faiss.ScalarQuantizer.QT_8bit}[kind]
        quantiser = faiss.IndexScalarQuantizer(k, codec, faiss.METRIC_L2)
    index = faiss.IndexPreTransform(quantiser)
    index.prepend_transform(projection)
    index.prepend_transform(centering)
    return index


def write_index(index: Any, path: Path) -> None:
    """Write an index to `path`, which is not renamed or flushed here; see `manifold.files.atomic_path`."""
    faiss.write_index(index, str(path))


def read_index(path: Path) -> Any:
    """Read an index. Raises: FormatError if the file is no FAISS index, or is cut off."""
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        raise FormatError(f"{path} is not a sound FAISS index; build it again with: manifold index") from error


def nearest(index: Any, vectors: np.ndarray, k: int) -> np.ndarray:
    """Row numbers (n, k) of the vectors nearest in the index's coordinates; -1 where there are fewer than k."""
    _, ids = index.search(np.ascontiguousarray(vectors, dtype=np.float32), k)
    return ids


def coordinates(index: Any, start: int, count: int) -> np.ndarray:
    """Stored coordinates of rows `start` to before `start + count`: (count, k) float32."""
    return faiss.downcast_index(index.index).reconstruct_n(start, count)
