"""The one file that imports FAISS: a self-contained index over eigen-coordinates, and its file.

    IndexPreTransform( CenteringTransform(mu), LinearTransform(U^T), [order or rotation], quantiser )

The mean is subtracted by the centring transform, not by a bias of the linear one: FAISS reverses the first when it
reconstructs a vector and forgets the second. Centring first also keeps distances exact where vectors share a large offset.

Two quantisers want the coordinates rearranged. A product quantiser gives each group of coordinates the same number of bits,
which is best where all groups have the same product of variances; the eigenvalues say how to deal the coordinates out (Ge et
al., Optimized Product Quantization, 2013, parametric solution). RaBitQ (Gao & Long, arXiv 2405.12497) spends the same bits on
each coordinate, so they are first mixed by a random rotation. `coordinates` undoes both.

Inverted lists are read through a memory map, so a collection need not fit into memory to be searched.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, get_args

import faiss as _faiss
import numpy as np

from manifold.errors import FormatError

from .plan import Kind

__all__ = [
    "KINDS", "assign_and_encode", "basis", "coordinates", "eigen_coordinates", "empty_file", "gpu_resources",
    "has_gpu", "knn_on_gpu", "nearest", "new_index", "read_index", "read_whole_index", "set_effort", "storage_of", "take",
    "train", "version", "write_index",
]  # fmt: skip

faiss: Any = _faiss
"""Untyped: FAISS's stubs lag behind its classes."""
KINDS: tuple[str, ...] = get_args(Kind)
"""What can hold the coordinates: scans of 4, 2, 1 or fewer bytes each, a graph of 2 bytes each, and inverted lists."""
_LINKS = 32
_PREFETCH_THREADS = 8
_LISTS_EMPTY = b"sprs" + struct.pack("<Q", 0)


def version() -> str:
    """The FAISS release in use."""
    return str(faiss.__version__)


def new_index(
    mean: np.ndarray,
    eigvecs: np.ndarray,
    kind: str,
    *,
    eigvals: np.ndarray | None = None,
    lists: int = 1,
    groups: int = 1,
    bits: int = 4,
) -> Any:
    """An empty index over the k coordinates U^T (x - mu).

    Arguments
        mean: (d,) float32. eigvecs: (d, k) float32, orthonormal columns. kind: one of `KINDS`.
        eigvals: (k,) variances of the coordinates; `IVF-PQ` needs them.
        lists: inverted lists, for the kinds in `INVERTED`.
        groups: bytes a row takes in `IVF-PQ`, a divisor of k. bits: per coordinate in `RaBitQ`, 1 to 8.
    """
    d, k = eigvecs.shape
    centering = faiss.CenteringTransform(d)
    faiss.copy_array_to_vector(np.ascontiguousarray(mean, dtype=np.float32), centering.mean)
    centering.is_trained = True
    transforms = [centering, _linear(eigvecs.T)]
    if kind == "IVF-PQ":
        assert eigvals is not None
        reorder = faiss.RemapDimensionsTransform(k, k)
        faiss.copy_array_to_vector(_balanced(eigvals, groups).astype(np.int32), reorder.map)
        transforms.append(reorder)
    elif kind == "RaBitQ":
        mixing = np.linalg.qr(np.random.default_rng(0).standard_normal((k, k)))[0]
        transforms.append(_linear(mixing))
    index = faiss.IndexPreTransform(_quantiser(kind, k, lists, groups, bits))
    for transform in reversed(transforms):
        index.prepend_transform(transform)
    return index


def _linear(rows: np.ndarray) -> Any:
    """The linear map x -> rows @ x; rows are orthonormal."""
    out, width = rows.shape
    transform = faiss.LinearTransform(width, out, False)
    faiss.copy_array_to_vector(np.ascontiguousarray(rows, dtype=np.float32).ravel(), transform.A)
    transform.is_trained = True
    transform.set_is_orthonormal()
    return transform


