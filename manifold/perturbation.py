"""What a small push at one noise level does to the final sample: measured gains beside the predicted ones.

A push of delta along u_k at level s moves the sample of Gaussian data by gain_k delta along u_k, and nowhere else, with

    gain_k = sqrt(lambda_k / (alpha_s^2 lambda_k + sigma_s^2)).

The sampler is run from both sides of each state, and the central difference is taken, so what is even in the push drops
out. The control pushes along random directions, for which the closed form predicts r^T G r: it shows how much of the
agreement is due to the eigenvectors.

Source: Wang & Vastola, arXiv 2303.02490 (perturbation experiments).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError, NonFiniteError, ShapeError
from .gaussian import GaussianManifold
from .nulls import random_directions
from .states import flat_states, safe_ratio

__all__ = ["Perturbation", "measure_perturbation"]

_RANKS = (0, 1, 3, 7, 15, 31)


@dataclass(frozen=True)
class Perturbation:
    """Response of the final sample per unit of push at the level (alpha, sigma); float64.

    Attributes
        alpha, sigma: the level.
        modes: (m,) ranks of the eigenvectors, from 0. eigvals: (m,) their variances. delta: (m,) sizes of the push.
        gain: (m, n) response along the pushed direction. predicted: (m,) for Gaussian data.
        leak: (m, n) norm of the response across the pushed direction; the prediction is 0.
        control_delta: (c,), control_gain, control_leak: (c, n), control_predicted, control_leak_predicted: (c,) the same
            along random directions.
    """

    alpha: float
    sigma: float
    modes: Tensor
    eigvals: Tensor
    delta: Tensor
    gain: Tensor
    predicted: Tensor
    leak: Tensor
    control_delta: Tensor
    control_gain: Tensor
    control_predicted: Tensor
    control_leak: Tensor
    control_leak_predicted: Tensor


def measure_perturbation(
    sampler: Callable[[Tensor], Tensor],
    x_s: Tensor,
    alpha: float,
    sigma: float,
    gaussian: GaussianManifold,
    *,
    modes: Sequence[int] | None = None,
    delta: float = 0.1,
    controls: int = 4,
    generator: torch.Generator | None = None,
) -> Perturbation:
    """Push states at one level along eigenvectors and along random directions, and sample from there.

    Arguments
        sampler: from states (n, ...) at this level to final samples of the same shape; the same result for the same state,
            so without noise of its own. It is given states of the type of `x_s`, but float32 for half precision, whose
            rounding is of the size of what a push changes.
        x_s: (n, d) or (n, C, H, W) states at the level.
        alpha, sigma: the level, not both 0.
        gaussian: of the data, with eigenvectors.
        modes: ranks from 0 of the eigenvectors; without them 0, 1, 3, 7, 15, 31, as far as there are so many.
        delta: size of the push, in standard deviations sqrt(alpha^2 lambda + sigma^2) of the state along it.
        controls: number of random directions, at most d; 0 for none.
        generator: of the random directions.

    Returns: Perturbation.

    Raises: ShapeError; NonFiniteError if the sampler returns NaN or infinity; NotFittedError for a model without
        eigenvectors; InputError without a mode or a push, or for a level out of range.

    Cost: 2 (m + controls) calls of the sampler.
    """
    flat = flat_states(x_s, gaussian.d, torch.zeros((), dtype=torch.float64, device=x_s.device), gaussian.shape)
    ranks = [one for one in _RANKS if one < gaussian.k] if modes is None else [int(one) for one in modes]
    if not ranks or min(ranks) < 0 or max(ranks) >= gaussian.k:
        raise InputError(f"modes must be ranks of eigenvectors from 0 to {gaussian.k - 1}, they are {ranks}")
    chosen = torch.tensor(ranks, device=flat.device)
    if not delta > 0:
        raise InputError(f"delta must be above 0, it is {delta}")
    predicted = gaussian.sensitivity(alpha, sigma).to(flat)[chosen]
    eigvals = gaussian.eigvals.to(flat)[chosen]
    vectors = gaussian.eigvecs.to(flat)[:, chosen].T
    controls = min(controls, gaussian.d)
    random = random_directions(gaussian.d, controls, generator).to(flat).T if controls else flat[:0]
    spread = gaussian.covariance.apply(lambda v: alpha**2 * v + sigma**2, random.to(gaussian.mean)).to(flat)
    response = gaussian.covariance.apply(
        lambda v: safe_ratio(v, alpha**2 * v + sigma**2).sqrt(), random.to(gaussian.mean)
    ).to(flat)
    sizes = delta * (alpha**2 * eigvals + sigma**2).sqrt()
    control_sizes = delta * (random * spread).sum(1).sqrt()
    gain, leak = _responses(sampler, flat, x_s, vectors, sizes)
    control_gain, control_leak = _responses(sampler, flat, x_s, random, control_sizes)
    along = (random * response).sum(1)
    return Perturbation(
        alpha=float(alpha),
        sigma=float(sigma),
        modes=chosen,
        eigvals=eigvals,
        delta=sizes,
        gain=gain,
        predicted=predicted,
        leak=leak,
        control_delta=control_sizes,
        control_gain=control_gain,
        control_predicted=along,
        control_leak=control_leak,
        control_leak_predicted=(response - along[:, None] * random).norm(dim=1),
    )


def _responses(
    sampler: Callable[[Tensor], Tensor], flat: Tensor, x_s: Tensor, directions: Tensor, sizes: Tensor
) -> tuple[Tensor, Tensor]:
    """Central differences along directions (m, d): the part along and the norm of the part across, each (m, n)."""
    wide = torch.promote_types(x_s.dtype, torch.float32)
    along, across = flat.new_empty(len(directions), len(flat)), flat.new_empty(len(directions), len(flat))
    for number, (direction, size) in enumerate(zip(directions, sizes, strict=True)):
        if not float(size) > 0:
            raise InputError(
                "at sigma = 0 a direction without variance cannot be pushed in units of its own spread; "
                "leave it out or use sigma > 0"
            )
        ends = []
        for sign in (1.0, -1.0):
            end = sampler((flat + sign * size * direction).reshape(x_s.shape).to(wide))
            if end.shape != x_s.shape:
                raise ShapeError(
                    f"the sampler must return the shape of its states, {tuple(x_s.shape)}, it returned {tuple(end.shape)}"
                )
            if not bool(end.isfinite().all()):
                raise NonFiniteError(f"the sampler returned NaN or infinity for a push of {sign * float(size):.3g}")
            ends.append(end.reshape(flat.shape).to(flat))
        moved = (ends[0] - ends[1]) / (2 * size)
        along[number] = moved @ direction
        across[number] = (moved - along[number][:, None] * direction).norm(dim=1)
    return along, across
