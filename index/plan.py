"""Which index a collection needs, from its size, its spectrum, the memory there is and the recall wanted.

A search looks at stored coordinates of the rows and ranks the best of them, the candidates, from the full latents: the fewer
coordinates, the more candidates. Of what fits, and reaches the target in expectation and with a margin (see
`index.expected_recall`), the smallest is taken among those that answer about as soon as the quickest. Scans come first:
nothing to tune, and at a few million rows still milliseconds. Beyond, or where memory is short, rows go to inverted lists
that stay on the disk. The figures say what to expect before hours are spent (see `index.costs`); what was reached is
measured after building, see `index.recall`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from math import ceil, inf, sqrt
from typing import get_args

import numpy as np

from manifold.errors import InputError

from .costs import (
    INVERTED,
    PQ_CENTROIDS,
    Kind,
    build_seconds,
    code_bytes,
    fixed_bytes,
    pq_groups,
    query_seconds,
    stored_errors,
)
from .expected_recall import expected_recall, gathered

__all__ = ["DEFAULT_MEMORY_BYTES", "DEFAULT_RECALL", "Plan", "bytes_text", "finer_plan", "parse_bytes", "plan_index"]

DEFAULT_MEMORY_BYTES = 2**30
DEFAULT_RECALL = 0.99

_RANKS = tuple(range(16, 257, 16))
_CANDIDATES = (50, 60, 70, 80, 90, 100, 120, 140, 160, 180, 200)
_AS_QUICK = 1.1
"""Times of queries within this factor count as equal."""
_MISSES = 0.5
"""Share of the misses allowed that is planned for: data are not quite Gaussian, and 2,000 CIFAR-10 images missed more than
three times as many as expected."""
_FINER = {"FastScan": "Int8", "Int8": "SQfp16", "SQ8": "SQfp16"}
_FINER_RANK = 64
_SCAN_UP_TO = 2_000_000
_ROWS_A_LIST = 40
_BATCH_SHARE, _BATCH_BYTES = 1 / 16, (2**20, 64 * 2**20)
_SAMPLE_ROWS = 65_536
_FAST_SAMPLE_ROWS = 4_096
"""A fast scan learns no more than the width of each coordinate."""


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
    query_seconds: float
    """Rough, for one query of a clean latent on one core."""
    candidates: int
    """Rows ranked exactly for 10 neighbours."""
    expected_recall: float
    """Share of the 10 nearest among the candidates, for Gaussian data of this spectrum, all lists looked at."""
    target_recall: float
    memory_bytes: int
    """What it may take."""
    chosen: bool
    """Whether kind and coordinates were the plan's own choice."""

    def sentence(self) -> str:
        """The plan in one line."""
        detail = f" in {self.lists:,} lists" if self.lists else ""
        detail += f", {self.groups} bytes a row" if self.groups else f", {self.bits} bits each" if self.bits else ""
        wanted = "" if self.expected_recall >= self.target_recall else f", {self.target_recall:g} wanted"
        return (
            f"plan: {self.kind} over {self.k} coordinates{detail}, {self.candidates} candidates for 10 neighbours; file "
            f"{bytes_text(self.index_bytes)}, memory {bytes_text(self.build_bytes)} to build and "
            f"{bytes_text(self.search_bytes)} to search, about {_seconds_text(self.build_seconds)}; expected recall "
            f"{self.expected_recall:.3f}{wanted}"
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
        recall: share of the true 10 nearest neighbours wanted among the candidates, above 0 and below 1.
        kind: one of `Kind`; the quickest that fits and reaches the recall, unless given.
        rank: coordinates; what answers soonest, a multiple of 16 from 16 to 256, unless given.
        tail_var: variance of each of the d - len(eigvals) directions without an eigenvalue of their own.

    Returns: the plan, with 50 to 200 candidates for 10 neighbours. If no kind reaches the recall, that which comes nearest.

    Raises: InputError if no kind fits into the memory, naming one that would, and with how much; or if an argument is out of
        range.

    Cost: milliseconds to a second, without a look at the data.
    """
    allowed = parse_bytes(memory) if isinstance(memory, str) else int(memory)
    if not 0 < recall < 1:
        raise InputError(f"the recall wanted must lie between 0 and 1, it is {recall}")
    if kind is not None and kind not in get_args(Kind):
        raise InputError(f"the kind of index must be one of {', '.join(get_args(Kind))}, it is {kind!r}")
    if kind == "IVF-PQ" and count < PQ_CENTROIDS:
        raise InputError(
            f"IVF-PQ learns from at least {PQ_CENTROIDS} rows, there are {count}; choose another kind, such as SQ8"
        )
    if count < 1:
        raise InputError("an index needs at least one row")
    if rank is not None and not 1 <= rank <= len(eigvals):
        raise InputError(f"the rank must lie between 1 and the manifold's {len(eigvals)}, it is {rank}")
    if len(eigvals) > d or not (np.isfinite(eigvals).all() and np.min(eigvals, initial=0.0) >= 0):
        raise InputError(f"variances must be at most d = {d} finite numbers of at least 0, they are {len(eigvals)}")
    chosen = kind is None and rank is None
    spectrum = np.concatenate([np.asarray(eigvals, dtype=np.float64), np.full(d - len(eigvals), tail_var)])
    ranks = [rank] if rank is not None else _ranks(spectrum, len(eigvals))
    modes = gathered(spectrum, max(_RANKS[-1], *ranks))
    fewest = cache(lambda k: _with_candidates(_sized("Flat", 0, k, count, d, allowed, recall), modes).candidates)
    groups = [[(kind, bits)] for bits in ((4, 2, 1) if kind == "RaBitQ" else (0,))] if kind else _order(count)
    best: Plan | None = None
    cheapest: Plan | None = None
    for group in groups:
        will_do: list[Plan] = []
        for name, bits in group:
            for k in ranks:
                plan = replace(_sized(name, bits, k, count, d, allowed, recall), chosen=chosen)
                if cheapest is None or _needs(plan) < _needs(cheapest):
                    cheapest = plan
                if _needs(plan) > allowed:
                    break
                if _timed(plan, d, fewest(k)).query_seconds > _AS_QUICK * _quickest(will_do):
                    continue
                plan = _with_candidates(plan, modes)
                if _reaches(plan):
                    will_do.append(plan)
                elif best is None or plan.expected_recall > best.expected_recall:
                    best = plan
        if will_do:
            quick = [plan for plan in will_do if plan.query_seconds <= _AS_QUICK * _quickest(will_do)]
            return min(quick, key=lambda plan: plan.index_bytes)
    if best is not None:
        return best
    assert cheapest is not None
    raise InputError(
        f"no index of {count:,} rows{f' of kind {kind}' if kind else ''} fits into {bytes_text(allowed)}: "
        f"{cheapest.kind} over {cheapest.k} coordinates needs {bytes_text(_needs(cheapest))}; "
        f"give --memory {ceil(_needs(cheapest) / 2**20)}M{_other_way(kind)}"
    )


def finer_plan(plan: Plan, d: int, eigvals: np.ndarray, tail_var: float = 0.0) -> Plan | None:
    """What to build where an index missed its recall: finer codes, and twice the coordinates.

    A plan sees a spectrum and takes the data for Gaussian. Of data in clusters far apart the spectrum shows the clusters, and
    codes that are fine enough for these do not tell a cluster's own rows apart.

    Arguments
        plan: of the index that missed it. d, eigvals, tail_var: as `plan_index` had them.

    Returns: the plan; None if kind or coordinates were asked for, or nothing finer fits into the memory.
    """
    if not plan.chosen or plan.kind not in _FINER:
        return None
    rank = min(max(2 * plan.k, _FINER_RANK), max(_RANKS), len(eigvals))
    try:
        finer = plan_index(
            plan.count, d, eigvals, plan.memory_bytes, plan.target_recall, _FINER[plan.kind], rank, tail_var
        )
    except InputError:  # the memory
        return None
    return replace(finer, chosen=True)


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


def _order(count: int) -> list[list[tuple[str, int]]]:
    """Groups of kinds to try: of the first that has one that will do, the quickest."""
    scans = [("FastScan", 0), ("Int8", 0), ("SQ8", 0), ("SQfp16", 0), ("Flat", 0)]
    lists = [("IVF-SQ8", 0)]
    return [scans, lists] if count <= _SCAN_UP_TO else [lists, scans]


def _quickest(plans: list[Plan]) -> float:
    return min((plan.query_seconds for plan in plans), default=inf)


def _other_way(kind: str | None) -> str:
    return "" if kind is None else ", or leave the kind to the plan"


def _needs(plan: Plan) -> int:
    return max(plan.build_bytes, plan.search_bytes)


def _ranks(spectrum: np.ndarray, most: int) -> list[int]:
    """Multiples of 16, in which scans are quick, up to 256 and to as many directions as vary at all."""
    varying = min(most, _RANKS[-1], max(int((spectrum > 0).sum()), 1))
    stepped = [k for k in _RANKS if k <= varying]
    return stepped if stepped and stepped[-1] == varying else [*stepped, varying]


def _sized(kind: str, bits: int, k: int, count: int, d: int, allowed: int, recall: float) -> Plan:
    """What this kind needs with k coordinates, and its time with the fewest candidates."""
    inverted = kind in INVERTED
    lists = max(1, min(ceil(4 * sqrt(count)), count // _ROWS_A_LIST)) if inverted else 0
    groups = pq_groups(k) if kind == "IVF-PQ" else 0
    learns_from = _FAST_SAMPLE_ROWS if kind == "FastScan" else max(_ROWS_A_LIST * lists, _SAMPLE_ROWS)
    sample = 0 if kind in ("Flat", "SQfp16", "HNSW") else min(learns_from, count)
    fixed, row_bytes = fixed_bytes(kind, k, d, lists, groups, bits), code_bytes(kind, k, groups, bits)
    index_bytes = fixed + 16 * lists + count * row_bytes
    # The sample, and its copy where coordinates are changed; a batch as stored, in float32, centred, and projected.
    training = sample * k * 4 * (2 if groups or bits or kind in ("Int8", "FastScan") else 1)
    least, most = _BATCH_BYTES
    rows = min(count, max(1, min(max(int(_BATCH_SHARE * allowed), least), most) // (4 * d)))
    batch = rows * (10 * d + 8 * k)
    held = fixed + (16 * count if inverted else count * row_bytes)
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
        build_bytes=max(held, fixed + training) + batch,
        index_bytes=index_bytes,
        search_bytes=fixed + 16 * lists if inverted else index_bytes,
        build_seconds=build_seconds(kind, k, count, d, lists, sample),
        query_seconds=query_seconds(kind, k, count, d, lists, _CANDIDATES[0]),
        candidates=_CANDIDATES[0],
        expected_recall=0.0,
        target_recall=recall,
        memory_bytes=allowed,
        chosen=False,
    )


def _timed(plan: Plan, d: int, candidates: int) -> Plan:
    seconds = query_seconds(plan.kind, plan.k, plan.count, d, plan.lists, candidates)
    return replace(plan, query_seconds=seconds)


def _reaches(plan: Plan) -> bool:
    return 1 - plan.expected_recall <= _MISSES * (1 - plan.target_recall)


def _with_candidates(plan: Plan, modes: tuple[np.ndarray, np.ndarray]) -> Plan:
    """The plan with as few candidates as reach its recall, or with the most."""
    variances, weights = modes
    errors = variances.copy()
    errors[: plan.k] = stored_errors(plan.kind, plan.bits, plan.groups, variances[: plan.k])
    d = int(weights.sum())

    def of(candidates: int) -> Plan:
        found = expected_recall(variances, errors, plan.count, candidates, weights=weights)
        return replace(_timed(plan, d, candidates), candidates=candidates, expected_recall=found)

    low, high, found = 0, len(_CANDIDATES) - 1, of(_CANDIDATES[-1])
    while low < high and _reaches(found):
        middle = (low + high) // 2
        tried = of(_CANDIDATES[middle])
        low, high, found = (low, middle, tried) if _reaches(tried) else (middle + 1, high, found)
    return found
