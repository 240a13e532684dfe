"""Linear inverse problems: the Gaussian conditioned exactly on a measurement A x0 = y + noise.

    p(x0 | x_t, y) has the prior's information and two more: alpha x0 = x_t + sigma eps and A x0 = y + tau eta.

Given x_t alone, x0 is Gaussian with mean m = x0_hat and covariance P = Sigma sigma^2 (alpha^2 Sigma + sigma^2)^-1. The
measurement then adds a Kalman update,

    x0_hat(y) = m + P A^T (A P A^T + tau^2 I)^-1 (y - A m),

a system with one equation a measured value, whatever d is. Without x_t (sigma / alpha infinite) m = mu and P = Sigma.
tau = 0 is allowed: the mean then meets the measurement exactly wherever the prior can.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError, ManifoldWarning, NotPSDError, ShapeError
from .gaussian import GaussianManifold
from .states import Level, flat_states, level_pair, like, safe_ratio, safe_root

__all__ = ["MeasuredDenoiser", "Measurement", "downsample", "inpaint", "to_grey"]

_BLOCK = 512


@dataclass(frozen=True)
class Measurement:
    """A linear map of flat latents, (n, d) to (n, m), and its transpose.

    Attributes
        forward: A. transpose: A^T. d: values of a latent. m: measured values.
    """

    forward: Callable[[Tensor], Tensor]
    transpose: Callable[[Tensor], Tensor]
    d: int
    m: int

    @classmethod
    def from_matrix(cls, matrix: Tensor) -> Measurement:
        """A as a matrix (m, d)."""
        if matrix.ndim != 2:
            raise ShapeError(f"a measurement must be a matrix (m, d), it is {tuple(matrix.shape)}")
        return cls(lambda x: x @ matrix.to(x).T, lambda y: y @ matrix.to(y), d=matrix.shape[1], m=matrix.shape[0])


def inpaint(known: Tensor) -> Measurement:
    """The values where `known` is true: a mask of shape (d,) or (C, H, W). Raises: InputError if it is empty."""
    chosen = known.reshape(-1).nonzero()[:, 0]
    if len(chosen) == 0:
        raise InputError("the mask of known values must have at least one, it has none")
    d = known.numel()

    def transpose(y: Tensor) -> Tensor:
        return torch.zeros(len(y), d, dtype=y.dtype, device=y.device).index_copy(1, chosen.to(y.device), y)

    return Measurement(lambda x: x[:, chosen.to(x.device)], transpose, d=d, m=len(chosen))


def to_grey(shape: tuple[int, int, int], weights: Tensor | None = None) -> Measurement:
    """A weighted sum of the channels at every place, equal weights by default: its inverse problem is colourising."""
    channels, height, width = shape
    mix = torch.full((channels,), 1 / channels, dtype=torch.float64) if weights is None else weights
    if mix.shape != (channels,):
        raise ShapeError(f"weights must be ({channels},), they are {tuple(mix.shape)}")
    return Measurement(
        lambda x: torch.einsum("c,ncp->np", mix.to(x), x.reshape(-1, channels, height * width)),
        lambda y: torch.einsum("c,np->ncp", mix.to(y), y).flatten(1),
        d=math.prod(shape),
        m=height * width,
    )


def downsample(shape: tuple[int, int, int], factor: int) -> Measurement:
    """The mean over blocks of factor x factor: its inverse problem is super-resolution. Raises: InputError."""
    channels, height, width = shape
    if factor < 1 or height % factor or width % factor:
        raise InputError(f"the factor must divide {height} and {width}, it is {factor}")
    small = (channels, height // factor, width // factor)

    def transpose(y: Tensor) -> Tensor:
        image = y.reshape(-1, *small) / factor**2
        return image.repeat_interleave(factor, 2).repeat_interleave(factor, 3).flatten(1)

    return Measurement(
        lambda x: torch.nn.functional.avg_pool2d(x.reshape(-1, *shape), factor).flatten(1),
        transpose,
        d=math.prod(shape),
        m=math.prod(small),
    )


class MeasuredDenoiser:
    """Denoiser of a Gaussian that also knows y = A x0 + tau * noise.

    Arguments
        manifold: the Gaussian.
        measurement: A.
        y: (1, m) or (n, m) what was measured: the same for all states, or one each.
        noise: tau >= 0.

    Raises: ShapeError; InputError.

    Cost of a call at one level: m applications of the covariance and O(m^3), and two products a state after that.
    """

    def __init__(self, manifold: GaussianManifold, measurement: Measurement, y: Tensor, *, noise: float = 0.0) -> None:
        if measurement.d != manifold.d:
            raise ShapeError(f"the measurement is of {measurement.d} values, the manifold has {manifold.d}")
        y = y.reshape(len(y), -1)
        if y.shape[1] != measurement.m:
            raise ShapeError(f"y must be (n, {measurement.m}), it is {tuple(y.shape)}")
        if not noise >= 0:
            raise InputError(f"noise must be at least 0, it is {noise}")
        self.manifold, self.measurement, self.noise = manifold, measurement, noise
        self._covariance = manifold.covariance.to(dtype=torch.float64)
        self._y = y.to(self._covariance.mean)

    def denoise(self, x_t: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        """E[x0 | x_t, y], of the shape, dtype and device of `x_t`.

        Arguments
            x_t: (n, d) or (n, C, H, W), n that of y unless y is one row.
            alpha, sigma: one level for all rows. At sigma = 0 the state says everything and y nothing.

        Raises: ShapeError; InputError; NotPSDError if a measured value never varies and tau = 0.

        Warns: ManifoldWarning with the amount, if variance had to be added because measured values follow from others.
        """
        a, s, states = self._checked(x_t, alpha, sigma)
        mean = self._mean(states, a, s)
        gain = self._solve(a, s, self._y - self.measurement.forward(mean))
        return like(mean + self._covariance.apply(lambda v: _variance(v, a, s), self.measurement.transpose(gain)), x_t)

    def sample(
        self, x_t: Tensor, alpha: float | Tensor, sigma: float | Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """One draw from p(x0 | x_t, y) for every row.

        A draw from p(x0 | x_t) is moved onto the measurement by the update of `denoise` (Matheron's rule). Raises: as
        `denoise`.
        """
        a, s, states = self._checked(x_t, alpha, sigma)
        white, other = (
            torch.randn(len(states), m, generator=generator, dtype=torch.float64, device=states.device)
            for m in (states.shape[1], self.measurement.m)
        )
        drawn = self._mean(states, a, s) + self._covariance.apply(lambda v: safe_root(_variance(v, a, s)), white)
        gain = self._solve(a, s, self._y - self.measurement.forward(drawn) - self.noise * other)
        return like(drawn + self._covariance.apply(lambda v: _variance(v, a, s), self.measurement.transpose(gain)), x_t)

    def _checked(self, x_t: Tensor, alpha: Level, sigma: Level) -> tuple[Tensor, Tensor, Tensor]:
        states = flat_states(x_t, self.manifold.d, self._covariance.mean, self.manifold.shape)
        if len(self._y) not in (1, len(states)):
            raise ShapeError(f"there are {len(states)} states and {len(self._y)} measurements; give one, or one each")
        a, s = level_pair(alpha, sigma, len(states), states)
        if a.numel() != 1 or s.numel() != 1:
            raise InputError("a measured denoiser takes one level for all rows; call it once for each level")
        return a.reshape(1), s.reshape(1), states

    def _mean(self, states: Tensor, a: Tensor, s: Tensor) -> Tensor:
        model = self._covariance
        return model.mean + model.apply(lambda v: safe_ratio(a * v, a**2 * v + s**2), states - a * model.mean)

    def _solve(self, a: Tensor, s: Tensor, residual: Tensor) -> Tensor:
        """(A P A^T + tau^2 I)^-1 residual."""
        if float(s) == 0:
            return torch.zeros_like(residual)
        m = self.measurement.m
        system = torch.empty(m, m, dtype=torch.float64, device=residual.device)
        # No value measured with weights of length 1 varies by more.
        reach = self._covariance.trace(lambda v: _variance(v, a, s))
        largest = torch.empty(m, dtype=torch.float64, device=residual.device)
        for low in range(0, m, _BLOCK):
            rows = torch.zeros(min(_BLOCK, m - low), m, dtype=torch.float64, device=residual.device)
            rows[torch.arange(len(rows)), torch.arange(low, low + len(rows))] = 1
            weights = self.measurement.transpose(rows)
            spread = self._covariance.apply(lambda v: _variance(v, a, s), weights)
            system[low : low + len(rows)] = self.measurement.forward(spread)
            largest[low : low + len(rows)] = reach * weights.square().sum(1)
        system = 0.5 * (system + system.T)
        still = system.diagonal() <= torch.finfo(system.dtype).eps * largest
        if self.noise == 0 and bool(still.any()):
            raise NotPSDError(
                f"measured value {int(still.int().argmax())} never varies, so it cannot be measured exactly; give noise > 0"
            )
        system.diagonal().add_(self.noise**2)
        factor, failed = torch.linalg.cholesky_ex(system)
        if int(failed):
            jitter = 1e-12 * float(system.diagonal().mean())
            system.diagonal().add_(jitter)
            factor, failed = torch.linalg.cholesky_ex(system)
            if int(failed):
                raise NotPSDError(
                    "measured values must be independent where they are exact, some follow from others; give noise > 0"
                )
            warnings.warn(
                f"the measured values are nearly dependent; {jitter:.3g} was added to their variances",
                ManifoldWarning,
                stacklevel=3,
            )
        return torch.cholesky_solve(residual.T, factor).T


def _variance(v: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """Variance of x0 given x_t along a direction of variance v."""
    return safe_ratio(v * s**2, a**2 * v + s**2)
