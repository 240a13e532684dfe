"""Retrieval from a noisy state, by the question asked.

A predicted target is a poor query for plain nearest neighbours: the Wiener filter shrinks it toward the mean, and a few hub
images near the mean win every time. So the question is named, and each has its own metric:

- **source**: which rows could have produced x_t? Bayes' posterior over the whole collection, as probabilities.
- **endpoint**: what will the final image be near to? Plain distance to the closed-form solution at sigma = 0, which keeps the
  full variance of the data: per mode x0_hat / sqrt(g) about the mean, g = alpha^2 lambda / (alpha^2 lambda + sigma^2).
- **target**: what is it heading to now, given all that is known now? The network that paints predicts an x0_hat of its own
  from the same state, knowing its prompt or class. That prediction is shrunk like any other, so it is not searched with, but
  corrects the closed form's end by its departure from the closed form's prediction, the departure of a mode weighted with
  1 / (1 + sqrt(g)); see `GaussianManifold.endpoint`. Without a network's prediction the closed form's own is taken, which
  does not depart from itself, and the answer is that of `endpoint`.

At sigma = 0 all three are the nearest latents.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import repeat
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor

from manifold.errors import FormatError, InputError, ManifoldWarning, MismatchError, NonFiniteError, NotFittedError
from manifold.files import file_stamp, sha256_file
from manifold.gaussian import GaussianManifold, Level

from .card import INDEX_SCHEMA, has_card, read_card
from .cpu_index import CpuIndex
from .exhaustive import nearest_rows
from .filters import Condition, Where, parse_where, rows_where
from .latents import LatentStore
from .posterior import posterior
from .ranking import Ranking
from .statistics import load_manifold
from .workspace import Workspace

if TYPE_CHECKING:
    from .gpu_index import GpuIndex

__all__ = ["Hits", "Question", "Searcher"]

Question = Literal["source", "target", "endpoint"]
_QUESTIONS = get_args(Question)

_LARGEST = 1e7
"""Beyond values and levels like this the squares of distances leave float32."""
_LEAST_NEIGHBOURS = 10
"""Candidates are planned for as many; a search for fewer looks at no fewer."""
_FILTERS_KEPT = 32
_BLOCK = 16
"""States in one matrix product."""


@dataclass(frozen=True)
class Hits:
    """Neighbours of each state, best first."""

    ids: np.ndarray
    """(n, k) int64 row numbers of the store."""
    scores: np.ndarray
    """(n, k) float64; what they mean is `score_name`."""
    score_name: str
    """`probability`, falling from 1; or `distance`, rising from 0, in latent units."""
    store: LatentStore = field(repr=False)
    among: int | None = None
    """Rows that met the conditions of the search; None if it had none. Probabilities are given that it is one of them."""

    def rows(self, state: int = 0) -> list[dict[str, Any]]:
        """Metadata of one state's neighbours, best first, each with its `row` number and its score."""
        found = self.store.rows(self.ids[state])
        return [{**row, self.score_name: float(score)} for row, score in zip(found, self.scores[state], strict=True)]


