"""Retrieval from a noisy state, by the question asked.

A predicted target is a poor query for plain nearest neighbours: the Wiener filter shrinks it toward the mean, and a few hub
images near the mean win every time. So the question is named, and each has its own metric:

- **source**: which rows could have produced x_t? Bayes' posterior over the whole collection, as probabilities.
- **endpoint**: what will the final image be near to? Plain distance to the closed-form solution at sigma = 0, which keeps the
  full variance of the data: per mode x0_hat / sqrt(g) about the mean, g = alpha^2 lambda / (alpha^2 lambda + sigma^2).
- **target**: what is it heading to now, given all that is known now? The network that paints predicts an x0_hat of its own
  from the same state, knowing its prompt or class. That prediction is shrunk like any other, so it is not searched with, but
  mends the closed form's end by its departure from the closed form's prediction, the departure of a mode weighted with
  1 / (1 + sqrt(g)); see `GaussianManifold.endpoint`. Without a network's prediction the closed form's own is taken, which
  does not depart from itself, and the answer is that of `endpoint`.

At sigma = 0 all three are the nearest latents.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor

from manifold.errors import FormatError, InputError, MismatchError, NonFiniteError, NotFittedError
from manifold.files import read_json, sha256_file
from manifold.gaussian import GaussianManifold, Level

from .build import INDEX_SCHEMA, latents_checksum
from .exhaustive import nearest_rows
from .filters import Condition, Where, parse_where, rows_where
from .latents import LatentStore
from .plan import CANDIDATES
from .posterior import posterior
from .statistics import load_manifold
from .workspace import Workspace

__all__ = ["Hits", "Question", "Searcher"]

Question = Literal["source", "target", "endpoint"]

_LEAST_CANDIDATES = 50
_ROUGH = 1e-5
"""How far a distance in float32 may be off, as a share of itself and of the query's length."""
_LARGEST = 1e7
"""Beyond values and levels like this the squares of distances leave float32."""
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
        self._store = workspace.latents
        self._index = index
        self._filters: dict[tuple[Condition, ...], np.ndarray] = {}

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open the index of the workspace in folder `path`, checking that all parts belong together.

        Raises: InputError if there is no workspace; NotFittedError if it is not fitted or indexed; FormatError if a file is
            damaged; MismatchError if statistics or latents changed since the index was built or brought up to them.
        """
        from .faiss_io import read_index

        workspace = Workspace.open(path)
        workspace.require_complete()
        remedy = f"run: manifold index {workspace.root}"
        if not workspace.index_card_path.is_file() or not workspace.index_path.is_file():
            raise NotFittedError(f"{workspace.root} has no index yet; {remedy}")
        card = read_json(workspace.index_card_path)
        if card.get("schema") != INDEX_SCHEMA:
            raise FormatError(
                f"{workspace.index_card_path} has schema {card.get('schema')}, this version reads {INDEX_SCHEMA}; {remedy}"
            )
        if sha256_file(workspace.index_path) != card["index_sha256"]:
            raise FormatError(f"{workspace.index_path} is damaged, or belongs to another card; {remedy}")
        if latents_checksum(workspace) != card["latents_sha256"]:
            raise MismatchError(
                f"{workspace.index_path} was built from other latents; finish a stopped add or remove, or {remedy}"
            )
        manifold = load_manifold(workspace)
        if sha256_file(workspace.stats_path) != card["stats_sha256"]:
            raise MismatchError(f"{workspace.index_path} was built from other statistics; {remedy}")
        return cls(workspace, manifold, read_index(workspace.index_path), card)

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

        Cost: `endpoint` and `target` one FAISS search; `source` one pass over the latents. `source` is exact. The others
        rank exactly, in float64, 5 k candidates (at least 50) found in the coordinates. With
        conditions all three are exact, and take one pass over the latents of the rows that meet them.
        """
        if question not in get_args(Question):
            raise InputError(f"question must be one of {', '.join(get_args(Question))}, it is {question!r}")
        if k < 1:
            raise InputError(f"k must be at least 1, it is {k}")
        flat = self._states(x_t)
        predicted = None if x0_hat is None else self._states(x0_hat)
        if predicted is not None and (question != "target" or predicted.shape != flat.shape):
            raise InputError(
                f"x0_hat is a prediction for each of {len(flat)} states, for the question target; it came with "
                f"{question} and has {len(predicted)} rows"
            )
        a, s = self._level("alpha", alpha, len(flat)), self._level("sigma", sigma, len(flat))
        if bool((a <= 0).any()):
            raise InputError("alpha must be above 0: pure noise says nothing about its source")
        rows = self._allowed(where)
        k = min(k, len(self._store) if rows is None else len(rows))
        clean = s == 0
        if question == "source" and not bool(clean.any()):
            ids, scores = posterior(self._store, self.manifold.mean, flat, a, s, k, rows)
            return self._hits(ids, scores, "probability", rows)
        if question == "source" and not bool(clean.all()):
            raise InputError("ask for the source of clean and of noisy states in separate calls")
        ids, scores = self._by_distance(self._endpoints(flat, a, s, predicted), k, rows)
        if question == "source":
            return self._hits(ids, _shares(scores), "probability", rows)
        return self._hits(ids, scores, "distance", rows)

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
        flat = self.manifold._flat(x_t)
        finite = flat.isfinite().all(1)
        if not bool(finite.all()):
            raise NonFiniteError(f"state {int(finite.int().argmin())} has NaN or infinity")
        largest = flat.abs().amax(1)
        if bool((largest > _LARGEST).any()):
            raise InputError(
                f"state {int(largest.argmax())} has values up to {float(largest.max()):.2g}, far beyond any latent; "
                "check how it is scaled"
            )
        return flat

    def _level(self, name: str, value: Level, n: int) -> Tensor:
        level = torch.as_tensor(value, dtype=torch.float64)
        if level.ndim > 1 or (level.ndim == 1 and len(level) != n):
            raise InputError(
                f"{name} must be a number or one for each of the {n} states, it has shape {tuple(level.shape)}"
            )
        used = level[level > 0]
        if not bool((level >= 0).all() and (used >= 1 / _LARGEST).all() and (used <= _LARGEST).all()):
            raise InputError(f"{name} must be 0 or between {1 / _LARGEST:g} and {_LARGEST:g}, it is {level.tolist()}")
        return level.expand(n)

    def _endpoints(self, flat: Tensor, a: Tensor, s: Tensor, predicted: Tensor | None) -> Tensor:
        """Where each state ends, (n, d) float64; a clean state is there already, to the last bit.

        In blocks of one shape, filled up with the last state: results must depend neither on how a caller cuts a batch
        nor on the number of threads, and the product of a single row is shared out among them.
        """
        ends = flat.double() / a[:, None]
        noisy = s.nonzero().flatten()
        for states in noisy.split(_BLOCK) if len(noisy) else ():
            filled = torch.cat([states, states[-1:].expand(_BLOCK - len(states))])
            hint = None if predicted is None else predicted[filled]
            ends[states] = self.manifold.endpoint(flat[filled], a[filled], s[filled], hint)[: len(states)].double()
        return ends

    def _by_distance(self, targets: Tensor, k: int, rows: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Nearest latents, candidates ranked in float64, ties by row number, state by state."""
        from .faiss_io import nearest

        if rows is None:
            candidates = nearest(self._index, targets.float().numpy(), self._candidates(k))
        else:
            candidates = nearest_rows(self._store, rows, self.manifold.mean, targets, k)
        ids = np.empty((len(targets), k), dtype=np.int64)
        scores = np.empty((len(targets), k))
        for state, target in enumerate(targets.numpy()):
            chosen = candidates[state][candidates[state] >= 0]
            stored = self._store.read(chosen)
            if len(chosen) > k:
                rough = np.linalg.norm(target.astype(np.float32) - stored.astype(np.float32), axis=1)
                slack = _ROUGH * (rough + float(np.linalg.norm(target)))
                near = rough - slack <= np.partition(rough + slack, k - 1)[k - 1]
                chosen, stored = chosen[near], stored[near]
            distances = np.linalg.norm(target - stored.astype(np.float64), axis=1)
            order = np.lexsort((chosen, distances))[:k]
            ids[state], scores[state] = chosen[order], distances[order]
        return ids, scores

    def _candidates(self, k: int) -> int:
        return min(max(CANDIDATES * k, _LEAST_CANDIDATES), len(self._store))


def _shares(distances: np.ndarray) -> np.ndarray:
    """Without noise the posterior is on the nearest row, in equal parts if several are equally near."""
    nearest = distances == distances[:, :1]
    return nearest / nearest.sum(axis=1, keepdims=True)
