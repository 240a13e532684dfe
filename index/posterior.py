"""The exact posterior over a stored collection: which latents could have produced this noisy state.

    p(i | x_t) = softmax_i( -|x_t - alpha x_i|^2 / (2 sigma^2) )

is Bayes' rule with equal priors for x_t = alpha x_i + sigma eps: the responsibilities of the delta mixture, whose mean is
the optimal denoiser of a finite set. The sum runs over every row; nothing is approximated by leaving rows out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .exhaustive import numbered_batches
from .latents import LatentStore

__all__ = ["posterior"]

_SPARE = 32
"""Rows beyond k whose distances are taken again in float64: float32 orders neighbours this close only roughly."""
_STATES, _ROWS = 32, 256
"""Of one matrix product, whose rows stay in the processor's cache. States are filled up to as many, so that a state's numbers
do not depend on how many come with it."""


def posterior(
    store: LatentStore,
    mean: Tensor,
    x_t: Tensor,
    alpha: np.ndarray,
    sigma: np.ndarray,
    k: int,
    rows: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k most probable rows and their probabilities.

    Arguments
        store: n latents.
        mean: (d,) float32, subtracted on both sides so that a common offset costs no precision.
        x_t: (m, d) float32 noisy states. alpha, sigma: (m,) float64, both positive.
        k: rows to return, at most n.
        rows: numbers of the rows it may be, rising; all n unless given.

    Returns: ids (m, k) int64 by falling probability, then rising id; probabilities (m, k) float64, which sum to 1 over all
        rows of the collection, not over the k; with `rows`, over those: they are conditional on its being one of them.

    Cost: one pass over the latents, n d multiply-adds for each state, as many for one as for 32; with many states little more
    than a matrix product of all states with all latents takes. Distances are float32 products about the mean; those of the
    k + 32 nearest rows are taken again in float64.
    """
    if not len(x_t):
        return np.empty((0, k), dtype=np.int64), np.empty((0, k))
    kept = min(k + _SPARE, len(store) if rows is None else len(rows))
    a, width = torch.from_numpy(alpha), torch.from_numpy(2 * sigma**2)
    centred = x_t - a[:, None].float() * mean
    lengths = torch.stack([one.double().square().sum() for one in centred])
    blocks = torch.nn.functional.pad(centred, (0, 0, 0, -len(x_t) % _STATES)).split(_STATES)
    best = torch.full((len(x_t), kept), torch.inf, dtype=torch.float64)
    best_ids = torch.full((len(x_t), kept), -1, dtype=torch.int64)
    log_mass = torch.full((len(x_t),), -torch.inf, dtype=torch.float64)
    for numbers, batch in numbered_batches(store, rows):
        products, squares = _products(blocks, batch, mean)
        squared = products[: len(x_t)].double().mul_(-2 * a[:, None])
        squared.addcmul_((a**2)[:, None], squares).add_(lengths[:, None]).clamp_min_(0)
        near, chosen = squared.topk(min(kept, len(batch)), largest=False)
        best, places = torch.cat([best, near], 1).topk(kept, largest=False)
        best_ids = torch.cat([best_ids, numbers[chosen]], 1).gather(1, places)
        log_mass = torch.logaddexp(log_mass, squared.div_(-width[:, None]).logsumexp(1))
    ids = np.empty((len(x_t), k), dtype=np.int64)
    probabilities = np.empty((len(x_t), k))
    for row in range(len(x_t)):
        exact = _exact_squared(store, best_ids[row].numpy(), x_t[row], float(a[row]))
        # The roughly known rows leave the sum and come back with their exact distances.
        rough = torch.logsumexp(-best[row] / width[row], 0)
        others = _log_difference(log_mass[row], rough)
        logits = torch.from_numpy(-exact) / width[row]
        total = torch.logaddexp(others, torch.logsumexp(logits, 0))
        order = np.lexsort((best_ids[row].numpy(), exact))[:k]
        ids[row] = best_ids[row].numpy()[order]
        probabilities[row] = (logits - total).exp().numpy()[order]
    return ids, probabilities


def _products(blocks: Sequence[Tensor], batch: np.ndarray, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Products (states, rows) of centred states with the rows of a batch about the mean, and the rows' squares (rows,)."""
    products = torch.empty(_STATES * len(blocks), len(batch))
    squares = torch.empty(len(batch), dtype=torch.float64)
    for low in range(0, len(batch), _ROWS):
        part = slice(low, min(low + _ROWS, len(batch)))
        deviations = torch.from_numpy(batch[part]).float().sub_(mean)
        squares[part] = torch.linalg.vector_norm(deviations, dim=1).double().square()
        for number, block in enumerate(blocks):
            products[number * _STATES : (number + 1) * _STATES, part] = (deviations @ block.T).T
    return products, squares


def _exact_squared(store: LatentStore, ids: np.ndarray, x_t: Tensor, alpha: float) -> np.ndarray:
    difference = x_t.double().numpy() - alpha * store.read(ids).astype(np.float64)
    return np.square(difference).sum(axis=1)


def _log_difference(larger: Tensor, smaller: Tensor) -> Tensor:
    """log(exp(larger) - exp(smaller)), minus infinity where round-off makes them equal."""
    ratio = (smaller - larger).clamp_max(0).exp()
    return larger + torch.log1p(-ratio)
