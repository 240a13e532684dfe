"""How far to shrink a sample covariance toward a multiple of the identity, when rows are few.

    Sigma = (1 - a) S + a (trace S / d) I

Two estimates of the a that minimises the expected squared error: Ledoit-Wolf for any distribution, from the spread of
single rows about S; OAS for Gaussian rows, from S alone. Both want S with divisor n; the models here keep n - 1, which
differs by less than a's own error.
"""

from __future__ import annotations

from manifold.errors import MismatchError, NotFittedError
from manifold.moments import Moments
from manifold.rows import RowStore, as_rows

__all__ = ["ledoit_wolf_intensity", "oas_intensity"]

_BATCH_VALUES = 2**24


def oas_intensity(moments: Moments) -> float:
    """Oracle-approximating shrinkage intensity, from the moments alone.

        a = (m2 + m1^2) / ((n + 1) (m2 - m1^2 / d)),   m1 = trace(S) / d, m2 = |S|_F^2 / d^2, at most 1

    Raises: NotFittedError if no row came.

    Cost: O(d^2). Source: Chen, Wiesel, Eldar, Hero, Shrinkage algorithms for MMSE covariance estimation (2010), eq. 23
    without its terms in 2 / d, as scikit-learn has it: for as many values as latents have they are nothing.
    """
    d, n = moments.d, moments.count
    covariance = moments.covariance(ddof=0)
    average = float(covariance.diagonal().mean())
    square = float(covariance.square().sum()) / d**2
    excess = (n + 1) * (square - average**2 / d)
    return 1.0 if excess <= 0 else min((square + average**2) / excess, 1.0)


def ledoit_wolf_intensity(moments: Moments, store: RowStore) -> float:
    """Ledoit-Wolf shrinkage intensity, in one further pass over the rows.

        a = min(b, delta) / delta,  delta = |S - m I|_F^2,  b = (sum_i |x_i|^4 / n - |S|_F^2) / n,  m = trace(S) / d

    with x_i about the mean.

    Arguments
        moments: moments of exactly the rows in `store`.
        store: the rows once more.

    Raises: NotFittedError if no row came; MismatchError if the numbers of rows differ.

    Cost: O(n d + d^2). Source: Ledoit, Wolf, A well-conditioned estimator for large-dimensional covariance matrices
    (2004), lemmas 3.2 to 3.4.
    """
    d, n = moments.d, moments.count
    if n == 0:
        raise NotFittedError("shrinkage needs at least one row, none came; encode some images")
    if len(store) != n or store.d != d:
        raise MismatchError(
            f"the moments are of {n} rows of {d} values, the store has {len(store)} of {store.d}; pass the store they "
            "were computed from"
        )
    covariance = moments.covariance(ddof=0)
    average = float(covariance.diagonal().mean())
    square = float(covariance.square().sum())
    mean = moments.mean
    fourth = 0.0
    for batch in store.batches(max(1, _BATCH_VALUES // d)):
        rows = as_rows(batch, d).to(mean.device).double() - mean
        fourth += float(rows.square().sum(1).square().sum())
    delta = square - d * average**2
    spread = (fourth / n - square) / n
    return 0.0 if delta <= 0 else min(max(spread, 0.0), delta) / delta
