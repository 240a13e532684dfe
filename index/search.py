"""Retrieval from a noisy state, by the question asked.

A predicted target is a poor query for plain nearest neighbours: the Wiener filter shrinks it toward the mean, and a few hub
images near the mean win every time. So the question is named, and each has its own metric:

- **source**: which rows could have produced x_t? Bayes' posterior over the whole collection, as probabilities.
- **target**: what is it heading to now? A row x_i, noised to this level, has the expected prediction
  mu + G (x_i - mu) with gains g = alpha^2 lambda / (alpha^2 lambda + sigma^2), the decided share of each mode. The prediction
  of x_t is compared with those: query and collection are shrunk alike, so no row wins for lying near the mean.
- **endpoint**: what will the final image be near to? Plain distance to the closed-form solution at sigma = 0, which keeps the
  full variance of the data.

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
from .posterior import posterior
from .statistics import load_manifold
from .workspace import Workspace

__all__ = ["Hits", "Question", "Searcher"]

Question = Literal["source", "target", "endpoint"]

_CANDIDATES = 20
"""Candidates per neighbour asked for that are ranked exactly."""
_LEAST_CANDIDATES = 200
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
        self._k = min(int(card["k"]), manifold.k)
        self._filters: dict[tuple[Condition, ...], np.ndarray] = {}
        self._basis: _Basis | None = None
        if card.get("basis", card)["stats_sha256"] != card["stats_sha256"]:
            self._basis = _Basis.of(index, manifold, self._k)

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
    ) -> Hits:
        """Neighbours of noisy states x_t = alpha x0 + sigma eps.

        Arguments
            x_t: (n, d) or (n, C, H, W); clean latents with the default levels.
            alpha, sigma: alpha > 0, sigma >= 0; number, () or (n,).
            question: `source`, `target` or `endpoint`; see the module's text.
            k: neighbours for each state; all rows if the collection has fewer.
            where: conditions on the metadata that a row must meet to be among the hits, such as "label=3" or
                ["width>=512", "caption~dog"]; see `index.filters`.

        Returns: Hits. `source` gives probabilities over the whole collection; `target` and `endpoint` give distances. With
            conditions, probabilities are over the rows that meet them: given that the source is one of these.

        Raises: InputError (question, k, levels, conditions, or no row meets them); ShapeError (width); NonFiniteError naming
            the state.

        Cost: `endpoint` one FAISS search; `target` one pass over the coordinates; `source` one pass over the latents.
        `source` is exact. The others rank exactly, in float64, 20 k candidates (at least 200) found in the coordinates. With
        conditions all three are exact, and take one pass over the latents of the rows that meet them.
        """
        if question not in get_args(Question):
            raise InputError(f"question must be one of {', '.join(get_args(Question))}, it is {question!r}")
        if k < 1:
            raise InputError(f"k must be at least 1, it is {k}")
        flat = self._states(x_t)
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
        if question == "target":
            ids, scores = self._by_prediction(flat, a, s, k, rows)
        else:
            ids, scores = self._by_distance(self._endpoints(flat, a, s), k, rows)
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
        return flat

    def _level(self, name: str, value: Level, n: int) -> Tensor:
        level = torch.as_tensor(value, dtype=torch.float64)
        if level.ndim > 1 or (level.ndim == 1 and len(level) != n):
            raise InputError(
                f"{name} must be a number or one for each of the {n} states, it has shape {tuple(level.shape)}"
            )
        if not bool(((level >= 0) & level.isfinite()).all()):
            raise InputError(f"{name} must be finite and at least 0, it is {level.tolist()}")
        return level.expand(n)

    def _endpoints(self, flat: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """Where each state ends, (n, d) float64; a clean state is there already, to the last bit.

        In blocks of one shape, filled up with the last state: results must depend neither on how a caller cuts a batch
        nor on the number of threads, and the product of a single row is shared out among them.
        """
        ends = flat.double() / a[:, None]
        noisy = s.nonzero().flatten()
        for states in noisy.split(_BLOCK) if len(noisy) else ():
            filled = torch.cat([states, states[-1:].expand(_BLOCK - len(states))])
            ends[states] = self.manifold.endpoint(flat[filled], a[filled], s[filled])[: len(states)].double()
        return ends

    def _by_distance(self, targets: Tensor, k: int, rows: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Exact nearest latents of full-variance targets."""
        from .faiss_io import nearest

        if rows is None:
            candidates = nearest(self._index, targets.float().numpy(), self._candidates(k))
        else:
            candidates = nearest_rows(self._store, rows, self.manifold.mean, targets, k)
        ones = torch.ones(self._k, dtype=torch.float64)
        return self._rank_exactly(targets, candidates, [ones] * len(targets), 1.0, k)

    def _by_prediction(
        self, flat: Tensor, a: Tensor, s: Tensor, k: int, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Nearest expected predictions: sum over modes of g^2 (query - row)^2 with the query unshrunk, y / alpha."""
        from .faiss_io import coordinates

        variances = self.manifold.eigvals[: self._k].double()
        gains = _decided(variances, a[:, None], s[:, None])
        unshrunk = (flat - a[:, None].float() * self.manifold.mean).double() / a[:, None]
        tail = _decided(torch.tensor([self._tail_var()], dtype=torch.float64), a[:, None], s[:, None])
        targets = unshrunk + self.manifold.mean.double()
        if allowed is not None:
            vectors = self.manifold.eigvecs[:, : self._k]
            candidates = nearest_rows(
                self._store, allowed, self.manifold.mean, targets, k, vectors=vectors, gains=gains, tail=tail
            )
            return self._rank_exactly(targets, candidates, list(gains), tail, k)
        if self._basis is None:
            query, weights = unshrunk @ self.manifold.eigvecs[:, : self._k].double(), gains**2
        else:
            query, weights = self._basis.query(unshrunk), self._basis.weights(gains, tail)
        wanted = self._candidates(k)
        best = torch.full((len(flat), wanted), torch.inf, dtype=torch.float64)
        ids = torch.full((len(flat), wanted), -1, dtype=torch.int64)
        total = len(self._store)
        for start in range(0, total, 65_536):
            rows = torch.from_numpy(coordinates(self._index, start, min(65_536, total - start))).double()
            squared = (weights * query**2).sum(1, keepdim=True) - 2 * (weights * query) @ rows.T + weights @ (rows**2).T
            numbers = torch.arange(start, start + len(rows)).expand(len(flat), -1)
            best, chosen = torch.cat([best, squared], 1).topk(wanted, largest=False)
            ids = torch.cat([ids, numbers], 1).gather(1, chosen)
        return self._rank_exactly(targets, ids.numpy(), list(gains), tail, k)

    def _tail_var(self) -> float:
        """Average variance along the directions outside the index's coordinates."""
        manifold, k = self.manifold, self._k
        outside = manifold.d - k
        return max(manifold.total_variance - float(manifold.eigvals[:k].sum()), 0.0) / outside if outside else 0.0

    def _rank_exactly(
        self, targets: Tensor, candidates: np.ndarray, gains: list[Tensor], tail: Tensor | float, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rank candidate rows by |G (target - row)| in float64, ties by row number, state by state."""
        ids = np.empty((len(targets), k), dtype=np.int64)
        scores = np.empty((len(targets), k))
        vectors = self.manifold.eigvecs[:, : self._k].double()
        tails = (
            torch.as_tensor(tail, dtype=torch.float64).expand(len(targets), 1) if len(targets) else torch.empty(0, 1)
        )
        for state in range(len(targets)):
            chosen = candidates[state][candidates[state] >= 0]
            difference = targets[state] - torch.from_numpy(self._store.read(chosen)).double()
            outer = float(tails[state])
            squared = difference.square().sum(1) * outer**2
            if not bool((gains[state] == outer).all()):
                inside = (difference @ vectors).square()
                squared = squared + (inside * (gains[state] ** 2 - outer**2)).sum(1)
            distances = squared.clamp_min(0).sqrt().numpy()
            order = np.lexsort((chosen, distances))[:k]
            ids[state], scores[state] = chosen[order], distances[order]
        return ids, scores

    def _candidates(self, k: int) -> int:
        return min(max(_CANDIDATES * k, _LEAST_CANDIDATES), len(self._store))


@dataclass(frozen=True)
class _Basis:
    """An index's own coordinates, where they are older than the statistics: rows were added or removed since.

    The metric of `target` is diagonal in the eigenvectors V of the statistics, G = V diag(g) V^T + g_tail (I - V V^T), and
    nearly so in the index's, U: candidates are taken by the diagonal of U^T G^2 U. Ranking is by G itself.
    """

    vectors: Tensor
    """U, (d, k) float64."""
    shift: Tensor
    """U^T (mean of the statistics - mean of the index), (k,): what queries about the first mean lack about the second."""
    overlap: Tensor
    """(U^T V)^2, elementwise."""

    @classmethod
    def of(cls, index: Any, manifold: GaussianManifold, k: int) -> Self:
        from .faiss_io import basis

        mean, vectors = (torch.from_numpy(part).double() for part in basis(index))
        return cls(
            vectors,
            (manifold.mean.double() - mean) @ vectors,
            (vectors.T @ manifold.eigvecs[:, :k].double()).square(),
        )

    def query(self, unshrunk: Tensor) -> Tensor:
        return unshrunk @ self.vectors + self.shift

    def weights(self, gains: Tensor, tail: Tensor) -> Tensor:
        return (gains**2 - tail**2) @ self.overlap.T + tail**2


def _decided(variances: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """g = alpha^2 lambda / (alpha^2 lambda + sigma^2); 1 without noise, also where there is no variance."""
    noise = s**2
    signal = a**2 * variances
    return torch.where(
        noise > 0, signal / (signal + noise).clamp_min(torch.finfo(torch.float64).tiny), torch.ones_like(signal)
    )


def _shares(distances: np.ndarray) -> np.ndarray:
    """Without noise the posterior is on the nearest row, in equal parts if several are equally near."""
    nearest = distances == distances[:, :1]
    return nearest / nearest.sum(axis=1, keepdims=True)
