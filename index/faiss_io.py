"""The one file that imports FAISS: a self-contained index over eigen-coordinates, and its file.

    IndexPreTransform( CenteringTransform(mu), LinearTransform(U^T), [scale, order or rotation], quantiser )

The mean is subtracted by the centring transform, not by a bias of the linear one: FAISS reverses the first when it
reconstructs a vector and forgets the second. Centring first also keeps distances exact where vectors share a large offset.

Four quantisers want the coordinates changed; `coordinates` undoes it. `Int8` holds one byte a coordinate, with the same
step for all, so that FAISS compares rows in integers, at twice the speed of codes with a range for each coordinate. Its
transform scales them to bytes, and what lies beyond the range is cut to it before FAISS sees it, for FAISS would wrap it
around. (FAISS by itself searches such a file, but cannot undo the scale to reconstruct vectors.) A product quantiser gives
each group of coordinates the same number of bits, which is best where all groups have the same product of variances; the
eigenvalues say how to deal the coordinates out (Ge et al., Optimized Product Quantization, 2013, parametric solution).
RaBitQ (Gao & Long, arXiv 2405.12497) and the fast scan (Andre, Kermarrec & Le Scouarnec, Cache locality is not enough, 2015)
of codes of 4 bits, one a coordinate, spend the same bits on each, so coordinates are first mixed by a random rotation.

Inverted lists are read through a memory map, so a collection need not fit into memory to be searched.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from math import log2
from pathlib import Path
from typing import Any, get_args

import faiss as _faiss
import numpy as np
import torch
from scipy.special import ndtri

from manifold.errors import FormatError
from manifold.files import write_errors_of
from manifold.precision import without_autocast

from .costs import FAST_LEVELS, Kind

__all__ = [
    "KINDS", "HalfRows", "assign_and_encode", "basis", "coordinates", "eigen_coordinates", "emptied", "empty_file",
    "gpu_resources", "has_gpu", "knn_on_gpu", "new_index", "products", "read_index", "read_whole_index", "rearrangement",
    "search", "set_effort", "storage_of", "take", "train", "version", "write_index",
]  # fmt: skip

faiss: Any = _faiss
"""Untyped: FAISS's stubs lag behind its classes."""
KINDS: tuple[str, ...] = get_args(Kind)
"""What can hold the coordinates: scans of 4, 2, 1, 1, 1/2 or fewer bytes each, a graph of 2 bytes each, inverted lists."""
_LINKS = 32
_QUERIES = 16
"""Searched for at a time: from 20 on FAISS takes distances from a matrix product, with other last bits."""
_BYTE_MIDDLE, _BYTE_REACH, _BYTES = 128.5, 127.0, (0.5, 255.5)
"""FAISS cuts a byte's fraction off: coordinate 0 lies in the middle of byte 128."""
_NORMAL_LEVELS = np.sqrt(3) * ndtri((np.arange(FAST_LEVELS) + 0.5) / FAST_LEVELS)
"""Of a normal coordinate of unit variance: as dense as the cube root of the density, which leaves the least error where they
are many (Panter & Dite, 1951). FAISS's own training takes seconds and leaves more."""
_PROJECTED = 256
"""Rows converted and projected at a time: few enough to stay in the processor's cache."""
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
    if kind == "Int8":
        transforms.append(faiss.LinearTransform(k, k, True))  # its scale comes with `train`
    elif kind == "IVF-PQ":
        assert eigvals is not None
        reorder = faiss.RemapDimensionsTransform(k, k)
        faiss.copy_array_to_vector(_balanced(eigvals, groups).astype(np.int32), reorder.map)
        transforms.append(reorder)
    elif kind in ("RaBitQ", "FastScan"):
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
    scans = {"SQfp16": scalar.QT_fp16, "SQ8": scalar.QT_8bit, "Int8": scalar.QT_8bit_direct}
    if kind in scans:
        return faiss.IndexScalarQuantizer(k, scans[kind], faiss.METRIC_L2)
    if kind == "RaBitQ":
        return faiss.IndexRaBitQ(k, faiss.METRIC_L2, bits)
    if kind == "FastScan":
        return faiss.IndexPQFastScan(k, k, int(log2(FAST_LEVELS)), faiss.METRIC_L2)
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