def _quantiser(kind: str, k: int, lists: int, groups: int, bits: int) -> Any:
    scalar = faiss.ScalarQuantizer
    if kind == "Flat":
        return faiss.IndexFlatL2(k)
    if kind in ("SQfp16", "SQ8"):
        codec = scalar.QT_fp16 if kind == "SQfp16" else scalar.QT_8bit
        return faiss.IndexScalarQuantizer(k, codec, faiss.METRIC_L2)
    if kind == "RaBitQ":
        return faiss.IndexRaBitQ(k, faiss.METRIC_L2, bits)
    if kind == "HNSW":
        return faiss.IndexHNSWSQ(k, scalar.QT_fp16, _LINKS)
    coarse = faiss.IndexFlatL2(k)
    if kind == "IVF-Flat":
        inverted: Any = faiss.IndexIVFFlat(coarse, k, lists)
    elif kind == "IVF-SQ8":
        inverted = faiss.IndexIVFScalarQuantizer(coarse, k, lists, scalar.QT_8bit)
    else:
        inverted = faiss.IndexIVFPQ(coarse, k, lists, groups, 8)
        inverted.pq.cp.min_points_per_centroid = 1
    inverted.cp.min_points_per_centroid = 1  # the sample is chosen by `plan_index`; FAISS need not print its opinion
    coarse.this.disown()
    inverted.own_fields = True
    return inverted


def _balanced(eigvals: np.ndarray, groups: int) -> np.ndarray:
    """An order of coordinates in which consecutive groups of equal size have nearly equal products of variances.

    Greedy, from the largest variance on: each goes to the group whose product is smallest among those not yet full.
    """
    size = len(eigvals) // groups
    dealt: list[list[int]] = [[] for _ in range(groups)]
    logs = np.log(np.maximum(eigvals, np.finfo(np.float64).tiny))
    logs = logs - logs.min()
    for coordinate in np.argsort(-logs, kind="stable").tolist():
        open_groups = [group for group in range(groups) if len(dealt[group]) < size]
        dealt[min(open_groups, key=lambda group: sum(logs[dealt[group]]))].append(coordinate)
    return np.array([coordinate for group in dealt for coordinate in sorted(group)])


def storage_of(index: Any) -> Any:
    """What lies behind the transforms: the quantiser, as its own class."""
    return faiss.downcast_index(index.index)


def eigen_coordinates(index: Any, vectors: np.ndarray) -> np.ndarray:
    """U^T (x - mu) of (n, d) vectors, as the index computes it: (n, k) float32."""
    x = np.ascontiguousarray(vectors, dtype=np.float32)
    for transform in _chain(index)[:2]:
        x = transform.apply(x)
    return x


def _chain(index: Any) -> list[Any]:
    return [faiss.downcast_VectorTransform(index.chain.at(number)) for number in range(index.chain.size())]


def _rearranged(index: Any, coords: np.ndarray) -> np.ndarray:
    """Eigen-coordinates as the quantiser wants them: ordered or rotated."""
    for transform in _chain(index)[2:]:
        coords = transform.apply(coords)
    return np.ascontiguousarray(coords)


def train(index: Any, coords: np.ndarray) -> None:
    """Train the quantiser on a sample of eigen-coordinates, (n, k) float32."""
    storage_of(index).train(_rearranged(index, coords))
    index.is_trained = True


def take(index: Any, coords: np.ndarray) -> None:
    """Add rows, given by their eigen-coordinates (n, k) float32, to an index in memory."""
    storage_of(index).add(_rearranged(index, coords))
    index.ntotal = storage_of(index).ntotal


