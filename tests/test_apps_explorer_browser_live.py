"""The project's own model at work in a real browser: a run is painted, teleported and stopped, a network predicts."""

import re

import pytest
from explorer_server import Reader, browsing, find_chromium, serving

pytest.importorskip("streamlit", reason="needs the explorer extra")
pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="needs Chromium: apt-get install chromium chromium-driver"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    from index.build import build_index
    from index.deposit import deposit_latents, painted_records
    from index.encoders import open_encoder
    from index.fit import fit_workspace
    from manifold.demo_model import CLASS_NAMES, load_gallery

    root = tmp_path_factory.mktemp("live-browser")
    gallery = load_gallery()
    records = painted_records(gallery.labels[:300].numpy(), CLASS_NAMES)
    spec = open_encoder("demo-vae", 32).spec
    deposit_latents(gallery.latents[:300], records, root / "ws", encoder=spec, source="the gallery")
    fit_workspace(root / "ws")
    build_index(root / "ws")
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


def picture_under(tab, caption: str) -> str:
    """Where the picture above a caption comes from, which is the picture itself."""
    figure = tab.locator("[data-testid=stImageContainer], [data-testid=stImage]").filter(has_text=re.compile(caption))
    return figure.last.locator("img").get_attribute("src")


def test_a_run_is_painted_and_teleported(reader):
    tab = reader.open("trajectories?paint=cat&images=2&seed=7&steps=5")
    assert tab.locator(".js-plotly-plot").count() == 0
    tab.get_by_role("button", name="Paint", exact=True).click()
    tab.get_by_text("2 trajectories, 5 evaluations of the network").wait_for()
    tab.get_by_text("teleported: 4 evaluations").wait_for()
    reader.settle()
    assert tab.locator(".js-plotly-plot").count() == 5, "plane, rotation, flatness, modes, differences"
    before = picture_under(tab, "^teleported: 4")
    slider = tab.get_by_role("slider", name="Steps left out")
    slider.focus()
    for _ in range(3):
        slider.press("ArrowRight")
    tab.get_by_text("teleported: 2 evaluations").wait_for()
    reader.settle()
    assert picture_under(tab, "^teleported: 2") != before
    assert "skip=60" in tab.url
    reader.sound()


def test_the_network_predicts_beside_the_closed_form(reader):
    tab = reader.open("outline?row=3&sigma=3.16")
    own = picture_under(tab, "^x0_hat of the network itself, told cat")
    assert own != picture_under(tab, "^x0_hat in closed form")
    tab.get_by_role("combobox", name=re.compile("Class told to the network")).click()
    tab.get_by_role("option", name="ship", exact=True).click()
    tab.get_by_text("x0_hat of the network itself, told ship").wait_for()
    reader.settle()
    assert picture_under(tab, "^x0_hat of the network itself, told ship") != own
    reader.sound()


def test_long_work_is_stopped(reader):
    tab = reader.open("trajectories?images=40&steps=100")
    tab.get_by_role("button", name="Paint", exact=True).click()
    tab.get_by_text(re.compile(r"^Painting: \d+ of 100")).wait_for()
    tab.get_by_role("button", name="Stop", exact=True).click()
    tab.wait_for_selector("[data-test-script-state=notRunning]", state="attached", timeout=30_000)
    assert tab.locator(".js-plotly-plot").count() == 0, "nothing was finished, so nothing is shown"
    reader.sound()
    # The model is free again: a small order is painted, so nobody waits for the rest of the large one.
    again = reader.open("trajectories?images=1&steps=2")
    again.get_by_role("button", name="Paint", exact=True).click()
    again.get_by_text("1 trajectory, 2 evaluations of the network").wait_for()
    reader.settle()
    reader.sound()