@without_autocast
def eigen_coordinates(index: Any, vectors: np.ndarray) -> np.ndarray:
    """U^T (x - mu) of (n, d) vectors of any floating-point type, by the index's own basis: (n, k) float32."""
    mean, basis_ = (torch.from_numpy(part) for part in basis(index))
    coords = torch.empty(len(vectors), basis_.shape[1], dtype=torch.float32)
    for rows, place in zip(torch.from_numpy(vectors).split(_PROJECTED), coords.split(_PROJECTED), strict=True):
        torch.mm(rows.to(torch.float32, copy=True).sub_(mean), basis_, out=place)
    return coords.numpy()


def _chain(index: Any) -> list[Any]:
    return [faiss.downcast_VectorTransform(index.chain.at(number)) for number in range(index.chain.size())]


def rearrangement(index: Any) -> Callable[[np.ndarray], np.ndarray]:
    """What turns eigen-coordinates (n, k) into what the quantiser wants: scaled to bytes, ordered or rotated."""
    if _holds_bytes(index):
        step = _byte_step(index)

        def to_bytes(coords: np.ndarray) -> np.ndarray:
            scaled = coords / step + _BYTE_MIDDLE
            return np.maximum(np.minimum(scaled, _BYTES[1], out=scaled), _BYTES[0], out=scaled)

        return to_bytes
    transforms = _chain(index)[2:]
    if transforms and isinstance(transforms[0], faiss.LinearTransform):
        rotation = faiss.vector_to_array(transforms[0].A).reshape(transforms[0].d_out, -1)
        return lambda coords: products(coords, rotation)

    def ordered(coords: np.ndarray) -> np.ndarray:
        for transform in transforms:
            coords = transform.apply(coords)
        return np.ascontiguousarray(coords)

    return ordered


