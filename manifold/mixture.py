"""Data as a mixture of Gaussians: the denoiser of clustered data, in closed form.

    p(x_t) = sum_j pi_j N(x_t; alpha mu_j, alpha^2 Sigma_j + sigma^2 I)
    r_j    = softmax_j(log pi_j + log N_j(x_t)),     x0_hat = sum_j r_j x0_hat_j

with x0_hat_j the Wiener filter of component j. Responsibilities are formed from logarithms summed in float64, so they are
finite at every noise level: they go to the weights pi as sigma grows, and to one component as it vanishes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from .covariance import CovarianceModel, SpectralFunction, fit_covariance
from .covariance.storage import model_from
from .errors import FormatError, InputError, MismatchError, NotFittedError, ShapeError
from .files import load_tensors, save_tensors
from .gaussian import GaussianManifold
from .mixture_component import CentredComponent, SeenComponent
from .moments import Moments
from .precision import without_autocast
from .states import Level, flat_states, level_pair, like, safe_ratio

__all__ = ["GaussianMixture"]


class GaussianMixture:
    """J Gaussians with their weights.

    Arguments
        components: covariance models (with their means) or manifolds, of one dimension.
        weights: (J,) positive; normalised to sum to 1. Equal by default.
        shape: (C, H, W) of a latent, where known.
        metadata: texts that travel with the file, such as the encoder.

    Raises: InputError for no components or wrong weights; MismatchError if their dimensions or types differ; ShapeError if
        `shape` does not have d values.

    Source: arXiv 2412.09726 (Gaussian mixture scores).
    """

    def __init__(
        self,
        components: Sequence[CovarianceModel | GaussianManifold],
        weights: Tensor | Sequence[float] | None = None,
        *,
        shape: tuple[int, int, int] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        if not components:
            raise InputError("a mixture needs at least one component, none came")
        self.components = tuple(one.covariance if isinstance(one, GaussianManifold) else one for one in components)
        dimensions = {one.d for one in self.components}
        if len(dimensions) > 1:
            raise MismatchError(f"the components must have one dimension, they have {sorted(dimensions)}")
        types = {str(one.mean.dtype) for one in self.components}
        if len(types) > 1:
            raise MismatchError(f"the components must be of one type, they are {sorted(types)}; convert them with `to`")
        reference = self.components[0].mean
        given = torch.ones(len(components)) if weights is None else torch.as_tensor(weights, dtype=torch.float64)
        given = given.to(reference.device, torch.float64)
        if given.shape != (len(components),) or not bool((given > 0).all() & given.isfinite().all()):
            raise InputError(f"weights must be {len(components)} positive numbers, they are {given.tolist()}")
        self.weights = given / given.sum()
        if shape is not None and math.prod(shape) != self.d:
            raise ShapeError(f"a latent of shape {shape} has {math.prod(shape)} values, the components have {self.d}")
        self.shape = shape
        self.metadata = dict(metadata or {})

    @classmethod
    def from_moments(
        cls,
        moments: Sequence[Moments],
        *,
        rank: int | None = None,
        shrinkage: float = 0.0,
        shape: tuple[int, int, int] | None = None,
    ) -> Self:
        """One component per class, from its moments; weights are the shares of rows.

        Arguments
            moments: one a class, at least two rows each.
            rank: eigenpairs to keep; all by default.
            shrinkage: toward equal variances, for classes with fewer rows than dimensions; see `fit_covariance`.

        Raises: NotFittedError naming the class with fewer than two rows; InputError.
        """
        for number, one in enumerate(moments):
            if one.count < 2:
                raise NotFittedError(
                    f"class {number} has {one.count} rows, a covariance needs at least 2; leave it out"
                )
        components = [
            fit_covariance(one, "full" if rank is None else "lowrank", rank, shrinkage=shrinkage) for one in moments
        ]
        return cls(components, [float(one.count) for one in moments], shape=shape)

    @property
    def d(self) -> int:
        """Values per latent."""
        return self.components[0].d

    def responsibilities(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """p(j | x_t), (n, J) float64.

        Arguments
            x_t: (n, d) or (n, C, H, W).
            alpha, sigma: >= 0, not both 0; number, () or (n,).

        Raises: ShapeError; InputError for a level out of range, or without density (sigma = 0 and a flat direction).

        Cost: one product of (n, d) by (d, k) for each component.
        """
        return self.log_responsibilities(x_t, alpha, sigma).exp()

    def log_responsibilities(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """log p(j | x_t), (n, J) float64; where the responsibility itself would be 0, this still tells by how much."""
        return self._log_joint(x_t, alpha, sigma).log_softmax(1)

    def log_prob(self, x_t: Tensor, alpha: Level = 1.0, sigma: Level = 0.0) -> Tensor:
        """log p(x_t) in nats, (n,) float64. Raises, Cost: as `responsibilities`."""
        return self._log_joint(x_t, alpha, sigma).logsumexp(1)

    def denoise(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """Posterior mean of x0: the components' Wiener filters, weighted by their responsibilities.

        Returns: of the shape, dtype and device of `x_t`. Raises: as `responsibilities`.

        Cost: a product of (n, d) by (d, k) for each component, and another for each that any state could come from; exact.
        """
        a, s = self._levels(x_t, alpha, sigma)
        return like(self._filtered(x_t, a, s, lambda v: safe_ratio(a * v, a**2 * v + s**2), with_means=True), x_t)

    def score(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """Gradient of log p(x_t): the components' scores, weighted by their responsibilities. As `denoise`."""
        a, s = self._levels(x_t, alpha, sigma)
        return like(-self._filtered(x_t, a, s, lambda v: 1 / (a**2 * v + s**2), with_means=False), x_t)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws of x0, (n, C, H, W) where the shape is known, else (n, d)."""
        reference = self.components[0].mean
        chosen = torch.empty(0, dtype=torch.int64)
        if n:  # multinomial draws one at least
            chosen = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        drawn = torch.empty(n, self.d, dtype=reference.dtype, device=reference.device)
        for number, component in enumerate(self.components):
            place = (chosen == number).nonzero()[:, 0]
            drawn[place] = component.sample(len(place), generator)
        return drawn if self.shape is None else drawn.view(n, *self.shape)

    def save(self, path: Path | str) -> None:
        """Write the mixture to one safetensors file, atomically. Raises: StorageError."""
        tensors = {"weights": self.weights}
        for number, one in enumerate(self.components):
            tensors |= {f"{number}.{name}": value for name, value in one.tensors().items()}
        facts = {"shape": list(self.shape) if self.shape else None, "about": self.metadata}
        models = [one.model for one in self.components]
        save_tensors(Path(path), tensors, {"models": json.dumps(models), "mixture": json.dumps(facts, sort_keys=True)})

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what `save` wrote, on the CPU.

        Raises: FileNotFoundError; FormatError if the file is damaged or holds no mixture.
        """
        path = Path(path)
        tensors, metadata = load_tensors(path)
        try:
            models, facts = json.loads(metadata["models"]), json.loads(metadata["mixture"])
            weights = tensors.pop("weights")
            shape = None if facts["shape"] is None else tuple(facts["shape"])
            about = facts["about"]
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise FormatError(
                f"{path} must hold a mixture of Gaussians and does not ({error}); save it again"
            ) from error
        components = []
        for number, model in enumerate(models):
            start = f"{number}."
            own = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
            components.append(model_from(model, own, path))
        try:
            return cls(components, weights, shape=shape, metadata=about)
        except (InputError, MismatchError, ShapeError) as error:
            raise FormatError(f"{path} holds parts that do not make a mixture: {error}") from error

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same mixture on another device, or in float32 or float64; the weights stay float64. Raises: InputError."""
        moved = [one.to(device, dtype) for one in self.components]
        return type(self)(moved, self.weights, shape=self.shape, metadata=self.metadata)

    @without_autocast
    def _log_joint(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """log pi_j + log N_j(x_t), (n, J) float64."""
        a, s = self._levels(x_t, alpha, sigma)
        return self._joint(self._seen(self._about_mean(x_t, a), a, s))

    def _levels(self, x_t: Tensor, alpha: Level, sigma: Level) -> tuple[Tensor, Tensor]:
        """Both levels, (1,) or (n, 1). Raises: InputError if a component has no density there."""
        a, s = level_pair(alpha, sigma, len(x_t), self.components[0].mean)
        if not bool((s > 0).all()):
            for one in self.components:
                if float(one.trace(lambda v: (a**2 * v + s**2 == 0).to(v)).max()) > 0:
                    raise InputError("at sigma = 0 a direction without variance has no density; use sigma > 0")
        return a, s

    @cached_property
    def _centred(self) -> tuple[Tensor, Tensor, list[CentredComponent]]:
        """Mean of the mixture (d,), what the components' means differ from it (J, d), and the components about it."""
        means = torch.stack([one.mean for one in self.components])
        centre = self.weights.to(means) @ means
        offsets = means - centre
        return centre, offsets, [CentredComponent(*pair) for pair in zip(self.components, offsets, strict=True)]

    def _about_mean(self, x_t: Tensor, a: Tensor) -> Tensor:
        centre = self._centred[0]
        return flat_states(x_t, self.d, centre, self.shape) - a * centre

    def _seen(self, x: Tensor, a: Tensor, s: Tensor) -> list[SeenComponent]:
        """Every component before states (n, d) about the mean of the mixture."""
        _, offsets, centred = self._centred
        wide, far, level = x.double(), offsets.double(), a.double()
        lengths = wide.square().sum(1, keepdim=True) - 2 * level * (wide @ far.T) + level**2 * far.square().sum(1)
        return [SeenComponent(one, x, a, s, lengths[:, number]) for number, one in enumerate(centred)]

    def _joint(self, seen: list[SeenComponent]) -> Tensor:
        return torch.stack([one.log_density() for one in seen], 1) + self.weights.log()

    @without_autocast
    def _filtered(self, x_t: Tensor, a: Tensor, s: Tensor, f: SpectralFunction, with_means: bool) -> Tensor:
        """sum_j r_j (mu_j + V_j diag(f(lambda_j)) V_j^T y_j), (n, d), the means if wanted.

        Responsibilities below the root of the smallest number of their type (1e-19 in float32) would vanish in rounding, and
        products with them, too small to be represented in full, are slow: they count as 0, and their components are skipped.
        """
        centre, offsets, _ = self._centred
        x = self._about_mean(x_t, a)
        seen = self._seen(x, a, s)
        shares = self._joint(seen).softmax(1).to(a)
        shares = shares.where(shares > torch.finfo(shares.dtype).tiny ** 0.5, torch.zeros_like(shares))
        outside = shares * torch.cat([one.outside(f).reshape(-1, 1) for one in seen], 1)
        total = ((shares if with_means else 0) - a * outside) @ offsets
        total = total.addcmul(outside.sum(1, keepdim=True), x)
        if with_means:
            total = total + centre
        for number in (shares > 0).any(0).nonzero()[:, 0].tolist():
            total += seen[number].inside(f, shares[:, number, None])
        return total
