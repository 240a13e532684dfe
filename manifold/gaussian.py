"""The closed form of a Gaussian diffusion: where an early noisy state is heading.

A noisy state is x_t = alpha * x0 + sigma * eps, with alpha the signal coefficient itself (sqrt(alphas_cumprod) for
DDPM-type schedules, not its square). For data N(mu, Sigma), Sigma = V diag(lambda) V^T, every quantity of the diffusion is a
function of the spectrum of Sigma, applied to y = x_t - alpha * mu; the covariance model does that, so a dense, a low-rank and
a stationary covariance are used alike. Variance-preserving, variance-exploding and flow-matching schedules differ only in the
pairs (alpha, sigma) they pass.

States have shape (n, d) or (n, C, H, W), and come back in their own shape and floating-point type. Levels `alpha`,
`sigma` are numbers, tensors of shape (), or of shape (n,) with one level for each row.

Source: Wang & Vastola, Diffusion Models Generate Images Like Painters (arXiv 2303.02490); The Unreasonable Effectiveness
of Gaussian Score Approximation for Diffusion Models and its Applications (arXiv 2412.09726).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from .covariance import CovarianceModel, LowRankCovariance, default_rank, fit_covariance, load
from .distances import bures_distance, kl_divergence
from .errors import FormatError, InputError, NotFittedError, ShapeError
from .gaussian_posterior import GaussianPosterior
from .moments import Moments
from .states import Level, Levels, flat_states, level_pair, like, safe_ratio, safe_root, slope_pair
from .trajectory import Rotation, Trajectory, rotation, sensitivity, trajectory

__all__ = ["GaussianManifold", "Level"]


class GaussianManifold:
    """Data as a Gaussian N(mu, Sigma), and everything a diffusion does to it, in closed form.

    Arguments
        covariance: mean and covariance; see `manifold.covariance`.
        shape: (C, H, W) of a latent, where known.
        count: number of latents behind the estimate, where known.
        metadata: texts that travel with the file, such as the encoder.

    Raises: ShapeError if `shape` does not have d values.

    >>> manifold = GaussianManifold.fit(torch.randn(500, 12) * torch.arange(1, 13))
    >>> manifold.denoise(torch.randn(3, 12), alpha=1.0, sigma=2.0).shape
    torch.Size([3, 12])
    """

    def __init__(
        self,
        covariance: CovarianceModel,
        *,
        shape: tuple[int, int, int] | None = None,
        count: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        if shape is not None and math.prod(shape) != covariance.d:
            raise ShapeError(
                f"a latent of shape {shape} has {math.prod(shape)} values, the covariance has {covariance.d}"
            )
        self.covariance = covariance
        self.shape = shape
        self.count = count
        self.metadata = dict(metadata or {})

    @classmethod
    def fit(
        cls,
        latents: Tensor | np.ndarray | Iterable[Tensor | np.ndarray],
        *,
        rank: int | None = None,
        shape: tuple[int, int, int] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Estimate from latents: one array (n, d) or (n, C, H, W), or an iterable of such batches.

        Arguments
            latents: at least two rows in all.
            rank: eigenpairs to keep; `covariance.default_rank` of them unless given.
            shape: (C, H, W); taken from the latents if they have it.
            dtype: type of the model, and so of all that is computed with it, whatever the type of the latents: float32, or
                float64, for which the moments are `exact` too.

        Raises: NotFittedError with fewer than two rows; ShapeError; InputError for another type or a rank out of range;
            NonFiniteError naming the row, or if variances leave the range of `dtype`.
        """
        batches = [latents] if isinstance(latents, Tensor | np.ndarray) else latents
        moments: Moments | None = None
        for batch in batches:
            if batch.ndim not in (2, 4):
                raise ShapeError(f"latents must be (n, d) or (n, C, H, W), they are {tuple(batch.shape)}")
            if batch.ndim == 4:
                own = (int(batch.shape[1]), int(batch.shape[2]), int(batch.shape[3]))
                if shape is not None and own != tuple(shape):
                    raise ShapeError(f"latents must be of the shape {tuple(shape)}, some are {own}")
                shape = own
            if moments is None:
                moments = Moments(math.prod(batch.shape[1:]), precision="exact" if dtype == torch.float64 else "fast")
            moments.update(batch)
        if moments is None:
            raise NotFittedError("a covariance needs at least 2 latents, none came")
        return cls.from_moments(moments, rank=rank, shape=shape, dtype=dtype)

    @classmethod
    def from_moments(
        cls,
        moments: Moments,
        *,
        rank: int | None = None,
        shape: tuple[int, int, int] | None = None,
        metadata: Mapping[str, str] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Estimate from streamed moments, in float32 or float64. Raises: as `fit`."""
        if rank is None:
            rank = default_rank(moments.count, moments.d)
        full = rank == moments.d
        covariance = fit_covariance(moments, "full" if full else "lowrank", rank, dtype=dtype)
        return cls(covariance, shape=shape, count=moments.count, metadata=metadata)

    @property
    def d(self) -> int:
        """Values per latent."""
        return self.covariance.d

    @property
    def mean(self) -> Tensor:
        """mu, (d,)."""
        return self.covariance.mean

    @property
    def eigvals(self) -> Tensor:
        """Variances along the explicit eigenvectors, (k,), descending."""
        return self.covariance.eigvals

    @property
    def k(self) -> int:
        """Number of explicit eigenpairs."""
        return self.eigvals.numel()

    @property
    def eigvecs(self) -> Tensor:
        """Explicit eigenvectors as columns, (d, k). Raises: NotFittedError for a model without them (stationary)."""
        return self._low_rank("eigenvectors").eigvecs

    @property
    def tail_var(self) -> float:
        """Variance along each of the d - k other directions; 0 if there are none."""
        model = self._low_rank("a tail variance")
        return float(model.tail_var) if model.k < model.d else 0.0

    @property
    def total_variance(self) -> float:
        """Trace of the covariance."""
        return float(self.covariance.trace(lambda variance: variance))

    def denoise(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """Posterior mean of x0 given x_t, the Wiener filter.

            x0_hat = mu + V diag(alpha lambda / (alpha^2 lambda + sigma^2)) V^T (x_t - alpha mu)

        Directions without variance stay at the mean. At sigma = 0 this is x_t / alpha.

        Arguments
            x_t: (n, d) or (n, C, H, W).
            alpha, sigma: >= 0, not both 0; number, () or (n,).

        Returns: x0_hat, of the shape, dtype and device of `x_t`.

        Raises: ShapeError; InputError for a level out of range.

        Cost: two products of (n, d) by (d, k); exact.

        Source: arXiv 2412.09726, section 3.
        """
        a, s = self._levels(x_t, alpha, sigma)
        deviation = self._flat(x_t) - a * self.mean
        step = self.covariance.apply(lambda v: safe_ratio(a * v, a**2 * v + s**2), deviation)
        return like(self.mean + step, x_t)

    def score(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """Gradient of log p(x_t) with respect to x_t: -(alpha^2 Sigma + sigma^2 I)^-1 (x_t - alpha mu).

        Arguments, Returns, Cost: as `denoise`.

        Raises: ShapeError; InputError for a level out of range, or if x_t has no density there (sigma = 0 and a
            direction without variance).
        """
        a, s = self._levels(x_t, alpha, sigma)
        self._require_density(a, s)
        deviation = self._flat(x_t) - a * self.mean
        return like(-self.covariance.apply(lambda v: 1 / (a**2 * v + s**2), deviation), x_t)

    def eps(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """Expected noise given x_t: sigma (alpha^2 Sigma + sigma^2 I)^-1 (x_t - alpha mu), what an epsilon network learns.

        Arguments, Returns, Raises, Cost: as `denoise`. At sigma = 0 it is 0.
        """
        a, s = self._levels(x_t, alpha, sigma)
        deviation = self._flat(x_t) - a * self.mean
        return like(self.covariance.apply(lambda v: safe_ratio(s, a**2 * v + s**2), deviation), x_t)

    def velocity(
        self, x_t: Tensor, alpha: Level, sigma: Level, d_alpha: Level | None = None, d_sigma: Level | None = None
    ) -> Tensor:
        """Right-hand side of the probability-flow ODE: dx/dt = alpha' x0_hat + sigma' eps_hat.

        Arguments
            x_t, alpha, sigma: as `denoise`.
            d_alpha, d_sigma: derivatives of alpha and sigma by t, any sign. Without them -1 and 1: flow matching,
                eps_hat - x0_hat. With -sigma and alpha it is the v of v-prediction.

        Returns, Raises, Cost: as `denoise`.
        """
        a, s = self._levels(x_t, alpha, sigma)
        da, ds = slope_pair(d_alpha, d_sigma, len(x_t), self.mean)
        deviation = self._flat(x_t) - a * self.mean
        moved = self.covariance.apply(lambda v: safe_ratio(da * a * v + ds * s, a**2 * v + s**2), deviation)
        return like(da * self.mean + moved, x_t)

    def log_prob(self, x_t: Tensor, alpha: Level = 1.0, sigma: Level = 0.0) -> Tensor:
        """log p(x_t) in nats, x_t ~ N(alpha mu, alpha^2 Sigma + sigma^2 I): (n,), in the manifold's dtype.

        Raises: as `score`. Cost: as `denoise`, in float64.
        """
        a, s = self._levels(x_t, alpha, sigma)
        self._require_density(a, s)
        deviation = self._flat(x_t) - a * self.mean

        def noisy(v: Tensor) -> Tensor:
            return a.double() ** 2 * v.double() + s.double() ** 2

        square = self.covariance.quadratic(lambda v: (1 / noisy(v)).to(v), deviation)
        log_det = self.covariance.trace(lambda v: noisy(v).log())
        return (-0.5 * (square + log_det + self.d * math.log(2 * math.pi))).to(self.mean)

    def solve(self, x_s: Tensor, alpha_s: Level, sigma_s: Level, alpha_t: Level, sigma_t: Level) -> Tensor:
        """Solution of the probability-flow ODE at level t, started from x_s at level s, in one step.

            x_t = alpha_t mu + V diag(sqrt((alpha_t^2 lambda + sigma_t^2) / (alpha_s^2 lambda + sigma_s^2))) V^T y_s

        It does not depend on the schedule between s and t, and goes either way: to noise as well as from it.

        Arguments
            x_s: (n, d) or (n, C, H, W), the state at level s.
            alpha_s, sigma_s, alpha_t, sigma_t: >= 0, neither pair both 0; number, () or (n,).

        Returns: x_t, of the shape, dtype and device of `x_s`. Raises, Cost: as `denoise`.

        Source: arXiv 2303.02490; arXiv 2412.09726, section 3.
        """
        a_s, s_s = self._levels(x_s, alpha_s, sigma_s)
        a_t, s_t = self._levels(x_s, alpha_t, sigma_t)
        deviation = self._flat(x_s) - a_s * self.mean
        moved = self.covariance.apply(
            lambda v: safe_root(safe_ratio(a_t**2 * v + s_t**2, a_s**2 * v + s_s**2)), deviation
        )
        return like(a_t * self.mean + moved, x_s)

    def endpoint(self, x_t: Tensor, alpha: Level, sigma: Level, x0_hat: Tensor | None = None) -> Tensor:
        """The clean latent at which the probability flow from x_t ends: `solve` to alpha = 1, sigma = 0.

        Unlike `denoise`, which shrinks what is undecided toward the mean, it keeps the full variance of the data.

        A network that saw the same state knows more than mean and covariance, such as a class it was told. Where its
        prediction departs from `denoise`, the departure is read as that of data with another mean: such data have
        x0_hat - denoise = (1 - g) shift and end at the closed form's end + (1 - sqrt(g)) shift, so

            end = solve(x_t) + (x0_hat - denoise(x_t)) / (1 + sqrt(g)),    g = alpha^2 lambda / (alpha^2 lambda + sigma^2)

        which is exact for Gaussian data of this covariance and any mean.

        Arguments
            x_t, alpha, sigma: as `denoise`.
            x0_hat: a network's prediction from x_t, of the same shape.

        Returns, Raises: as `denoise`. Cost: as `solve`; three times that with x0_hat.
        """
        end = self.solve(x_t, alpha, sigma, 1.0, 0.0)
        if x0_hat is None:
            return end
        a, s = self._levels(x_t, alpha, sigma)
        hint = self._flat(x0_hat)
        if len(hint) != len(x_t):
            raise ShapeError(f"x0_hat must be a prediction for each of {len(x_t)} states, there are {len(hint)}")
        departure = hint - self._flat(self.denoise(x_t, alpha, sigma))
        shift = self.covariance.apply(lambda v: 1 / (1 + a * safe_root(safe_ratio(v, a**2 * v + s**2))), departure)
        return end + like(shift, x_t)

    def invert(self, x_0: Tensor, alpha: Level = 0.0, sigma: Level = 1.0) -> Tensor:
        """The noise whose probability flow ends at the clean latent x_0: `solve` from (1, 0) to (alpha, sigma).

        Pure noise of unit variance by default. Directions without variance hold nothing at sigma = 0 and come out as 0.
        """
        return self.solve(x_0, 1.0, 0.0, alpha, sigma)

    def trajectory(self, x_s: Tensor, alpha_s: Level, sigma_s: Level, alphas: Levels, sigmas: Levels) -> Trajectory:
        """x_t and x0_hat at a list of levels (L,), on the probability flow through x_s.

        Arguments
            x_s, alpha_s, sigma_s: as `solve`.
            alphas, sigmas: (L,) each, in any order and on either side of s.

        Returns: Trajectory, each part (L, *x_s.shape). Raises: as `solve`.

        Cost: one product of (n, d) by (d, k), and for 50 levels about 20 of (n, k) by (k, d) in float32 and 40 in
            float64 instead of 2 L, without loss; see `manifold.filter_bank`. Memory: 2 L n d values and commonly up to half
            as much on the way; where the states are of another type than the manifold, those values in both types.
        """
        a, s = self._levels(x_s, alpha_s, sigma_s)
        alphas, sigmas = (torch.as_tensor(one, dtype=a.dtype, device=a.device) for one in (alphas, sigmas))
        if alphas.ndim == 1 and alphas.shape == sigmas.shape:
            level_pair(alphas, sigmas, len(alphas), self.mean)
        path = trajectory(self.covariance, self._flat(x_s) - a * self.mean, a, s, alphas, sigmas)
        shape = (len(alphas), *x_s.shape)
        return Trajectory(path.x_t.reshape(shape).to(x_s), path.x0_hat.reshape(shape).to(x_s))

    def posterior(self, x_t: Tensor, alpha: Level, sigma: Level) -> GaussianPosterior:
        """p(x0 | x_t): its mean (`denoise`), its variances along the eigenvectors, and samples of x0.

        Arguments, Raises: as `denoise`.
        """
        a, s = self._levels(x_t, alpha, sigma)
        return GaussianPosterior(self.covariance, self.denoise(x_t, alpha, sigma), a, s)

    def sensitivity(self, alpha_s: float, sigma_s: float, alpha_t: float = 1.0, sigma_t: float = 0.0) -> Tensor:
        """Change of the state at level t, the final sample by default, per unit of change along each eigenvector at s.

            sqrt((alpha_t^2 lambda_k + sigma_t^2) / (alpha_s^2 lambda_k + sigma_s^2))

        Returns: (k,). Raises: InputError for a level out of range. Source: arXiv 2303.02490.
        """
        levels = *level_pair(alpha_s, sigma_s, 1, self.mean), *level_pair(alpha_t, sigma_t, 1, self.mean)
        return sensitivity(self.covariance, *levels)

    def emergence(self, share: float = 0.5) -> Tensor:
        """Noise level sigma / alpha at which x0_hat has reached `share` of its final value along each eigenvector.

            sqrt(lambda_k (1 / share^2 - 1)):   sqrt(3 lambda_k) for one half, sqrt(lambda_k) for 71 %

        High variance first. Returns: (k,). Raises: InputError unless 0 < share < 1. Source: arXiv 2303.02490.
        """
        if not 0 < share < 1:
            raise InputError(f"share must lie between 0 and 1, it is {share}")
        return (self.eigvals * (1 / share**2 - 1)).sqrt()

    def rotation(self, x_T: Tensor, levels: int = 33) -> Rotation:
        """The plane in which trajectories from pure noise x_T turn toward their ends; see `manifold.trajectory`.

        Arguments
            x_T: (n, d) or (n, C, H, W) noise of unit variance (alpha = 0, sigma = 1).
            levels: number of points on the variance-preserving circle, at least 2.

        Raises: ShapeError; InputError for fewer levels.
        """
        return rotation(self.covariance, self._flat(x_T), levels)

    def kl_divergence(self, other: GaussianManifold, alpha: float = 1.0, sigma: float = 0.0) -> float:
        """KL(self || other) in nats, both at the noise level (alpha, sigma); see `manifold.distances`."""
        return float(kl_divergence(self.covariance, other.covariance, alpha, sigma))

    def bures_distance(self, other: GaussianManifold) -> float:
        """2-Wasserstein distance between the two Gaussians. Raises: as `manifold.distances.bures_wasserstein`."""
        return bures_distance(self.covariance, other.covariance)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws of x0, (n, C, H, W) where the shape is known, else (n, d)."""
        drawn = self.covariance.sample(n, generator)
        return drawn if self.shape is None else drawn.view(n, *self.shape)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same manifold on another device, or in float32 or float64. Raises: as `CovarianceModel.to`."""
        moved = self.covariance.to(device, dtype)
        return type(self)(moved, shape=self.shape, count=self.count, metadata=self.metadata)

    def save(self, path: Path | str) -> None:
        """Write the manifold to a safetensors file, atomically. Raises: StorageError."""
        facts = {"shape": list(self.shape) if self.shape else None, "count": self.count, "about": self.metadata}
        self.covariance.save(Path(path), {"manifold": json.dumps(facts, sort_keys=True)})

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what `save` wrote, on the CPU.

        Raises: FileNotFoundError; FormatError if the file is damaged or holds no manifold.
        """
        covariance, metadata = load(Path(path))
        try:
            facts: dict[str, Any] = json.loads(metadata["manifold"])
            shape = None if facts["shape"] is None else tuple(facts["shape"])
            return cls(covariance, shape=shape, count=facts["count"], metadata=facts["about"])
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise FormatError(f"{path} holds a covariance, and nothing else of a manifold; fit again") from error
        except ShapeError as error:
            raise FormatError(f"{path} holds parts that do not make a manifold: {error}") from error

    def _low_rank(self, what: str) -> LowRankCovariance:
        if not isinstance(self.covariance, LowRankCovariance):
            raise NotFittedError(
                f"a {type(self.covariance).__name__} has no explicit {what}; fit a full or low-rank model"
            )
        return self.covariance

    def _flat(self, state: Tensor) -> Tensor:
        return flat_states(state, self.d, self.mean, self.shape)

    def _levels(self, state: Tensor, alpha: Level, sigma: Level) -> tuple[Tensor, Tensor]:
        return level_pair(alpha, sigma, len(state), self.mean)

    def _require_density(self, a: Tensor, s: Tensor) -> None:
        # The smallest gain of the flattest direction is 0 exactly where a direction has neither variance nor noise.
        if bool((self.covariance.trace(lambda v: (a**2 * v + s**2 == 0).to(v.dtype)) > 0).any()):
            raise InputError("at sigma = 0 a direction without variance has no density; use sigma > 0")
