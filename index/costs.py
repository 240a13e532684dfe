"""What each kind of index costs: bytes, loss of precision, time to build and time to search.

Bytes are those of FAISS's file. Loss of precision was measured on normal rows, times on one core with AVX-512; their ratios
are what a plan rests on.
"""

from __future__ import annotations

from math import ceil
from typing import Literal

import numpy as np

__all__ = [
    "FAST_LEVELS", "INVERTED", "PQ_CENTROIDS", "Kind", "build_seconds", "code_bytes", "fixed_bytes", "pq_groups",
    "query_seconds", "stored_errors",
]  # fmt: skip

Kind = Literal["Flat", "SQfp16", "SQ8", "Int8", "FastScan", "RaBitQ", "HNSW", "IVF-Flat", "IVF-SQ8", "IVF-PQ"]
INVERTED = ("IVF-Flat", "IVF-SQ8", "IVF-PQ")
PQ_CENTROIDS = 256
FAST_LEVELS = 16

_GRAPH_BYTES = 274
"""HNSW32: 64 links at the bottom, a few above, and their offsets."""
_LIST_ROW_BYTES = 8
# Mean square error of a stored coordinate, as a share of the variance of what it is coded with.
_BYTE_ERROR = (9 / 255) ** 2 / 12
_PQ_LOSS = 1.3
_RABITQ_ERROR = {1: 0.31, 2: 0.1, 3: 0.035, 4: 0.0115}
_FAST_ERROR = 0.0102
# Building: the order of magnitude is what counts.
_READ_BYTES_S, _FLOPS, _LINK_S = 1e9, 4e10, 2e-6
# A query: per value of the basis, per value of a candidate, per row scanned, and per coordinate of it.
_PROJECTED_S, _RANKED_S = 1.5e-10, 7e-10
_ROW_S, _FAST_ROW_S = 3e-9, 1e-9
_COORDINATE_S = {"Flat": 1.4e-10, "SQfp16": 1e-10, "SQ8": 9e-11, "Int8": 4e-11, "FastScan": 1.2e-11, "RaBitQ": 2.4e-10}
_PROBED = 1 / 16
"""Share of inverted lists looked at; a graph is taken to look at 3,000 rows."""
_VISITED_ROWS = 3000


def code_bytes(kind: str, k: int, groups: int, bits: int) -> int:
    """Bytes a row takes: its code, and what goes with it."""
    if kind in ("Flat", "IVF-Flat"):
        code = 4 * k
    elif kind in ("SQfp16", "HNSW"):
        code = 2 * k
    elif kind in ("SQ8", "Int8", "IVF-SQ8"):
        code = k
    elif kind == "IVF-PQ":
        code = groups
    elif kind == "FastScan":
        code = ceil(k / 2)
    else:
        code = ceil(k / 8) + 8 if bits == 1 else ceil(k / 8) + 12 + ceil(k * (bits - 1) / 8) + 8
    return code + (_LIST_ROW_BYTES if kind in INVERTED else 0) + (_GRAPH_BYTES if kind == "HNSW" else 0)


def fixed_bytes(kind: str, k: int, d: int, lists: int, groups: int, bits: int) -> int:
    """Bytes that do not depend on the rows: the basis, the rotation or scale, centroids, ranges."""
    square = 4 * k * k if bits or kind in ("Int8", "FastScan") else 0
    centroids = PQ_CENTROIDS if groups else FAST_LEVELS if kind == "FastScan" else 0
    quantiser = 4 * centroids * k + (8 * k if kind.endswith("SQ8") else 0)
    return 4 * d * (k + 1) + square + 4 * k * lists + quantiser


def pq_groups(k: int) -> int:
    """Groups of two coordinates, or the fewest above two that divide k."""
    return next(k // size for size in (2, 3, 1) if k % size == 0)


def stored_errors(kind: str, bits: int, groups: int, variances: np.ndarray) -> np.ndarray | float:
    """Expected mean square error of each stored coordinate, from their variances (k,)."""
    if kind in ("SQ8", "IVF-SQ8"):
        return variances * _BYTE_ERROR
    if kind == "Int8":  # one step for all, made for the widest; the query is rounded like the rows
        return np.minimum(np.full(len(variances), 2 * variances.max() * _BYTE_ERROR), variances)
    if kind == "FastScan":
        return np.full(len(variances), variances.mean() * _FAST_ERROR)
    if kind == "RaBitQ":
        return np.full(len(variances), variances.mean() * _RABITQ_ERROR.get(bits, 4.0**-bits * 3))
    if kind == "IVF-PQ":
        size = len(variances) / groups
        middle = float(np.exp(np.log(np.maximum(variances, 1e-300)).mean()))
        return np.minimum(middle * 2.0 ** (-16 / size) * _PQ_LOSS, variances)
    return variances * (2.0**-22 if kind in ("SQfp16", "HNSW") else 0.0)


def build_seconds(kind: str, k: int, count: int, d: int, lists: int, sample: int) -> float:
    """Time of the pass over the latents, of training and of linking, on one core; without the recall report."""
    flops = 2.0 * count * d * k + 2.0 * k * lists * (10 * sample + count)
    flops += 512.0 * k * (25 * sample + count) if kind == "IVF-PQ" else 0.0
    flops += 2.0 * k * k * count + 2.0 * FAST_LEVELS * k * count if kind == "FastScan" else 0.0
    links = count * _LINK_S * k * max(np.log2(count), 1) / 10 if kind == "HNSW" else 0.0
    return 2 * d * count / _READ_BYTES_S + flops / _FLOPS + links


def query_seconds(kind: str, k: int, count: int, d: int, lists: int, candidates: int) -> float:
    """Time of one query of a clean latent on one core: projected, scanned, candidates ranked from the latents."""
    row_s = _FAST_ROW_S if kind == "FastScan" else _ROW_S
    scanned = count * (row_s + k * _COORDINATE_S.get(kind, _COORDINATE_S["SQ8"]))
    if lists:
        scanned = scanned * _PROBED + lists * (_ROW_S + k * _COORDINATE_S["Flat"])
    elif kind == "HNSW":
        scanned *= min(1.0, _VISITED_ROWS / count)
    return k * d * _PROJECTED_S + scanned + min(candidates, count) * d * _RANKED_S
