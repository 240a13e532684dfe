"""Many filters of the same states for the price of a few.

A trajectory is 2 L filters g_l of one set of coordinates u, V diag(g_l(lambda)) u, with L levels: products with V cost
nearly all of it. But the g_l are smooth functions of lambda and much alike, so the matrix G of their values at the
eigenvalues, (2 L, k), has a small numerical rank r: for 50 levels of any schedule, pure noise and sigma = 0 among them, and
variances from 1e4 to 1e-8, 16 to 30 of 100 in float32 and 28 to 67 in float64. With Q the r leading left singular vectors
of G, its rows brought to length 1,

    G = Q (Q^T G) + E,

r products with V give the parts V diag((Q^T G)_i) u, and every result is a combination of them. Nothing is interpolated:
Q^T G is evaluated at each eigenvalue.

How exact. The error |E_l u| and the length |G_l u| follow from the coordinates of the states at hand, so r is the smallest
rank at which, for every state and every filter,

    |E_l u| <= epsilon |G_l u|,        sum_i |Q_li| |(Q^T G)_i u| <= 32 |G_l u|

with epsilon one unit in the last place of the states' type (2^-23 for float32), or 2^-46 if that is larger: the factors are
rounded to float64 themselves. The first line says that what is left out is as little as the rounding of one number; the
second, that combining the parts magnifies their rounding by 32 at most (by 1.5 to 10 for states that the model expects).
States for which no such r saves work, such as a single eigenvector of tiny variance, are filtered one by one.

Source: low-rank factorisation of smooth kernels is folklore; the use of it here, and the test of every state, are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .covariance import CovarianceModel, LowRankCovariance, SpectralFunction
from .precision import without_autocast

__all__ = ["filter_bank", "filter_factors"]

_FINEST = 2.0**-46  # of float64 factors
_MAGNIFIED = 32.0  # rounding of the parts in their combination
_WORTH = 32  # numbers in the states for each filter, below which factorising costs more than it saves
_THIN = (
    5  # the combination is bound by memory: a multiplication in it takes so many times longer than in a product with V
)


@without_autocast
def filter_bank(
    covariance: CovarianceModel, filters: SpectralFunction, start: SpectralFunction, y: Tensor, shares: Tensor
) -> Tensor:
    """shares_l mu + V diag(g_l(lambda) h(lambda)) V^T y for m filters g_l, all of the same states.

    Arguments
        covariance: gives mu, V and lambda.
        filters: g, (k,) -> (m, k), the same for all states; evaluated in float64.
        start: h, (k,) -> (1 or n, k), the gain that all of them share, which may differ from state to state.
        y: (n, d) deviations from the mean, of the model's dtype and device.
        shares: (m,) how much of the mean goes into each result.

    Returns: (m, n, d). Differentiable in y and in `start`; in `filters` too, then one by one.

    Cost: r + 1 products of (n, d) by (d, k) with r as above, one of (m, r) by (r, n d), and 2 m^2 k. m + 1 products where the
    model keeps no eigenvectors (stationary: m transforms), or the states are few. Memory: (m + r + 1) n d values.
    """
    if isinstance(covariance, LowRankCovariance):
        found = _by_few_products(covariance, filters, start, y, shares)
        if found is not None:
            return found
    found = covariance.apply(lambda v: (filters(v)[:, None] * start(v)).to(y), y)
    return found.add_(shares[:, None, None].to(y) * covariance.mean)


def _by_few_products(
    model: LowRankCovariance, filters: SpectralFunction, start: SpectralFunction, y: Tensor, shares: Tensor
) -> Tensor | None:
    """All results from r products; None if there is no such r below the number of filters."""
    outside = model.d - model.k
    variances = (torch.cat([model.eigvals, model.tail_var[None]]) if outside else model.eigvals).double()
    gains = filters(variances)
    if gains.requires_grad or y.numel() < _WORTH * len(gains):
        return None
    coordinates, first = y @ model.eigvecs, start(variances)
    energy = _energy(y, coordinates, outside) * first.detach().square()
    factors = filter_factors(gains, energy, outside, y.dtype)
    if factors is None:
        return None
    mixing, reduced = factors
    parts = (reduced[:, None] * first).to(y)
    if outside:
        tail = parts[..., -1:]
        found = (((parts[..., :-1] - tail) * coordinates) @ model.eigvecs.T).addcmul_(tail, y)
    else:
        found = (parts * coordinates) @ model.eigvecs.T
    # The mean as one more part: to add it to (m, n, d) numbers afterwards would cost as much as the combination.
    found = torch.cat([found, model.mean.expand(1, *y.shape)]).flatten(1)
    return (torch.cat([mixing, shares.to(mixing)[:, None]], 1).to(y) @ found).view(len(mixing), *y.shape)


@torch.no_grad()
def _energy(y: Tensor, coordinates: Tensor, outside: int) -> Tensor:
    """Squared coordinates (n, k) float64; if directions lie outside, the square of what they hold as one more column."""
    inside = coordinates.double().square()
    if not outside:
        return inside
    rest = y.double().square().sum(1, keepdim=True) - inside.sum(1, keepdim=True)
    return torch.cat([inside, rest.clamp_min(0)], 1)


@torch.no_grad()
def filter_factors(gains: Tensor, energy: Tensor, outside: int, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """Two matrices, (m, r) and (r, k), that stand for the gains (m, k) of m filters; see the head of the module.

    Arguments
        gains: float64, at every eigenvalue and, if directions lie outside them, at the tail variance in the last column.
        energy: (n, k) float64, squared coordinates of the states that will be filtered.
        outside: number of directions that the last column stands for; 0 if it is an eigenvalue as any other.
        dtype: of the states, which sets how exact the product must be.

    Returns: None if no rank that saves work is exact enough for every state.
    """
    epsilon = max(torch.finfo(dtype).eps, _FINEST)
    m, k = gains.shape
    weights = torch.ones(k, dtype=gains.dtype, device=gains.device)
    if outside:
        weights[-1] = outside**0.5
    length = (gains * weights).norm(dim=1, keepdim=True)
    some = length > 0  # not so of x0_hat from pure noise, which is the mean
    unit = gains / length.where(some, torch.ones_like(length))
    weighted = unit * weights
    small = torch.linalg.qr(weighted.T, mode="r").R.T if k > m else weighted
    left, values, _ = torch.linalg.svd(small, full_matrices=False)
    left = left * some  # exact zeros
    size = (unit.square() @ energy.T).sqrt()
    rank = max(int((values > epsilon).sum()), 1)
    while rank * (k + _THIN * m) < m * k and rank <= len(values):
        basis = left[:, :rank]
        reduced = basis.T @ unit
        missing = ((unit - basis @ reduced).square() @ energy.T).sqrt()
        magnified = basis.abs() @ (reduced.square() @ energy.T).sqrt()
        if bool((magnified > _MAGNIFIED * size).any()):
            return None
        if bool((missing <= epsilon * size).all()):
            return length * basis, reduced
        rank += 2
    return None
