"""How much of the truth an index returns: measured on held-out states against brute force, and kept in its card.

Two sorts of queries are made from seeded rows of the collection. Noisy states x_t = x0 + sigma eps at three levels of the
spectrum: those at which three quarters, one half and one quarter of the variance are decided,
sum lambda^2 / (lambda + sigma^2) = share * sum lambda. And clean latents that are not in the collection: draws from the
Gaussian posterior p(x0 | x_t) at the middle level. For each the latents truly nearest to its closed-form end are found
from the full latents, in a pass of its own, and compared with what `Searcher.search` returns.

recall@10 is the mean share of the 10 true neighbours returned, recall@1 how often the first is the truth's first. Rows as
near as those count as found. Intervals are Wilson's at 95 %, with one trial for each query: neighbours of one query are not
independent.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from manifold.gaussian import GaussianManifold

from .latents import LatentStore
from .plan import Plan
from .progress import Progress, silent

if TYPE_CHECKING:
    from .cpu_index import CpuIndex
    from .gpu_index import GpuIndex
    from .search import Searcher

__all__ = ["Cell", "Truth", "calibrate", "enough_candidates", "measure_recall", "quartile_levels", "wilson"]

_SHARES = (0.75, 0.5, 0.25)
_QUERIES = 50
_CALIBRATING = 32
_NEIGHBOURS = 10
_MARGIN = 10
"""More neighbours kept in float32 than needed, to be ranked in float64 at the end."""
_LIMIT_S = 120.0
_EQUAL = 1e-5
_ENOUGH = 0.005
_MOST_TIMES, _STEP = 4, 10
_BATCH_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Cell:
    """States at one noise level whose ends are looked for."""

    sigma: float
    """Noise of the states, with alpha = 1; 0 for clean ones."""
    states: Tensor
    """(m, d) float32."""
    for_calibration: bool = False


class Truth:
    """Exact neighbours of held-out states among all latents.

    Arguments
        manifold: fitted to the collection. store: its latents. seed: of rows and noise.
        progress: told of ("truth", rows done, rows in all).

    Cost: one pass over the latents, 232 d multiply-adds a row, float32.
    """

    def __init__(
        self, manifold: GaussianManifold, store: LatentStore, *, seed: int = 0, progress: Progress = silent
    ) -> None:
        self.manifold = manifold
        self._store = store
        self.neighbours = min(_NEIGHBOURS, len(store))
        self.cells = _cells(manifold, store, seed)
        self._mean = manifold.mean.double()
        self._centres = [
            (manifold.endpoint(cell.states, 1.0, cell.sigma) if cell.sigma else cell.states).double() - self._mean
            for cell in self.cells
        ]
        self._queries = torch.cat(self._centres).float()
        self._best = torch.full((len(self._queries), self.neighbours + _MARGIN), torch.inf, dtype=torch.float32)
        self._ids = torch.full(self._best.shape, -1, dtype=torch.int64)
        self._known: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}  # by cell: it is asked for at every effort
        done = 0
        progress("truth", 0, len(store))
        for batch in store.batches(max(1, _BATCH_BYTES // (4 * store.d))):
            self._look_at(batch, done)
            done += len(batch)
            progress("truth", done, len(store))

    def _look_at(self, batch: np.ndarray, start: int) -> None:
        """Rows `start` to before `start + m`: latents (m, d)."""
        centred = torch.from_numpy(batch).float() - self.manifold.mean.float()
        squared = centred.square().sum(1) - 2 * self._queries @ centred.T
        numbers = torch.arange(start, start + len(batch)).expand(len(squared), -1)
        self._best, chosen = torch.cat([self._best, squared], 1).topk(self._best.shape[1], largest=False)
        self._ids = torch.cat([self._ids, numbers], 1).gather(1, chosen)

    def __len__(self) -> int:
        return len(self._store)

    @property
    def calibrating(self) -> int:
        """Number of the cell that settings are judged by, and the report is not."""
        return next(number for number, cell in enumerate(self.cells) if cell.for_calibration)

    def of(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The true neighbours of cell `number`: row numbers and distances, (m, 10) each, nearest first."""
        ids, distances = zip(*self._ranked(number), strict=True)
        return np.array(ids)[:, : self.neighbours], np.array(distances)[:, : self.neighbours]

    def shares_among(self, number: int, candidates: np.ndarray) -> np.ndarray:
        """Share of the true neighbours of cell `number` among the first 1, 2, ..., c of c candidates each, (m, c).

        Rows as near as the last of the neighbours are as good. Candidates are measured only where there are such.
        """
        found = np.empty(candidates.shape, dtype=bool)
        for state, (near, (ids, distances)) in enumerate(zip(candidates, self._ranked(number), strict=True)):
            found[state] = np.isin(near, ids[: self.neighbours])
            reach = distances[self.neighbours - 1] * (1 + _EQUAL)
            if len(distances) > self.neighbours and distances[self.neighbours] <= reach:
                there = np.flatnonzero(near >= 0)
                found[state, there] |= self._distances(number, state, near[there]) <= reach
        return np.minimum(found.cumsum(axis=1), self.neighbours) / self.neighbours

    def _ranked(self, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each state of cell `number` the rows kept and their distances, nearest first."""
        if number in self._known:
            return self._known[number]
        first = sum(len(cell.states) for cell in self.cells[:number])
        ranked = []
        for state in range(len(self.cells[number].states)):
            kept = self._ids[first + state]
            rows = kept[kept >= 0].numpy()
            far = self._distances(number, state, rows)
            order = np.lexsort((rows, far))
            ranked.append((rows[order], far[order]))
        self._known[number] = ranked
        return ranked

    def _distances(self, number: int, state: int, rows: np.ndarray) -> np.ndarray:
        """Of rows from one state of cell `number`, (len(rows),) float64."""
        centre = (self._centres[number][state] + self._mean).numpy()
        return np.asarray(np.linalg.norm(centre - self._store.read(rows).astype(np.float64), axis=1))

    def centres(self, number: int) -> np.ndarray:
        """What the index is searched with in cell `number`, (m, d) float32."""
        return (self._centres[number] + self._mean).float().numpy()


def quartile_levels(manifold: GaussianManifold) -> list[float]:
    """The sigmas at which 75, 50 and 25 % of the variance are decided; by bisection of a falling function."""
    eigvals = np.concatenate(
        [manifold.eigvals.double().numpy(), np.full(manifold.d - manifold.k, manifold.tail_var, dtype=np.float64)]
    )
    total = float(eigvals.sum())
    if not total > 0:
        return [1.0]
    levels = []
    for share in _SHARES:
        low, high = float(np.log(1e-6 * eigvals.max())), float(np.log(1e6 * eigvals.max()))
        for _ in range(60):
            middle = (low + high) / 2
            decided = float((eigvals**2 / (eigvals + np.exp(middle))).sum()) / total
            low, high = (middle, high) if decided > share else (low, middle)
        levels.append(float(np.exp(low / 2)))
    return levels


def _cells(manifold: GaussianManifold, store: LatentStore, seed: int) -> list[Cell]:
    generator = torch.Generator().manual_seed(seed)
    levels = quartile_levels(manifold)
    middle = levels[len(levels) // 2]

    def noisy(sigma: float, m: int) -> Tensor:
        rows = torch.randint(len(store), (m,), generator=generator).numpy()
        x0 = torch.from_numpy(store.read(rows)).float()
        return x0 + sigma * torch.randn(x0.shape, generator=generator, dtype=torch.float32)

    def clean(m: int) -> Tensor:
        return manifold.posterior(noisy(middle, m), 1.0, middle).sample(1, generator)[0].float()

    cells = [Cell(0.0, clean(_QUERIES)), *(Cell(sigma, noisy(sigma, _QUERIES)) for sigma in levels)]
    return [*cells, Cell(0.0, clean(_CALIBRATING), for_calibration=True)]


def calibrate(index: Any, truth: Truth, plan: Plan) -> int | None:
    """Set how far an index looks: the least that reaches the recall wanted, or nearly all that it can reach.

    Judged by the true neighbours of clean held-out latents among the candidates, on queries that the report does not use.

    Returns: inverted lists probed, or nodes kept of a graph; None for a scan, which has no such choice.
    """
    from . import faiss_io
    from .cpu_index import CpuIndex

    most = plan.lists or 1024
    if not faiss_io.set_effort(index, 1):
        return None
    number = truth.calibrating
    wanted = min(plan.candidates, plan.count)
    searched = CpuIndex(index)
    efforts = sorted({most, *(2**power for power in range(0 if plan.lists else 5, 20) if 2**power < most)})
    reached = []
    for effort in efforts:
        faiss_io.set_effort(index, effort)
        found = searched.nearest(truth.centres(number), wanted)
        reached.append(float(truth.shares_among(number, found)[:, -1].mean()))
        if reached[-1] >= plan.target_recall:
            break
    enough = min(plan.target_recall, max(reached) - _ENOUGH)
    chosen = next(effort for effort, share in zip(efforts, reached, strict=False) if share >= enough)
    faiss_io.set_effort(index, chosen)
    return chosen


def enough_candidates(index: CpuIndex | GpuIndex, truth: Truth, planned: int, wanted: float) -> tuple[int, bool]:
    """How many rows to rank for 10 neighbours: as planned, or up to four times as many where the data need more.

    Plans count on Gaussian data; images have heavier tails. Judged as in `calibrate`.

    Returns: their number, and whether it brings the recall wanted.
    """
    most = min(_MOST_TIMES * planned, len(truth))
    found = index.nearest(truth.centres(truth.calibrating), most)
    shares = truth.shares_among(truth.calibrating, found).mean(axis=0)
    for candidates in (*range(planned, most, _STEP), max(planned, most)):
        if shares[min(candidates, most) - 1] >= wanted:
            return candidates, True
    return max(planned, most), False


def measure_recall(searcher: Searcher, truth: Truth, *, progress: Progress = silent) -> dict[str, Any]:
    """Compare what a search returns with the truth.

    Returns: the report of the card: among how many rows, and for each noise level and all states together recall@1 and
        recall@10 with their intervals. Cells that would take more than two minutes in all are left out and named.
    """
    began = time.monotonic()
    cells, left_out, firsts, shares = [], [], [], []
    judged = [(number, cell) for number, cell in enumerate(truth.cells) if not cell.for_calibration]
    for done, (number, cell) in enumerate(judged):
        progress("recall", done, len(judged))
        if time.monotonic() - began > _LIMIT_S:
            left_out.append(f"sigma {cell.sigma:.4g}")
            continue
        ids, distances = truth.of(number)
        hits = searcher.search(cell.states, 1.0, cell.sigma, "endpoint", k=truth.neighbours)
        near = np.stack([np.isin(found, true) for found, true in zip(hits.ids, ids, strict=True)])
        near |= hits.scores <= distances[:, -1:] * (1 + _EQUAL)
        first = (hits.ids[:, 0] == ids[:, 0]) | (hits.scores[:, 0] <= distances[:, 0] * (1 + _EQUAL))
        cells.append(asdict(_Figures.of(first, near.mean(1))) | {"sigma": cell.sigma})
        firsts.append(first)
        shares.append(near.mean(1))
    progress("recall", len(judged), len(judged))
    return {
        "count": len(searcher.workspace.latents),
        "neighbours": truth.neighbours,
        "all": asdict(_Figures.of(np.concatenate(firsts), np.concatenate(shares))),
        "cells": cells,
        "left_out": left_out,
    }


@dataclass(frozen=True)
class _Figures:
    queries: int
    recall_at_1: float
    recall_at_1_interval: tuple[float, float]
    recall_at_10: float
    recall_at_10_interval: tuple[float, float]

    @classmethod
    def of(cls, first: np.ndarray, share: np.ndarray) -> _Figures:
        one, ten, n = float(first.mean()), float(share.mean()), len(first)
        return cls(n, one, wilson(one, n), ten, wilson(ten, n))


def wilson(share: float, trials: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of a proportion; 95 % unless z is given. Source: Wilson (1927)."""
    scale = 1 + z**2 / trials
    middle = (share + z**2 / (2 * trials)) / scale
    half = z / scale * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return max(float(middle - half), 0.0), min(float(middle + half), 1.0)
