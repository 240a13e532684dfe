"""The demo from end to end, on the shipped model."""

import numpy as np
import pytest
from manifold_apps.demo import run_demo
from manifold_apps.strip import Row, draw_strip
from PIL import Image

from index.verify import verify_workspace

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.mark.slow
def test_the_demo_ends_in_pictures_and_a_whole_workspace(tmp_path):
    stages = []
    pictures = run_demo(tmp_path / "demo", progress=lambda stage, done, total: stages.append((stage, done, total)))
    names = ["spectrum", "directions", "outline-first", "retrieval", "anticipation", "teleport"]
    assert [picture.path.stem for picture in pictures] == names
    for picture in pictures:
        pixels = np.asarray(Image.open(picture.path).convert("RGB"))
        assert pixels.shape[0] > 300
        assert pixels.std() > 10, f"{picture.path.name} shows nothing"
    assert verify_workspace(tmp_path / "demo" / "workspace").whole
    for stage in ("fit", "index", "paint", "anticipate", "teleport"):
        last = [told for told in stages if told[0] == stage][-1]
        assert last[1] == last[2], f"{stage} never said that it was done"


def test_a_strip_shows_every_picture_where_its_label_says():
    colours = np.zeros((2, 3, 32, 32, 3), dtype=np.uint8)
    for row in range(2):
        for column in range(3):
            colours[row, column] = (200, 40 * row, 60 * column)
    sheet = draw_strip(
        "heading", "caption", ["a", "b", "c"], [Row("one", colours[0]), Row("two", colours[1], "note", True)]
    )
    pixels = np.asarray(sheet)
    for row in range(2):
        for column in range(3):
            found = (pixels == (200, 40 * row, 60 * column)).all(2).nonzero()
            assert len(found[0]) == 96 * 96, "each pixel is enlarged to 3 x 3, without smoothing"
    first, second = ((pixels == (200, 40 * row, 0)).all(2).nonzero() for row in (0, 1))
    assert first[0].max() < second[0].min()
    assert first[1].max() < (pixels == (200, 0, 60)).all(2).nonzero()[1].min()
