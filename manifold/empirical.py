"""The exact optimum for a finite collection: every image a point mass, Bayes' rule over all of them.

With x_t = alpha * x_i + sigma * eps and all N images equally likely,

    p(i | x_t) = softmax_i(-|x_t - alpha x_i|^2 / (2 sigma^2)),    x0_hat = sum_i p(i | x_t) x_i.

This is what a network that memorised its training set would put out. The collection is streamed; sums are taken in float64
relative to a running maximum, so the result does not depend on how the collection is cut into batches or shards beyond
the rounding of float64 (1e-12 relative in the tests).

Distances are expanded, |y|^2 - 2 alpha y x_i + alpha^2 |x_i|^2, about the centre of the first 2,048 rows, in float64: what
cancels is at most 1e-15 of |y|^2, an error in the log-posterior of 1e-15 |y|^2 / sigma^2 (1e-9 for latents of norm 100 at
sigma = 0.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .errors import InputError, NotFittedError
from .rows import ArrayRows, RowStore, as_rows
from .states import Level, flat_states, level_pair, like, safe_ratio

__all__ = ["EmpiricalDenoiser", "EmpiricalPosterior", "OnlineSoftmax"]

_BATCH_ROWS = 2048


@dataclass(frozen=True)
class EmpiricalPosterior:
    """p(i | x_t) over a collection, for n states.

    Attributes
        x0_hat: (n, d) float64 posterior mean.
        ids: (n, k) the most probable rows, most probable first.
        probabilities: (n, k) float64 of these rows, over the whole collection.
        log_evidence: (n,) log of the mean over the collection of exp(-|x_t - alpha x_i|^2 / (2 sigma^2)).
        missed: (n,) proven upper bound on the posterior mass of the rows that were not evaluated; 0 if all were.
        error_bound: (n,) proven upper bound on |x0_hat - exact|, in latent units; 0 if all rows were evaluated.
        evaluated: (n,) number of rows whose distance was computed in full.
    """

    x0_hat: Tensor
    ids: Tensor
    probabilities: Tensor
    log_evidence: Tensor
    missed: Tensor
    error_bound: Tensor
    evaluated: Tensor


class OnlineSoftmax:
    """sum_i softmax(l)_i x_i and the k largest l, one batch at a time.

    Arguments
        n: number of states. d: values per row. k: how many of the most probable rows to keep.
        device, dtype: of the sums.

    Raises: InputError for k below 0.
    """

    def __init__(
        self, n: int, d: int, k: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64
    ) -> None:
        if k < 0:
            raise InputError(f"k must be at least 0, it is {k}")
        self._peak = torch.full((n, 1), -torch.inf, dtype=dtype, device=device)
        self._mass = torch.zeros(n, 1, dtype=dtype, device=device)
        self._sum = torch.zeros(n, d, dtype=dtype, device=device)
        self._k = k
        self.ids = torch.empty(n, 0, dtype=torch.int64, device=device)
        self._top = torch.empty(n, 0, dtype=dtype, device=device)

    def add(self, logits: Tensor, rows: Tensor, ids: Tensor) -> None:
        """Take in logits (n, m) of rows (m, d), numbered ids (m,)."""
        peak = torch.maximum(self._peak, logits.amax(1, keepdim=True))
        kept = (self._peak - peak).exp()
        weights = (logits - peak).exp()
        self._mass = kept * self._mass + weights.sum(1, keepdim=True)
        self._sum = kept * self._sum + weights @ rows
        self._peak = peak
        if not self._k:
            return
        top, place = torch.cat([self._top, logits], 1).sort(dim=1, descending=True, stable=True)
        numbered = torch.cat([self.ids, ids.expand(len(logits), -1)], 1)
        self._top, self.ids = top[:, : self._k], numbered.gather(1, place[:, : self._k])

    @property
    def log_mass(self) -> Tensor:
        """log sum exp of all logits so far, (n,)."""
        return (self._peak + self._mass.log()).squeeze(1)

    @property
    def mean(self) -> Tensor:
        """Softmax-weighted mean of the rows, (n, d)."""
        return self._sum / self._mass

    @property
    def probabilities(self) -> Tensor:
        """Softmax of the k largest logits, (n, k)."""
        return (self._top - self.log_mass[:, None]).exp()


class EmpiricalDenoiser:
    """The exact posterior mean over a stored collection, by brute force, streamed.

    Arguments
        collection: (N, d) or (N, C, H, W) array or tensor, or a store that yields batches (an index's latent store).
        batch_rows: rows in memory at a time; changes no value beyond float64 rounding.
        device: where the products are taken.

    Raises: NotFittedError if the collection is empty.

    >>> EmpiricalDenoiser(torch.tensor([[0.0], [1.0]])).denoise(torch.tensor([[0.5]]), 1.0, 1.0)
    tensor([[0.5000]])
    """

    def __init__(
        self,
        collection: Tensor | np.ndarray | RowStore,
        *,
        batch_rows: int = _BATCH_ROWS,
        device: torch.device | str = "cpu",
    ) -> None:
        if len(collection) == 0:
            raise NotFittedError("the collection is empty; give at least one latent")
        self._store = ArrayRows(collection) if isinstance(collection, Tensor | np.ndarray) else collection
        self.d = self._store.d
        self._batch_rows = batch_rows
        first = next(iter(self._store.batches(batch_rows)))
        self._center = as_rows(first, self.d).to(device).double().mean(0)

    def posterior(self, x_t: Tensor, alpha: Level, sigma: Level, k: int = 10) -> EmpiricalPosterior:
        """p(i | x_t) over the whole collection.

        Arguments
            x_t: (n, d) or (n, C, H, W).
            alpha: >= 0. sigma: > 0. Number, () or (n,).
            k: how many of the most probable rows to name.

        Raises: ShapeError; InputError for a level out of range, or k below 0.

        Cost: two float64 products of n d N, one pass over the collection; memory of one batch. Exact.
        """
        x = flat_states(x_t, self.d, self._center)
        a, s = level_pair(alpha, sigma, len(x), x)
        if not bool((s > 0).all()):
            raise InputError("the empirical posterior needs sigma > 0; without noise, look for the nearest row instead")
        y = x - a * self._center
        total = OnlineSoftmax(len(x), self.d, min(k, len(self._store)), x.device)
        start = 0
        for batch in self._store.batches(self._batch_rows):
            rows = as_rows(batch, self.d).to(x) - self._center
            squared = y.square().sum(1, keepdim=True) - 2 * a * (y @ rows.T) + a**2 * rows.square().sum(1)
            total.add(-squared.clamp_min(0) / (2 * s**2), rows, torch.arange(start, start + len(rows), device=x.device))
            start += len(rows)
        nothing = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        return EmpiricalPosterior(
            x0_hat=total.mean + self._center,
            ids=total.ids,
            probabilities=total.probabilities,
            log_evidence=total.log_mass - float(np.log(start)),
            missed=nothing,
            error_bound=nothing,
            evaluated=torch.full_like(nothing, start, dtype=torch.int64),
        )

    def denoise(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """x0_hat = sum_i p(i | x_t) x_i, of the shape, dtype and device of `x_t`. Raises, Cost: as `posterior`."""
        return like(self.posterior(x_t, alpha, sigma, k=1).x0_hat, x_t)

    def score(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """Gradient of log p(x_t), by Tweedie: (alpha x0_hat - x_t) / sigma^2. Raises, Cost: as `posterior`."""
        x = flat_states(x_t, self.d, self._center)
        a, s = level_pair(alpha, sigma, len(x), x)
        return like(safe_ratio(a * self.posterior(x_t, alpha, sigma, k=1).x0_hat - x, s**2), x_t)