def assign_and_encode(index: Any, coords: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The inverted list of each row and its code there, without adding it: (n,) int64 and (n, bytes) uint8."""
    inverted, x = storage_of(index), _rearranged(index, coords)
    lists = inverted.quantizer.assign(x, 1).ravel()
    codes = np.empty((len(x), inverted.code_size), dtype=np.uint8)
    inverted.encode_vectors(
        len(x), faiss.swig_ptr(x), faiss.swig_ptr(np.ascontiguousarray(lists)), faiss.swig_ptr(codes)
    )
    return lists, codes


def empty_file(index: Any, count: int) -> bytes:
    """The bytes of an inverted index's file up to its lists, claiming `count` rows.

    Raises: FormatError if this FAISS release lays its file out differently.
    """
    inverted = storage_of(index)
    index.ntotal = inverted.ntotal = count
    content = faiss.serialize_index(index).tobytes()
    opening = b"ilar" + struct.pack("<QQ", inverted.nlist, inverted.code_size)
    if not content.endswith(opening + _LISTS_EMPTY):
        raise FormatError(f"FAISS {version()} writes inverted lists in another way; choose a kind other than IVF")
    return content[: -len(_LISTS_EMPTY)]


def write_index(index: Any, path: Path) -> None:
    """Write an index to `path`, which is not renamed or flushed here; see `manifold.files.atomic_path`."""
    faiss.write_index(index, str(path))


def read_index(path: Path) -> Any:
    """Read an index; inverted lists stay on the disk behind a memory map.

    Raises: FormatError if the file is no FAISS index, or is cut off.
    """
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    except RuntimeError as error:
        raise FormatError(f"{path} is not a sound FAISS index; build it again with: manifold index") from error
    storage = storage_of(index)
    if isinstance(storage, faiss.IndexIVF):
        mapped = faiss.downcast_InvertedLists(storage.invlists)
        if isinstance(mapped, faiss.OnDiskInvertedLists):
            # FAISS starts threads that touch the lists before each search: worth it only where the disk must be read.
            larger_than_half = 2 * path.stat().st_size > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            mapped.prefetch_nthread = _PREFETCH_THREADS if larger_than_half else 0
    return index


def read_whole_index(path: Path) -> Any:
    """Read an index into memory, so that rows can be added to it.

    Raises: FormatError if the file is no FAISS index, or is cut off.
    """
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        raise FormatError(f"{path} is not a sound FAISS index; build it again with: manifold index") from error


def basis(index: Any) -> tuple[np.ndarray, np.ndarray]:
    """What the index projects by, from the index itself: the mean (d,) and the eigenvectors (d, k), float32."""
    if not isinstance(index, faiss.Index):
        index = index.on_cpu
    centering, projection = (faiss.downcast_VectorTransform(index.chain.at(place)) for place in range(2))
    rows = faiss.vector_to_array(projection.A).reshape(projection.d_out, projection.d_in)
    return faiss.vector_to_array(centering.mean), np.ascontiguousarray(rows.T)


def set_effort(index: Any, effort: int) -> bool:
    """How far to look: lists probed, or nodes kept of a graph. Kept in the file. False if a scan has no such choice."""
    storage = storage_of(index)
    if isinstance(storage, faiss.IndexIVF):
        storage.nprobe = effort
    elif isinstance(storage, faiss.IndexHNSW):
        storage.hnsw.efSearch = effort
    else:
        return False
    return True


def nearest(index: Any, vectors: np.ndarray, k: int) -> np.ndarray:
    """Row numbers (n, k) of the vectors nearest in the index's coordinates; -1 only where it has fewer than k rows."""
    if not isinstance(index, faiss.Index):
        return index.nearest(vectors, k)
    x = np.ascontiguousarray(vectors, dtype=np.float32)
    _, ids = index.search(x, k)
    wanted = min(k, index.ntotal)
    short = np.flatnonzero((ids >= 0).sum(1) < wanted)
    if short.size:
        ids[short] = _everywhere(index, x[short], k, wanted)
    return ids


def has_gpu() -> bool:
    """Whether the FAISS installed can use a GPU, and there is one."""
    return bool(faiss.get_num_gpus())


def gpu_resources() -> Any:
    """Working memory of FAISS on a GPU."""
    return faiss.StandardGpuResources()


def knn_on_gpu(resources: Any, queries: Any, rows: Any, ids: Any, distances: Any, stream: int) -> None:
    """Exact nearest rows by L2, on the device where all tensors lie, contiguous.

    By pointers: `faiss.contrib.torch_utils` would do the same, and teach all of FAISS to return tensors as well.

    Arguments
        queries: (n, k) float16. rows: (m, k) float16. ids: (n, found) int64 and distances: (n, found) float32, written to.
        stream: the CUDA stream that the tensors are made and read on.
    """
    device = rows.device.index
    arguments = faiss.GpuDistanceParams()
    arguments.metric, arguments.k, arguments.dims, arguments.device = (
        faiss.METRIC_L2,
        ids.shape[1],
        rows.shape[1],
        device,
    )
    arguments.vectors, arguments.numVectors = faiss.cast_integer_to_void_ptr(rows.data_ptr()), len(rows)
    arguments.queries, arguments.numQueries = faiss.cast_integer_to_void_ptr(queries.data_ptr()), len(queries)
    arguments.vectorType = arguments.queryType = faiss.DistanceDataType_F16
    arguments.vectorsRowMajor = arguments.queriesRowMajor = True
    arguments.outDistances = faiss.cast_integer_to_float_ptr(distances.data_ptr())
    arguments.outIndices = faiss.cast_integer_to_void_ptr(ids.data_ptr())
    arguments.outIndicesType = faiss.IndicesDataType_I64
    resources.setDefaultStream(device, faiss.cast_integer_to_cudastream_t(stream))
    faiss.bfKnn(resources, arguments)


def _everywhere(index: Any, x: np.ndarray, k: int, wanted: int) -> np.ndarray:
    """Search again where too few rows were found: more lists, or past the graph."""
    storage = storage_of(index)
    coords = _rearranged(index, eigen_coordinates(index, x))
    if isinstance(storage, faiss.IndexIVF):
        probes = storage.nprobe
        while probes < storage.nlist:
            probes = min(4 * probes, storage.nlist)
            _, ids = storage.search(coords, k, params=faiss.SearchParametersIVF(nprobe=probes))
            if (ids >= 0).sum(1).min() >= wanted:
                break
        return ids
    scan = faiss.downcast_index(storage.storage) if isinstance(storage, faiss.IndexHNSW) else storage
    _, ids = scan.search(coords, k)
    return ids


def coordinates(index: Any, start: int, count: int) -> np.ndarray:
    """Stored eigen-coordinates of rows `start` to before `start + count`, as precise as their codes: (count, k) float32."""
    if not isinstance(index, faiss.Index):
        return index.coordinates(start, count)
    storage = storage_of(index)
    if isinstance(storage, faiss.IndexRaBitQ) and storage.rabitq.nb_bits > 1:
        rows = _decoded(storage, start, count)
    else:
        rows = storage.reconstruct_n(start, count)
    for transform in reversed(_chain(index)[2:]):
        rows = transform.reverse_transform(rows)
    return rows


def _decoded(storage: Any, start: int, count: int) -> np.ndarray:
    """Rows of RaBitQ codes of several bits, of which FAISS's own reconstruction reads only the signs.

    A code is k signs, three numbers, k (bits - 1) further bits, two numbers; the last is -2 times the length of one step.
    """
    k, bits, size = storage.d, storage.rabitq.nb_bits, storage.code_size
    codes = faiss.rev_swig_ptr(storage.codes.data(), storage.ntotal * size).reshape(-1, size)[start : start + count]
    signs = np.unpackbits(codes[:, : (k + 7) // 8], axis=1, bitorder="little")[:, :k].astype(np.float32)
    further = codes[:, (k + 7) // 8 + 12 : size - 8]
    digits = np.unpackbits(further, axis=1, bitorder="little")[:, : k * (bits - 1)].reshape(count, k, bits - 1)
    levels = signs * 2 ** (bits - 1) + digits @ (2 ** np.arange(bits - 1, dtype=np.float32)) - (2**bits - 1) / 2
    step = np.ascontiguousarray(codes[:, -4:]).view(np.float32) / -2
    return faiss.vector_to_array(storage.center) + step * levels
