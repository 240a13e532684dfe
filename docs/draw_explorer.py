"""Takes the pictures of the explorer that the documentation shows, in a real browser.

    python docs/draw_explorer.py WS [--all FOLDER] [--only PAGE]

WS is the workspace of `manifold demo`. Writes docs/images/explorer-*.png, each page once, 1,280 pixels wide and light. With
`--all FOLDER` nothing of the documentation changes: every view of every page goes to that folder, at 1,280 and 800 pixels
width, light and dark, from top to bottom, to be looked at before a change is called done. Needs Chromium and Playwright.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from explorer_server import browsing, serving  # noqa: E402

IMAGES = ROOT / "docs" / "images"
LIMIT_MS = 300_000


def nothing(tab: Any) -> None:
    """The view is complete as it opens."""


def press(name: str) -> Callable[[Any], None]:
    """Press a button and wait for the figure that it asks for."""

    def act(tab: Any) -> None:
        tab.get_by_role("button", name=name, exact=True).click()
        tab.locator(".js-plotly-plot").last.wait_for()

    return act


def lasso(tab: Any) -> None:
    """Draw a box around some points of the map."""
    tab.locator("[data-title='Box Select']").click()
    area = tab.locator(".nsewdrag").bounding_box()
    for place, move in ((0.62, tab.mouse.move), (0.72, tab.mouse.move)):
        move(area["x"] + place * area["width"], area["y"] + place * area["height"])
        if place < 0.7:
            tab.mouse.down()
    tab.mouse.up()
    tab.get_by_text("Selected:").wait_for()


@dataclass(frozen=True)
class Look:
    """How the page is shown: width in pixels, and `light` or `dark`."""

    width: int
    scheme: str


@dataclass(frozen=True)
class View:
    """A page at an address, and what is done there; `shown` in the documentation or not."""

    name: str
    address: str
    act: Callable[[Any], None] = nothing
    shown: bool = True


VIEWS = (
    View("spectrum", ""),
    View("directions", "directions?start=image&row=8&d1=1.5&d2=-1&d3=2&d5=-1.2"),
    View("gallery", "directions?view=Gallery"),
    View("outline", "outline?row=7&sigma=2.15"),
    View("retrieve", "retrieve?row=7&sigma=2.15&question=target", press("Measure")),
    View("trajectories", "trajectories", press("Paint")),
    View("map", "mapping", lasso),
    View("map-likelihood", "mapping?colour=likelihood", shown=False),
    View("health", "health?duplicates=true"),
)


def settle(tab: Any) -> None:
    """Wait until the page's script has run and its figures are drawn."""
    tab.wait_for_timeout(400)
    tab.wait_for_selector("[data-test-script-state=notRunning]", state="attached")
    tab.wait_for_function("document.querySelector('[data-testid=stSkeleton]') === null")
    tab.wait_for_timeout(700)


def pictures(browser: Any, address: str, view: View, looks: list[Look]) -> Iterator[tuple[Look, Image.Image]]:
    """A view in each look, from top to bottom: the window is made as high as the page, which scrolls inside itself."""
    context = browser.new_context(viewport={"width": looks[0].width, "height": 900}, color_scheme=looks[0].scheme)
    try:
        tab = context.new_page()
        tab.set_default_timeout(LIMIT_MS)
        tab.goto(f"{address}/{view.address}")
        tab.wait_for_selector("h1")
        settle(tab)
        view.act(tab)
        for look in looks:
            tab.emulate_media(color_scheme=look.scheme)
            tab.set_viewport_size({"width": look.width, "height": 900})
            settle(tab)
            height = tab.evaluate("document.querySelector('[data-testid=stMainBlockContainer]').scrollHeight")
            tab.set_viewport_size({"width": look.width, "height": max(400, int(height) + 8)})
            tab.mouse.move(2, 2)
            settle(tab)
            yield look, Image.open(io.BytesIO(tab.screenshot()))
    finally:
        context.close()


def write(image: Image.Image, path: Path) -> None:
    """As PNG without an alpha channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert("RGB").save(path, optimize=True)


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--all", type=Path, metavar="FOLDER")
    parser.add_argument("--only", choices=[view.name for view in VIEWS])
    asked = parser.parse_args()
    views = [view for view in VIEWS if asked.only in (None, view.name) and (asked.all or view.shown)]
    every = [Look(width, scheme) for width in (1280, 800) for scheme in ("light", "dark")]
    looks = every if asked.all else every[:1]
    with (
        tempfile.TemporaryDirectory() as folder,
        browsing() as browser,
        serving(asked.workspace, log=Path(folder) / "log") as address,
    ):
        for view in views:
            for look, taken in pictures(browser, address, view, looks):
                name = f"{view.name}-{look.width}-{look.scheme}" if asked.all else f"explorer-{view.name}"
                path = (asked.all or IMAGES) / f"{name}.png"
                write(taken, path)
                print(path, flush=True)


if __name__ == "__main__":
    main()
