"""What arrays, batches and files may look like: in reverse, of another byte order, empty, and damaged."""

import json

import numpy as np
import pytest
import torch
from diffusers import KarrasVeScheduler
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from index.neighbours import exact_neighbours
from manifold import EmpiricalDenoiser, GaussianManifold, Moments, fit_mixture
from manifold.errors import FormatError, InputError, NotFittedError
from manifold.frechet import frechet_distance
from manifold.schedule import NoiseSchedule
from manifold.spectrum import marchenko_pastur_edge

ROWS = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)


def test_rows_in_reverse_and_of_another_byte_order():
    manifold = GaussianManifold.fit(ROWS)
    levels = np.linspace(0.5, 1.0, 60)
    turned = manifold.denoise(torch.from_numpy(ROWS), levels[::-1], 0.5)
    torch.testing.assert_close(turned, manifold.denoise(torch.from_numpy(ROWS), torch.from_numpy(levels).flip(0), 0.5))
    plain = exact_neighbours(ROWS, 3)
    np.testing.assert_array_equal(59 - exact_neighbours(ROWS[::-1], 3).ids[::-1], plain.ids)
    np.testing.assert_array_equal(exact_neighbours(ROWS.astype(">f4"), 3).ids, plain.ids)
    fits = [fit_mixture(one, 2).log_likelihood[-1] for one in (ROWS, ROWS.astype(">f4"))]
    assert fits[0] == fits[1]
    assert np.isfinite(fit_mixture(ROWS[::-1], 2).log_likelihood[-1])
    swapped = manifold.denoise(torch.from_numpy(ROWS), levels.astype(">f8"), np.array(0.5))
    torch.testing.assert_close(swapped, manifold.denoise(torch.from_numpy(ROWS), torch.from_numpy(levels), 0.5))


def test_neighbours_are_those_of_any_scale():
    wanted = exact_neighbours(ROWS.astype(np.float64), 4)
    for scale in (1e-30, 1e20, 1e100):
        found = exact_neighbours(ROWS.astype(np.float64) * scale, 4)
        np.testing.assert_array_equal(found.ids, wanted.ids)
        np.testing.assert_allclose(found.distances, wanted.distances * scale)
    np.testing.assert_array_equal(exact_neighbours(np.ones((5, 2)), 2).ids[0], [1, 2])
    with pytest.raises(InputError, match="float16, float32 or float64"):
        exact_neighbours(np.arange(12).reshape(6, 2), 2)


def test_samples_of_a_posterior_can_be_differentiated():
    states = torch.from_numpy(ROWS[:3]).requires_grad_()
    GaussianManifold.fit(ROWS).posterior(states, 1.0, 1.0).sample(2).sum().backward()
    assert bool((states.grad != 0).any())


def test_batches_without_a_row():
    manifold = GaussianManifold.fit(ROWS, shape=(2, 2, 2))
    none = torch.empty(0, 2, 2, 2)
    assert manifold.denoise(none, 1.0, 1.0).shape == (0, 2, 2, 2)
    assert manifold.log_prob(none, 1.0, 1.0).shape == (0,)
    assert manifold.posterior(none, 1.0, 1.0).sample(3).shape == (3, 0, 2, 2, 2)
    assert manifold.posterior(torch.from_numpy(ROWS), 1.0, 1.0).sample(0).shape == (0, 60, 8)
    for pair in ((torch.empty(0, 8), torch.from_numpy(ROWS)), (torch.from_numpy(ROWS), torch.empty(0, 8))):
        with pytest.raises(NotFittedError, match="at least 2 latents"):
            frechet_distance(*pair)


def test_numbers_out_of_range_get_a_sentence():
    states = torch.from_numpy(ROWS[:3])
    with pytest.raises(InputError, match="k must be at least 0, it is -1"):
        EmpiricalDenoiser(ROWS).posterior(states, 1.0, 1.0, k=-1)
    with pytest.raises(InputError, match="at least 2 rows"):
        marchenko_pastur_edge(torch.ones(3), 1, 8)
    with pytest.raises(InputError, match="KarrasVeScheduler has no alphas_cumprod"):
        NoiseSchedule.from_scheduler(KarrasVeScheduler())


def test_no_density_is_above_that_of_a_row_itself():
    x = torch.from_numpy(80 / 8**0.5 + ROWS)
    assert float(EmpiricalDenoiser(x).posterior(x, 1.0, 1e-9).log_evidence.max()) <= 0


def rewritten(path, change, metadata=None):
    """The file again, its tensors changed, and its metadata if others are given."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        stored = file.metadata()
    change(tensors)
    save_file(tensors, path, metadata=stored if metadata is None else {"manifold": json.dumps(metadata)})


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.update(eigvals=tensors["eigvals"][:3].clone()),
        lambda tensors: tensors.update(mean=tensors["mean"][:3].clone()),
        lambda tensors: tensors.update(eigvals=-tensors["eigvals"]),
        lambda tensors: tensors.update(eigvals=tensors["eigvals"] * torch.nan),
        lambda tensors: tensors.pop("eigvecs"),
    ],
)
def test_manifolds_that_were_changed_are_refused_by_name(tmp_path, change):
    path = tmp_path / "manifold.safetensors"
    GaussianManifold.fit(ROWS, rank=5).save(path)
    rewritten(path, change)
    with pytest.raises(FormatError, match=r"manifold\.safetensors"):
        GaussianManifold.load(path)


def test_metadata_that_are_no_object_are_refused(tmp_path):
    path = tmp_path / "manifold.safetensors"
    GaussianManifold.fit(ROWS).save(path)
    rewritten(path, lambda tensors: None, [1])
    with pytest.raises(FormatError, match="no JSON object"):
        GaussianManifold.load(path)


@pytest.mark.parametrize("part", ["mean", "scatter", "waiting", "count"])
def test_moments_that_lack_a_part_are_refused_by_name(tmp_path, part):
    moments = Moments(8)
    moments.update(ROWS)
    path = tmp_path / "moments.safetensors"
    moments.save(path)
    assert Moments.load(path)[0].count == 60
    rewritten(path, lambda tensors: tensors.pop(part))
    with pytest.raises(FormatError, match=r"moments\.safetensors holds parts that do not make moments"):
        Moments.load(path)
