"""Anticipation: how many of the final sample's neighbours are known before the sample is finished.

On recorded trajectories, the true neighbours are the k latents of the collection nearest to the final sample. At each level
on the way, what a search returns there is compared with them:

    share = |returned k and true k| / k

Asked are the questions `target`, told the network's own prediction, and `endpoint`, which needs no network (see
`index.search`), beside three baselines that need no manifold: plain neighbours of the rescaled state x_t / alpha, plain
neighbours of the network's own prediction x0_hat, and rows drawn at random, whose expected share is k over the size of the
collection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from manifold.bootstrap import Interval, bootstrap_mean
from manifold.errors import InputError
from manifold.path_states import flat_path, flat_targets, level_lists

from .progress import Progress, silent
from .search import Question, Searcher

__all__ = ["Anticipation", "measure_anticipation"]


@dataclass(frozen=True)
class Anticipation:
    """Shares of the true neighbours, by question or baseline.

    Names are those of the questions asked, then `raw` (x_t / alpha), `network` (its x0_hat) and `random`.

    Attributes
        steps: (S,) the steps looked at, from 0. alphas, sigmas: (S,) their levels.
        k: neighbours. rows: size of the collection.
        shares: by name, (S, n) float64; NaN where pure noise (alpha = 0) says nothing.
        means: by name, the mean over trajectories and its 95 % bootstrap interval, parts (S,).
        chance: k / rows, what drawing at random is expected to give.
        true_ids: (n, k) rows of the final samples' neighbours.
    """

    steps: Tensor
    alphas: Tensor
    sigmas: Tensor
    k: int
    rows: int
    shares: dict[str, Tensor]
    means: dict[str, Interval]
    chance: float
    true_ids: np.ndarray

    def first_step(self, name: str, share: float = 0.5) -> int | None:
        """The first step from which the mean share stays at or above `share`; None if it never does."""
        low = (~(self.means[name].mean >= share)).nonzero()  # unknown is not reached
        first = int(low[-1]) + 1 if len(low) else 0
        return int(self.steps[first]) if first < len(self.steps) else None


def measure_anticipation(
    searcher: Searcher,
    x_t: Tensor,
    x0_hat: Tensor,
    alphas: Sequence[float] | Tensor,
    sigmas: Sequence[float] | Tensor,
    *,
    k: int = 10,
    questions: Sequence[Question] = ("target", "endpoint"),
    steps: Sequence[int] | None = None,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress = silent,
) -> Anticipation:
    """Share of the final sample's neighbours that are returned at each step of recorded trajectories.

    Arguments
        searcher: over the collection.
        x_t: (L, n, d) or (L, n, C, H, W) recorded states in the collection's latent units; the last is the sample.
        x0_hat: (L - 1, n, ...) the network's predictions at the first L - 1 levels.
        alphas, sigmas: (L,), or (L - 1,) with a clean last state; see `manifold.path_states`.
        k: neighbours; all rows if the collection has fewer.
        questions: to ask.
        steps: which of the first L - 1 levels to look at; all unless given.
        draws: resamples of the bootstrap. seed: of the resamples and the random baseline.
        progress: called once a step.

    Returns: Anticipation. A last state that still holds noise counts as x_t / alpha.

    Raises: ShapeError; NonFiniteError; InputError for a step out of range, an unknown question or k below 1.

    Cost: for each step one search of n states a question and two for the baselines. Ties are broken by row number
        throughout.
    """
    path = flat_path(x_t, least=2).cpu()
    targets = flat_targets(x0_hat, path).cpu()
    alphas, sigmas = level_lists(alphas, sigmas, len(path))
    chosen = list(range(len(targets))) if steps is None else [int(step) for step in steps]
    if not chosen or min(chosen) < 0 or max(chosen) >= len(targets):
        raise InputError(f"steps must lie between 0 and {len(targets) - 1}, they are {chosen[:5]}")
    if not float(alphas[-1]) > 0:
        raise InputError(
            "the last recorded state must hold signal, its alpha is 0; order the levels from noise to data"
        )
    true_ids = searcher.search(path[-1] / alphas[-1], 1.0, 0.0, "endpoint", k).ids
    k, n = true_ids.shape[1], path.shape[1]
    rows = len(searcher.workspace.latents)
    generator = np.random.default_rng(seed)
    found: dict[str, list[Tensor]] = {name: [] for name in (*questions, "raw", "network", "random")}
    for done, step in enumerate(chosen):
        progress("anticipate", done, len(chosen))
        alpha, sigma = float(alphas[step]), float(sigmas[step])
        for question in questions:
            found[question].append(
                _shared(_asked(searcher, path[step], targets[step], alpha, sigma, question, k), true_ids)
            )
        raw = searcher.search(path[step] / alpha, 1.0, 0.0, "endpoint", k).ids if alpha > 0 else None
        found["raw"].append(_shared(raw, true_ids))
        found["network"].append(_shared(searcher.search(targets[step], 1.0, 0.0, "endpoint", k).ids, true_ids))
        drawn = np.stack([generator.choice(rows, k, replace=False) for _ in range(n)])
        found["random"].append(_shared(drawn, true_ids))
    progress("anticipate", len(chosen), len(chosen))
    shares = {name: torch.stack(each) for name, each in found.items()}
    return Anticipation(
        steps=torch.tensor(chosen),
        alphas=alphas[chosen],
        sigmas=sigmas[chosen],
        k=k,
        rows=rows,
        shares=shares,
        means={name: bootstrap_mean(each, draws=draws, seed=seed) for name, each in shares.items()},
        chance=k / rows,
        true_ids=true_ids,
    )


def _asked(
    searcher: Searcher, x_t: Tensor, x0_hat: Tensor, alpha: float, sigma: float, question: Question, k: int
) -> np.ndarray | None:
    """Rows that the question returns, (n, k); None where pure noise gives it nothing to go by."""
    told = x0_hat if question == "target" else None
    if alpha > 0:
        return searcher.search(x_t, alpha, sigma, question, k, x0_hat=told).ids
    if question == "source":
        return None
    end = searcher.manifold.endpoint(x_t, alpha, sigma, told)  # the flow from pure noise ends somewhere all the same
    return searcher.search(end, 1.0, 0.0, "endpoint", k).ids


def _shared(returned: np.ndarray | None, true_ids: np.ndarray) -> Tensor:
    """Share of the true rows among those returned, (n,) float64; NaN without an answer."""
    if returned is None:
        return torch.full((len(true_ids),), torch.nan, dtype=torch.float64)
    return torch.from_numpy((true_ids[:, :, None] == returned[:, None, :]).any(2).mean(1))
