"""Pictures of trajectories: what is drawn is what was measured, everything is labelled, and nothing runs over the edge."""

import math

import numpy as np
import pytest
import torch
from helpers import make_workspace
from manifold_apps import figures, learning_plot, path_plots, prediction_plots
from PIL import Image

from index.anticipation import measure_anticipation
from index.build import build_index
from index.fit import fit_workspace
from index.search import Searcher
from manifold.alignment import measure_alignment
from manifold.compare import compare_denoisers
from manifold.covariance import FullCovariance
from manifold.emergence import measure_emergence
from manifold.errors import InputError
from manifold.gaussian import GaussianManifold
from manifold.learning import measure_learning
from manifold.path_pca import measure_path_pca
from manifold.path_rotation import measure_path_rotation
from manifold.perturbation import measure_perturbation

D, N = 12, 9


@pytest.fixture
def gaussian():
    eye = torch.eye(D, dtype=torch.float64)
    return GaussianManifold(FullCovariance(0.3 * eye[0], torch.logspace(1, -2, D, dtype=torch.float64), eye))


@pytest.fixture
def recording(gaussian):
    """From exactly pure noise to exactly clean, nearly Gaussian."""
    u = torch.linspace(1, 0, 25, dtype=torch.float64)
    alphas, sigmas = (math.pi / 2 * u).cos(), (math.pi / 2 * u).sin()
    alphas[0], sigmas[-1] = 0.0, 0.0
    path = gaussian.trajectory(torch.randn(N, D, dtype=torch.float64), 0.0, 1.0, alphas, sigmas)
    noise = 0.02 * torch.randn(2, 25, N, D, dtype=torch.float64)
    return path.x_t + noise[0], (path.x0_hat + noise[1])[:-1], alphas, sigmas


@pytest.fixture
def searcher(tmp_path, gaussian):
    root = make_workspace(tmp_path / "ws", gaussian.sample(60).numpy().astype(np.float16), shape=(3, 2, 2)).root
    fit_workspace(root)
    build_index(root)
    return Searcher.open(root)


@pytest.fixture
def drawn(monkeypatch):
    """The figures as they were when written, with their texts laid out."""
    kept = []
    save = figures.save_figure

    def saved(figure, path):
        figure.canvas.draw()
        kept.append(figure)
        save(figure, path)

    monkeypatch.setattr(figures, "save_figure", saved)
    return kept


def checked(figure, path) -> None:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width > 900
    for axis in figure.axes:
        assert axis.get_xlabel()
        assert axis.get_ylabel()
    caption = figure.texts[-1].get_text().replace("\n", " ")
    assert caption.startswith("How to read it: ")
    assert caption.endswith(".")
    assert caption.count(". ") == 0, "one sentence"
    width, height = figure.canvas.get_width_height()
    for text in [*figure.texts, figure._suptitle, *(axis.xaxis.label for axis in figure.axes)]:
        box = text.get_window_extent()
        assert box.x0 >= 0, text.get_text()
        assert box.y0 >= 0, text.get_text()
        assert box.x1 <= width, text.get_text()
        assert box.y1 <= height, text.get_text()
    lowest_label = min(axis.xaxis.label.get_window_extent().y0 for axis in figure.axes)
    assert figure.texts[-1].get_window_extent().y1 <= lowest_label, "the caption stands clear of the axes"


def line(axis, label: str) -> np.ndarray:
    return next(one for one in axis.get_lines() if one.get_label() == label).get_ydata()


def test_flatness(gaussian, recording, drawn, tmp_path):
    x_t, _, alphas, sigmas = recording
    found = measure_path_pca(x_t, alphas, sigmas, gaussian, shuffled=x_t.flip(0))
    path_plots.plot_path_pca(found, tmp_path / "a.png", "a model with a rather long name, at 512 px")
    checked(drawn[0], tmp_path / "a.png")
    np.testing.assert_allclose(line(drawn[0].axes[0], "recorded"), 100 * (1 - found.measured.mean(0)), rtol=1e-9)
    np.testing.assert_allclose(line(drawn[0].axes[0], "Gaussian, same noise"), 100 * (1 - found.gaussian.mean(0)))


def test_flatness_of_flat_paths(gaussian, drawn, tmp_path):
    """Straight lines leave out round-off, which is not drawn."""
    u = torch.linspace(0, 1, 9, dtype=torch.float64)
    straight = u[:, None, None] * torch.randn(N, D, dtype=torch.float64) + torch.randn(N, D, dtype=torch.float64)
    found = measure_path_pca(straight, torch.ones(9), 1 + 0 * u, gaussian, components=2)
    path_plots.plot_path_pca(found, tmp_path / "a.png")
    checked(drawn[0], tmp_path / "a.png")
    assert np.isnan(line(drawn[0].axes[0], "recorded")).all()


def test_rotation(gaussian, recording, drawn, tmp_path):
    x_t, _, alphas, sigmas = recording
    found = measure_path_rotation(x_t, alphas, sigmas, gaussian)
    path_plots.plot_path_rotation(found, tmp_path / "a.png", "a model")
    checked(drawn[0], tmp_path / "a.png")
    left, right = drawn[0].axes
    # Pure noise and the clean sample have no place on a logarithmic axis of noise.
    np.testing.assert_allclose(line(left, "recorded"), found.measured.angle[1:-1].mean(1).rad2deg())
    np.testing.assert_allclose(line(right, "recorded"), 100 * found.measured.residual[1:-1].mean(1))
    assert left.get_xlim()[0] > left.get_xlim()[1]
    assert left.get_xlim() == right.get_xlim()


