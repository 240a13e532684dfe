"""What each precision resolves, measured on planted spectra."""

import numpy as np
import pytest
import torch

from manifold.covariance import LowRankCovariance, fit_covariance
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
@pytest.mark.parametrize(("n", "chunk_rows"), [(2048, 16_384), (10_240, 16_384), (10_240, 1024)])
def test_eigenvalues_above_the_resolution_are_right_to_ten_percent(rng, monkeypatch, precision, bright, n, chunk_rows):
    monkeypatch.setattr(Moments, "chunk_rows", chunk_rows)
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
    assert share < (5e-7 / max(1, n / chunk_rows) ** 0.5 if precision == "fast" else 2e-13)
    if precision == "fast":
        assert float(error[truth < floor / 100].max()) > 0.1


def decomposed(rows: np.ndarray, precision: str = "fast") -> tuple[Moments, LowRankCovariance]:
    moments = Moments(rows.shape[1], precision=precision)
    moments.update(rows)
    return moments, fit_covariance(moments)


def test_warns_with_the_number_of_directions_and_the_way_out(rng):
    rows = planted(rng, 2048, 64, bright=False)
    with pytest.warns(
        ManifoldWarning, match=r"at least \d+ of 64 directions .* not zero .* fit with precision=\"exact\""
    ):
        unresolved = warn_unresolved(*decomposed(rows), rows[::4])
    assert 3 <= unresolved < 32


def hidden(rng: np.random.Generator) -> np.ndarray:
    """Half the directions hold 1e-12 of the variance of the others, in a random basis."""
    basis = np.linalg.qr(rng.standard_normal((16, 16)))[0]
    return (rng.standard_normal((500, 16)) * np.r_[np.full(8, 100.0), np.full(8, 1e-4)]) @ basis


def test_variance_far_below_the_resolution_is_seen(rng):
    rows = hidden(rng)
    with pytest.warns(ManifoldWarning, match=r"at least [678] of 16 directions"):
        assert warn_unresolved(*decomposed(rows), rows) >= 6
    assert warn_unresolved(*decomposed(rows, "exact"), rows) == 0


def test_small_variances_that_are_right_are_no_fault_either(rng):
    """Where they lie along values of their own, float32 products lose nothing of them."""
    rows = rng.standard_normal((500, 16)) * np.r_[np.full(8, 100.0), np.full(8, 1e-4)]
    moments, model = decomposed(rows)
    truth = np.linalg.eigvalsh(np.cov(rows.T))[::-1]
    np.testing.assert_allclose(model.eigvals, truth, rtol=0.1)
    assert float(model.eigvals[8]) < resolved_variance(moments, float(model.eigvals[0]))
    assert warn_unresolved(moments, model, rows) == 0


@pytest.mark.parametrize("precision", ["fast", "exact"])
@pytest.mark.parametrize("repeated", ["channels", "pixels", "constant", "sums"])
def test_exact_dependencies_are_no_fault(rng, precision, repeated):
    """Greyscale, enlarged and partly blank images: as many eigenvalues are zero but for rounding."""
    basis = np.linalg.qr(rng.standard_normal((16, 16)))[0] * 10 ** np.linspace(1, -1, 16)
    base = (rng.standard_normal((3000, 16)) @ basis).astype(np.float16)
    rows = {
        "channels": np.concatenate([base, base, base], 1),
        "pixels": np.repeat(base, 3, 1),
        "constant": np.concatenate([base, np.full((3000, 32), 0.3, np.float16)], 1),
        "sums": np.concatenate([base, 2 * base, -base], 1).astype(np.float64) @ np.eye(48)[rng.permutation(48)],
    }[repeated]
    moments, model = decomposed(rows, precision)
    assert float(model.eigvals[20]) < resolved_variance(moments, float(model.eigvals[0])), "some lie below"
    assert warn_unresolved(moments, model, rows[::6]) == 0


def test_dependencies_do_not_hide_directions_that_are_lost(rng):
    rows = np.repeat(hidden(rng), 2, 1)
    with pytest.warns(ManifoldWarning, match=r"at least [678] of 32 directions"):
        assert 6 <= warn_unresolved(*decomposed(rows), rows) <= 8


def test_says_nothing_of_a_flat_spectrum_or_of_missing_rows(rng):
    rows = rng.standard_normal((30, 64))
    assert warn_unresolved(*decomposed(rows), rows) == 0
