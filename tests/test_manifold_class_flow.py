"""Flow by classes against its parts, and guided flow against a fine Euler integration and a case with a formula."""

import itertools
import math

import pytest
import torch

from manifold.class_flow import ClassFlow
from manifold.covariance import FullCovariance
from manifold.errors import ShapeError
from manifold.gaussian import GaussianManifold

D = 5
LEVELS = (0.05, math.sqrt(1 - 0.05**2), 0.6, 0.8)


def gaussian(seed, mean=1.0):
    draw = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64, generator=draw))
    eigvals = torch.rand(D, dtype=torch.float64, generator=draw).sort(descending=True).values * 3 + 0.1
    return GaussianManifold(FullCovariance(mean * torch.randn(D, dtype=torch.float64, generator=draw), eigvals, basis))


@pytest.fixture
def flows():
    return gaussian(0), {0: gaussian(1), 3: gaussian(2)}


def test_each_row_by_its_class(flows):
    everything, classes = flows
    labels = [3, 0, 7, 3]
    x = torch.randn(4, D, dtype=torch.float64)
    moved = ClassFlow(everything, classes, labels).solve(x, *LEVELS)
    for row, label in enumerate(labels):
        one = classes.get(label, everything)
        torch.testing.assert_close(moved[row : row + 1], one.solve(x[row : row + 1], *LEVELS))


@pytest.mark.parametrize("weight", [0.0, 1.5, 3.0])
def test_guided_flow_equals_many_small_steps(flows, weight):
    """Plain DDIM steps at dense levels, with covariances inverted outright."""
    everything, classes = flows
    x = torch.randn(3, D, dtype=torch.float64)
    moved = ClassFlow(everything, classes, [3] * 3, weight).solve(x, *LEVELS)

    def wiener(one, state, alpha, sigma):
        covariance = one.covariance.apply(lambda v: v, torch.eye(D, dtype=torch.float64))
        noisy = alpha**2 * covariance + sigma**2 * torch.eye(D, dtype=torch.float64)
        return one.mean + alpha * (state - alpha * one.mean) @ torch.linalg.inv(noisy) @ covariance

    state = x.clone()
    angles = torch.linspace(math.atan2(LEVELS[1], LEVELS[0]), math.atan2(LEVELS[3], LEVELS[2]), 1501).double().tolist()
    for now, then in itertools.pairwise(angles):
        a, s = math.cos(now), math.sin(now)
        free = wiener(everything, state, a, s)
        target = free + weight * (wiener(classes[3], state, a, s) - free)
        state = math.cos(then) * target + math.sin(then) * (state - a * target) / s
    torch.testing.assert_close(moved, state, rtol=0, atol=5e-3)
    if weight == 0:
        torch.testing.assert_close(moved, everything.solve(x, *LEVELS), rtol=0, atol=5e-3)


def test_scale_one_is_closed_form_and_the_limit_of_guidance(flows):
    everything, classes = flows
    x = torch.randn(2, 5, 1, 1, dtype=torch.float64)
    exact = ClassFlow(everything, classes, [0, 0], 1.0).solve(x, *LEVELS)
    near = ClassFlow(everything, classes, [0, 0], 1 + 1e-9, steps=400).solve(x, *LEVELS)
    assert exact.shape == x.shape
    torch.testing.assert_close(near, exact, rtol=0, atol=1e-4)


def test_labels_must_fit(flows):
    with pytest.raises(ShapeError, match="each of 3 states, there are 2"):
        ClassFlow(*flows, [0, 3]).solve(torch.randn(3, D), *LEVELS)
