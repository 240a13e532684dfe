"""How well one denoiser predicts another, level by level.

The explained variance of the score flatters: score = (alpha x0_hat - x_t) / sigma^2 contains x_t itself, the same for both,
and it dominates at high noise. The explained variance of the denoiser, taken about the mean of the targets, does not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .denoiser import Denoiser
from .errors import InputError
from .states import Levels, paired_levels

__all__ = ["Comparison", "compare_denoisers"]


@dataclass(frozen=True)
class Comparison:
    """One denoiser at one level.

    Attributes
        name: of the denoiser. alpha, sigma: the level.
        mse: mean squared error per element between x0_hat and the target.
        explained_denoiser: 1 - |x0_hat - target|^2 / |target - mean target|^2.
        explained_score: the same for the scores; flatters at high noise.
        cosine: mean over states of the cosine between x0_hat and the target, both about the mean target.
        seconds: per call, median of the repeats.
    """

    name: str
    alpha: float
    sigma: float
    mse: float
    explained_denoiser: float
    explained_score: float
    cosine: float
    seconds: float


def compare_denoisers(
    denoisers: Mapping[str, Denoiser],
    x0: Tensor,
    alphas: Levels,
    sigmas: Levels,
    *,
    reference: Denoiser | None = None,
    generator: torch.Generator | None = None,
    repeats: int = 1,
    null: bool = False,
) -> list[Comparison]:
    """Denoise the same noised states with every denoiser, at every level.

    Arguments
        denoisers: by name.
        x0: clean latents (n, d) or (n, C, H, W), n >= 2, not used to fit any of the denoisers.
        alphas, sigmas: (L,) levels, sigma > 0.
        reference: whose prediction is the target, such as a trained network; without one the target is x0 itself.
        generator: of the noise, one draw for all denoisers and levels.
        repeats: calls timed.
        null: add two rows a level of what knowing nothing is worth: "null: mean", the mean target for every state, which
            explains nothing of the denoiser and much of the score; and "null: permuted", the target of another state.

    Returns: one Comparison for each level and denoiser, in that order; the nulls, timed at 0, after the denoisers.

    Raises: InputError if there are fewer than two latents, no repeat, a sigma that is not above 0, or the lists of levels
        differ in length.
    """
    if len(x0) < 2:
        raise InputError(f"a comparison needs at least 2 latents, {len(x0)} came")
    levels = paired_levels(alphas, sigmas)
    if not all(sigma > 0 for _, sigma in levels):
        raise InputError(
            f"scores are compared, which need sigma > 0; the levels have sigma {[one for _, one in levels]}"
        )
    if repeats < 1:
        raise InputError(f"a denoiser must be called at least once, repeats is {repeats}")
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=x0.device)
    rows = []
    for alpha, sigma in levels:
        x_t = alpha * x0 + sigma * noise
        target = x0 if reference is None else reference.denoise(x_t, alpha, sigma)
        for name, denoiser in denoisers.items():
            predicted, seconds = _timed(denoiser, x_t, alpha, sigma, repeats)
            rows.append(_measured(name, alpha, sigma, predicted, target, x_t, seconds))
        if null:
            knows_nothing = {"null: mean": target.mean(0).expand_as(target), "null: permuted": target.roll(1, 0)}
            rows += [_measured(name, alpha, sigma, one, target, x_t, 0.0) for name, one in knows_nothing.items()]
    return rows


def _timed(denoiser: Denoiser, x_t: Tensor, alpha: float, sigma: float, repeats: int) -> tuple[Tensor, float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        predicted = denoiser.denoise(x_t, alpha, sigma)
        if predicted.is_cuda:
            torch.cuda.synchronize(predicted.device)
        times.append(time.perf_counter() - start)
    return predicted, sorted(times)[len(times) // 2]


def _measured(
    name: str, alpha: float, sigma: float, predicted: Tensor, target: Tensor, x_t: Tensor, seconds: float
) -> Comparison:
    predicted, target, x_t = (one.double().flatten(1) for one in (predicted, target, x_t))
    error = (predicted - target).square().sum()
    scores = [(alpha * one - x_t) / sigma**2 for one in (predicted, target)]
    mean = target.mean(0)
    return Comparison(
        name=name,
        alpha=alpha,
        sigma=sigma,
        mse=float(error) / target.numel(),
        explained_denoiser=1 - float(error / (target - mean).square().sum()),
        explained_score=1
        - float((scores[0] - scores[1]).square().sum() / (scores[1] - scores[1].mean(0)).square().sum()),
        cosine=float(torch.nn.functional.cosine_similarity(predicted - mean, target - mean, dim=1).mean()),
        seconds=seconds,
    )
