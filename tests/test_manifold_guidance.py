"""Guidance against autograd and Bayes' rule; inverse problems against one dense joint Gaussian."""

import pytest
import torch
from helpers import assert_close

from manifold.covariance import FullCovariance, LowRankCovariance
from manifold.denoiser import Denoiser
from manifold.errors import InputError, ManifoldWarning, NotPSDError, ShapeError
from manifold.gaussian import GaussianManifold
from manifold.guidance import ClassGuidance
from manifold.inverse import MeasuredDenoiser, Measurement, downsample, inpaint, to_grey
from manifold.mixture import GaussianMixture
from manifold.probability_flow import solve_flow

SHAPE = (3, 4, 4)
D = 48


def model(seed, d=D, k=None):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    eigvals = torch.logspace(1, -2, d, dtype=torch.float64)
    mean = torch.randn(d, generator=generator, dtype=torch.float64)
    if k is None:
        return FullCovariance(mean, eigvals, basis)
    return LowRankCovariance(mean, eigvals[:k], basis[:, :k], 0.05)


@pytest.fixture
def guidance():
    return ClassGuidance(GaussianMixture([model(seed, d=6) for seed in range(3)], [0.5, 0.3, 0.2]))


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.5), (0.4, 0.9), (1.0, 20.0)])
@pytest.mark.parametrize("y", [0, 2])
def test_gradient_is_autograd_of_bayes_rule(guidance, alpha, sigma, y):
    x_t = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    eye = torch.eye(6, dtype=torch.float64)
    joint = []
    for one, weight in zip(guidance.classes.components, (0.5, 0.3, 0.2), strict=True):
        noisy = alpha**2 * one.apply(lambda v: v, eye) + sigma**2 * eye
        density = torch.distributions.MultivariateNormal(alpha * one.mean, noisy).log_prob(x_t)
        joint.append(density + torch.tensor(weight, dtype=torch.float64).log())
    log_prob = torch.stack(joint, 1).log_softmax(1)[:, y]
    (expected,) = torch.autograd.grad(log_prob.sum(), x_t)
    x_t = x_t.detach()
    assert_close(guidance.log_prob(y, x_t, alpha, sigma), log_prob.detach())
    assert_close(guidance.gradient(y, x_t, alpha, sigma), expected)


def test_classifier_free_combination(guidance):
    x_t = torch.randn(5, 6, dtype=torch.float64)
    free = guidance.classes.denoise(x_t, 0.6, 0.8)
    own = GaussianManifold(guidance.classes.components[1]).denoise(x_t, 0.6, 0.8)
    assert_close(guidance.combined(1, x_t, 0.6, 0.8, 0.0), free)
    assert_close(guidance.combined(1, x_t, 0.6, 0.8, 1.0), own)
    assert_close(guidance.combined(1, x_t, 0.6, 0.8, 3.0), -2 * free + 3 * own)
    guided = guidance.guided(guidance.classes, 1, 3.0)
    assert isinstance(guided, Denoiser)
    assert_close(guided.denoise(x_t, 0.6, 0.8), -2 * free + 3 * own)
    assert_close(guidance.combined(1, x_t, 0.0, 1.0, 1.0), guidance.classes.components[1].mean.expand(5, 6).clone())


def test_guided_flow_reaches_the_class_it_was_drawn_to(guidance):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator, dtype=torch.float64)
    levels = torch.linspace(0.999, 0.001, 200, dtype=torch.float64)
    guided = guidance.guided(guidance.classes, 2, 1.0)
    for now, after in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
        x0_hat = guided.denoise(x, 1 - now, now)
        x = x + (after - now) * (x - x0_hat) / now
    belongs = guidance.log_prob(2, x, 1.0, 0.01).exp()
    unguided = float(guidance.classes.weights[2])
    assert float(belongs.mean()) > 2.5 * unguided
    target = guidance.classes.components[2]
    assert float((x.mean(0) - target.mean).norm()) < 1.5


