"""Fréchet distance of sets of latents against dense matrix square roots, and its bias against theory."""

import math

import pytest
import scipy.linalg
import torch

from manifold.covariance import FullCovariance, LowRankCovariance
from manifold.distances import bures_wasserstein
from manifold.eigen import descending_eigh
from manifold.errors import InputError, NonFiniteError, NotFittedError, ShapeError
from manifold.frechet import frechet_distance, split_frechet
from manifold.gaussian import GaussianManifold


def dense(x, y):
    """The formula of FID with scipy's matrix square root of A B."""
    x, y = x.flatten(1).double(), y.flatten(1).double()
    a, b = torch.cov(x.T).numpy(), torch.cov(y.T).numpy()
    root = scipy.linalg.sqrtm(a @ b).real
    return float((x.mean(0) - y.mean(0)).square().sum()) + a.trace() + b.trace() - 2 * root.trace()


@pytest.mark.parametrize(("n", "m"), [(40, 60), (13, 200)])
def test_equals_the_dense_formula(n, m):
    x, y = torch.randn(n, 3, 2, 2), 0.3 + torch.randn(m, 12) * torch.linspace(0.2, 3, 12)
    assert frechet_distance(x, y) == pytest.approx(dense(x, y), rel=1e-7)
    assert frechet_distance(y, x) == pytest.approx(frechet_distance(x, y), rel=1e-10)


def test_fewer_rows_than_values():
    """Without full rank: the same as the Gaussians fitted to both, through quite another path."""
    x, y = torch.randn(7, 30), torch.randn(11, 30) + 1
    models = [FullCovariance(v.double().mean(0), *descending_eigh(torch.cov(v.double().T))) for v in (x, y)]
    models = [FullCovariance(one.mean, one.eigvals.clamp_min(0), one.eigvecs) for one in models]
    assert frechet_distance(x, y) == pytest.approx(bures_wasserstein(*models), rel=1e-5)
    assert frechet_distance(x, models[1]) == pytest.approx(frechet_distance(x, y), rel=1e-5)


@pytest.mark.parametrize("k", [6, 20])
def test_against_a_model(k):
    x, y = torch.randn(50, 20).double(), torch.randn(300, 20).double() * torch.linspace(3, 0.1, 20)
    model = GaussianManifold.fit(y, rank=k).covariance
    eye = torch.eye(20, dtype=torch.float64)
    covariance = model.to(dtype=torch.float64).apply(lambda variance: variance.double(), eye)
    a = torch.cov(x.T).numpy()
    root = scipy.linalg.sqrtm(a @ covariance.numpy()).real.trace()
    expected = float((x.mean(0) - y.mean(0)).square().sum()) + a.trace() + float(covariance.trace()) - 2 * root
    assert isinstance(model, LowRankCovariance)
    assert frechet_distance(x, model) == pytest.approx(expected, rel=1e-5)


def test_a_set_and_itself_moved():
    x = torch.randn(9, 40)
    assert frechet_distance(x, x) < 1e-10
    assert frechet_distance(x, x + 0.5) == pytest.approx(0.25 * 40, rel=1e-6)


def test_round_off_makes_no_distance_negative():
    """Of equal sets; some of these would come out at -1e-14."""
    for n in range(2, 40):
        x = torch.randn(n, 20)
        assert 0 <= frechet_distance(x, x) < 1e-10


def test_halves_of_one_set_are_as_far_as_theory_says():
    """To first order in 1 / n, E F of two sets of n standard normal rows is 2 d / n + d (d + 1) / (2 n)."""
    d, n = 6, 2000
    found = split_frechet(torch.randn(2 * n, d), splits=40)
    # one set's halves vary less than independent sets would, so a few per cent of statistics are left
    assert float(found.mean()) == pytest.approx(2 * d / n + d * (d + 1) / (2 * n), rel=0.15)
    fewer = split_frechet(torch.randn(n // 5, d), splits=40)
    assert float(fewer.mean()) > 6 * float(found.mean()), "the bias grows as 1 / n"


def test_splits_are_seeded_and_take_odd_numbers():
    x = torch.randn(21, 5)
    assert torch.equal(split_frechet(x, 3, seed=4), split_frechet(x, 3, seed=4))
    assert not torch.equal(split_frechet(x, 3, seed=4), split_frechet(x, 3, seed=5))
    assert math.isfinite(float(split_frechet(x, 3).sum()))


def test_errors():
    with pytest.raises(NotFittedError, match="at least 2 latents, there are 1"):
        frechet_distance(torch.randn(1, 5), torch.randn(9, 5))
    with pytest.raises(ShapeError, match="they have 5 and 6 values"):
        frechet_distance(torch.randn(4, 5), torch.randn(9, 6))
    with pytest.raises(ShapeError, match="they have 5 and 6 values"):
        frechet_distance(torch.randn(4, 5), GaussianManifold.fit(torch.randn(9, 6)).covariance)
    with pytest.raises(NotFittedError, match="there are 3 in all"):
        split_frechet(torch.randn(3, 5))
    with pytest.raises(InputError, match="splits is 0"):
        split_frechet(torch.randn(8, 5), splits=0)


def test_latents_that_are_not_finite_are_refused():
    bad = torch.randn(5, 3)
    bad[2, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="latents must be finite"):
        frechet_distance(bad, torch.randn(5, 3))
