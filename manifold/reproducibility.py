"""How far an estimate can be trusted: the same statistics from two halves of the data, and from less and less of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .covariance import DENSE_LIMIT, LowRankCovariance, fit_covariance, fit_lowrank
from .errors import InputError
from .moments import Moments
from .power import channel_variance, radial_power
from .precision import without_autocast
from .rows import RowStore, RowSubset
from .spectrum import (
    SHARES,
    components_for,
    effective_rank,
    marchenko_pastur_edge,
    participation_ratio,
    power_law,
)

__all__ = ["FEWEST_ROWS", "Convergence", "SplitHalf", "convergence", "passes_over", "split_half", "subspace_overlap"]

FEWEST_ROWS = 4
"""Two in each half: the fewest with a variance."""
_SWAPPED = 3
_LEAST_SHARE = 1e-7
"""Of the largest variance: what is below is rounding, see `Moments`."""


@without_autocast
def subspace_overlap(first: Tensor, second: Tensor) -> Tensor:
    """Overlap of the leading j directions of two orthonormal bases, for every j.

        |A_j^T B_j|_F^2 / j: 1 if they span the same space, j / d on average if they have nothing to do with each other

    Arguments
        first, second: (d, k) columns.

    Returns: (k,) float64.
    """
    square = (first.T @ second).double().square()
    corner = square.cumsum(0).cumsum(1).diagonal()
    return corner / torch.arange(1, len(corner) + 1, dtype=torch.float64, device=corner.device)


@dataclass(frozen=True)
class SplitHalf:
    """How well two halves of the data agree on the leading directions.

    Attributes
        overlap: (k,) subspace overlap of the leading 1, 2, ..., k directions, of those with variance.
        chance: (k,) overlap of unrelated subspaces, j / d; j / k where no other directions have variance.
        threshold: agreement, (overlap - chance) / (1 - chance), that counts as such.
        reproducible: how many leading directions there are up to which the subspaces agree so well; 0 if there are none.
            After a long stretch that does not, only a space that agrees ten times as well counts.
        rows: rows in each half. The estimate from all rows is better than either half.
    """

    overlap: Tensor
    chance: Tensor
    threshold: float
    reproducible: int
    rows: int


def split_half(
    store: RowStore, rank: int = 1024, *, threshold: float = 0.9, device: torch.device | str = "cpu"
) -> SplitHalf:
    """Compare the leading directions of two halves of the rows: of every two consecutive rows one in each, drawn at random.

    Arguments
        store: at least 4 rows.
        rank: how many directions to compare, at most; fewer if a half has no more.
        threshold: agreement beyond chance that counts as such, in (0, 1).
        device: where the work is done.

    Raises: InputError if there are too few rows or the threshold is not in (0, 1).

    Cost: one pass and two eigendecompositions up to d = 4096; above, up to ten passes over each half.
    """
    if len(store) < FEWEST_ROWS:
        raise InputError(f"two halves need at least {FEWEST_ROWS} rows, there are {len(store)}")
    if not 0.0 < threshold < 1.0:
        raise InputError(f"the threshold of agreement must lie between 0 and 1, it is {threshold}")
    rows = len(store) // 2
    k = min(rank, store.d, rows - 1)
    first, second = (_leading(RowSubset(store, 2, [half]), k, device) for half in (0, 1))
    # Directions without variance, such as those of a border of one colour, are whatever the decomposition makes of them.
    varying = min(int((half.eigvals > _LEAST_SHARE * half.eigvals[0]).sum()) for half in (first, second))
    overlap = subspace_overlap(first.eigvecs[:, :varying], second.eigvecs[:, :varying]).cpu()
    room = varying if varying < k else store.d
    chance = torch.arange(1, varying + 1, dtype=torch.float64) / max(room, 1)
    agreement = (overlap - chance) / (1 - chance)
    if varying == room > 0:  # all of space is all of space: whoever agrees on the others agrees on the last
        agreement[-1] = agreement[-2] if varying > 1 else 1.0
    return SplitHalf(overlap, chance, threshold, _reproducible(agreement.tolist(), threshold), rows)


def _reproducible(agreement: Sequence[float], threshold: float) -> int:
    """How many leading directions agree, (k,) being the agreement of the first 1, 2, ..., k.

    Where directions of like variance swap, spaces between do not agree, and the space of all of them does. So those after
    more than a tenth as many that do not agree, and more than three, count if they agree ten times as well.
    """
    last = 0
    for number, one in enumerate(agreement, 1):
        near = number - last <= 1 + max(_SWAPPED, last // 10)
        if one >= (threshold if near else 1 - (1 - threshold) / 10):
            last = number
    return last


def passes_over(d: int) -> int:
    """How often `split_half` reads the rows, at most."""
    return 2 if d <= DENSE_LIMIT else 20


@dataclass(frozen=True)
class Convergence:
    """The summary of a spectrum from part of the evidence, one row in so many.

    Attributes
        count: rows used.
        trace, largest: total variance and largest eigenvalue.
        components: directions needed for each of `manifold.spectrum.SHARES` of the variance, None beyond those kept.
        participation_ratio, effective_rank: see `manifold.spectrum`.
        above_noise: eigenvalues beyond the Marchenko-Pastur edge; None if only some eigenvalues are kept.
        exponent: of the power law over the ranks asked for; None if that few rows do not reach them.
        overlap: subspace overlap of the leading directions with those from all rows.
        directions: how many directions that is.
        channel_variance: (C,) mean variance of the values of each channel; None without a shape.
        radial_power: (C, r) power in rings of spatial frequency, see `manifold.power`; None without a shape.
    """

    count: int
    trace: float
    largest: float
    components: tuple[int | None, ...]
    participation_ratio: float
    effective_rank: float
    above_noise: int | None
    exponent: float | None
    overlap: float
    directions: int
    channel_variance: Tensor | None
    radial_power: Tensor | None


def convergence(
    store: RowStore,
    rank: int = 256,
    *,
    shape: tuple[int, int, int] | None = None,
    first: int = 10,
    last: int = 100,
    one_in: Sequence[int] = (16, 8, 4, 2, 1),
    device: torch.device | str = "cpu",
) -> tuple[Convergence, ...]:
    """The spectrum's summary from 1/16, 1/8, 1/4, 1/2 and all of the rows.

    Arguments
        store: the rows.
        rank: directions whose overlap with those of all rows is reported, at most.
        shape: (C, H, W) of a row, for the power spectra.
        first, last: ranks of the power law.
        one_in: use one row in so many, drawn at random; 1 must be among them.
        device: where the work is done.

    Raises: InputError if `one_in` lacks 1 or goes below it, or there are fewer than 4 rows; ShapeError if the shape is not
        that of a row.

    Cost: two passes in all and an eigendecomposition for each entry up to d = 4096.
    """
    if 1 not in one_in or min(one_in) < 1:
        raise InputError(
            f"one_in must hold 1, for the estimate from all rows, and numbers above it; it is {list(one_in)}"
        )
    if len(store) < FEWEST_ROWS:
        raise InputError(f"convergence needs at least {FEWEST_ROWS} rows, there are {len(store)}; encode more images")
    parts = {one: RowSubset(store, one, [0]) for one in sorted(set(one_in)) if len(store) // one >= FEWEST_ROWS}
    whole = _leading(parts[1], None, device)
    points = []
    for one, part in parts.items():
        model = whole if one == 1 else _leading(part, None, device)
        k = min(rank, model.k, len(part) - 1, whole.k)
        complete = model.k >= min(len(part) - 1, store.d)
        usable = last <= min(model.k, len(part) - 1) and float(model.eigvals[last - 1]) > 0
        points.append(
            Convergence(
                count=len(part),
                trace=float(model.trace(lambda variance: variance)),
                largest=float(model.eigvals[0]),
                components=components_for(model, SHARES),
                participation_ratio=participation_ratio(model),
                effective_rank=effective_rank(model),
                above_noise=marchenko_pastur_edge(model.eigvals, len(part), store.d).above if complete else None,
                exponent=power_law(model.eigvals, first, last).exponent if usable else None,
                overlap=float(subspace_overlap(model.eigvecs[:, :k], whole.eigvecs[:, :k])[-1]),
                directions=k,
                channel_variance=None if shape is None else channel_variance(model, shape),
                radial_power=None if shape is None else radial_power(model, shape).power,
            )
        )
    return tuple(reversed(points))


def _leading(store: RowStore, k: int | None, device: torch.device | str) -> LowRankCovariance:
    """The leading k eigenpairs, or all that the rows have where a dense covariance fits and 256 where it does not."""
    if store.d > DENSE_LIMIT:
        return fit_lowrank(store, min(k or 256, store.d), device=device)
    moments = Moments(store.d, device=device)
    for batch in store.batches(2048):
        moments.update(batch)
    return fit_covariance(moments, "lowrank", store.d if k is None else k)