def dense_conditional(manifold, matrix, y, tau, x_t, alpha, sigma):
    """One joint Gaussian of (x0, x_t, y), conditioned by the textbook."""
    eye = torch.eye(manifold.d, dtype=torch.float64)
    prior = manifold.covariance.apply(lambda v: v, eye)
    observe = torch.cat([alpha * eye, matrix])
    noise = torch.block_diag(sigma**2 * eye, tau**2 * torch.eye(len(matrix), dtype=torch.float64))
    gain = prior @ observe.T @ torch.linalg.inv(observe @ prior @ observe.T + noise)
    seen = torch.cat([x_t.flatten(1), y.expand(len(x_t), -1)], 1)
    mean = manifold.mean + (seen - manifold.mean @ observe.T) @ gain.T
    return mean, prior - gain @ observe @ prior


MASK = torch.arange(D) % 3 != 0
PROBLEMS = {
    "inpainting": inpaint(MASK.view(SHAPE)),
    "colourising": to_grey(SHAPE),
    "luma": to_grey(SHAPE, torch.tensor([0.299, 0.587, 0.114])),
    "super-resolution": downsample(SHAPE, 2),
    "matrix": Measurement.from_matrix(
        torch.randn(5, D, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_transpose_is_the_transpose(name):
    measurement = PROBLEMS[name]
    x, y = torch.randn(4, D, dtype=torch.float64), torch.randn(4, measurement.m, dtype=torch.float64)
    assert_close((measurement.forward(x) * y).sum(), (x * measurement.transpose(y)).sum())


def test_what_is_measured_is_what_the_name_says():
    """The other tests take A as it comes: they would hold for a sum over a block, or for the values under the mask."""
    x = torch.randn(2, *SHAPE, dtype=torch.float64)
    expected = {
        "inpainting": x.flatten(1)[:, [place for place in range(D) if place % 3]],
        "colourising": (x[:, 0] + x[:, 1] + x[:, 2]) / 3,
        "luma": 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2],
        "super-resolution": (x[..., ::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, ::2] + x[..., 1::2, 1::2]) / 4,
    }
    for name, values in expected.items():
        torch.testing.assert_close(PROBLEMS[name].forward(x.flatten(1)), values.flatten(1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("k", [None, 5])
@pytest.mark.parametrize(("alpha", "sigma", "tau"), [(1.0, 2.0, 0.3), (0.6, 0.8, 0.0), (0.0, 1.0, 0.1)])
def test_exact_conditioning(name, k, alpha, sigma, tau):
    measurement, manifold = PROBLEMS[name], GaussianManifold(model(3, k=k), shape=SHAPE)
    truth = manifold.sample(3, torch.Generator().manual_seed(1))
    matrix = measurement.forward(torch.eye(D, dtype=torch.float64)).T
    y = truth.flatten(1) @ matrix.T + tau * torch.randn(3, measurement.m, dtype=torch.float64)
    x_t = alpha * truth + sigma * torch.randn(truth.shape, dtype=torch.float64)
    denoiser = MeasuredDenoiser(manifold, measurement, y, noise=tau)
    found = denoiser.denoise(x_t, alpha, sigma)
    mean, _ = dense_conditional(manifold, matrix, y, tau, x_t, alpha, sigma)
    torch.testing.assert_close(found.flatten(1), mean, rtol=1e-7, atol=1e-8)
    if tau == 0:
        torch.testing.assert_close(measurement.forward(found.flatten(1)), y, rtol=1e-8, atol=1e-8)


def test_samples_have_the_conditional_mean_and_covariance():
    manifold, measurement = GaussianManifold(model(3), shape=SHAPE), PROBLEMS["super-resolution"]
    matrix = measurement.forward(torch.eye(D, dtype=torch.float64)).T
    y, x_t = torch.randn(1, measurement.m, dtype=torch.float64), torch.randn(1, *SHAPE, dtype=torch.float64)
    many = x_t.expand(30_000, *SHAPE)
    drawn = MeasuredDenoiser(manifold, measurement, y, noise=0.3).sample(
        many, 0.7, 0.7, torch.Generator().manual_seed(0)
    )
    mean, covariance = dense_conditional(manifold, matrix, y, 0.3, x_t, 0.7, 0.7)
    torch.testing.assert_close(drawn.flatten(1).mean(0), mean[0], rtol=0, atol=0.03)
    assert float((torch.cov(drawn.flatten(1).T) - covariance).norm() / covariance.norm()) < 0.06


def test_a_measurement_helps_and_says_nothing_at_sigma_zero():
    manifold = GaussianManifold(model(3), shape=SHAPE)
    truth = manifold.sample(50, torch.Generator().manual_seed(1))
    y = PROBLEMS["inpainting"].forward(truth.flatten(1))
    x_t = truth + 3 * torch.randn(truth.shape, dtype=torch.float64)
    denoiser = MeasuredDenoiser(manifold, PROBLEMS["inpainting"], y)
    with_y, without = denoiser.denoise(x_t, 1.0, 3.0), manifold.denoise(x_t, 1.0, 3.0)
    assert float((with_y - truth).square().mean()) < 0.3 * float((without - truth).square().mean())
    assert_close(denoiser.denoise(truth, 1.0, 0.0), truth)


def test_measuring_the_same_twice_is_repaired_and_said():
    manifold = GaussianManifold(FullCovariance(torch.zeros(2), torch.tensor([4.0, 1.0]), torch.eye(2)))
    twice = MeasuredDenoiser(manifold, Measurement.from_matrix(torch.ones(2, 2)), torch.full((1, 2), 3.0))
    once = MeasuredDenoiser(manifold, Measurement.from_matrix(torch.ones(1, 2)), torch.full((1, 1), 3.0))
    x_t = torch.tensor([[1.0, 0.5]])
    # Given x_t the sum varies by 4 / 5 + 1 / 2; a billionth of a thousandth of that is added.
    with pytest.warns(ManifoldWarning, match=r"nearly dependent; 1\.3e-12 was added"):
        found = twice.denoise(x_t, 1.0, 1.0)
    torch.testing.assert_close(found, once.denoise(x_t, 1.0, 1.0), rtol=1e-6, atol=1e-6)


def test_wrong_use_is_said(guidance):
    x = torch.zeros(2, 6, dtype=torch.float64)
    with pytest.raises(InputError, match="from 0 to 2, it is 3"):
        guidance.gradient(3, x, 1.0, 1.0)
    with pytest.raises(InputError, match="needs alpha > 0"):
        guidance.guided(guidance.classes, 0, 1.0).denoise(x, 0.0, 1.0)
    manifold = GaussianManifold(model(0), shape=SHAPE)
    y = torch.zeros(1, 16)
    with pytest.raises(ShapeError, match="is of 6 values, the manifold has 48"):
        MeasuredDenoiser(manifold, Measurement.from_matrix(torch.ones(1, 6)), torch.zeros(1, 1))
    with pytest.raises(ShapeError, match=r"y must be \(n, 16\), it is \(1, 3\)"):
        MeasuredDenoiser(manifold, to_grey(SHAPE), torch.zeros(1, 3))
    with pytest.raises(InputError, match="noise must be at least 0"):
        MeasuredDenoiser(manifold, to_grey(SHAPE), y, noise=-1)
    with pytest.raises(InputError, match="one level for all rows"):
        MeasuredDenoiser(manifold, to_grey(SHAPE), y).denoise(torch.zeros(2, D), 1.0, torch.ones(2))
    with pytest.raises(ShapeError, match="2 states and 3 measurements"):
        MeasuredDenoiser(manifold, to_grey(SHAPE), y.expand(3, 16)).denoise(torch.zeros(2, D), 1.0, 1.0)
    never = GaussianManifold(FullCovariance(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.eye(2)))
    dead = MeasuredDenoiser(never, Measurement.from_matrix(torch.tensor([[0.0, 1.0]])), torch.zeros(1, 1))
    with pytest.raises(NotPSDError, match="give noise > 0"):
        dead.denoise(torch.zeros(1, 2), 1.0, 1.0)
    with pytest.raises(InputError, match="at least one, it has none"):
        inpaint(torch.zeros(4, dtype=torch.bool))
    with pytest.raises(InputError, match="divide 4 and 4, it is 3"):
        downsample(SHAPE, 3)
    with pytest.raises(ShapeError, match=r"weights must be \(3,\)"):
        to_grey(SHAPE, torch.ones(2))
    with pytest.raises(ShapeError, match=r"a matrix \(m, d\)"):
        Measurement.from_matrix(torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_states_lose_only_their_own_rounding(guidance, dtype):
    """Rounding before the difference of two scores, which nearly agree at much noise, would leave little of it."""
    x_t = (10 * torch.randn(8, 6, generator=torch.Generator().manual_seed(0))).to(dtype)
    exact = guidance.gradient(1, x_t.double(), 1.0, 10.0)
    found = guidance.gradient(1, x_t, 1.0, 10.0)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)
    guided = guidance.guided(guidance.classes, 1, 3.0)
    shift = guided.denoise(x_t.double(), 1.0, 10.0)
    torch.testing.assert_close(
        guided.denoise(x_t, 1.0, 10.0).double(), shift, rtol=4 * torch.finfo(dtype).eps, atol=1e-3
    )


def test_a_guided_prediction_from_pure_noise_is_refused(guidance):
    """The flow's first level is alpha = 0, which the cosine of a right angle is not."""
    guided = guidance.guided(guidance.classes, 1, 2.0)
    with pytest.raises(InputError, match="needs alpha > 0"):
        solve_flow(guided, torch.randn(2, 6, dtype=torch.float64), 0.0, 1.0, 0.8, 0.6)


def test_a_value_that_never_varies_beside_others_that_do():
    """Added variance would pass over it: what was measured there would be neither met nor refused."""
    still = GaussianManifold(FullCovariance(torch.zeros(4), torch.tensor([3.0, 2.0, 1.0, 0.0]), torch.eye(4)))
    measured = MeasuredDenoiser(still, Measurement.from_matrix(torch.eye(4)), torch.tensor([[1.0, 1.0, 1.0, 5.0]]))
    with pytest.raises(NotPSDError, match="measured value 3 never varies"):
        measured.denoise(torch.zeros(1, 4), 1.0, 1.0)


@pytest.mark.parametrize("noise", [0.0, 1e-9, 1e-4])
def test_a_value_measured_with_tiny_weights_is_measured_all_the_same(noise):
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    variances = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.2, 0.1], dtype=torch.float64)
    mean = torch.randn(6, generator=generator, dtype=torch.float64)
    manifold = GaussianManifold(FullCovariance(mean, variances, basis))
    a = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    a[1] *= 1e-9
    x0, x_t = torch.randn(2, 1, 6, generator=generator, dtype=torch.float64)
    measured = Measurement(lambda x: x @ a.T, lambda y: y @ a, d=6, m=2)
    found = MeasuredDenoiser(manifold, measured, x0 @ a.T, noise=noise).denoise(x_t, 0.8, 0.6)
    # The dense formula, each measurement in units of its own weights, in which the numbers are harmless.
    unit = torch.diag(1 / a.norm(dim=1))
    covariance = basis * variances @ basis.T
    gain = 0.8 * covariance @ torch.linalg.inv(0.64 * covariance + 0.36 * torch.eye(6, dtype=torch.float64))
    prior, spread = mean + (x_t - 0.8 * mean) @ gain.T, covariance - 0.8 * gain @ covariance
    b = unit @ a
    system = b @ spread @ b.T + noise**2 * unit @ unit
    expected = prior + (torch.linalg.solve(system, unit @ (x0 @ a.T - prior @ a.T).T).T @ b) @ spread
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_a_value_that_never_varies_can_be_measured_with_any_noise():
    variances, eye = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    manifold = GaussianManifold(FullCovariance(torch.zeros(3, dtype=torch.float64), variances, eye))
    constant = Measurement(lambda x: x[:, 2:], lambda y: torch.nn.functional.pad(y, (2, 0)), d=3, m=1)
    y, x_t = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    with pytest.raises(NotPSDError, match="measured value 0 never varies"):
        MeasuredDenoiser(manifold, constant, y).denoise(x_t, 0.8, 0.6)
    found = MeasuredDenoiser(manifold, constant, y, noise=1e-8).denoise(x_t, 0.8, 0.6)
    torch.testing.assert_close(found, manifold.denoise(x_t, 0.8, 0.6))
