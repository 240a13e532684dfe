"""All numbers about a fitted covariance in one place, and the sentence that a person reads first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .covariance import CovarianceModel, LowRankCovariance
from .errors import InputError
from .power import RadialPower, channel_variance, radial_power
from .reproducibility import SplitHalf
from .spectrum import (
    SHARES,
    NoiseEdge,
    PowerLaw,
    components_for,
    cumulative_variance,
    effective_rank,
    marchenko_pastur_edge,
    participation_ratio,
    power_law,
)

__all__ = ["Diagnostics", "diagnose", "verdict"]


@dataclass(frozen=True)
class Diagnostics:
    """The numbers of one fit.

    Attributes
        count, d: rows and dimensions.
        trace, largest: total variance and largest eigenvalue.
        cumulative: (k,) share of the variance in the leading 1, 2, ..., k directions.
        components: directions needed for each of `manifold.spectrum.SHARES`, None where the model does not keep as many.
        participation_ratio, effective_rank: see `manifold.spectrum`.
        power_law: over the stated range; None if too few eigenvalues are kept.
        noise_edge: Marchenko-Pastur; None if the model keeps only some of the eigenvalues.
        split: agreement of two halves of the data; None if it was not computed.
        channel_variance: (C,); None without a shape.
        radial_power: None without a shape.
    """

    count: int
    d: int
    trace: float
    largest: float
    cumulative: Tensor
    components: tuple[int | None, ...]
    participation_ratio: float
    effective_rank: float
    power_law: PowerLaw | None
    noise_edge: NoiseEdge | None
    split: SplitHalf | None
    channel_variance: Tensor | None
    radial_power: RadialPower | None


def diagnose(
    model: CovarianceModel,
    count: int,
    *,
    shape: tuple[int, int, int] | None = None,
    split: SplitHalf | None = None,
    first: int = 10,
    last: int | None = None,
) -> Diagnostics:
    """Gather the diagnostics of a fitted model.

    Arguments
        model: the covariance.
        count: rows behind it.
        shape: (C, H, W) of a row, for the power spectra.
        split: from `split_half`, for the verdict.
        first, last: ranks of the power law; by default from 10 to the reproducible directions, or to a tenth of what
            the rows can support where no halves were compared.

    Raises: InputError if count is below 2, or the model has no variance.

    Cost: one Fourier transform an eigenvector, if a shape is given.
    """
    if count < 2:
        raise InputError(f"diagnostics need the number of rows behind the model, at least 2, it is {count}")
    eigvals = model.eigvals
    trace = float(model.trace(lambda variance: variance.double()))
    support = min(count - 1, model.d)
    if last is None:
        last = split.reproducible if split is not None else support // 10
        last = min(last, len(eigvals))
    fitted = power_law(eigvals, first, last) if last - first >= 7 and float(eigvals[last - 1]) > 0 else None
    complete = isinstance(model, LowRankCovariance) and model.k >= support
    return Diagnostics(
        count=count,
        d=model.d,
        trace=trace,
        largest=float(eigvals[0]) if len(eigvals) else trace / model.d,
        cumulative=cumulative_variance(model),
        components=components_for(model, SHARES),
        participation_ratio=participation_ratio(model),
        effective_rank=effective_rank(model),
        power_law=fitted,
        noise_edge=marchenko_pastur_edge(eigvals, count, model.d) if complete else None,
        split=split,
        channel_variance=None if shape is None else channel_variance(model, shape).to(torch.float64),
        radial_power=None if shape is None else radial_power(model, shape),
    )


def verdict(diagnostics: Diagnostics) -> str:
    """One sentence: is n enough, and for how many directions.

    Raises: InputError if the halves were not compared.
    """
    split = diagnostics.split
    if split is None:
        raise InputError("a verdict compares two halves of the data; pass split=split_half(store) to diagnose")
    compared, agreed = len(split.overlap), split.reproducible
    rows = f"{diagnostics.count:,} rows"
    halves = f"two halves of the data agree on them to {split.threshold:.0%}"
    if agreed == 0:
        return (
            f"{rows} are not enough: two halves of the data do not agree on even the first of {diagnostics.d:,} "
            "directions; encode more images."
        )
    kept = len(diagnostics.cumulative)
    share = f"{'over ' if agreed > kept else ''}{float(diagnostics.cumulative[min(agreed, kept) - 1]):.1%}"
    if agreed == compared == diagnostics.d:
        return f"{rows} are enough for all {diagnostics.d:,} directions: {halves}."
    if agreed == compared and float(split.chance[-1]) == 1.0:
        return f"{rows} are enough for all {agreed:,} of {diagnostics.d:,} directions that vary: {halves}."
    if agreed == compared:
        return (
            f"{rows} are enough for at least {agreed:,} of {diagnostics.d:,} directions, {share} of the variance: "
            f"{halves}, and no more were compared."
        )
    return (
        f"{rows} are enough for the leading {agreed:,} of {diagnostics.d:,} directions, {share} of the variance: "
        f"{halves}, and not on those that follow."
    )
