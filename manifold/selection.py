"""Which covariance model fits rows it has not seen: every fifth row is left out, every model fitted on the others.

The likelihood of the rows left out decides. The winner is fitted again on all rows with the rank, shrinkage or weight
that won.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .covariance import (
    DENSE_LIMIT,
    CovarianceModel,
    LowRankCovariance,
    StationaryCovariance,
    blend_with_stationary,
    fit_covariance,
    fit_lowrank,
    fit_stationary,
    ledoit_wolf_intensity,
    oas_intensity,
    score_blends,
    score_lowrank_blends,
)
from .cross_spectrum import FOLDS, CrossSpectrum
from .errors import InputError
from .likelihood import EigenScore, mean_log_likelihood
from .moments import Moments
from .rows import RowStore, RowSubset

__all__ = ["FEWEST_ROWS", "Candidate", "Selection", "fit_auto"]

FEWEST_ROWS = 20
"""Fewer say nothing of a model that others were left out for."""

_EVERY = 5
_RANK_LIMIT = 1024
_RANKS = (4, 16, 64, 256, 1024)
_SHRINKAGES = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


@dataclass(frozen=True)
class Candidate:
    """One model as it was compared.

    Attributes
        name: "full", "lowrank", "stationary", "full toward stationary" or "lowrank toward stationary", with how its
            shrinkage was set.
        log_likelihood: mean over the rows left out, in nats a row.
        rank: eigenpairs of a low-rank model.
        shrinkage: intensity of the shrinkage toward a multiple of the identity.
        weight: weight of the stationary model in a blend.
    """

    name: str
    log_likelihood: float
    rank: int | None = None
    shrinkage: float | None = None
    weight: float | None = None


@dataclass(frozen=True)
class Selection:
    """The model chosen, fitted on all rows; what was compared, best first; and why, in one sentence."""

    model: CovarianceModel
    candidates: tuple[Candidate, ...]
    reason: str


def fit_auto(
    store: RowStore,
    shape: tuple[int, int, int] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Selection:
    """Choose among full, low-rank and stationary models and their shrinkages by held-out log-likelihood.

    Compared are: full and low-rank models (ranks 4, 16, 64, 256, 1024), unshrunk, with OAS and Ledoit-Wolf
    shrinkage where the whole spectrum is at hand, and with the shrinkage best for the rows left out; the stationary
    model, if `shape` is given; and the full and low-rank models shrunk toward the stationary one, up to d = 4096.

    Arguments
        store: at least 20 rows that can be read again and again.
        shape: (C, H, W) of a row, without which there is no stationary model.
        dtype: type of the model's tensors.
        device: where products are taken and the model lives.

    Raises: InputError if there are too few rows, or all are equal; NonFiniteError naming the row.

    Cost: up to d = 4096 three eigendecompositions and about eight passes over the rows; above, only products of the
    rows with blocks of at most 1024 columns.
    """
    if len(store) < FEWEST_ROWS:
        raise InputError(
            f"choosing a model by held-out likelihood needs at least {FEWEST_ROWS} rows, {len(store)} came"
        )
    train = RowSubset(store, _EVERY, range(_EVERY - 1))
    held_out = RowSubset(store, _EVERY, [_EVERY - 1])
    candidates, base = _eigen_candidates(train, held_out, device)
    if float(base.trace(lambda variance: variance)) == 0:
        raise InputError(
            "all rows are equal, but for every fifth at most: there is nothing to choose a model by; give rows that differ"
        )
    if shape is not None and len(train) >= 2 * FOLDS:
        target = fit_stationary(CrossSpectrum.of(train, shape, device=device), dtype=torch.float64)
        candidates.append(Candidate("stationary", mean_log_likelihood(target, held_out)))
        if store.d <= DENSE_LIMIT:
            best = max(score_blends(train, held_out, target), key=lambda score: score.log_likelihood)
            if 0.0 < best.weight < 1.0:
                candidates.append(Candidate("full toward stationary", best.log_likelihood, weight=best.weight))
            candidates += _lowrank_blends(candidates, base, held_out, target)
    candidates = sorted(
        (candidate for candidate in candidates if candidate.log_likelihood > -math.inf),
        key=lambda candidate: -candidate.log_likelihood,
    )
    model = _fit(candidates[0], store, shape, dtype, device)
    return Selection(model, tuple(candidates), _reason(candidates, len(held_out), store.d))


def _lowrank_blends(
    candidates: list[Candidate], base: LowRankCovariance, held_out: RowStore, target: StationaryCovariance
) -> list[Candidate]:
    """The low-rank model shrunk toward the stationary one, for the rank that did best by itself and one below it."""
    tried = [candidate for candidate in candidates if candidate.name.startswith("lowrank") and candidate.rank]
    if not tried:
        return []
    best = max(tried, key=lambda candidate: candidate.log_likelihood).rank or 1
    total = float(base.trace(lambda variance: variance))
    found = []
    for rank in sorted({best, max((rank for rank in _RANKS if rank < best), default=best)}):
        kept = base.eigvals[:rank]
        tail = max(total - float(kept.sum()), 0.0) / (base.d - rank)
        low = LowRankCovariance(base.mean, kept, base.eigvecs[:, :rank], tail)
        score = max(score_lowrank_blends(low, held_out, target), key=lambda one: one.log_likelihood)
        found.append(Candidate("lowrank toward stationary", score.log_likelihood, rank=rank, weight=score.weight))
    return found


def _eigen_candidates(
    train: RowStore, held_out: RowStore, device: torch.device | str
) -> tuple[list[Candidate], LowRankCovariance]:
    """Full and low-rank models: one decomposition, one projection of the rows left out, any number of scores.

    Returns the candidates and the model they were all taken from.
    """
    moments = _moments(train, device) if train.d <= DENSE_LIMIT else None
    base: LowRankCovariance
    if moments is None:
        base = fit_lowrank(train, min(_RANK_LIMIT, len(train) - 1, train.d), device=device)
    else:
        base = fit_covariance(moments, dtype=torch.float64)
    score = EigenScore.of(base, held_out)
    complete = min(len(train) - 1, train.d)
    whole = base.k >= complete
    ways: dict[str, float | None] = {"": 0.0, ", shrinkage by held-out likelihood": None}
    if moments is not None:
        ways[", OAS"] = oas_intensity(moments)
        ways[", Ledoit-Wolf"] = ledoit_wolf_intensity(moments, train)
    ranks = [rank for rank in _RANKS if rank < min(base.k, complete)]
    found = []
    for name, rank in [*(("lowrank", rank) for rank in ranks), *([("full", complete)] if whole else [])]:
        for way, intensity in ways.items():
            tried = _SHRINKAGES if intensity is None else (intensity,)
            value, shrinkage = max((score.mean_log_likelihood(rank, a), a) for a in tried)
            if intensity is None and shrinkage == 0.0:
                continue  # the same as without
            found.append(Candidate(name + way, value, None if name == "full" else rank, shrinkage))
    return found, base


def _fit(
    candidate: Candidate,
    store: RowStore,
    shape: tuple[int, int, int] | None,
    dtype: torch.dtype,
    device: torch.device | str,
) -> CovarianceModel:
    if candidate.name == "stationary" and shape is not None:
        return fit_stationary(CrossSpectrum.of(store, shape, device=device), dtype=dtype)
    if candidate.weight is not None and shape is not None:
        spectrum = CrossSpectrum.of(store, shape, device=device)
        return blend_with_stationary(
            _moments(store, device), spectrum, candidate.weight, rank=candidate.rank, dtype=dtype
        )
    shrinkage = candidate.shrinkage or 0.0
    if store.d > DENSE_LIMIT:
        rank = candidate.rank or min(len(store) - 1, store.d)
        return fit_lowrank(store, rank, shrinkage=shrinkage, dtype=dtype, device=device)
    moments = _moments(store, device)
    if candidate.rank is None:
        return fit_covariance(moments, shrinkage=shrinkage, dtype=dtype)
    return fit_covariance(moments, "lowrank", candidate.rank, shrinkage=shrinkage, dtype=dtype)


def _moments(store: RowStore, device: torch.device | str) -> Moments:
    moments = Moments(store.d, device=device)
    for batch in store.batches(2048):
        moments.update(batch)
    return moments


def _reason(candidates: list[Candidate], rows: int, d: int) -> str:
    best = candidates[0]
    setting = [
        f"{name} {value:g}" if isinstance(value, int) else f"{name} {value:.3g}"
        for name, value in (("rank", best.rank), ("shrinkage", best.shrinkage), ("weight", best.weight))
        if value
    ]
    named = f"{best.name} ({', '.join(setting)})" if setting else best.name
    sentence = f"{named} gives {rows} rows left out the highest likelihood, {best.log_likelihood / d:.4f} nats a value"
    family = best.name.split(",")[0]
    other = next((candidate for candidate in candidates if candidate.name.split(",")[0] != family), None)
    if other is not None:
        gain = (best.log_likelihood - other.log_likelihood) / d
        sentence += f", {gain:.4f} more than the best of another kind ({other.name})"
    return sentence + f"; {len(candidates)} models compared"
