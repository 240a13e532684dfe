"""Local denoisers against loops over patches, their limits, and what their equivariance must be."""

import numpy as np
import pytest
import torch
from helpers import needs_cuda

from manifold.covariance import FullCovariance
from manifold.denoiser import Denoiser
from manifold.empirical import EmpiricalDenoiser
from manifold.errors import InputError, NotFittedError, ShapeError
from manifold.gaussian import GaussianManifold
from manifold.local import LocalDenoiser
from manifold.local_wiener import WienerLocalDenoiser

SHAPE = (2, 5, 6)
ALPHA, SIGMA = 0.8, 0.7


@pytest.fixture
def images(fixed_seed):
    return torch.randn(7, *SHAPE, dtype=torch.float64)


@pytest.fixture
def x_t(images):
    return ALPHA * images[:3] + SIGMA * torch.randn(3, *SHAPE, dtype=torch.float64)


def patch(image, y, x, size, boundary):
    reach = size // 2
    mode = {"mode": "wrap"} if boundary == "circular" else {"mode": "constant"}
    padded = np.pad(image, ((0, 0), (reach, reach), (reach, reach)), **mode)
    return padded[:, y : y + size, x : x + size]


def slowly(x_t, images, size, equivariant, boundary):
    """Every patch against every patch that is allowed, one output pixel at a time."""
    _, height, width = SHAPE
    reach = size // 2
    places = [(y, x) for y in range(height) for x in range(width)]

    def kind(y, x):
        if boundary == "circular":
            return ()
        inside = np.zeros((height, width))
        return tuple(patch(inside[None] + 1, y, x, size, "zeros").ravel())  # which pixels of the patch exist

    result = np.empty_like(x_t)
    for n, state in enumerate(x_t):
        for y, x in places:
            allowed = [(b, a) for b, a in places if kind(b, a) == kind(y, x)] if equivariant else [(y, x)]
            seen = patch(state, y, x, size, boundary)
            logits, centers = [], []
            for image in images:
                for b, a in allowed:
                    logits.append(-np.square(seen - ALPHA * patch(image, b, a, size, boundary)).sum() / (2 * SIGMA**2))
                    centers.append(image[:, b, a])
            weights = np.exp(np.array(logits) - max(logits))
            result[n, :, y, x] = weights @ np.array(centers) / weights.sum()
    assert reach >= 0
    return result


