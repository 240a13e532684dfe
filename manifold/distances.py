"""How far two Gaussians are from each other: Kullback-Leibler divergence and Bures-Wasserstein distance.

Models of different kinds can be compared.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .covariance import CovarianceModel, LowRankCovariance
from .errors import InputError, MismatchError

__all__ = ["bures_distance", "bures_wasserstein", "kl_divergence"]

_BLOCK = 512
_DENSE_LIMIT = 8192


def kl_divergence(p: CovarianceModel, q: CovarianceModel, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
    """KL(p_t || q_t) in nats of the two Gaussians, both brought to the noise level (alpha, sigma).

        1/2 [tr(Q^-1 P) - d + log det Q - log det P + alpha^2 m^T Q^-1 m],  P = alpha^2 Sigma_p + sigma^2 I, m = mu_p - mu_q

    Returns: () float64.

    Raises: MismatchError if the dimensions differ; InputError for a level out of range, or if one of the two has no density
        at this level.

    Cost: O(d^2 k) time, memory of a few blocks of 512 rows.
    """
    if not (min(alpha, sigma) >= 0 and math.isfinite(alpha + sigma)):
        raise InputError(f"alpha and sigma must be finite and at least 0, they are {alpha} and {sigma}")
    p, q = (_orthonormal(one) for one in _pair(p, q))

    def noisy(v: Tensor) -> Tensor:
        return alpha**2 * v + sigma**2

    for model in (p, q):
        if float(model.trace(lambda v: (noisy(v) <= 0).to(v))) > 0:
            raise InputError("a direction without variance has no density at sigma = 0; compare at sigma > 0")
    product = torch.zeros((), dtype=torch.float64, device=p.mean.device)
    for low in range(0, p.d, _BLOCK):
        rows = _identity_rows(p, low)
        product += (p.apply(noisy, rows) * q.apply(lambda v: 1 / noisy(v), rows)).sum()
    m = alpha * (p.mean - q.mean)[None]
    distance = (m * q.apply(lambda v: 1 / noisy(v), m)).sum()
    logs = q.trace(lambda v: noisy(v).log()) - p.trace(lambda v: noisy(v).log())
    return 0.5 * (product - p.d + logs + distance)


def bures_wasserstein(p: CovarianceModel, q: CovarianceModel) -> float:
    """Squared Bures-Wasserstein (2-Wasserstein) distance of two Gaussians, means included: FID's formula.

        W^2 = |mu_p - mu_q|^2 + tr P + tr Q - 2 tr (P^1/2 Q P^1/2)^1/2,

    the last trace being the sum of the singular values of Q^1/2 P^1/2.

    Returns: a number that is not negative; round-off below zero is taken as zero.

    Raises: MismatchError if the dimensions differ; InputError if neither low rank nor d up to 8192 makes it feasible.

    Cost: O((k_p + k_q)^3 + d (k_p + k_q)^2) for low-rank models, O(d^3) for others, float64. Precise to about 1e-15 of tr P.
    """
    p, q = (_orthonormal(one) for one in _pair(p, q))
    d, rest = p.d, 0.0
    if isinstance(p, LowRankCovariance) and isinstance(q, LowRankCovariance) and p.k + q.k < d:
        # Outside the span of both sets of eigenvectors the two are multiples of the identity.
        basis = torch.linalg.qr(torch.cat([p.eigvecs, q.eigvecs], dim=1)).Q.T
        rest = (d - len(basis)) * math.sqrt(float(p.tail_var) * float(q.tail_var))
    elif d <= _DENSE_LIMIT:
        basis = torch.eye(d, dtype=torch.float64, device=p.mean.device)
    else:
        raise InputError(
            f"the distance of these models needs {d} x {d} matrices; compare low-rank models with fewer eigenpairs"
        )
    roots = [one.apply(lambda variance: variance.clamp_min(0).sqrt(), basis) @ basis.T for one in (q, p)]
    overlap = float(torch.linalg.svdvals(roots[0] @ roots[1]).sum()) + rest
    shift = float((p.mean - q.mean).square().sum())
    return max(shift + float(p.trace(lambda v: v)) + float(q.trace(lambda v: v)) - 2 * overlap, 0.0)


def bures_distance(p: CovarianceModel, q: CovarianceModel) -> float:
    """The root of `bures_wasserstein`. Raises: as that. Precise to about 1e-7 of sqrt(tr P): a root of a difference."""
    return math.sqrt(bures_wasserstein(p, q))


def _pair(p: CovarianceModel, q: CovarianceModel) -> tuple[CovarianceModel, CovarianceModel]:
    if p.d != q.d:
        raise MismatchError(
            f"both Gaussians must have one dimension, they have d = {p.d} and d = {q.d}; they come from different "
            "encoders or image sizes"
        )
    return p.to(dtype=torch.float64), q.to(p.mean.device, torch.float64)


def _orthonormal(model: CovarianceModel) -> CovarianceModel:
    """A float64 model whose eigenvectors, kept in float32, are orthonormal to float64's last digits."""
    if not isinstance(model, LowRankCovariance):
        return model
    turned, triangle = torch.linalg.qr(model.eigvecs)
    eigvecs = turned * triangle.diagonal().sign()
    return LowRankCovariance(model.mean, model.eigvals, eigvecs, model.tail_var, count=model.count)


def _identity_rows(model: CovarianceModel, low: int) -> Tensor:
    """Rows low to low + 512 of the identity (d, d)."""
    number = min(_BLOCK, model.d - low)
    rows = torch.zeros(number, model.d, dtype=torch.float64, device=model.mean.device)
    rows[torch.arange(number), torch.arange(low, low + number)] = 1
    return rows
