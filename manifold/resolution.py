"""How small a variance the two precisions can tell from their own round-off.

A float32 product of n rows carries errors of one unit of round-off, u = 2^-24, relative to the standard deviations of
the two values; seen as a matrix these errors have a norm near 2 u sqrt(trace * largest variance), and they average out
over chunks. Variances below five times that norm are not resolved; how sums are rounded differs by processor. In
float64 the eigensolver's own error rules, about 1000 * 2^-53 of the largest eigenvalue.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
from torch import Tensor

from .covariance import LowRankCovariance
from .errors import ManifoldWarning
from .moments import Moments
from .rows import as_rows

__all__ = ["resolved_variance", "warn_unresolved"]

_SOLVER = 1000 * 2.0**-53


def resolved_variance(moments: Moments, largest: float) -> float:
    """Smallest eigenvalue that is known to about 10 %, in the units of the covariance.

        10 u sqrt(trace * max variance / chunks) + 1000 * 2^-53 * largest,   u = 2^-24 (fast) or 2^-53 (exact)

    Measured on planted spectra from 1 to 1e-12 (tests/test_manifold_resolution.py): in `fast`, eigenvalues are within
    10 % above 1.4e-8 to 4e-8 of the largest, by processor, for one chunk of rows and proportionally deeper for more; in
    `exact`, above 1e-13.

    Arguments
        moments: at least two rows.
        largest: the largest eigenvalue of their covariance.

    Raises: NotFittedError if fewer than two rows came.
    """
    variance = moments.variance()
    unit = 2.0**-24 if moments.precision == "fast" else 2.0**-53
    chunks = max(1.0, moments.count / moments.chunk_rows)
    noise = 10 * unit * math.sqrt(float(variance.sum()) * float(variance.max()) / chunks)
    return noise + _SOLVER * largest


def warn_unresolved(moments: Moments, model: LowRankCovariance, rows: Tensor | np.ndarray) -> int:
    """Warn of directions that have some variance, but so little that the moments' precision made it wrong.

    Eigenvalues below the resolution are no fault where the variance is exactly zero, as it is in as many directions as
    values repeat each other (greyscale images, enlarged ones), and the resolution is stated on the safe side. So some rows
    are looked at again, in float64, along these directions: counted are those whose variance is there, and differs from the
    eigenvalue by more than 10 % and what few rows cannot tell. An eigenvector is itself off by e / mu toward a direction of
    variance mu, e an entry of the noise; the e^2 / mu which that lets it see are not its own.

    Arguments
        moments: the moments that were decomposed.
        model: their eigenpairs. Of no more rows than dimensions nothing is said: the smallest are then an accident of the
            rows, however exactly they are known.
        rows: (m, d), some of the rows, a few hundred.

    Returns: number of directions warned of.

    Raises: ShapeError.

    Cost: O(m d k) for k eigenvalues below the resolution, nothing if there are none.
    """
    if moments.count <= moments.d:
        return 0
    meant = model.eigvals.double().cpu()
    largest = float(meant[0])
    floor = resolved_variance(moments, largest)
    below = (meant < floor).nonzero()[:, 0]
    if len(below) == 0 or len(rows) < 2:
        return 0
    vectors = model.eigvecs[:, below.to(model.eigvecs.device)].double().cpu()
    looked_at = as_rows(rows, model.d).cpu().double()
    looked_at = looked_at - looked_at.mean(0)
    variance = (looked_at @ vectors).square().sum(0) / (len(looked_at) - 1)
    noise = floor / 5  # its norm; an entry in any basis is 2 sqrt(d) times smaller
    # A float32 eigenvector is off by 2^-25 of its length in any direction, besides.
    leak = 4 * noise**2 / model.d * float((1 / meant[meant >= floor]).sum())
    leak += 2.0**-44 * float(moments.variance().mean())
    chance = 0.0 if len(looked_at) == moments.count else 4 * math.sqrt(2 / len(looked_at))
    wrong = (meant[below] - variance).abs() > (0.1 + chance) * variance
    unresolved = int((wrong & (variance > leak)).sum())
    if unresolved:
        advice = 'fit with precision="exact"' if moments.precision == "fast" else "they count as zero"
        warnings.warn(
            f"at least {unresolved} of {len(meant)} directions have a variance that is not zero but too small for "
            f'precision="{moments.precision}", which resolves {floor:.2g}, {floor / largest:.1g} of the largest; {advice}',
            ManifoldWarning,
            stacklevel=2,
        )
    return unresolved