class Searcher:
    """Search over one workspace. Open it with `Searcher.open`."""

    def __init__(self, workspace: Workspace, manifold: GaussianManifold, index: Any, card: dict[str, Any]) -> None:
        self.workspace = workspace
        self.manifold = manifold
        self.card = card
        self.remark: str | None = None
        """That rows of the workspace are not in the index yet, where it is so."""
        self._store = workspace.latents
        self._ranking = Ranking(workspace.latents)
        self._index: CpuIndex | GpuIndex = CpuIndex(index)
        self._filters: dict[tuple[Condition, ...], np.ndarray] = {}

    @classmethod
    def open(cls, path: str | Path, device: str | None = None) -> Self:
        """Open the index of the workspace in folder `path`, checking that all parts belong together.

        Arguments
            path: the workspace's folder.
            device: a CUDA device on which candidates are found, see `index.gpu_index`; the processor unless given.

        Returns: the searcher. While images are being added, and after an addition was stopped, it is one over the rows that
            were there before; `workspace` then holds these alone.

        Raises: InputError if there is no workspace, or no such device; NotFittedError if it is not fitted or indexed;
            FormatError if a file is damaged; MismatchError if statistics or latents changed since the index was built or
            brought up to them; MissingExtraError for a device without faiss-gpu.

        Warns: ManifoldWarning if there are rows that the index does not have yet.
        """
        root = Path(path)
        while True:
            manifest, *parts = _stamps(root)
            try:
                searcher = cls._opened(Workspace.open(root))
            except (FormatError, MismatchError):
                if _stamps(root) == [manifest, *parts]:
                    raise
                continue  # a file was exchanged between two readings: see what is there now
            if _stamps(root)[1:] == parts:
                break
        added = Workspace.open(root).manifest.count - len(searcher._store)
        if added > 0:
            searcher.remark = (
                f"the index of {root} lacks the last {added:,} rows: images are being added, or an addition was stopped; "
                "the same manifold add run again finishes it"
            )
            warnings.warn(searcher.remark, ManifoldWarning, stacklevel=2)
        if device is not None:
            from .gpu_index import to_gpu

            searcher._index = to_gpu(searcher._index.on_cpu, device)
        return searcher

    @classmethod
    def _opened(cls, workspace: Workspace) -> Self:
        from .faiss_io import read_index

        workspace.require_complete()
        remedy = f"run: manifold index {workspace.root}"
        if not has_card(workspace) or not workspace.index_path.is_file():
            first = "" if workspace.stats_path.is_file() else f"run: manifold fit {workspace.root}, and then "
            raise NotFittedError(f"{workspace.root} has no index yet; {first}{remedy}")
        card = read_card(workspace)
        if card["schema"] != INDEX_SCHEMA:
            raise FormatError(
                f"{workspace.index_card_path} has schema {card['schema']}, this version reads {INDEX_SCHEMA}; {remedy}"
            )
        if sha256_file(workspace.index_path) != card["index_sha256"]:
            raise FormatError(f"{workspace.index_path} is damaged, or belongs to another card; {remedy}")
        index = read_index(workspace.index_path)
        indexed = workspace.before_growth(card["latents_sha256"])
        if indexed is None:
            raise MismatchError(
                f"{workspace.index_path} was built from other latents; finish a stopped add or remove, or {remedy}"
            )
        if workspace.stats_path.is_file() and sha256_file(workspace.stats_path) != card["stats_sha256"]:
            raise MismatchError(
                f"{workspace.index_path} was built from other statistics; finish a stopped add, or {remedy}"
            )
        return cls(indexed, load_manifold(indexed), index, card)

    def search(
        self,
        x_t: Tensor,
        alpha: Level = 1.0,
        sigma: Level = 0.0,
        question: Question = "endpoint",
        k: int = 10,
        where: Where = (),
        x0_hat: Tensor | None = None,
    ) -> Hits:
        """Neighbours of noisy states x_t = alpha x0 + sigma eps.

        Arguments
            x_t: (n, d) or (n, C, H, W); clean latents with the default levels.
            alpha, sigma: alpha > 0, sigma >= 0; number, () or (n,).
            question: `source`, `target` or `endpoint`; see the module's text.
            k: neighbours for each state; all rows if the collection has fewer.
            where: conditions on the metadata that a row must meet to be among the hits, such as "label=3" or
                ["width>=512", "caption~dog"]; see `index.filters`.
            x0_hat: for `target`, the network's prediction from x_t, of the same shape.

        Returns: Hits. `source` gives probabilities over the whole collection; `target` and `endpoint` give distances. With
            conditions, probabilities are over the rows that meet them: given that the source is one of these.

        Raises: InputError (question, k, levels, conditions, no row meets them, or a prediction for a question that takes
            none); ShapeError (width); NonFiniteError naming the state.

        Cost: `endpoint` and `target` the closed form (for noisy states; two products with all eigenvectors) and one FAISS
        search; `source` one pass over the latents. `source` is exact. The others rank exactly, in float64, candidates found
        in the coordinates, as many as the index was planned for. With conditions all three are exact, and take one pass over
        the latents of the rows that meet them.
        """
        if question not in _QUESTIONS:
            raise InputError(f"question must be one of {', '.join(_QUESTIONS)}, it is {question!r}")
        if k < 1:
            raise InputError(f"k must be at least 1, it is {k}")
        flat = self._states(x_t)
        predicted = None if x0_hat is None else self._states(x0_hat)
        if predicted is not None and (question != "target" or predicted.shape != flat.shape):
            raise InputError(
                f"x0_hat is a prediction for each of {len(flat)} states, for the question target; it came with "
                f"{question} and has {len(predicted)} rows"
            )
        a, s = _level("alpha", alpha, len(flat)), _level("sigma", sigma, len(flat))
        if not a.all():
            raise InputError("alpha must be above 0: pure noise says nothing about its source")
        rows = self._allowed(where)
        k = min(k, len(self._store) if rows is None else len(rows))
        if question == "source" and s.all():
            ids, scores = posterior(self._store, self.manifold.mean, flat, a, s, k, rows)
            return self._hits(ids, scores, "probability", rows)
        if question == "source" and s.any():
            raise InputError("ask for the source of clean and of noisy states in separate calls")
        ends = self._endpoints(flat, a, s, predicted)
        if question == "source":
            return self._hits(*self._equally_near(ends, k, rows), "probability", rows)
        return self._hits(*self._by_distance(ends, k, rows), "distance", rows)

    def predict(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """The predicted target x0_hat of noisy states; see `GaussianManifold.denoise`."""
        return self.manifold.denoise(x_t, alpha, sigma)

    def _hits(self, ids: np.ndarray, scores: np.ndarray, score_name: str, rows: np.ndarray | None) -> Hits:
        return Hits(ids, scores, score_name, self._store, None if rows is None else len(rows))

    def _allowed(self, where: Where) -> np.ndarray | None:
        """Numbers of the rows that meet the conditions, kept for the next search with the same; None without any."""
        conditions = parse_where(where)
        if not conditions:
            return None
        if conditions not in self._filters:
            rows = rows_where(self._store, conditions)
            while len(self._filters) >= _FILTERS_KEPT:
                del self._filters[next(iter(self._filters))]
            self._filters[conditions] = rows
        return self._filters[conditions]

    def _states(self, x_t: Tensor) -> Tensor:
        flat = self.manifold._flat(x_t).detach()
        if not len(flat):
            return flat
        values = flat.numpy()
        if values.min() >= -_LARGEST and values.max() <= _LARGEST:  # neither holds if there is a NaN
            return flat
        finite = flat.isfinite().all(1)
        if not bool(finite.all()):
            raise NonFiniteError(f"state {int(finite.int().argmin())} has NaN or infinity")
        largest = flat.abs().amax(1)
        raise InputError(
            f"state {int(largest.argmax())} has values up to {float(largest.max()):.2g}, far beyond any latent; "
            "check how it is scaled"
        )

    def _endpoints(self, flat: Tensor, a: np.ndarray, s: np.ndarray, predicted: Tensor | None) -> np.ndarray:
        """Where each state ends, (n, d) float64; a clean state is there already, to the last bit.

        In blocks of one shape, filled up with the last state: results must depend neither on how a caller cuts a batch
        nor on the number of threads, and the product of a single row is shared out among them.
        """
        ends = flat.double().numpy()
        ends /= a[:, None]
        if s.any():
            alpha, sigma = torch.from_numpy(a), torch.from_numpy(s)
            for states in torch.from_numpy(np.flatnonzero(s)).split(_BLOCK):
                filled = torch.cat([states, states[-1:].expand(_BLOCK - len(states))])
                hint = None if predicted is None else predicted[filled]
                found = self.manifold.endpoint(flat[filled], alpha[filled], sigma[filled], hint)
                ends[states.numpy()] = found[: len(states)].double().numpy()
        return ends

    def _by_distance(self, targets: np.ndarray, k: int, rows: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Nearest latents, candidates ranked in float64, ties by row number, state by state."""
        ids = np.empty((len(targets), k), dtype=np.int64)
        scores = np.empty((len(targets), k))
        for state, (target, near) in enumerate(zip(targets, self._candidates(targets, k, rows), strict=True)):
            ids[state], scores[state] = self._ranking.nearest(target, np.sort(near[near >= 0]), k)
        return ids, scores

    def _equally_near(self, targets: np.ndarray, k: int, rows: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Without noise the posterior is on the nearest row, in equal parts on all rows that are equally near."""
        most = len(self._store) if rows is None else len(rows)
        looked_at = min(max(k, 2), most)
        while True:
            ids, distances = self._by_distance(targets, looked_at, rows)
            nearest = distances == distances[:, :1]
            if looked_at == most or not nearest[:, -1].any():
                return ids[:, :k], (nearest / nearest.sum(axis=1, keepdims=True))[:, :k]
            looked_at = min(4 * looked_at, most)

    def _candidates(self, targets: np.ndarray, k: int, rows: np.ndarray | None) -> Iterable[np.ndarray]:
        """For each target the numbers of the rows to rank; -1 stands for none."""
        if rows is not None:
            return nearest_rows(self._store, rows, self.manifold.mean, torch.from_numpy(targets), k)
        if not len(targets):
            return ()
        count = ceil(max(k, _LEAST_NEIGHBOURS) * self.card["candidates"])
        if count >= len(self._store):
            return repeat(np.arange(len(self._store)), len(targets))
        return self._index.nearest(targets.astype(np.float32), count)


def _stamps(root: Path) -> list[tuple[int, int, int] | None]:
    """Of manifest, statistics and index, which are written anew one after the other."""
    return [file_stamp(root / name) for name in ("manifest.json", "stats/stats.safetensors", "index/image.index")]


def _level(name: str, value: Level, n: int) -> np.ndarray:
    """One level for each of n states, (n,) float64, all 0 or within what distances can be taken of."""
    if isinstance(value, float) and (value == 0 or 1 / _LARGEST <= value <= _LARGEST):
        return np.full(n, value)  # what most searches ask for, without the checks of arrays
    level = np.asarray(value.detach().cpu().double() if isinstance(value, Tensor) else value, dtype=np.float64)
    if level.ndim > 1 or (level.ndim == 1 and len(level) != n):
        raise InputError(f"{name} must be a number or one for each of the {n} states, it has shape {level.shape}")
    if not ((level == 0) | ((level >= 1 / _LARGEST) & (level <= _LARGEST))).all():
        raise InputError(f"{name} must be 0 or between {1 / _LARGEST:g} and {_LARGEST:g}, it is {level.tolist()}")
    return np.full(n, level)
