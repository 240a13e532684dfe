"""What each precision resolves, measured on planted spectra."""

import numpy as np
import pytest
import torch

from manifold.errors import ManifoldWarning
from manifold.moments import Moments
from manifold.resolution import resolved_variance, warn_unresolved


def planted(rng: np.random.Generator, n: int, d: int, bright: bool) -> np.ndarray:
    """Rows with variances from 1 to 1e-12, in a random basis or led by a common brightness."""
    basis = rng.standard_normal((d, d))
    variances = 10 ** np.linspace(0, -12, d)
    if bright:
        basis[:, 0] = 1.0
        variances = np.r_[1.0, 10 ** np.linspace(-3, -12, d - 1)]
    return (rng.standard_normal((n, d)) * np.sqrt(variances)) @ np.linalg.qr(basis)[0].T


@pytest.mark.parametrize("precision", ["fast", "exact"])
@pytest.mark.parametrize("bright", [False, True])
@pytest.mark.parametrize("n", [2048, 10_240])
def test_eigenvalues_above_the_resolution_are_right_to_ten_percent(rng, precision, bright, n):
    rows = planted(rng, n, 128, bright)
    # Singular values of the rows themselves keep the small ones, which a product in float64 would lose.
    truth = torch.from_numpy(np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2 / (n - 1))
    moments = Moments(128, precision=precision)
    moments.update(rows)
    found = torch.linalg.eigvalsh(moments.covariance()).flip(0)
    floor = resolved_variance(moments, float(found[0]))
    error = (found - truth).abs() / truth
    assert float(error[truth > floor].max()) < 0.1
    # Not an empty promise: the floor lies within two orders of magnitude of where the error really sets in.
    share = floor / float(truth[0])
    assert share < (5e-7 if precision == "fast" else 2e-13)
    if precision == "fast":
        assert float(error[truth < floor / 100].max()) > 0.1


def test_warns_with_the_number_of_eigenvalues_and_the_way_out(rng):
    rows = planted(rng, 2048, 64, bright=False)
    moments = Moments(64)
    moments.update(rows)
    eigvals = torch.linalg.eigvalsh(moments.covariance()).flip(0)
    with pytest.warns(ManifoldWarning, match=r'[23]\d of 64 eigenvalues lie below .* fit with precision="exact"'):
        below = warn_unresolved(moments, eigvals)
    assert 20 <= below < 32


def test_says_nothing_of_a_flat_spectrum_or_of_missing_rows(rng):
    moments = Moments(64)
    moments.update(rng.standard_normal((30, 64)))
    assert warn_unresolved(moments, torch.linalg.eigvalsh(moments.covariance()).flip(0)) == 0
