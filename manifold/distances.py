"""How far two Gaussians are from each other: Kullback-Leibler divergence and Bures (2-Wasserstein) distance.

Both work through `CovarianceModel.apply` alone, so models of different kinds can be compared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .covariance import CovarianceModel
from .errors import InputError, MismatchError

__all__ = ["bures_distance", "kl_divergence"]

_BLOCK = 512


def kl_divergence(p: CovarianceModel, q: CovarianceModel, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
    """KL(p_t || q_t) in nats of the two Gaussians, both brought to the noise level (alpha, sigma).

        1/2 [tr(Q^-1 P) - d + log det Q - log det P + alpha^2 m^T Q^-1 m],  P = alpha^2 Sigma_p + sigma^2 I, m = mu_p - mu_q

    Returns: () float64.

    Raises: MismatchError if the dimensions differ; InputError if one of the two has no density at this level.

    Cost: O(d^2 k) time, memory of a few blocks of 512 rows.
    """
    p, q = _pair(p, q)

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


def bures_distance(p: CovarianceModel, q: CovarianceModel) -> Tensor:
    """2-Wasserstein distance of two Gaussians, the Frechet distance of FID before it is squared.

        W^2 = |mu_p - mu_q|^2 + tr P + tr Q - 2 tr (P^1/2 Q P^1/2)^1/2,

    the last trace being the sum of the singular values of Q^1/2 P^1/2.

    Returns: () float64.

    Raises: MismatchError if the dimensions differ.

    Cost: O(d^3) time and d^2 memory, float64. Precise to about 1e-8 of sqrt(tr P): it is a root of a difference.
    """
    p, q = _pair(p, q)
    roots = [
        q.apply(lambda v: v.clamp_min(0).sqrt(), p.apply(lambda v: v.clamp_min(0).sqrt(), _identity_rows(p, low)))
        for low in range(0, p.d, _BLOCK)
    ]
    overlap = torch.linalg.svdvals(torch.cat(roots)).sum()
    squared = (p.mean - q.mean).square().sum() + p.trace(lambda v: v) + q.trace(lambda v: v) - 2 * overlap
    return squared.clamp_min(0).sqrt()


def _pair(p: CovarianceModel, q: CovarianceModel) -> tuple[CovarianceModel, CovarianceModel]:
    if p.d != q.d:
        raise MismatchError(
            f"both Gaussians must have one dimension, they have d = {p.d} and d = {q.d}; they come from different "
            "encoders or image sizes"
        )
    return p.to(dtype=torch.float64), q.to(p.mean.device, torch.float64)


def _identity_rows(model: CovarianceModel, low: int) -> Tensor:
    """Rows low to low + 512 of the identity (d, d)."""
    number = min(_BLOCK, model.d - low)
    rows = torch.zeros(number, model.d, dtype=torch.float64, device=model.mean.device)
    rows[torch.arange(number), torch.arange(low, low + number)] = 1
    return rows
