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

from manifold.precision import without_autocast

from .exhaustive import PRODUCT_ROUNDING, STATES_TOGETHER, by_state, least_bounds, numbered_batches
from .latents import LatentStore

__all__ = ["posterior"]

_STATES, _ROWS = 32, 256
"""Of one matrix product, whose rows stay in the processor's cache. States are filled up to as many, so that a state's numbers
do not depend on how many come with it."""
_EXACT_BYTES = 32 * 2**20
_NEGLIGIBLE = 40.0
"""Nats below the most probable row at which any number of rows hold nothing: 1e8 of them less than 1e-9."""
_TOLERATED = 0.01
"""Nats that a logarithm of a probability may be off by; the products themselves are some hundred times better."""
_CROWD = 64
"""Rows beyond k in question for one state in one batch, at which float64 products of the whole batch take less time."""
_FINE = 1e-7
"""Rounding of float64 products, as a share of that of float32."""
_HELD = 2**22
"""Pairs of a state and a row in question that are held at once, 32 bytes each."""
_TURNS = 8
"""How often a row may be among the k nearest so far and not stay there, for each that does: 3 with rows in random order."""


@without_autocast
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

    Cost: one pass over the latents for every 1,024 states, n d multiply-adds for each state, as many for one as for 32; with
    many states little more than a matrix product of all states with all latents takes. States that many rows are equally near
    to take longer, and passes of their own where there are many of both. Some 0.7 GiB at most, and 32 bytes a row.

    Distances are float32 products about the mean. They are taken again in float64 where their rounding might decide which
    rows are the k nearest, or might change the probability of a row that has any by more than 1 %.
    """
    ids = np.empty((len(x_t), k), dtype=np.int64)
    probabilities = np.empty((len(x_t), k))
    waiting = [slice(low, min(low + STATES_TOGETHER, len(x_t))) for low in range(0, len(x_t), STATES_TOGETHER)]
    while waiting:
        part = waiting.pop()
        found = _posterior(store, mean, x_t[part], alpha[part], sigma[part], k, rows)
        if found is None:
            middle = (part.start + part.stop) // 2
            waiting += [slice(part.start, middle), slice(middle, part.stop)]
        else:
            ids[part], probabilities[part] = found
    return ids, probabilities


def _posterior(
    store: LatentStore,
    mean: Tensor,
    x_t: Tensor,
    alpha: np.ndarray,
    sigma: np.ndarray,
    k: int,
    rows: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray] | None:
    """See `posterior`; None if so many rows are in question that it takes fewer states at once."""
    a, width = torch.from_numpy(alpha)[:, None], torch.from_numpy(2 * sigma**2)[:, None]
    centred = x_t.double() - a * mean.double()
    lengths = torch.stack([one.square().sum() for one in centred])[:, None]
    blocks = _blocks(centred.float())
    least = torch.full((len(x_t), k), torch.inf, dtype=torch.float64)  # upper bounds of the k least squared distances
    others = np.full(len(x_t), -np.inf)  # log of what the rows that stay rough hold
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    held = 0
    for numbers, batch in numbered_batches(store, rows):
        squared, squares = _squared(blocks, batch, mean, a, lengths)
        # The length of the state is the same for all rows, and its rounding moves none of them past another.
        off = (2 * a * lengths.sqrt() * squares.sqrt()).addcmul_(a**2, squares).mul_(PRODUCT_ROUNDING)
        earlier, least = least, least_bounds(least, squared + off)
        near = _in_question(squared, off, least, width)
        crowded = (near.sum(1) > k + _CROWD).nonzero()[:, 0]
        if len(crowded):
            squared[crowded], _ = _squared(_blocks(centred[crowded]), batch, mean, a[crowded], lengths[crowded])
            off[crowded] *= _FINE
            least[crowded] = least_bounds(earlier[crowded], squared[crowded] + off[crowded])
            near[crowded] = _in_question(squared[crowded], off[crowded], least[crowded], width[crowded])
        state, place = near.nonzero(as_tuple=True)
        held += len(state)
        if held > _HELD + _TURNS * k * len(x_t) and len(x_t) > 1:
            return None
        found.append((state, numbers[place], squared[state, place], off[state, place]))
        others = np.logaddexp(others, _log_sums(squared.masked_fill_(near, torch.inf) / -width))
    states, ids, squared, off = (torch.cat(part) for part in zip(*found, strict=True))
    best = np.empty((len(x_t), k), dtype=np.int64)
    probabilities = np.empty((len(x_t), k))
    # Numbers rise within each batch, and from one to the next.
    for row, (numbers, rough, error) in enumerate(by_state(states, len(x_t), ids, squared, off)):
        near = _in_question(rough, error, least[row], width[row])
        left = np.logaddexp(others[row], _log_sums((rough[~near] / -width[row])[None])[0])
        chosen = numbers[near].numpy()
        exact = _exact_squared(store, chosen, x_t[row], float(alpha[row]))
        logits = exact / -float(width[row])
        total = np.logaddexp(left, _log_sums(torch.from_numpy(logits)[None])[0])
        nearest = np.argsort(exact, kind="stable")[:k]
        best[row] = chosen[nearest]
        probabilities[row] = np.exp(logits[nearest] - total)
    return best, probabilities


def _log_sums(logits: Tensor) -> np.ndarray:
    """log sum exp of each row, (m,) float64; by NumPy, for torch sums a row alone in another order than among many."""
    values = np.ascontiguousarray(logits.numpy())
    if not values.shape[1]:
        return np.full(len(values), -np.inf)
    highest = values.max(axis=1)
    highest[np.isneginf(highest)] = 0.0  # a row without any stays at minus infinity
    with np.errstate(divide="ignore"):
        return highest + np.log(np.exp(values - highest[:, None]).sum(axis=1))


def _blocks(centred: Tensor) -> Sequence[Tensor]:
    """States (m, d) in blocks of `_STATES`, the last filled up with zeros."""
    return torch.nn.functional.pad(centred, (0, 0, 0, -len(centred) % _STATES)).split(_STATES)


def _squared(
    blocks: Sequence[Tensor], batch: np.ndarray, mean: Tensor, a: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Squared distances of states from the rows of a batch, (m, rows) float64, and the rows' squares about the mean.

    Arguments
        blocks: the states about the mean, of the type in which products are taken. a, lengths: (m, 1), of each state.
    """
    products, squares = _products(blocks, batch, mean)
    squared = products[: len(a)].double().mul_(-2 * a)
    return squared.addcmul_(a**2, squares).add_(lengths).clamp_min_(0), squares


