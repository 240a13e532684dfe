"""The map's picture: which images are shown, where, and that a workspace without images still has a map."""

import numpy as np
import pytest
from helpers import make_workspace
from manifold_apps.map_plot import _CELL, _MAP, chosen_thumbnails, draw_map, plot_map
from PIL import Image

from index.encode import encode_images
from index.fit import fit_workspace
from index.projection import project_map
from manifold.errors import InputError


def test_each_cell_shows_the_image_nearest_its_middle(rng):
    places = rng.uniform(0, 400, (300, 2))
    shown = {(one.x // _CELL, one.y // _CELL): one.row for one in chosen_thumbnails(places)}
    cells = {}
    for row, (x, y) in enumerate(places):
        cell = (int(x // _CELL), int(y // _CELL))
        away = (x - (cell[0] + 0.5) * _CELL) ** 2 + (y - (cell[1] + 0.5) * _CELL) ** 2
        cells.setdefault(cell, []).append((away, row))
    assert shown == {cell: min(found)[1] for cell, found in cells.items()}
    assert [one.y for one in chosen_thumbnails(places)] == sorted(one.y for one in chosen_thumbnails(places))


def test_thumbnails_stand_where_their_images_lie(rng):
    """Four images in the corners of the map, each of one colour, are found there in the picture."""
    points = np.array([[-3.0, 2.0], [3.0, 2.0], [-3.0, -2.0], [3.0, -2.0]])
    colours = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250], [250, 250, 10]], dtype=np.uint8)
    asked = []

    def pictures(rows):
        asked.append(rows.tolist())
        return np.broadcast_to(colours[rows][:, None, None], (len(rows), 8, 8, 3))

    sheet, shown = draw_map(points, np.full(4, np.nan), "four", pictures)
    pixels = np.asarray(sheet)
    assert shown == 4
    assert np.sort(np.concatenate(asked)).tolist() == [0, 1, 2, 3]
    left, top, right, bottom = _MAP
    middle_x, middle_y = (left + right) // 2, (top + bottom) // 2
    quarters = [
        pixels[top:middle_y, left:middle_x], pixels[top:middle_y, middle_x:right],
        pixels[middle_y:bottom, left:middle_x], pixels[middle_y:bottom, middle_x:right],
    ]  # fmt: skip
    for colour, quarter in zip(colours, quarters, strict=True):
        assert (quarter == colour).all(2).sum() == (_CELL - 6) ** 2
        for other in colours[(colours != colour).any(1)]:
            assert not (quarter == other).all(2).any()


def test_labels_have_colours_and_too_many_labels_have_none(rng):
    points = rng.standard_normal((60, 2))

    def frames(labels):
        sheet, _ = draw_map(points, labels, "labels", lambda rows: np.zeros((len(rows), 4, 4, 3), dtype=np.uint8))
        return {tuple(colour) for colour in np.asarray(sheet).reshape(-1, 3).tolist()}

    assert (31, 119, 180) in frames(np.arange(60) % 2.0)
    assert (31, 119, 180) not in frames(np.arange(60) % 30.0)
    with pytest.raises(InputError, match="as many labels"):
        draw_map(points, np.zeros(3), "", None)


def test_a_workspace_becomes_a_picture_twice_the_same(tmp_path, rng):
    from test_apps_cli import write_photos

    root = encode_images(write_photos(tmp_path / "photos"), tmp_path / "ws", size=16, workers=0).root
    fit_workspace(root)
    made = project_map(root, "pca")
    path, shown = plot_map(root, made)
    assert path == root / "map" / "map.png"
    assert 15 < shown <= 30
    first = path.read_bytes()
    plot_map(root, made)
    assert path.read_bytes() == first
    with Image.open(path) as picture:
        assert picture.size == (1800, 1300)


def test_embeddings_without_images_become_dots(tmp_path, rng):
    root = make_workspace(tmp_path / "ws", rng.standard_normal((50, 12))).root
    fit_workspace(root)
    path, shown = plot_map(root, project_map(root, "pca"))
    assert shown == 0
    assert np.asarray(Image.open(path)).std() > 1
