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
    """Warn of directions that have some variance, but less than the moments' precision resolves.

    Eigenvalues below the resolution are no fault where the variance is exactly zero, as it is in as many directions as
    values repeat each other (greyscale images, enlarged ones). So some rows are looked at again, in float64, along these
    directions. What shows there because an eigenvector is a little off, by noise / mu toward a direction of variance mu,
    is at most noise^2 / mu, and does not count.

    Arguments
        moments: the moments that were decomposed.
        model: their eigenpairs. Those that are zero because there are fewer rows than dimensions do not count.
        rows: (m, d), some of the rows, a few hundred.

    Returns: number of directions warned of, at least: near the resolution what is real hides in what does not count.

    Raises: NotFittedError if fewer than two rows came; ShapeError.

    Cost: O(m d k) for k eigenvalues below the resolution, nothing if there are none.
    """
    meant = model.eigvals[: min(moments.count - 1, model.k)].double().cpu()
    largest = float(meant[0])
    floor = resolved_variance(moments, largest)
    below = (meant < floor).nonzero()[:, 0]
    if len(below) == 0 or len(rows) < 2:
        return 0
    vectors = model.eigvecs[:, below.to(model.eigvecs.device)].double().cpu()
    looked_at = as_rows(rows, model.d).cpu().double()
    looked_at = looked_at - looked_at.mean(0)
    variance = (looked_at @ vectors).square().sum(0) / (len(looked_at) - 1)
    noise = floor / 5
    smallest = float(meant[meant >= floor].min()) if int((meant >= floor).sum()) else largest
    # A float32 eigenvector is off by 2^-25 of its length in any direction, besides.
    leak = 4 * noise**2 / smallest + 2.0**-44 * float(moments.variance().mean())
    unresolved = int((variance > leak).sum())
    if unresolved:
        advice = 'fit with precision="exact"' if moments.precision == "fast" else "they count as zero"
        warnings.warn(
            f"at least {unresolved} of {len(meant)} directions have a variance that is not zero but below {floor:.2g}, "
            f'{floor / largest:.1g} of the largest, which is what precision="{moments.precision}" resolves on these '
            f"data; {advice}",
            ManifoldWarning,
            stacklevel=2,
        )
    return unresolved