def _in_question(squared: Tensor, off: Tensor, least: Tensor, width: Tensor) -> Tensor:
    """Which rows need their exact distance.

    Arguments
        squared, off: (..., rows) rough squared distances, and how far each may be off.
        least: (..., k) upper bounds of the k least. width: (..., 1) 2 sigma^2.
    """
    lowest = squared - off
    ranked = lowest <= least.amax(-1, keepdim=True)
    weighty = lowest <= least.amin(-1, keepdim=True) + _NEGLIGIBLE * width
    return ranked | (weighty & (off > _TOLERATED * width))


def _products(blocks: Sequence[Tensor], batch: np.ndarray, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Products (states, rows) of centred states with a batch about the mean, in the states' type, and the rows' squares."""
    dtype = blocks[0].dtype
    products = torch.empty(_STATES * len(blocks), len(batch), dtype=dtype)
    squares = torch.empty(len(batch), dtype=torch.float64)
    for low in range(0, len(batch), _ROWS):
        part = slice(low, min(low + _ROWS, len(batch)))
        deviations = torch.from_numpy(batch[part]).to(dtype).sub_(mean)
        squares[part] = torch.linalg.vector_norm(deviations, dim=1).double().square()
        for number, block in enumerate(blocks):
            products[number * _STATES : (number + 1) * _STATES, part] = (deviations @ block.T).T
    return products, squares


def _exact_squared(store: LatentStore, ids: np.ndarray, x_t: Tensor, alpha: float) -> np.ndarray:
    """|x_t - alpha x_i|^2 of some rows, (len(ids),) float64, each by itself."""
    state, exact = x_t.double().numpy(), np.empty(len(ids))
    size = max(1, _EXACT_BYTES // (8 * store.d))
    for low in range(0, len(ids), size):
        away = state - alpha * store.read(ids[low : low + size]).astype(np.float64)
        exact[low : low + size] = np.square(away, out=away).sum(axis=1)
    return exact
