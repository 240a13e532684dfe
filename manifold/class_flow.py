"""The probability flow of images whose classes are known: each by the Gaussian of its class.

A class-conditional network does not follow the flow of the whole collection but that of the class it is asked for, and under
classifier-free guidance that of

    x0_hat = x0_hat_all + w (x0_hat_class - x0_hat_all)

At w = 1 the Gaussian of the class solves it in closed form; otherwise the two Gaussians' Wiener filters are combined and the
flow is integrated (`manifold.probability_flow`), still without the network.

Source: guidance: Ho & Salimans (arXiv 2207.12598); Gaussians: arXiv 2412.09726.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import ShapeError
from .gaussian import GaussianManifold
from .probability_flow import solve_flow
from .states import Level

__all__ = ["ClassFlow"]


@dataclass(frozen=True)
class _Guided:
    """Gaussian classifier-free guidance as a Denoiser."""

    everything: GaussianManifold
    one: GaussianManifold
    weight: float

    def denoise(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        free = self.everything.denoise(x_t, alpha, sigma)
        return free + self.weight * (self.one.denoise(x_t, alpha, sigma) - free)


class ClassFlow:
    """Solves the flow of a batch, its rows by their classes; fits `manifold.teleport` in place of one manifold.

    Arguments
        everything: Gaussian of the whole collection.
        classes: Gaussian of each class, by label.
        labels: (n,) of the rows of the batch; a label without a Gaussian means "no class" and moves by `everything`.
        guidance_scale: w above.
        steps: of the integration, where w is not 1.
    """

    def __init__(
        self,
        everything: GaussianManifold,
        classes: Mapping[int, GaussianManifold],
        labels: Sequence[int],
        guidance_scale: float = 1.0,
        steps: int = 64,
    ) -> None:
        self.everything, self.classes = everything, dict(classes)
        self.labels = torch.as_tensor(list(labels), dtype=torch.int64)
        self.guidance_scale, self.steps = guidance_scale, steps

    def solve(self, x_s: Tensor, alpha_s: float, sigma_s: float, alpha_t: float, sigma_t: float) -> Tensor:
        """The states at level t on the flows through x_s, (n, d) or (n, C, H, W), in their shape, type and device.

        Raises: ShapeError if there are not as many labels as states; what `GaussianManifold.solve` raises, and under guidance
            what `solve_flow` does, which needs sigma > 0 at both levels.

        Cost: two products of (n, d) by (d, k); under guidance 4 steps times as many.
        """
        if len(x_s) != len(self.labels):
            raise ShapeError(f"there must be one label for each of {len(x_s)} states, there are {len(self.labels)}")
        levels = (alpha_s, sigma_s, alpha_t, sigma_t)
        moved = torch.empty_like(x_s)
        for label in self.labels.unique().tolist():
            rows = (self.labels == label).to(x_s.device)
            one = self.classes.get(label)
            if one is None:
                moved[rows] = self.everything.solve(x_s[rows], *levels)
            elif self.guidance_scale == 1:
                moved[rows] = one.solve(x_s[rows], *levels)
            else:
                guided = _Guided(self.everything, one, self.guidance_scale)
                moved[rows] = solve_flow(guided, x_s[rows], *levels, steps=self.steps)
        return moved
