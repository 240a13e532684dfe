"""Networks at stages of training beside analytic denoisers: distances against their definition, one state at a time."""

import numpy as np
import pytest
import torch

from manifold.errors import InputError, NonFiniteError
from manifold.gaussian import GaussianManifold
from manifold.learning import measure_learning

LEVELS = [0.8, 0.3], [0.6, 1.5]


class Between:
    """A share of the way from nothing to the Gaussian, and past it along a shift of its own."""

    def __init__(self, gaussian, share, shift=0.0):
        self.gaussian, self.share, self.shift = gaussian, share, shift

    def denoise(self, x_t, alpha, sigma):
        return self.share * self.gaussian.denoise(x_t, alpha, sigma) + self.shift


class Truth:
    """Knows the clean latents, whatever it is shown, up to an error."""

    def __init__(self, x0, error):
        self.answer = x0 + error

    def denoise(self, x_t, alpha, sigma):
        return self.answer


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(40, 3, 4, 4, generator=generator) * torch.linspace(0.2, 3, 48).view(3, 4, 4) + 5
    return x0, GaussianManifold.fit(torch.randn(500, 48, generator=generator) + 5)


def measured(data, stages, **options):
    x0, gaussian = data
    analytic = {"Gaussian": gaussian, "half": Between(gaussian, 0.5)}
    return measure_learning(stages, analytic, x0, *LEVELS, generator=torch.Generator().manual_seed(3), **options)


def test_distances_and_errors_are_those_of_their_definition(data):
    x0, gaussian = data
    network, nothing = Between(gaussian, 0.7, 0.4), Between(gaussian, 0.0)
    found = measured(data, [(10, network)], null=nothing)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(3))
    flat = x0.double().numpy().reshape(40, -1)
    variance = np.trace(np.cov(flat.T, bias=True))
    for level, (alpha, sigma) in enumerate(zip(*LEVELS, strict=True)):
        x_t = alpha * x0 + sigma * noise
        theirs = {"Gaussian": gaussian.denoise(x_t, alpha, sigma), "half": 0.5 * gaussian.denoise(x_t, alpha, sigma)}
        ours, null = network.denoise(x_t, alpha, sigma), nothing.denoise(x_t, alpha, sigma)
        for state in range(len(x0)):

            def share(one, other, state=state):
                return pytest.approx(float(np.square((one - other)[state].double().numpy()).sum()) / variance, rel=1e-6)

            assert float(found.error[0, level, state]) == share(ours, x0)
            assert float(found.null_error[level, state]) == share(null, x0)
            for place, name in enumerate(found.names):
                assert float(found.distance[0, level, place, state]) == share(ours, theirs[name])
                assert float(found.null_distance[level, place, state]) == share(null, theirs[name])
                assert float(found.analytic_error[level, place, state]) == share(theirs[name], x0)
                for other, second in enumerate(found.names):
                    between = float(found.analytic_distance[level, place, other, state])
                    assert between == share(theirs[name], theirs[second])


def test_a_network_on_its_way_is_nearest_to_each_denoiser_where_it_passes_it(data):
    _, gaussian = data
    way = [(0, 0.0), (10, 0.3), (20, 0.5), (40, 0.8), (80, 1.0), (160, 1.1)]
    told = []
    found = measured(data, [(step, Between(gaussian, share)) for step, share in way], told=told.append)
    assert found.stages == (0, 10, 20, 40, 80, 160)
    assert told == [0, 10, 20, 40, 80, 160]
    assert [found.nearest_stage("Gaussian", level) for level in range(2)] == [4, 4]
    assert [found.nearest_stage("half", level) for level in range(2)] == [2, 2]
    assert found.null_distance is None
    assert found.null_error is None


def test_who_is_ahead_and_from_when(data):
    x0, _ = data
    far, near = Truth(x0, 3.0), Truth(x0, 0.01)
    found = measured(data, [(0, far), (1, near), (2, far), (3, near), (4, near)])
    assert found.ahead_from("Gaussian", 0) == 3  # ahead once before, and fallen back
    assert measured(data, [(0, near), (1, near)]).ahead_from("Gaussian", 0) == 0
    assert measured(data, [(0, near), (1, far)]).ahead_from("Gaussian", 0) is None


def test_the_unit_does_not_depend_on_the_scale(data):
    x0, _ = data
    scaled = GaussianManifold.fit(torch.randn(500, 48, generator=torch.Generator().manual_seed(1)) + 5)

    class Thousandfold:
        def denoise(self, x_t, alpha, sigma):
            return 1000 * scaled.denoise(x_t / 1000, alpha, sigma)

    one, thousand = (
        measure_learning(
            [(1, Between(model, 0.9))], {"model": model}, k * x0, [1.0], [k * 1e-6],
            generator=torch.Generator().manual_seed(0),
        )
        for k, model in ((1, scaled), (1000, Thousandfold()))
    )  # fmt: skip
    torch.testing.assert_close(one.distance, thousand.distance, rtol=1e-4, atol=0)
    torch.testing.assert_close(one.analytic_error, thousand.analytic_error, rtol=1e-2, atol=1e-12)


def test_a_network_that_overflows_is_said(data):
    x0, gaussian = data
    with pytest.raises(NonFiniteError, match=r"alpha 0\.8, sigma 0\.6 is NaN or infinite"):
        measured(data, [(1, gaussian), (2, Truth(x0, float("nan")))])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"networks": []}, "no network"),
        ({"networks": [(5, None), (5, None)]}, "steps must rise, 5 comes after 5"),
        ({"analytic": {}}, "at least 2 latents and 1 analytic denoiser, 40 and 0 came"),
        ({"x0": torch.ones(1, 3, 4, 4)}, "1 and 1 came"),
        ({"x0": torch.ones(7, 3, 4, 4)}, "all alike"),
        ({"alphas": [1.0]}, "one length, they have 1 and 2"),
    ],
)
def test_what_cannot_be_compared_is_refused(data, change, words):
    x0, gaussian = data
    networks = [(step, gaussian) for step, _ in change.get("networks", [(1, None)])]
    given = {"analytic": {"Gaussian": gaussian}, "x0": x0, "alphas": LEVELS[0], "sigmas": LEVELS[1]}
    with pytest.raises(InputError, match=words):
        measure_learning(**given | change | {"networks": networks})