def products(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """vectors @ rows.T, (n, k) float32, each vector by itself: its products depend on no other, nor on the threads.

    A matrix product would give a vector other last bits alone than among many, or share it out among threads.

    Arguments
        vectors: (n, d) float32. rows: (k, d) float32, contiguous.
    """
    found = np.empty((len(vectors), len(rows)), dtype=np.float32)
    there, width = faiss.swig_ptr(rows), rows.shape[1]
    for vector, place in zip(np.ascontiguousarray(vectors), found, strict=True):
        faiss.fvec_inner_products_ny(faiss.swig_ptr(place), faiss.swig_ptr(vector), there, width, len(rows))
    return found


def _holds_bytes(index: Any) -> bool:
    storage = storage_of(index)
    return isinstance(storage, faiss.IndexScalarQuantizer) and storage.sq.qtype == faiss.ScalarQuantizer.QT_8bit_direct


def _byte_step(index: Any) -> np.float32:
    return 1 / faiss.vector_to_array(_chain(index)[2].A)[0]


def train(index: Any, coords: np.ndarray) -> None:
    """Train the quantiser on a sample of eigen-coordinates, (n, k) float32."""
    if _holds_bytes(index):
        width = coords.shape[1]
        step = float(np.abs(coords).max(initial=0.0)) / _BYTE_REACH or 1.0
        scale = _chain(index)[2]
        faiss.copy_array_to_vector((np.eye(width, dtype=np.float32) / np.float32(step)).ravel(), scale.A)
        faiss.copy_array_to_vector(np.full(width, _BYTE_MIDDLE, dtype=np.float32), scale.b)
        scale.is_trained = True
    storage, changed = storage_of(index), rearrangement(index)(coords)
    if isinstance(storage, faiss.IndexPQFastScan):
        levels = np.outer(changed.std(0), _NORMAL_LEVELS).astype(np.float32)
        faiss.copy_array_to_vector(levels.ravel(), storage.pq.centroids)
        storage.is_trained = True
    else:
        storage.train(changed)
    index.is_trained = True


def take(index: Any, coords: np.ndarray) -> None:
    """Add rows, given by their eigen-coordinates (n, k) float32, to an index in memory."""
    storage_of(index).add(rearrangement(index)(coords))
    index.ntotal = storage_of(index).ntotal


def assign_and_encode(index: Any, coords: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The inverted list of each row and its code there, without adding it: (n,) int64 and (n, bytes) uint8."""
    inverted, x = storage_of(index), rearrangement(index)(coords)
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
    """Write an index to `path`, which is not renamed or flushed here; see `manifold.files.atomic_path`. Raises: OSError."""
    with write_errors_of(RuntimeError):
        faiss.write_index(index, str(path))


def read_index(path: Path) -> Any:
    """Read an index; inverted lists stay on the disk behind a memory map.

    Raises: FormatError if the file is no FAISS index, or is cut off.
    """
    index = _read(path, faiss.IO_FLAG_MMAP)
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
    return _read(path, 0)


def _read(path: Path, flags: int) -> Any:
    try:
        return faiss.read_index(str(path), flags)
    except RuntimeError as error:
        raise FormatError(f"{path} is not a sound FAISS index; build it again with: manifold index") from error


def emptied(index: Any) -> Any:
    """The index without its rows, trained as it was; inverted lists on the disk are let go, not touched."""
    storage = storage_of(index)
    if isinstance(storage, faiss.IndexIVF):
        fresh = faiss.ArrayInvertedLists(storage.nlist, storage.code_size)
        storage.replace_invlists(fresh, True)
        fresh.this.disown()
        storage.ntotal = index.ntotal = 0
    else:
        index.reset()
    return index


def basis(index: Any) -> tuple[np.ndarray, np.ndarray]:
    """What the index projects by, from the index itself: the mean (d,) and the eigenvectors (d, k), float32."""
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


def search(storage: Any, queries: np.ndarray, k: int) -> np.ndarray:
    """Rows nearest to queries (n, w) float32: their numbers (n, k), -1 only where there are fewer than k rows.

    What is found for a query does not depend on the others, nor on the number of threads.

    Arguments
        storage: of `storage_of`. queries: eigen-coordinates, changed by `rearrangement`.
    """
    ids = np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), _QUERIES):
        _, ids[start : start + _QUERIES] = storage.search(queries[start : start + _QUERIES], k)
    wanted = min(k, storage.ntotal)
    if len(ids) and ids[:, wanted - 1].min() < 0:  # FAISS puts what it did not find last
        for short in np.flatnonzero(ids[:, wanted - 1] < 0):
            ids[short] = _everywhere(storage, queries[short : short + 1], k, wanted)
    return ids


class HalfRows:
    """Room for rows (capacity, d) of float16, which FAISS measures where they lie. For one thread at a time."""

    def __init__(self, capacity: int, d: int) -> None:
        self._index = faiss.IndexScalarQuantizer(d, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2)
        self._index.is_trained = True
        self._index.codes.resize(2 * d * capacity)
        codes = faiss.rev_swig_ptr(self._index.codes.data(), 2 * d * capacity)
        self.rows: np.ndarray = codes.view(np.float16).reshape(capacity, d)

    def by_distance(self, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Distances (count,) float32 of the first `count` rows from a query (d,) float32, rising, and their places."""
        self._index.ntotal = count
        squared, places = self._index.search(query[None], count)
        return np.sqrt(squared[0]), places[0]


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


def _everywhere(storage: Any, query: np.ndarray, k: int, wanted: int) -> np.ndarray:
    """Search again for one query where too few rows were found: more lists, or past the graph."""
    if isinstance(storage, faiss.IndexIVF):
        probes = storage.nprobe
        while probes < storage.nlist:
            probes = min(4 * probes, storage.nlist)
            _, ids = storage.search(query, k, params=faiss.SearchParametersIVF(nprobe=probes))
            if (ids >= 0).sum() >= wanted:
                break
        return ids[0]
    scan = faiss.downcast_index(storage.storage) if isinstance(storage, faiss.IndexHNSW) else storage
    return scan.search(query, k)[1][0]


def coordinates(index: Any, start: int, count: int) -> np.ndarray:
    """Stored eigen-coordinates of rows `start` to before `start + count`, as precise as their codes: (count, k) float32."""
    storage = storage_of(index)
    if isinstance(storage, faiss.IndexRaBitQ) and storage.rabitq.nb_bits > 1:
        rows = _decoded(storage, start, count)
    else:
        rows = storage.reconstruct_n(start, count)
    if _holds_bytes(index):
        return (rows + np.float32(0.5) - np.float32(_BYTE_MIDDLE)) * _byte_step(index)
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
