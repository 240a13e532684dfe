"""Which index a collection needs, from its size, its spectrum, the memory there is and the recall wanted.

Scans come first: nothing to tune, and at a few million rows still milliseconds. Beyond, or where memory is short, rows go to
inverted lists that stay on the disk. Within a kind the fewest coordinates are taken whose expected recall reaches the target
with a margin (see `index.expected_recall`). The figures say what to expect before hours are spent; what was reached is
measured after building, see `index.recall`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt
from typing import Literal, get_args

import numpy as np

from manifold.errors import InputError

from .expected_recall import expected_recall

__all__ = [
    "CANDIDATES", "DEFAULT_MEMORY_BYTES", "DEFAULT_RECALL", "INVERTED", "Kind", "Plan", "bytes_text", "parse_bytes",
    "plan_index",
]  # fmt: skip

Kind = Literal["Flat", "SQfp16", "SQ8", "RaBitQ", "HNSW", "IVF-Flat", "IVF-SQ8", "IVF-PQ"]

CANDIDATES = 5
"""Rows ranked exactly for each neighbour asked for; plans count on 50 for 10."""
DEFAULT_MEMORY_BYTES = 2**30
DEFAULT_RECALL = 0.99

INVERTED = ("IVF-Flat", "IVF-SQ8", "IVF-PQ")
_LEAST_RANK, _MOST_RANK, _RANK_STEP = 16, 256, 8
_MISSES = 0.5
"""Share of the misses allowed that is planned for: data are not quite Gaussian, and 2,000 CIFAR-10 images missed more than
three times as many as expected."""
_SCAN_UP_TO = 2_000_000
_GRAPH_BYTES = 274
"""HNSW32: 64 links at the bottom, a few above, and their offsets."""
_ROWS_A_LIST = 40
_BATCH_SHARE, _BATCH_BYTES = 1 / 16, (2**20, 64 * 2**20)
_PQ_ROWS, _PQ_CENTROIDS = 65_536, 256
_BRUTE_FORCE_BYTES = 3 * 4 * 320
"""For each row of a batch: distances to the held-out queries of the recall report."""
# Mean square error of a stored coordinate, as a share of the variance of what it is coded with; measured on normal rows.
_SQ8_ERROR = (9 / 255) ** 2 / 12
_PQ_LOSS = 1.3
_RABITQ_ERROR = {1: 0.31, 2: 0.1, 3: 0.035, 4: 0.0115}
# One core; the order of magnitude is what counts.
_READ_BYTES_S, _FLOPS, _LINK_S = 1e9, 2e10, 2e-6


@dataclass(frozen=True)
class Plan:
    """What to build, and what it will cost."""

    kind: Kind
    k: int
    """Eigen-coordinates."""
    count: int
    lists: int
    """Inverted lists; 0 for other kinds."""
    groups: int
    """Bytes a row of a product quantiser, one for each group of coordinates; 0 for other kinds."""
    bits: int
    """Per coordinate in RaBitQ; 0 for other kinds."""
    batch_rows: int
    """Latents read at a time."""
    training_rows: int
    training_bytes: int
    """Memory for the sample that the quantiser learns from."""
    build_bytes: int
    """Memory at the height of building, sample included."""
    index_bytes: int
    """Size of the file."""
    search_bytes: int
    """Memory that searching holds; inverted lists stay on the disk."""
    build_seconds: float
    """Rough, for one core."""
    expected_recall: float
    """Share of the 10 nearest among 50 candidates, for Gaussian data of this spectrum, all lists looked at."""
    target_recall: float

    def sentence(self) -> str:
        """The plan in one line."""
        detail = f" in {self.lists:,} lists" if self.lists else ""
        detail += f", {self.groups} bytes a row" if self.groups else f", {self.bits} bits each" if self.bits else ""
        wanted = "" if self.expected_recall >= self.target_recall else f", {self.target_recall:g} wanted"
        return (
            f"plan: {self.kind} over {self.k} coordinates{detail}; file {bytes_text(self.index_bytes)}, memory "
            f"{bytes_text(self.build_bytes)} to build and {bytes_text(self.search_bytes)} to search, about "
            f"{_seconds_text(self.build_seconds)}; expected recall {self.expected_recall:.3f}{wanted}"
        )


def plan_index(
    count: int,
    d: int,
    eigvals: np.ndarray,
    memory: int | str = DEFAULT_MEMORY_BYTES,
    recall: float = DEFAULT_RECALL,
    kind: str | None = None,
    rank: int | None = None,
    tail_var: float = 0.0,
) -> Plan:
    """Choose an index.

    Arguments
        count, d: rows, and values of each.
        eigvals: known variances, descending, at most d; coordinates are taken from these.
        memory: bytes that the index may take, in building and in searching, beside the program and the statistics; a number
            or a text such as "4G".
        recall: share of the true 10 nearest neighbours wanted among 50 candidates, above 0 and below 1.
        kind: one of `Kind`; the first that fits and reaches the recall, unless given.
        rank: coordinates; as few as reach the recall, a multiple of 8 from 16 to 256, unless given.
        tail_var: variance of each of the d - len(eigvals) directions without an eigenvalue of their own.

    Returns: the plan. If no kind reaches the recall, that which comes nearest to it.

    Raises: InputError if no kind fits into the memory, naming one that would, and with how much; or if an argument is out of
        range.

    Cost: milliseconds to a second, without a look at the data.
    """
    allowed = parse_bytes(memory) if isinstance(memory, str) else int(memory)
    if not 0 < recall < 1:
        raise InputError(f"the recall wanted must lie between 0 and 1, it is {recall}")
    if kind is not None and kind not in get_args(Kind):
        raise InputError(f"the kind of index must be one of {', '.join(get_args(Kind))}, it is {kind!r}")
    if kind == "IVF-PQ" and count < _PQ_CENTROIDS:
        raise InputError(
            f"IVF-PQ learns from at least {_PQ_CENTROIDS} rows, there are {count}; choose another kind, such as SQ8"
        )
    if count < 1:
        raise InputError("an index needs at least one row")
    if rank is not None and not 1 <= rank <= len(eigvals):
        raise InputError(f"the rank must lie between 1 and the manifold's {len(eigvals)}, it is {rank}")
    spectrum = np.concatenate([np.asarray(eigvals, dtype=np.float64), np.full(d - len(eigvals), tail_var)])
    ranks = [rank] if rank is not None else _ranks(spectrum, len(eigvals))
    makers = [(str(kind), bits) for bits in ((4, 2, 1) if kind == "RaBitQ" else (0,))] if kind else _order(count)
    best: Plan | None = None
    cheapest: Plan | None = None
    for name, bits in makers:
        for plan in (_plan(name, bits, k, count, d, spectrum, recall, allowed) for k in ranks):
            if cheapest is None or _needs(plan) < _needs(cheapest):
                cheapest = plan
            if _needs(plan) > allowed:
                break
            if 1 - plan.expected_recall <= _MISSES * (1 - recall):
                return plan
            if best is None or plan.expected_recall > best.expected_recall:
                best = plan
    if best is not None:
        return best
    assert cheapest is not None
    raise InputError(
        f"no index of {count:,} rows{f' of kind {kind}' if kind else ''} fits into {bytes_text(allowed)}: "
        f"{cheapest.kind} over {cheapest.k} coordinates needs {bytes_text(_needs(cheapest))}; "
        f"give --memory {ceil(_needs(cheapest) / 2**20)}M{_other_way(kind)}"
    )


def parse_bytes(text: str) -> int:
    """Bytes from "4G", "512M", "1.5 GiB", "2000000". Raises: InputError."""
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    cleaned = text.strip().upper().removesuffix("B").removesuffix("I").strip()
    unit = cleaned[-1:] if cleaned[-1:] in units and not cleaned[-1:].isdigit() else ""
    try:
        value = float(cleaned.removesuffix(unit)) * units[unit]
        if not 1 <= value < 2**62:
            raise ValueError
    except ValueError as error:
        raise InputError(f"an amount of memory must be like 4G, 512M or 2000000, it is {text!r}") from error
    return int(value)


def bytes_text(amount: float) -> str:
    """Such as 1.5 GiB."""
    if amount < 1024:
        return f"{amount:.0f} B"
    power = min(int(np.log2(amount) // 10), 3)
    scaled = amount / 1024**power
    return f"{scaled:,.{0 if scaled >= 100 else 1}f} {('KiB', 'MiB', 'GiB')[power - 1]}"


def _seconds_text(seconds: float) -> str:
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"


def _order(count: int) -> list[tuple[str, int]]:
    """Kinds to try, the most precise first; RaBitQ with fewer and fewer bits."""
    scans: list[tuple[str, int]] = [("Flat", 0), ("SQfp16", 0), ("SQ8", 0), ("RaBitQ", 4), ("RaBitQ", 2)]
    return [*scans, ("IVF-SQ8", 0)] if count <= _SCAN_UP_TO else [("IVF-SQ8", 0), *scans[2:]]


def _other_way(kind: str | None) -> str:
    return "" if kind is None else ", or leave the kind to the plan"


def _needs(plan: Plan) -> int:
    return max(plan.build_bytes, plan.search_bytes)


def _ranks(spectrum: np.ndarray, most: int) -> list[int]:
    """Multiples of 8, up to 256 and to as many directions as vary at all."""
    varying = min(most, _MOST_RANK, max(int((spectrum > 0).sum()), 1))
    stepped = list(range(_LEAST_RANK, varying + 1, _RANK_STEP))
    return stepped if stepped and varying % _RANK_STEP == 0 else [*stepped, varying]


def _plan(kind: str, bits: int, k: int, count: int, d: int, spectrum: np.ndarray, recall: float, allowed: int) -> Plan:
    inverted = kind in INVERTED
    lists = max(1, min(ceil(4 * sqrt(count)), count // _ROWS_A_LIST)) if inverted else 0
    groups = _groups(k) if kind == "IVF-PQ" else 0
    code = _code_bytes(kind, k, groups, bits)
    sample = 0 if kind in ("Flat", "SQfp16", "HNSW") else min(max(_ROWS_A_LIST * lists, _PQ_ROWS), count)
    rotation = 4 * k * k if bits else 0
    basis = 4 * d * (k + 1) + rotation
    centroids = 4 * k * lists + (4 * _PQ_CENTROIDS * k if groups else 0) + (8 * k if kind.endswith("SQ8") else 0)
    row_bytes = code + (8 if inverted else 0) + (_GRAPH_BYTES if kind == "HNSW" else 0)
    index_bytes = basis + centroids + 16 * lists + count * row_bytes
    # The sample, and its copy where coordinates are rearranged; a batch as stored, in float32, centred, and projected.
    training = sample * k * 4 * (2 if groups or bits else 1)
    least, most = _BATCH_BYTES
    rows = min(count, max(1, min(max(int(_BATCH_SHARE * allowed), least), most) // (4 * d)))
    batch = rows * (10 * d + 8 * k + _BRUTE_FORCE_BYTES)
    held = basis + centroids + (16 * count if inverted else count * row_bytes)
    search = basis + centroids + 16 * lists if inverted else index_bytes
    errors = spectrum.copy()
    errors[:k] = _errors(kind, bits, groups, spectrum[:k])
    return Plan(
        kind=kind,  # type: ignore[arg-type]
        k=k,
        count=count,
        lists=lists,
        groups=groups,
        bits=bits,
        batch_rows=rows,
        training_rows=sample,
        training_bytes=training,
        build_bytes=basis + max(held + batch, training + batch),
        index_bytes=index_bytes,
        search_bytes=search,
        build_seconds=_build_seconds(kind, k, count, d, lists, sample),
        expected_recall=expected_recall(spectrum, errors, count, 10 * CANDIDATES),
        target_recall=recall,
    )


def _code_bytes(kind: str, k: int, groups: int, bits: int) -> int:
    if kind in ("Flat", "IVF-Flat"):
        return 4 * k
    if kind in ("SQfp16", "HNSW"):
        return 2 * k
    if kind in ("SQ8", "IVF-SQ8"):
        return k
    if kind == "IVF-PQ":
        return groups
    return ceil(k / 8) + 8 if bits == 1 else ceil(k / 8) + 12 + ceil(k * (bits - 1) / 8) + 8


def _groups(k: int) -> int:
    """Groups of two coordinates, or the fewest above two that divide k."""
    return next(k // size for size in (2, 3, 1) if k % size == 0)


def _errors(kind: str, bits: int, groups: int, variances: np.ndarray) -> np.ndarray | float:
    """Expected mean square error of each stored coordinate."""
    if kind in ("SQ8", "IVF-SQ8"):
        return variances * _SQ8_ERROR
    if kind == "RaBitQ":
        return np.full(len(variances), variances.mean() * _RABITQ_ERROR.get(bits, 4.0**-bits * 3))
    if kind == "IVF-PQ":
        size = len(variances) / groups
        middle = float(np.exp(np.log(np.maximum(variances, 1e-300)).mean()))
        return np.minimum(middle * 2.0 ** (-16 / size) * _PQ_LOSS, variances)
    return variances * (2.0**-22 if kind in ("SQfp16", "HNSW") else 0.0)


def _build_seconds(kind: str, k: int, count: int, d: int, lists: int, sample: int) -> float:
    flops = 2.0 * count * d * (k + 100) + 2.0 * k * lists * (10 * sample + count)
    flops += 512.0 * k * (25 * sample + count) if kind == "IVF-PQ" else 0.0
    links = count * _LINK_S * k * max(np.log2(count), 1) / 10 if kind == "HNSW" else 0.0
    return 2 * d * count / _READ_BYTES_S + flops / _FLOPS + links
