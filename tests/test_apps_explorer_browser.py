"""The explorer in a real browser: every page loads, answers, and leaves nothing in the console."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from explorer_server import Reader, browsing, find_chromium, serving
from PIL import Image

pytest.importorskip("streamlit", reason="needs the explorer extra")
pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="needs Chromium: apt-get install chromium chromium-driver"),
]

SIDE = 8
PAGES = {"": "Spectrum", "directions": "Directions", "outline": "Outline first", "retrieve": "Retrieve",
         "trajectories": "Trajectories", "mapping": "Map", "health": "Health"}  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    from manifold_apps.run import run_images

    root = tmp_path_factory.mktemp("browser")
    (root / "pictures").mkdir()
    rng = np.random.default_rng(5)
    for number in range(100):
        coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.int64)
        grainy = (smooth + rng.integers(-3, 4, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(grainy).save(root / "pictures" / f"{number:03d}.png")
    (root / "pictures" / "broken.png").write_bytes(b"no image")
    run_images(root / "pictures", root / "ws", encoder="pixels", size=SIDE, workers=0)
    with serving(root / "ws", log=root / "server.log") as address:
        yield address
    assert "Traceback" not in (root / "server.log").read_text()


@pytest.fixture(scope="module")
def browser():
    with browsing() as started:
        yield started


@pytest.fixture
def reader(browser, address):
    one = Reader(browser, address)
    yield one
    one.context.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (800, "dark")])
def test_every_page_loads_and_fits(browser, address, width, scheme):
    one = Reader(browser, address, width, scheme)
    for path, title in PAGES.items():
        tab = one.open(path)
        assert tab.locator("h1").inner_text() == title
        tab.wait_for_timeout(500)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, title
        cut = tab.evaluate(
            "[...document.querySelectorAll('[data-testid=stMain] img, .js-plotly-plot')]"
            ".filter(e => e.getBoundingClientRect().right > window.innerWidth + 1).length"
        )
        assert cut == 0, f"{title}: {cut} pictures leave the page"
        dark = tab.evaluate("getComputedStyle(document.querySelector('.stApp')).backgroundColor")
        brightness = np.mean([int(part) for part in re.findall(r"\d+", dark)[:3]])
        assert (brightness < 100) == (scheme == "dark")
        one.sound()
    one.context.close()


def test_links_between_the_pages(reader):
    tab = reader.open("")
    for title in ("Retrieve", "Map", "Spectrum"):
        tab.get_by_role("link", name=title, exact=True).first.click()
        tab.get_by_role("heading", name=title, level=1).wait_for()
        reader.settle()
    reader.sound()


def test_a_slider_moves_by_keyboard_and_the_address_keeps_it(reader, browser, address):
    tab = reader.open("directions")
    tab.get_by_text("0 directions moved").wait_for()
    slider = tab.get_by_role("slider").first
    slider.focus()
    for _ in range(5):
        slider.press("ArrowRight")
    tab.get_by_text("1 direction moved").wait_for()
    reader.settle()
    assert "d1=0.5" in tab.url
    reader.sound()
    again = Reader(browser, address)
    shared = again.open(tab.url.removeprefix(f"{address}/"))
    shared.get_by_text("1 direction moved").wait_for()
    assert shared.locator(".board output").first.inner_text() == "0.5 sd"
    again.sound()
    again.context.close()
    tab.get_by_role("button", name="Random", exact=True).click()
    tab.get_by_text(re.compile("[5-8] directions moved")).wait_for()
    tab.get_by_role("button", name="Reset", exact=True).click()
    tab.get_by_text("0 directions moved").wait_for()
    reader.sound()


def test_time_runs_under_the_slider(reader):
    tab = reader.open("outline")
    before = tab.get_by_text(re.compile("under noise of")).inner_text()
    slider = tab.get_by_role("slider").first
    slider.focus()
    for _ in range(8):
        slider.press("ArrowRight")
    tab.wait_for_function(
        "before => [...document.querySelectorAll('[data-testid=stImageCaption]')]"
        ".every(e => e.innerText.trim() !== before.trim())",
        arg=before,
    )
    reader.settle()
    assert "sigma=" in tab.url
    reader.sound()


def picture(side: tuple[int, int], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", side, "teal").save(buffer, kind)
    return buffer.getvalue()


def test_uploads_good_and_bad(reader):
    tab = reader.open("retrieve?start=upload")
    field = tab.locator("[data-testid=stMain] input[type=file]").first
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = io.BytesIO()
    Image.fromarray(noise).save(whole, "JPEG")
    bad = {
        "notes.txt": (b"this is not an image at all", "it is not an image"),
        "wall.png": (picture((10_000, 10_000)), "more than 50 megapixels"),
        "cut.jpg": (whole.getvalue()[:2000], "the file is cut off"),
        "film.mov": (bytes(50_000_000), "has 48 MiB, uploads may have 20"),
    }
    for name, (data, sentence) in bad.items():
        field.set_input_files({"name": name, "mimeType": "application/octet-stream", "buffer": data})
        tab.get_by_text(re.compile(f"^{re.escape(name)} .*{re.escape(sentence)}")).wait_for()
        reader.sound()
    field.set_input_files({"name": "teal.png", "mimeType": "image/png", "buffer": picture((20, 10))})
    tab.get_by_text("query: teal.png").wait_for()
    reader.settle()
    reader.sound()


def test_a_click_on_the_map_shows_the_picture(reader):
    tab = reader.open("mapping?colour=nothing")
    tab.wait_for_selector(".js-plotly-plot .scatterlayer, .js-plotly-plot .gl-canvas", state="attached")
    tab.wait_for_timeout(1000)
    # The point farthest to the right stands alone, so a click meets it and no other.
    place = tab.evaluate(
        """() => {
            const plot = document.querySelector('.js-plotly-plot'), layout = plot._fullLayout, data = plot._fullData[0];
            let best = 0;
            for (let i = 0; i < data.x.length; i++) if (data.x[i] > data.x[best]) best = i;
            const box = plot.getBoundingClientRect();
            return {x: box.x + layout._size.l + layout.xaxis.d2p(data.x[best]),
                    y: box.y + layout._size.t + layout.yaxis.d2p(data.y[best]), row: data.customdata[best]};
        }"""
    )
    tab.mouse.move(place["x"] - 3, place["y"])
    tab.mouse.move(place["x"], place["y"], steps=4)
    tab.wait_for_timeout(300)
    tab.mouse.click(place["x"], place["y"])
    tab.get_by_text("Selected: 1").wait_for()
    assert tab.locator("[data-testid=stImageCaption]").first.inner_text().startswith(f"row {place['row']}")
    reader.sound()


def test_data_and_picture_can_be_downloaded(reader):
    tab = reader.open("")
    with tab.expect_download() as started:
        tab.get_by_role("button", name="CSV").first.click()
    text = Path(started.value.path()).read_text()
    assert text.startswith("rank,variance\n1,")
    tab.locator(".js-plotly-plot").first.hover()
    with tab.expect_download() as started:
        tab.locator("[data-title='Download plot as a PNG'], [data-title='Download plot as a png']").first.click()
    with Image.open(started.value.path()) as saved:
        assert saved.format == "PNG"
        assert saved.width > 600
    reader.sound()


def test_a_saved_edit_loads_as_the_same_sliders(reader, tmp_path):
    tab = reader.open("directions?d1=1.5&d3=-0.7")
    tab.get_by_text("2 directions moved").wait_for()
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Save").click()
    saved = tmp_path / "edit.json"
    download.value.save_as(saved)
    tab.get_by_role("button", name="Reset").click()
    tab.get_by_text("0 directions moved").wait_for()
    reader.settle()
    assert "d1=" not in tab.url
    tab.get_by_role("button", name="Load").click()
    tab.locator("input[type=file]").set_input_files(saved)
    tab.get_by_text("2 directions moved").wait_for()
    reader.settle()
    values = [tab.get_by_role("slider").nth(place).get_attribute("aria-valuetext") for place in range(3)]
    assert values == ["1.5 sd", "0 sd", "−0.7 sd"]
    assert "d1=1.5" in tab.url
    assert "d3=-0.7" in tab.url
    reader.sound()


def test_a_lasso_around_all_points_selects_them_all(reader):
    tab = reader.open("mapping")
    plot = tab.locator(".js-plotly-plot").first
    plot.wait_for()
    tab.wait_for_timeout(1000)
    plot.hover()
    plot.locator("[data-title='Lasso Select']").click()
    box = plot.locator(".nsewdrag").bounding_box()
    left, top, right, bottom = box["x"] + 3, box["y"] + 3, box["x"] + box["width"] - 3, box["y"] + box["height"] - 3
    tab.mouse.move(left, top)
    tab.mouse.down()
    for x, y in ((right, top), (right, bottom), (left, bottom), (left, top + 1)):
        tab.mouse.move(x, y, steps=12)
    tab.mouse.up()
    tab.get_by_text("Selected: 100").wait_for()
    reader.sound()
