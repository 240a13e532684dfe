"""What the explorer asks of the project's own model, against the pipeline, its network and NumPy."""

import numpy as np
import pytest
import torch
from manifold_apps.explorer.painting import (
    NO_CLASS,
    Order,
    Painter,
    class_manifolds,
    class_of,
    is_painted,
    rms_difference,
)

from index.deposit import deposit_latents, painted_records
from index.encoders import open_encoder
from manifold.demo_model import CLASS_NAMES, load_demo_model, load_gallery
from manifold.errors import InputError, ShapeError
from manifold.gaussian import GaussianManifold


@pytest.fixture(scope="module")
def pipeline():
    return load_demo_model()


@pytest.fixture(scope="module")
def painter(pipeline):
    return Painter(pipeline)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    gallery = load_gallery()
    records = painted_records(gallery.labels[:200].numpy(), CLASS_NAMES)
    records[0]["caption"] = None
    spec = open_encoder("demo-vae", 32).spec
    return deposit_latents(
        gallery.latents[:200], records, tmp_path_factory.mktemp("painting") / "ws", encoder=spec, source="gallery"
    )


@pytest.fixture(scope="module")
def everything(workspace):
    return GaussianManifold.fit(workspace.latents.read(range(200)).astype(np.float32), shape=(4, 8, 8))


def test_an_order_is_painted_as_the_pipeline_paints_it(pipeline, painter):
    told = []
    recording = painter.paint(Order((3, NO_CLASS), (5, 6), 4, 2.0), lambda *done: told.append(done))
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    wanted = pipeline(
        [3, NO_CLASS], generator=generators, num_inference_steps=4, guidance_scale=2.0, output_type="latent"
    )
    assert torch.equal(recording.x_t[-1], wanted.images)
    assert recording.x0_hat.shape == (4, 2, 4, 8, 8)
    assert told == [("paint", step, 4) for step in range(1, 5)]


def test_moved_by_nothing_is_the_full_run_and_by_more_saves_evaluations(painter, workspace, everything):
    order = Order((1, 8, NO_CLASS), (0, 1, 2), 5)
    full = painter.paint(order).x_t[-1]
    classes = class_manifolds(workspace.latents)
    same = painter.move(order, full, 0.0, everything, classes)
    assert torch.equal(same.latents, full)
    assert (same.saved, same.evaluations) == (0, 5)
    assert same.differences.tolist() == [0, 0, 0]
    moved = painter.move(order, full, 0.4, everything, classes)
    assert (moved.saved, moved.evaluations) == (2, 3)
    assert moved.by_class
    assert moved.start < same.start
    away = (moved.latents - full).double().flatten(1).square().mean(1).sqrt()
    spread = np.sqrt(everything.total_variance / everything.d)
    torch.testing.assert_close(moved.differences, away / spread)
    collection = painter.move(order, full, 0.4, everything, {})
    assert not collection.by_class
    torch.testing.assert_close(collection.latents[2], moved.latents[2], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(collection.latents[0], moved.latents[0], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("timestep", [10, 400, 990])
@pytest.mark.parametrize("label", [2, NO_CLASS])
def test_the_network_is_asked_at_its_own_timestep(pipeline, painter, timestep, label):
    squared = pipeline.scheduler.alphas_cumprod[timestep].double()
    alpha, sigma = float(squared.sqrt()), float((1 - squared).sqrt())
    state = torch.randn(2, 256, generator=torch.Generator().manual_seed(timestep))
    with torch.no_grad():
        v = pipeline.unet(
            state.view(2, 4, 8, 8), torch.tensor([timestep] * 2), class_labels=torch.tensor([label] * 2)
        ).sample.flatten(1)
    found = painter.x0_hat(state / alpha, 1.0, sigma / alpha, label)
    torch.testing.assert_close(found, alpha * state - sigma * v, rtol=1e-3, atol=2e-3)


def test_the_lowest_level_is_reached_and_no_level_beyond_the_schedule(painter):
    state = torch.zeros(1, 256)
    assert painter.x0_hat(state, 1.0, 0.01, 0).isfinite().all()
    for sigma in (0.005, 500.0):
        with pytest.raises(InputError):
            painter.x0_hat(state, 1.0, sigma, 0)


def test_classes_are_those_of_the_captions(workspace):
    assert is_painted(workspace)
    rows = workspace.latents.read(range(200)).astype(np.float32)
    captions = workspace.latents.metadata(["caption"])["caption"].to_pylist()
    told = []
    found = class_manifolds(workspace.latents, lambda *done: told.append(done))
    assert sorted(found) == list(range(10))
    assert told[-1] == ("read", 200, 200)
    for label, manifold in found.items():
        own = rows[[caption == CLASS_NAMES[label] for caption in captions]].astype(np.float64)
        np.testing.assert_allclose(manifold.mean, own.mean(0), atol=1e-5)
        np.testing.assert_allclose(manifold.total_variance, own.var(0, ddof=1).sum(), rtol=1e-4)
    assert class_of("cat") == 3
    assert class_of(None) == class_of("a cat") == NO_CLASS


def test_a_collection_without_class_names_has_no_classes(tmp_path):
    latents = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    spec = open_encoder("demo-vae", 32).spec
    made = deposit_latents(latents, [{"key": str(row)} for row in range(5)], tmp_path / "ws", encoder=spec, source="x")
    assert class_manifolds(made.latents) == {}


def test_unrelated_draws_are_sqrt_2_apart(everything):
    first, second = (everything.sample(3000, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert float(rms_difference(first, second, everything).square().mean()) == pytest.approx(2, rel=0.05)
    with pytest.raises(ShapeError):
        rms_difference(first, second[:2], everything)
