"""How small a variance the two precisions can tell from their own round-off.

A float32 product of n rows carries errors of one unit of round-off, u = 2^-24, relative to the standard deviations of
the two values; seen as a matrix these errors have a norm near 2 u sqrt(trace * largest variance), and they average out
over chunks. Variances below five times that norm are not resolved; how sums are rounded differs by processor. In
float64 the eigensolver's own error rules, about 1000 * 2^-53 of the largest eigenvalue.
"""

from __future__ import annotations

import math
import warnings

from torch import Tensor

from .errors import ManifoldWarning
from .moments import Moments

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


def warn_unresolved(moments: Moments, eigvals: Tensor) -> int:
    """Warn if the spectrum reaches below what the moments' precision resolves.

    Arguments
        moments: the moments that were decomposed.
        eigvals: (k,) their eigenvalues, descending. Those that are zero because there are fewer rows than dimensions
            do not count.

    Returns: number of eigenvalues below the resolution; none of them if nothing was warned.

    Raises: NotFittedError if fewer than two rows came.
    """
    meant = eigvals[: min(moments.count - 1, len(eigvals))].double()
    floor = resolved_variance(moments, float(meant[0]))
    below = int((meant < floor).sum())
    if below:
        advice = 'fit with precision="exact"' if moments.precision == "fast" else "they count as zero"
        warnings.warn(
            f"{below} of {len(meant)} eigenvalues lie below {floor:.2g}, {floor / float(meant[0]):.1g} of the largest, "
            f'which is what precision="{moments.precision}" resolves on these data; {advice}',
            ManifoldWarning,
            stacklevel=2,
        )
    return below
