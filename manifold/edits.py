"""Edits: a latent moved along eigenvectors, in units of each direction's own standard deviation.

    x' = x + sum_k a_k sqrt(lambda_k) u_k

An edit is a handful of amounts a_k; it can be kept as JSON and laid on any latent of the same manifold. Beside an edit stands
its control: a step of the same length in a random direction, which shows what length alone does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from .errors import FormatError, InputError
from .gaussian import GaussianManifold

__all__ = ["Edit", "random_edit", "walk"]

_SCHEMA = 1


@dataclass(frozen=True)
class Edit:
    """Amounts by direction, counted from 0, in standard deviations of the direction; amounts of zero are left out.

    >>> Edit({0: 1.5, 3: -2.0}).to_json()
    '{"schema": 1, "standard_deviations": {"0": 1.5, "3": -2.0}}'
    """

    amounts: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kept = {int(direction): float(amount) for direction, amount in sorted(self.amounts.items()) if amount != 0}
        for direction, amount in kept.items():
            if direction < 0 or not math.isfinite(amount):
                raise InputError(
                    f"an edit has finite amounts by direction, counted from 0; it got {amount} for direction {direction}"
                )
        object.__setattr__(self, "amounts", kept)

    def step(self, manifold: GaussianManifold) -> Tensor:
        """The change of a latent, (d,): sum_k a_k sqrt(lambda_k) u_k.

        Raises: InputError for a direction that the manifold does not have; NotFittedError if it has no eigenvectors.
        """
        change = torch.zeros_like(manifold.mean)
        if not self.amounts:
            return change
        _require(manifold, max(self.amounts))
        directions = torch.tensor(list(self.amounts), device=change.device)
        amounts = torch.tensor(list(self.amounts.values()), dtype=change.dtype, device=change.device)
        return manifold.eigvecs[:, directions] @ (amounts * manifold.eigvals[directions].clamp_min(0).sqrt())

    def apply(self, manifold: GaussianManifold, latents: Tensor) -> Tensor:
        """Latents (n, d) with the edit laid on each. Raises: as `step`; InputError for integers."""
        if not latents.is_floating_point():
            raise InputError(f"latents must be of a floating-point type, they are {latents.dtype}; convert them first")
        return latents + self.step(manifold).to(latents)

    def control(self, manifold: GaussianManifold, generator: torch.Generator | None = None) -> Tensor:
        """A step of the same length in a direction drawn uniformly from all d dimensions, (d,). Raises: as `step`."""
        length = self.step(manifold).norm()
        drawn = torch.randn(manifold.d, generator=generator, dtype=torch.float64).to(manifold.mean)
        return drawn * (length / drawn.norm())

    def to_json(self) -> str:
        """As a line of JSON."""
        amounts = {str(direction): amount for direction, amount in self.amounts.items()}
        return json.dumps({"schema": _SCHEMA, "standard_deviations": amounts})

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """From what `to_json` wrote. Raises: FormatError if it is anything else; InputError if a number is out of range."""
        try:
            value = json.loads(text)
            schema, amounts = value["schema"], value["standard_deviations"]
            read = {int(direction): float(amount) for direction, amount in amounts.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise FormatError(
                'an edit is JSON such as {"schema": 1, "standard_deviations": {"0": 1.5}}; this file is something else'
            ) from error
        if schema != _SCHEMA:
            raise FormatError(f"the edit has schema {schema}, this version reads {_SCHEMA}; save it again")
        return cls(read)


def random_edit(directions: int, generator: torch.Generator | None = None, spread: float = 1.0) -> Edit:
    """Amounts drawn from N(0, spread^2) for the leading directions, rounded to a tenth.

    Raises: InputError if there are no directions.
    """
    if directions < 1:
        raise InputError(f"a random edit needs at least 1 direction, it got {directions}")
    drawn = spread * torch.randn(directions, generator=generator, dtype=torch.float64)
    return Edit({direction: round(amount, 1) for direction, amount in enumerate(drawn.tolist())})


def walk(
    manifold: GaussianManifold, directions: Sequence[int], steps: Sequence[float], base: Tensor | None = None
) -> Tensor:
    """Latents along eigenvectors: base + s sqrt(lambda_k) u_k for every direction k and step s.

    Arguments
        directions: counted from 0. steps: in standard deviations. base: (d,), the mean unless given.

    Returns: (directions, steps, d). Raises: InputError for a direction that the manifold does not have; NotFittedError.
    """
    chosen = torch.tensor(list(directions), dtype=torch.int64, device=manifold.mean.device)
    if len(chosen):
        if int(chosen.min()) < 0:
            raise InputError(f"directions are counted from 0, one is {int(chosen.min())}")
        _require(manifold, int(chosen.max()))
    shifts = torch.tensor(list(steps), dtype=manifold.mean.dtype, device=manifold.mean.device)
    vectors = manifold.eigvecs[:, chosen].T * manifold.eigvals[chosen].clamp_min(0).sqrt()[:, None]
    origin = manifold.mean if base is None else base.to(manifold.mean)
    return origin + shifts[None, :, None] * vectors[:, None, :]


def _require(manifold: GaussianManifold, direction: int) -> None:
    if direction >= manifold.k:
        raise InputError(
            f"the manifold has directions 0 to {manifold.k - 1}, the edit names {direction}; fit with more"
        )
