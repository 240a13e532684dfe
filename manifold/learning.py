"""What a network learns first: how near it is to analytic denoisers at each stage of its training.

The same noised states are shown to the network of every stage and to the analytic denoisers. Squared distances between
their x0_hat are told as shares of the variance of the clean latents. That unit is the same at all stages, where explained
variance would divide by the variance of predictions that change with training.

Source: Wang & Vastola, arXiv 2412.09726: the Gaussian's structure is learned first; a network nears the Gaussian early, and
leaves it for what more is to be known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .denoiser import Denoiser
from .errors import InputError, NonFiniteError
from .states import Levels, paired_levels

__all__ = ["Learning", "measure_learning"]


@dataclass(frozen=True)
class Learning:
    """A network's way past the analytic denoisers.

    Attributes
        stages: (S,) steps of training, rising.
        names: (A,) of the analytic denoisers.
        alphas, sigmas: (L,) levels.
        distance: (S, L, A, n) |network - analytic|^2 of each state, over the variance of the clean latents.
        error: (S, L, n) |network - x0|^2, in the same unit.
        analytic_distance: (L, A, A, n), analytic_error: (L, A, n) the same of each analytic denoiser in the network's place.
        null_distance: (L, A, n), null_error: (L, n) the same of a network that has learned nothing; None without one.
    """

    stages: tuple[int, ...]
    names: tuple[str, ...]
    alphas: Tensor
    sigmas: Tensor
    distance: Tensor
    error: Tensor
    analytic_distance: Tensor
    analytic_error: Tensor
    null_distance: Tensor | None = None
    null_error: Tensor | None = None

    def nearest_stage(self, name: str, level: int) -> int:
        """The place in `stages` at which the network is nearest to an analytic denoiser, on the mean over states."""
        return int(self.distance[:, level, self.names.index(name)].mean(1).argmin())

    def ahead_from(self, name: str, level: int) -> int | None:
        """The place in `stages` from which on the network's mean error is below a denoiser's; None without one."""
        behind = ~(self.error[:, level].mean(1) < self.analytic_error[level, self.names.index(name)].mean())
        first = int(behind.nonzero().max()) + 1 if bool(behind.any()) else 0
        return first if first < len(self.stages) else None


def measure_learning(
    networks: Iterable[tuple[int, Denoiser]],
    analytic: Mapping[str, Denoiser],
    x0: Tensor,
    alphas: Levels,
    sigmas: Levels,
    *,
    null: Denoiser | None = None,
    generator: torch.Generator | None = None,
    told: Callable[[int], None] = lambda step: None,
) -> Learning:
    """Set a network at stages of its training beside analytic denoisers.

    Arguments
        networks: pairs of steps trained and the network then, steps rising. Taken one at a time, so that they can be
            opened as they are asked for.
        analytic: by name; none was fitted to `x0`.
        x0: clean latents (n, d) or (n, C, H, W), n >= 2, not all alike.
        alphas, sigmas: (L,) levels, sigma > 0.
        null: a network that has learned nothing, such as the last with its weights in random order; see
            `manifold.nulls.shuffled_network`.
        generator: of the noise, one draw for all.
        told: called with the steps of each network before it is asked.

    Returns: Learning.

    Raises: InputError without a network or an analytic denoiser, with fewer than two latents, latents all alike, lists of
        levels that differ in length, or steps that do not rise; NonFiniteError for a prediction that is not finite.

    Cost: (S + A + 1) L evaluations of n states.
    """
    if len(x0) < 2 or not analytic:
        raise InputError(
            f"a comparison needs at least 2 latents and 1 analytic denoiser, {len(x0)} and {len(analytic)} came"
        )
    levels = paired_levels(alphas, sigmas)
    clean = x0.double().flatten(1)
    variance = float((clean - clean.mean(0)).square().sum(1).mean())
    if not variance > 0:
        raise InputError("the clean latents are all alike, so there is nothing to tell of them")
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=x0.device)
    states = [alpha * x0 + sigma * noise for alpha, sigma in levels]

    def answers(denoiser: Denoiser) -> Tensor:
        """(L, n, d) float64."""
        found = []
        for x_t, (alpha, sigma) in zip(states, levels, strict=True):
            found.append(denoiser.denoise(x_t, alpha, sigma).double().flatten(1))
            if not bool(found[-1].isfinite().all()):
                raise NonFiniteError(f"a prediction at alpha {alpha:.3g}, sigma {sigma:.3g} is NaN or infinite")
        return torch.stack(found)

    def away(one: Tensor, other: Tensor) -> Tensor:
        return (one - other).square().sum(-1) / variance

    def from_all(found: Tensor) -> Tensor:
        return torch.stack([away(found, one) for one in known.values()], 1)

    known = {name: answers(denoiser) for name, denoiser in analytic.items()}
    stages: list[int] = []
    distances, errors = [], []
    for step, network in networks:
        if stages and step <= stages[-1]:
            raise InputError(f"steps must rise, {step} comes after {stages[-1]}")
        told(step)
        found = answers(network)
        stages.append(step)
        distances.append(from_all(found))
        errors.append(away(found, clean))
    if not stages:
        raise InputError("there is no network to look at")
    nothing = None if null is None else answers(null)
    return Learning(
        stages=tuple(stages),
        names=tuple(known),
        alphas=torch.tensor([alpha for alpha, _ in levels], dtype=torch.float64),
        sigmas=torch.tensor([sigma for _, sigma in levels], dtype=torch.float64),
        distance=torch.stack(distances),
        error=torch.stack(errors),
        analytic_distance=torch.stack([from_all(one) for one in known.values()], 1),
        analytic_error=from_all(clean),
        null_distance=None if nothing is None else from_all(nothing),
        null_error=None if nothing is None else away(nothing, clean),
    )
