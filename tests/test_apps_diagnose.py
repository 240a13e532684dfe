"""`manifold fit --plots`: the numbers are those of the functions, and what is drawn is what was given."""

import json

import numpy as np
import pytest
import torch
from helpers import make_workspace
from manifold_apps.cli import app
from manifold_apps.diagnose import draw_diagnostics
from manifold_apps.diagnostic_plots import plot_convergence, plot_power, plot_reproducible
from PIL import Image
from typer.testing import CliRunner

from index.fit import fit_workspace, judge_workspace
from manifold.errors import InputError, NotFittedError
from manifold.power import channel_variance, radial_power
from manifold.reproducibility import convergence, split_half
from manifold.rows import ArrayRows, RowSubset

NAMES = ("spectrum.png", "reproducible.png", "power.png", "convergence.png")


@pytest.fixture
def latents(rng):
    scale = 3 / np.arange(1, 49) ** 0.7
    return (rng.standard_normal((640, 48)) * scale @ np.linalg.qr(rng.standard_normal((48, 48)))[0]).astype(np.float16)


@pytest.fixture
def root(tmp_path, latents):
    return make_workspace(tmp_path / "ws", latents, shape=(3, 4, 4)).root


def test_pictures_and_numbers_of_a_fit(root, tmp_path, latents):
    fitted = fit_workspace(root)
    told = []
    sentence = draw_diagnostics(root, tmp_path / "plots", progress=lambda *one: told.append(one))
    assert sentence == judge_workspace(root)
    assert told[-1][1] == told[-1][2]
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    for name in NAMES:
        with Image.open(tmp_path / "plots" / name) as picture:
            assert picture.width > 1000
            assert np.asarray(picture.convert("L")).std() > 10
    numbers = json.loads((tmp_path / "plots" / "diagnostics.json").read_text())
    assert numbers["fit"]["split"]["reproducible"] == split_half(ArrayRows(latents)).reproducible
    np.testing.assert_allclose(numbers["fit"]["channel_variance"], channel_variance(fitted.covariance, (3, 4, 4)))
    points = numbers["convergence"]
    assert [point["count"] for point in points] == [40, 80, 160, 320, 640]
    for point, one_in in zip(points, (16, 8, 4, 2, 1), strict=True):
        part = np.concatenate(list(RowSubset(ArrayRows(latents), one_in, [0]).batches(100))).astype(np.float64)
        assert point["trace"] == pytest.approx(part.var(0, ddof=1).sum(), rel=1e-5)
        np.testing.assert_allclose(
            point["channel_variance"], part.var(0, ddof=1).reshape(3, -1).mean(1), rtol=1e-4
        )  # fmt: skip
        waves = np.fft.fft2((part - part.mean(0)).reshape(-1, 3, 4, 4), norm="ortho")
        total = (np.abs(waves) ** 2).sum((0, 2, 3)) / (len(part) - 1)
        rings = radial_power(fitted.covariance, (3, 4, 4)).coefficients.numpy()
        np.testing.assert_allclose(np.array(point["radial_power"]) @ rings, total, rtol=1e-4)
    assert points[-1]["overlap"] == pytest.approx(1.0)


def test_what_is_said_to_settle_is_not_all_of_space(root, tmp_path, latents):
    """All directions of a small space are those of any part that has so many rows, which would be drawn as 0 throughout."""
    fit_workspace(root)
    draw_diagnostics(root, tmp_path / "plots")
    points = json.loads((tmp_path / "plots" / "diagnostics.json").read_text())["convergence"]
    assert {point["directions"] for point in points} == {24}
    overlaps = [point["overlap"] for point in points]
    assert overlaps == sorted(overlaps)
    assert overlaps[0] < overlaps[2] < 0.99


def test_the_command_draws_and_judges(root, tmp_path):
    result = CliRunner().invoke(app, ["fit", str(root), "--plots", str(tmp_path / "plots")])
    assert result.exit_code == 0, result.output
    assert "rows are enough for" in " ".join(result.output.split())
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {*NAMES, "diagnostics.json"}


def test_what_cannot_be_drawn_is_left_out_or_said(tmp_path, latents):
    few = make_workspace(tmp_path / "few", latents[:50], shape=(3, 4, 4)).root
    fit_workspace(few)
    draw_diagnostics(few, tmp_path / "plots")
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert names == {*NAMES, "diagnostics.json"} - {"convergence.png"}
    flat = make_workspace(tmp_path / "flat", latents, shape=(48, 1, 1)).root  # embeddings have no spatial frequencies
    fit_workspace(flat)
    draw_diagnostics(flat, tmp_path / "of flat")
    assert {path.name for path in (tmp_path / "of flat").iterdir()} == {*NAMES, "diagnostics.json"} - {"power.png"}
    fit_workspace(few, model="stationary")
    with pytest.raises(InputError, match="this model is stationary"):
        draw_diagnostics(few, tmp_path / "plots")


def test_the_command_says_before_the_fit_what_cannot_be_drawn(root, tmp_path, latents):
    def said(*given) -> str:
        result = CliRunner().invoke(app, ["fit", *map(str, given), "--plots", str(tmp_path / "plots")])
        assert isinstance(result.exception, InputError), result.output
        return str(result.exception)

    assert "this model is stationary" in said(root, "--model", "stationary")
    three = make_workspace(tmp_path / "three", latents[:3], shape=(3, 4, 4)).root
    assert "need at least 4 images" in said(three)
    for workspace in (root, three):
        with pytest.raises(NotFittedError):
            judge_workspace(workspace)
    assert CliRunner().invoke(app, ["fit", str(three)]).exit_code == 0
    assert "3 latents are too few" in judge_workspace(three)


def test_a_stationary_model_that_was_chosen_is_fitted_and_not_drawn(tmp_path, rng):
    side = 66  # more than 4,096 values, where nothing is shrunk toward a stationary model
    frequencies = np.fft.fftfreq(side)
    gain = 1 / (0.1 + np.hypot(*np.meshgrid(frequencies, frequencies)))
    rows = np.fft.ifft2(np.fft.fft2(rng.standard_normal((40, 1, side, side))) * gain).real.reshape(40, -1)
    few = make_workspace(tmp_path / "few", rows.astype(np.float16), shape=(1, side, side))
    result = CliRunner().invoke(app, ["fit", str(few.root), "--model", "auto", "--plots", str(tmp_path / "plots")])
    assert result.exit_code == 0, result.output
    assert "there are no plots of it" in " ".join(result.output.split())
    assert not (tmp_path / "plots").exists()


def test_words_name_the_facts(latents, tmp_path):
    points = convergence(ArrayRows(latents))
    assert points[0].radial_power is None
    words = plot_convergence(points, tmp_path / "a.png", "a collection")
    assert "from 40, 80, 160, 320 and all 640 latents" in words.facts
    assert words.heading.endswith(": a collection")
    assert "each half has 320 latents" in plot_reproducible(split_half(ArrayRows(latents)), tmp_path / "b.png").facts
    model = fit_of(latents)
    power = radial_power(model, (12, 2, 2))
    words = plot_power(channel_variance(model, (12, 2, 2)).numpy(), power, tmp_path / "c.png")
    assert words.facts.startswith("12 channels, 4 frequencies")


def fit_of(latents):
    from manifold.gaussian import GaussianManifold

    return GaussianManifold.fit(torch.from_numpy(latents)).covariance