@pytest.mark.parametrize("boundary", ["zeros", "circular"])
@pytest.mark.parametrize("equivariant", [False, True])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_every_pixel_is_the_posterior_mean_over_patch_centres(images, x_t, size, equivariant, boundary):
    model = LocalDenoiser(images, size, equivariant=equivariant, boundary=boundary)
    assert isinstance(model, Denoiser)
    expected = slowly(x_t.numpy(), images.numpy(), size, equivariant, boundary)
    np.testing.assert_allclose(model.denoise(x_t, ALPHA, SIGMA), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("equivariant", [False, True])
def test_a_patch_that_covers_the_image_is_the_empirical_denoiser(images, x_t, equivariant):
    model = LocalDenoiser(images, 13, equivariant=equivariant)
    exact = EmpiricalDenoiser(images).denoise(x_t, ALPHA, SIGMA)
    torch.testing.assert_close(model.denoise(x_t, ALPHA, SIGMA), exact, rtol=1e-9, atol=1e-9)


def test_a_shifted_state_gives_a_shifted_target_on_the_torus_only(images, x_t):
    for boundary, same in (("circular", True), ("zeros", False)):
        model = LocalDenoiser(images, 3, boundary=boundary)
        shifted = model.denoise(x_t.roll((2, 1), (2, 3)), ALPHA, SIGMA)
        error = float((shifted - model.denoise(x_t, ALPHA, SIGMA).roll((2, 1), (2, 3))).abs().max())
        assert (error < 1e-9) == same
    still = LocalDenoiser(images, 3, equivariant=False, boundary="circular")
    error = still.denoise(x_t.roll(2, 3), ALPHA, SIGMA) - still.denoise(x_t, ALPHA, SIGMA).roll(2, 3)
    assert float(error.abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["ls", "els", "wiener"])
def test_batches_change_nothing(images, x_t, kind, monkeypatch):
    def made():
        if kind == "wiener":
            return WienerLocalDenoiser(images, GaussianManifold.fit(images), threshold=0.3)
        return LocalDenoiser(images, 3, equivariant=kind == "els")

    whole = made().denoise(x_t, ALPHA, SIGMA)
    monkeypatch.setattr("manifold.local._ENTRIES", 1)
    monkeypatch.setattr("manifold.local_wiener._ENTRIES", 1)
    torch.testing.assert_close(made().denoise(x_t, ALPHA, SIGMA), whole, rtol=1e-10, atol=1e-10)


def test_the_patch_size_may_follow_the_noise(images, x_t):
    seen = []

    def size(ratio):
        seen.append(ratio)
        return 3 if ratio < 1 else 5

    alpha, sigma = torch.tensor([0.8, 0.5, 0.8]), torch.tensor([0.7, 0.7, 0.7])
    found = LocalDenoiser(images, size).denoise(x_t, alpha, sigma)
    assert sorted(seen) == pytest.approx([0.875, 1.4])
    torch.testing.assert_close(
        found[[0, 2]], LocalDenoiser(images, 3).denoise(x_t[[0, 2]], 0.8, 0.7), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(found[[1]], LocalDenoiser(images, 5).denoise(x_t[[1]], 0.5, 0.7), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_wiener_masks_and_their_posterior(images, x_t, threshold):
    manifold = GaussianManifold.fit(images.repeat(20, 1, 1, 1) + 0.3 * torch.randn(140, *SHAPE)).to(dtype=torch.float64)
    model = WienerLocalDenoiser(images, manifold, threshold=threshold)
    dense = manifold.eigvecs @ torch.diag(manifold.eigvals) @ manifold.eigvecs.T
    wiener = dense * ALPHA**2 @ torch.linalg.inv(ALPHA**2 * dense + SIGMA**2 * torch.eye(60).double())
    mask = wiener.abs() >= threshold * wiener.diagonal()[:, None]
    if threshold < 1:
        assert torch.equal(model.mask(ALPHA, SIGMA), mask)
    x, rows = x_t.flatten(1).numpy(), images.flatten(1).numpy()
    squared = np.square(x[:, None] - ALPHA * rows)
    logits = -np.einsum("nil,ml->nim", squared, model.mask(ALPHA, SIGMA).numpy()) / (2 * SIGMA**2)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    expected = np.einsum("nim,im->nm", weights / weights.sum(1, keepdims=True), rows).reshape(x_t.shape)
    np.testing.assert_allclose(model.denoise(x_t, ALPHA, SIGMA), expected, rtol=1e-9, atol=1e-9)
    if threshold == 0:
        exact = EmpiricalDenoiser(images).denoise(x_t, ALPHA, SIGMA)
        torch.testing.assert_close(model.denoise(x_t, ALPHA, SIGMA), exact, rtol=1e-9, atol=1e-9)


def test_without_a_threshold_everything_is_looked_at_where_values_are_independent_too(images, x_t):
    """The filter's entries off its diagonal are exactly 0, and no less than 0 times the diagonal."""
    variances = torch.linspace(2, 1, 60, dtype=torch.float64)
    independent = GaussianManifold(FullCovariance(0 * variances, variances, torch.eye(60, dtype=torch.float64)))
    assert bool(WienerLocalDenoiser(images, independent, threshold=0.0).mask(ALPHA, SIGMA).all())
    alone = WienerLocalDenoiser(images, independent).mask(ALPHA, SIGMA)
    assert torch.equal(alone, torch.eye(60, dtype=torch.bool))
    found = WienerLocalDenoiser(images, independent, threshold=0.0).denoise(x_t, ALPHA, SIGMA)
    torch.testing.assert_close(found, EmpiricalDenoiser(images).denoise(x_t, ALPHA, SIGMA), rtol=1e-9, atol=1e-9)


def test_masks_widen_with_noise():
    """Smooth images: neighbours are correlated, so more noise makes the Wiener filter look farther."""
    noise = torch.randn(500, 1, 16, 16)
    rows, columns = torch.arange(16).minimum(16 - torch.arange(16)), torch.arange(9)
    smooth = torch.fft.irfft2(torch.fft.rfft2(noise) / (1 + rows[:, None] ** 2 + columns**2))
    model = WienerLocalDenoiser(smooth, GaussianManifold.fit(smooth), threshold=0.1)
    scale = float(smooth.std())
    reach = [float(model.mask(1.0, sigma * scale).float().mean()) for sigma in (0.01, 0.3, 3.0)]
    assert reach[0] < reach[1] < reach[2]


def test_flat_collections_and_types(images, x_t):
    model = LocalDenoiser(images.flatten(1).float(), 3, shape=SHAPE)
    found = model.denoise(x_t.flatten(1).half(), ALPHA, SIGMA)
    assert (found.shape, found.dtype) == ((3, 60), torch.float16)


@pytest.mark.parametrize("kind", ["ls", "els", "wiener"])
@pytest.mark.parametrize("sigma", [0.1, 0.7, 5.0])
def test_float32_is_float64_but_for_rounding(images, kind, sigma):
    x_t = ALPHA * images[:3] + sigma * torch.randn(3, *SHAPE, dtype=torch.float64)
    manifold = GaussianManifold.fit(images)
    found = []
    for dtype in (torch.float32, torch.float64):
        if kind == "wiener":
            model = WienerLocalDenoiser(images, manifold, threshold=0.3, dtype=dtype)
        else:
            model = LocalDenoiser(images, 3, equivariant=kind == "els", dtype=dtype)
        found.append(model.denoise(x_t, ALPHA, sigma))
    assert found[0].dtype == torch.float64
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@needs_cuda
@pytest.mark.parametrize("kind", ["ls", "els", "wiener"])
def test_on_a_gpu(images, x_t, kind):
    manifold = GaussianManifold.fit(images)
    found = []
    for device in ("cpu", "cuda"):
        if kind == "wiener":
            model = WienerLocalDenoiser(images, manifold, threshold=0.3, device=device)
        else:
            model = LocalDenoiser(images, 3, equivariant=kind == "els", device=device)
        found.append(model.denoise(x_t.to(device), ALPHA, SIGMA).cpu())
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_wrong_use_is_said(images, x_t):
    with pytest.raises(InputError, match=r"in float32 or float64, not in torch\.float16"):
        LocalDenoiser(images, 3, dtype=torch.float16)
    with pytest.raises(InputError, match="odd and positive, it is 4"):
        LocalDenoiser(images, 4)
    with pytest.raises(InputError, match="7 is more than 5"):
        LocalDenoiser(images, 7, boundary="circular")
    with pytest.raises(InputError, match='"zeros" or "circular"'):
        LocalDenoiser(images, 3, boundary="mirror")
    with pytest.raises(ShapeError, match=r"pass shape=\(C, H, W\) of 60 values"):
        LocalDenoiser(images.flatten(1), 3)
    with pytest.raises(NotFittedError, match="collection is empty"):
        LocalDenoiser(images[:0], 3)
    with pytest.raises(InputError, match="needs sigma > 0"):
        LocalDenoiser(images, 3).denoise(x_t, 1.0, 0.0)
    with pytest.raises(InputError, match="threshold must lie between 0 and 1"):
        WienerLocalDenoiser(images, GaussianManifold.fit(images), threshold=2)
    with pytest.raises(ShapeError, match="has 60 values a row, the manifold 30"):
        WienerLocalDenoiser(images, GaussianManifold.fit(images[:, :1]), shape=SHAPE)
