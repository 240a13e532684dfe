"""The empirical posterior without a look at every row, and a proof of what was left out.

In memory are the coordinates c_i = U^T (x_i - mu) of every row in k directions, and the norm r_i of what lies outside
them. By Pythagoras and the triangle inequality

    |x_t - alpha x_i|^2 >= |c_t - alpha c_i|^2 + (r_t - alpha r_i)^2,

so exp(-bound / (2 sigma^2)) is at least the row's weight. Rows are evaluated exactly in the order of that bound until the
bounds of all others, summed, are below `tolerance` of the weight already found. Their sum over the total is `missed`.

The bounds are evaluated in float64 and lowered by a margin for every rounding in them: of the stored coordinates (float32),
of the norms outside (a difference), and of the expanded square. U is made orthonormal to float64 first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from .empirical import EmpiricalDenoiser, EmpiricalPosterior, OnlineSoftmax
from .errors import InputError, NotFittedError, ShapeError
from .gaussian import GaussianManifold
from .rows import ArrayRows, RowStore, as_rows
from .states import Level, flat_states, level_pair, like

__all__ = ["CertifiedEmpiricalDenoiser"]

_BLOCK = 8192  # rows of coordinates converted to float64 at a time
_MATRIX = 1 << 24  # entries of the (states, rows) matrix of bounds held at a time
_FIRST = 256  # rows evaluated before the first check; four times as many at each further one
_SPREAD = 16  # beyond a sixteenth of the collection a streamed pass is quicker than fetching rows
_HALF = 6e-8  # rounding of a float32
_WIDE = 1e-13  # relative rounding allowed to a float64 square of some thousand terms


class CertifiedEmpiricalDenoiser:
    """The empirical posterior mean, exact to a tolerance that is proven for every state.

    Arguments
        collection: (N, d) array or tensor, or a store with `batches(rows)` and, unless `fetch` is given, `read(ids)`.
        manifold: where the directions come from; any orthonormal directions give correct results, those of largest variance
            the quickest.
        rank: k, all of the manifold's by default. More directions give closer bounds and a costlier first step; those that
            hold 99 % of the variance are a fair choice.
        tolerance: largest posterior mass that may be left out.
        fetch: rows by number, (m,) -> (m, d).

    Raises: NotFittedError if the collection is empty; InputError.

    Cost: to build, one pass and 4 N k + 8 N bytes. A call costs n N k, and d for every row evaluated; where the posterior
    is spread over more than a sixteenth of the collection (large sigma) it turns to brute force, which is exact.
    """

    def __init__(
        self,
        collection: Tensor | np.ndarray | RowStore,
        manifold: GaussianManifold,
        *,
        rank: int | None = None,
        tolerance: float = 1e-5,
        fetch: Callable[[np.ndarray], np.ndarray | Tensor] | None = None,
    ) -> None:
        if not 0 < tolerance < 1:
            raise InputError(f"tolerance must lie between 0 and 1, it is {tolerance}")
        rank = manifold.k if rank is None else rank
        if not 1 <= rank <= manifold.k:
            raise InputError(f"rank must lie between 1 and {manifold.k}, it is {rank}")
        if len(collection) == 0:
            raise NotFittedError("the collection is empty; give at least one latent")
        if isinstance(collection, Tensor | np.ndarray):
            array = collection.reshape(len(collection), -1)
            collection, fetch = ArrayRows(array), fetch or (lambda ids: array[ids])
        elif fetch is None:
            if not hasattr(collection, "read"):
                raise InputError("a store without read(ids) needs fetch=, which gives rows by number")
            fetch = collection.read
        if collection.d != manifold.d:
            raise ShapeError(f"the collection has {collection.d} values a row, the manifold {manifold.d}")
        self.d, self.tolerance, self._fetch = collection.d, tolerance, fetch
        self._brute = EmpiricalDenoiser(collection)
        self._mean = manifold.mean.detach().cpu().double()
        self._basis = torch.linalg.qr(manifold.eigvecs[:, :rank].detach().cpu().double()).Q
        coordinates, outside, spread = [], [], []
        for batch in _checked(collection.batches(_BLOCK), self.d):
            deviation = batch.double() - self._mean
            inside = deviation @ self._basis
            squared = deviation.square().sum(1)
            coordinates.append(inside.float())
            outside.append((squared - inside.square().sum(1)).clamp_min(0).sqrt())
            spread.append(squared.sqrt())
        self._coordinates = torch.cat(coordinates)
        self._outside, self._norms = torch.cat(outside), torch.cat(spread)

    def __len__(self) -> int:
        return len(self._norms)

    def posterior(self, x_t: Tensor, alpha: Level, sigma: Level, k: int = 10) -> EmpiricalPosterior:
        """p(i | x_t) with a proven bound on the mass and on the error of x0_hat left out; see EmpiricalPosterior.

        Arguments
            x_t: (n, d) or (n, C, H, W).
            alpha: >= 0. sigma: > 0. Number, () or (n,).
            k: how many of the most probable rows to name.

        Returns: the posterior, without gradients.

        Raises: ShapeError; InputError for a level out of range, or k below 0.
        """
        x = flat_states(x_t.detach(), self.d, self._mean)
        a, s = (level.expand(len(x), 1) for level in level_pair(alpha, sigma, len(x), x))
        if not bool((s > 0).all()):
            raise InputError("the empirical posterior needs sigma > 0; without noise, look for the nearest row instead")
        if not len(x):
            return self._brute.posterior(x, a[:, 0], s[:, 0], min(k, len(self)))
        found: list[tuple[Tensor, ...] | None] = []
        step = max(_MATRIX // len(self), 1)
        for low in range(0, len(x), step):
            part = slice(low, low + step)
            bounds = self._bounds(x[part] - a[part] * self._mean, a[part], s[part])
            for row, bound in enumerate(bounds, start=low):
                found.append(self._one(x[row], a[row], s[row], bound, min(k, len(self))))
        spread = [row for row, one in enumerate(found) if one is None]
        if spread:
            brute = self._brute.posterior(x[spread], a[spread, 0], s[spread, 0], min(k, len(self)))
            for number, row in enumerate(spread):
                found[row] = tuple(getattr(brute, field.name)[number] for field in fields(brute))
        return EmpiricalPosterior(*(torch.stack(part) for part in zip(*(one for one in found if one), strict=True)))

    def denoise(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """x0_hat up to the tolerance, of the shape, dtype and device of `x_t`. Raises: as `posterior`."""
        return like(self.posterior(x_t, alpha, sigma, k=1).x0_hat, x_t)

    def _bounds(self, y: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """Upper bounds (n, N) on the logits -|x_t - alpha x_i|^2 / (2 sigma^2)."""
        inside = y @ self._basis
        squared = y.square().sum(1, keepdim=True)
        outside = (squared - inside.square().sum(1, keepdim=True)).clamp_min(0).sqrt()
        bounds = torch.empty(len(y), len(self), dtype=torch.float64)
        for low in range(0, len(self), _BLOCK):
            rows = slice(low, low + _BLOCK)
            stored, norms, away = self._coordinates[rows].double(), self._norms[rows], self._outside[rows]
            near = inside.square().sum(1, keepdim=True) - 2 * a * (inside @ stored.T) + a**2 * stored.square().sum(1)
            near = (near - _WIDE * (squared.sqrt() + a * norms).square()).clamp_min(0).sqrt()
            near = (near - a * _HALF * norms).clamp_min(0)
            slack = _rounding(outside, squared.sqrt()) + a * _rounding(away, norms)
            far = ((outside - a * away).abs() - slack).clamp_min(0)
            bounds[:, rows] = -(near.square() + far.square()) / (2 * s**2) * (1 - _WIDE)
        return bounds

    def _one(self, x: Tensor, a: Tensor, s: Tensor, bounds: Tensor, k: int) -> tuple[Tensor, ...] | None:
        """One state: evaluate rows in the order of their bounds until the others are proven small.

        None if that takes so many rows that brute force is quicker. Overwrites `bounds`.
        """
        total = OnlineSoftmax(1, self.d, k)
        done, wanted, left = 0, min(max(_FIRST, k), len(bounds)), math.inf
        while left > math.log(self.tolerance):
            if done + wanted > max(len(bounds) // _SPREAD, _FIRST, k):
                return None
            ids = bounds.topk(wanted).indices
            self._evaluate(total, x, a, s, ids)
            bounds[ids] = -math.inf
            done += wanted
            left = float(bounds.logsumexp(0) - total.log_mass[0]) if done < len(bounds) else -math.inf
            wanted = min(3 * done, len(bounds) - done)
        missed = torch.tensor(left, dtype=torch.float64).sigmoid() * (1 + 1e-9)  # the sum of bounds rounds too
        centre = total.mean[0]
        reach = float(self._norms.max()) + (centre - self._mean).norm()
        log_evidence = total.log_mass[0] - math.log(len(bounds))
        evaluated = torch.tensor(done)
        return centre, total.ids[0], total.probabilities[0], log_evidence, missed, missed * reach, evaluated

    def _evaluate(self, total: OnlineSoftmax, x: Tensor, a: Tensor, s: Tensor, ids: Tensor) -> None:
        """Exact logits of some rows, by plain differences in float64."""
        rows = as_rows(self._fetch(ids.numpy()), self.d).cpu().double()
        squared = (x - a * rows).square().sum(1)
        total.add((-squared / (2 * s**2))[None], rows, ids)


def _rounding(outside: Tensor, norm: Tensor) -> Tensor:
    """How far off a norm can be that was found as the root of a difference of squares up to `norm` squared."""
    return torch.minimum(_WIDE * norm.square() / outside.clamp_min(1e-300), math.sqrt(_WIDE) * norm)


def _checked(batches: Iterable[np.ndarray], d: int) -> Iterable[Tensor]:
    return (as_rows(batch, d).cpu() for batch in batches)
