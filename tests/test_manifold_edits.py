"""Edits along eigenvectors against the sum written out, their JSON, and controls of equal length."""

import json

import numpy as np
import pytest
import torch

from manifold.edits import Edit, random_edit, walk
from manifold.errors import FormatError, InputError
from manifold.gaussian import GaussianManifold


@pytest.fixture
def manifold(fixed_seed):
    generator = torch.Generator().manual_seed(fixed_seed)
    scale = 3 / torch.arange(1, 25, dtype=torch.float64)
    fitted = GaussianManifold.fit(torch.randn(400, 24, generator=generator, dtype=torch.float64) * scale)
    return fitted.to(dtype=torch.float64)


def test_a_step_is_the_sum_written_out(manifold):
    vectors, values = manifold.eigvecs.numpy(), manifold.eigvals.numpy()
    wanted = 1.5 * np.sqrt(values[0]) * vectors[:, 0] - 2 * np.sqrt(values[7]) * vectors[:, 7]
    edit = Edit({7: -2.0, 0: 1.5, 3: 0.0})
    np.testing.assert_allclose(edit.step(manifold).numpy(), wanted, atol=1e-10)
    latents = torch.randn(4, 24, dtype=torch.float64)
    np.testing.assert_allclose(edit.apply(manifold, latents).numpy(), latents.numpy() + wanted, atol=1e-10)


def test_amounts_are_found_again_in_the_coordinates(manifold):
    moved = Edit({0: 3.0, 5: -1.0}).apply(manifold, manifold.mean[None])
    found = (moved - manifold.mean) @ manifold.eigvecs / manifold.eigvals.sqrt()
    wanted = torch.zeros(1, 24, dtype=torch.float64)
    wanted[0, 0], wanted[0, 5] = 3, -1
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=0)


def test_no_edit_changes_nothing(manifold):
    latents = torch.randn(2, 24)
    assert torch.equal(Edit().apply(manifold, latents), latents)
    assert float(Edit().control(manifold).norm()) == 0


def test_the_control_has_the_same_length_and_no_preferred_direction(manifold):
    edit = Edit({0: 2.0, 1: 1.0})
    length = edit.step(manifold).norm()
    generator = torch.Generator().manual_seed(1)
    controls = torch.stack([edit.control(manifold, generator) for _ in range(2000)]).double()
    torch.testing.assert_close(controls.norm(dim=1), length.double().expand(2000), rtol=1e-5, atol=0)
    shares = (controls / length).square().mean(0)
    np.testing.assert_allclose(shares.numpy(), 1 / 24, atol=0.006)


def test_json_there_and_back():
    edit = Edit({0: 1.5, 12: -0.3})
    assert Edit.from_json(edit.to_json()) == edit
    assert json.loads(edit.to_json())["standard_deviations"] == {"0": 1.5, "12": -0.3}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 1, "standard_deviations": [1]}', b"\xff"]
)
def test_files_that_are_no_edit(text):
    with pytest.raises(FormatError, match="an edit is JSON such as"):
        Edit.from_json(text)


def test_edits_out_of_range(manifold):
    with pytest.raises(FormatError, match="schema 2"):
        Edit.from_json('{"schema": 2, "standard_deviations": {}}')
    with pytest.raises(InputError, match="finite amounts"):
        Edit.from_json('{"schema": 1, "standard_deviations": {"0": NaN}}')
    with pytest.raises(InputError, match="directions 0 to 23, the edit names 24"):
        Edit({24: 1.0}).step(manifold)
    with pytest.raises(InputError, match="finite amounts"):
        Edit({-1: 1.0})


def test_a_walk_is_every_step_along_every_direction(manifold):
    walked = walk(manifold, [2, 0], [-3, 0, 3])
    assert walked.shape == (2, 3, 24)
    for row, direction in enumerate([2, 0]):
        for column, amount in enumerate([-3, 0, 3]):
            wanted = Edit({direction: amount}).apply(manifold, manifold.mean[None])[0]
            torch.testing.assert_close(walked[row, column], wanted)
    base = torch.randn(24)
    torch.testing.assert_close(walk(manifold, [1], [0.0], base)[0, 0], base.to(manifold.mean))
    with pytest.raises(InputError, match="counted from 0"):
        walk(manifold, [-1], [1])


def test_random_edits_are_repeatable_draws_of_unit_spread():
    first = random_edit(2000, torch.Generator().manual_seed(3))
    assert first == random_edit(2000, torch.Generator().manual_seed(3))
    assert 0.95 < np.std(list(first.amounts.values())) < 1.05
    with pytest.raises(InputError, match="at least 1 direction"):
        random_edit(0)


@pytest.mark.parametrize("amount", ["1" + 400 * "0", "1e999"])
def test_numbers_beyond_all_bounds_in_a_file(amount):
    with pytest.raises((FormatError, InputError)):
        Edit.from_json(f'{{"schema": 1, "standard_deviations": {{"0": {amount}}}}}')


def test_directions_beyond_all_bounds_and_whole_numbers(manifold):
    with pytest.raises(InputError, match="the edit names 99999999999999999999"):
        Edit({99999999999999999999: 1.0}).step(manifold)
    with pytest.raises(InputError, match="floating-point"):
        Edit({0: 1.0}).apply(manifold, torch.zeros(1, 24, dtype=torch.int64))
