"""Contact sheet and plots: what they show is where the layout says, and it is what was given."""

import matplotlib
import numpy as np
import pytest
import torch
from manifold_apps.plots import plot_eigenimages, plot_spectrum
from manifold_apps.sheet import Panel, draw_sheet, plan, save_sheet
from matplotlib import pyplot
from PIL import Image

from index.encoders import PixelEncoder
from manifold.diagnostics import diagnose
from manifold.errors import InputError
from manifold.gaussian import GaussianManifold


def panels(rng, count: int, size: int = 16) -> list[Panel]:
    return [Panel(rng.integers(0, 256, (size, size, 3), dtype=np.uint8), f"picture {n}", "note") for n in range(count)]


@pytest.mark.parametrize("neighbours", [1, 5, 7, 20])
def test_every_picture_is_where_the_layout_says(rng, neighbours):
    query, found = panels(rng, 3), panels(rng, neighbours)
    sheet = np.asarray(draw_sheet("heading", "subheading", query, found))
    layout = plan(query, found)
    factor = layout.cell // 16
    assert layout.cell == 16 * factor, "small pictures are enlarged by whole factors"
    places = [(0, column, panel) for column, panel in enumerate(query)]
    places += [(1 + n // layout.columns, n % layout.columns, panel) for n, panel in enumerate(found)]
    for row, column, panel in places:
        x, y = layout.corner(row, column)
        shown = sheet[y : y + layout.cell : factor, x : x + layout.cell : factor]
        np.testing.assert_array_equal(shown, panel.pixels)


def test_large_pictures_are_reduced_and_long_labels_cut(rng):
    panel = Panel(rng.integers(0, 256, (600, 400, 3), dtype=np.uint8), "a very long label " * 20, "and a note " * 20)
    sheet = draw_sheet("heading " * 50, "subheading " * 50, [panel], [panel] * 3)
    assert sheet.width < 1400
    edge = np.asarray(sheet)[:, -20:]
    assert (edge == 255).all(), "nothing runs over the right margin"


def test_sheet_is_saved_as_png(rng, tmp_path):
    save_sheet(draw_sheet("a", "b", panels(rng, 1), panels(rng, 2)), tmp_path / "deep" / "sheet.png")
    with Image.open(tmp_path / "deep" / "sheet.png") as sheet:
        assert sheet.format == "PNG"


@pytest.fixture
def manifold(fixed_seed):
    generator = torch.Generator().manual_seed(fixed_seed)
    scale = 0.5 / torch.arange(1, 49) ** 0.5
    return GaussianManifold.fit((torch.randn(300, 48, generator=generator) * scale).view(300, 3, 4, 4))


def test_plots_are_drawn(manifold, tmp_path):
    numbers = diagnose(manifold.covariance, 300, shape=manifold.shape)
    plot_spectrum(manifold, numbers, tmp_path / "spectrum.png", "test")
    plot_eigenimages(manifold, PixelEncoder(4), tmp_path / "directions.png", rows=3)
    for name in ("spectrum.png", "directions.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 900


def test_a_plot_leaves_the_callers_matplotlib_alone_and_is_the_same_under_any_options(manifold, tmp_path):
    numbers = diagnose(manifold.covariance, 300, shape=manifold.shape)
    plot_spectrum(manifold, numbers, tmp_path / "plain.png")
    with matplotlib.rc_context(
        {"axes.grid.axis": "x", "lines.linestyle": ":", "axes.titlesize": 30, "text.color": "red"}
    ):
        pyplot.switch_backend("svg")
        mine = pyplot.figure()
        before = dict(matplotlib.rcParams)
        plot_spectrum(manifold, numbers, tmp_path / "after.png")
        assert matplotlib.get_backend() == "svg"
        assert dict(matplotlib.rcParams) == before
        assert pyplot.get_fignums() == [mine.number]
        pyplot.close(mine)
    assert (tmp_path / "after.png").read_bytes() == (tmp_path / "plain.png").read_bytes()


def test_eigenimages_show_the_moved_mean(manifold, tmp_path):
    """The colours of the decoded mean and of mean + 3 standard deviations are found in the picture."""
    plot_eigenimages(manifold, PixelEncoder(4), tmp_path / "directions.png", rows=1)
    shown = np.asarray(Image.open(tmp_path / "directions.png").convert("RGB")).reshape(-1, 3)
    colours = {tuple(colour) for colour in np.unique(shown, axis=0).tolist()}
    for step in (-3, 0, 3):
        latent = manifold.mean + step * manifold.eigvals[0].sqrt() * manifold.eigvecs[:, 0]
        image = PixelEncoder(4).decode(latent.view(1, 3, 4, 4))[0].permute(1, 2, 0).reshape(-1, 3).tolist()
        assert sum(tuple(pixel) in colours for pixel in image) >= 15


def test_eigenimages_need_a_shape(tmp_path):
    flat = GaussianManifold.fit(torch.randn(50, 12))
    with pytest.raises(InputError, match="need the latent's shape"):
        plot_eigenimages(flat, PixelEncoder(2), tmp_path / "directions.png")