def test_alignment(gaussian, recording, drawn, tmp_path):
    found = measure_alignment(*recording, gaussian)
    path_plots.plot_alignment(found, tmp_path / "a.png", "a model")
    checked(drawn[0], tmp_path / "a.png")
    np.testing.assert_allclose(line(drawn[0].axes[0], "predicted target"), found.target.cosine[1:].mean(1))
    assert "above 0.99 down to" in drawn[0].texts[0].get_text() or "above 0.99 down to" in drawn[0].texts[1].get_text()


def test_emergence(gaussian, recording, drawn, tmp_path):
    found = measure_emergence(*recording, gaussian, draws=20)
    path_plots.plot_emergence(found, tmp_path / "a.png", "a model")
    checked(drawn[0], tmp_path / "a.png")
    left, right = drawn[0].axes
    np.testing.assert_allclose(np.sort(line(left, "predicted: sqrt(3 variance)")), np.sort(found.predicted))
    np.testing.assert_allclose(line(right, "direction 1"), found.curve[1:, 0])


def covered(axis) -> list[str]:
    """Lines that run behind the names of the lines."""
    box = axis.get_legend().get_window_extent()
    lines = ((one, one.get_transform().transform_path(one.get_path())) for one in axis.get_lines())
    return [one.get_label() for one, path in lines if path.intersects_bbox(box, filled=False)]


@pytest.mark.parametrize("bare", [False, True])
def test_the_names_of_the_curves_cover_none_of_them(gaussian, searcher, recording, drawn, tmp_path, bare):
    emergence = measure_emergence(*recording, gaussian, draws=20)
    path_plots.plot_emergence(emergence, tmp_path / "a.png", bare=bare)
    assert covered(drawn[0].axes[1]) == []
    levels = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
    rows = compare_denoisers(
        {"Gaussian": gaussian, "other": gaussian}, gaussian.sample(30), [1.0] * 6, levels, reference=gaussian, null=True
    )
    prediction_plots.plot_explained(rows, tmp_path / "b.png", bare=bare)
    assert drawn[1].axes[0].get_legend() is None
    assert covered(drawn[1].axes[1]) == []
    anticipation = measure_anticipation(searcher, *recording, steps=range(0, 24, 4))
    prediction_plots.plot_anticipation(anticipation, tmp_path / "c.png", bare=bare)
    assert covered(drawn[2].axes[1]) == []
    stages = [(step, Nearing(gaussian, share)) for step, share in ((0, 0.1), (25, 0.6), (100, 0.99), (1600, 1.1))]
    learning = measure_learning(
        stages, {"Gaussian": gaussian, "mixture": stages[1][1], "null: isotropic": stages[0][1]}, gaussian.sample(30),
        [1.0], [1.0], null=stages[0][1],
    )  # fmt: skip
    learning_plot.plot_learning(learning, tmp_path / "d.png", bare=bare)
    assert covered(drawn[3].axes[0]) == []
    assert covered(drawn[3].axes[1]) == []
    np.testing.assert_allclose(line(drawn[3].axes[1], "network"), 100 * learning.error[:, 0].mean(1))


class Nearing:
    """A share of what the Gaussian answers."""

    def __init__(self, gaussian, share):
        self.gaussian, self.share = gaussian, share

    def denoise(self, x_t, alpha, sigma):
        return self.share * self.gaussian.denoise(x_t, alpha, sigma)


def test_perturbation(gaussian, drawn, tmp_path):
    x_s = torch.randn(3, D, dtype=torch.float64)
    found = [
        measure_perturbation(lambda x, s=s: gaussian.endpoint(x, 1.0, s), x_s, 1.0, s, gaussian) for s in (0.5, 2, 9)
    ]
    prediction_plots.plot_perturbation(found, tmp_path / "a.png", "a model")
    checked(drawn[0], tmp_path / "a.png")
    for one in drawn[0].axes[1].get_lines():
        np.testing.assert_allclose(one.get_xdata(), one.get_ydata(), rtol=1e-6)  # measured is predicted
    assert "within a factor of 1 of" in drawn[0].texts[-2].get_text()
    noise = measure_perturbation(lambda x: gaussian.endpoint(x, 0.0, 1.0), x_s, 0.0, 1.0, gaussian, controls=0)
    prediction_plots.plot_perturbation([noise], tmp_path / "b.png")
    checked(drawn[1], tmp_path / "b.png")
    with pytest.raises(InputError, match="at least one level"):
        prediction_plots.plot_perturbation([], tmp_path / "c.png")


def test_explained(gaussian, drawn, tmp_path):
    x0 = gaussian.sample(30)
    rows = compare_denoisers(
        {"Gaussian": gaussian}, x0, [1.0] * 4, [0.1, 5.0, 1.0, 20.0], reference=gaussian, null=True
    )
    prediction_plots.plot_explained(rows, tmp_path / "a.png", "a model")
    checked(drawn[0], tmp_path / "a.png")
    np.testing.assert_allclose(line(drawn[0].axes[0], "null: mean"), 0, atol=1e-9)
    np.testing.assert_allclose(line(drawn[0].axes[0], "Gaussian"), 1)
    with pytest.raises(InputError, match="at least one comparison"):
        prediction_plots.plot_explained([], tmp_path / "b.png")


def test_anticipation(searcher, recording, drawn, tmp_path):
    found = measure_anticipation(searcher, *recording, steps=range(0, 24, 4))
    prediction_plots.plot_anticipation(found, tmp_path / "a.png", "a model")
    checked(drawn[0], tmp_path / "a.png")
    left, right = drawn[0].axes
    np.testing.assert_allclose(line(right, "endpoint"), 100 * found.means["endpoint"].mean)
    np.testing.assert_allclose(line(left, "target"), 100 * found.means["target"].mean[1:])
