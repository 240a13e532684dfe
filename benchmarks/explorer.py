"""The explorer in a real browser: time to the first page, and from a key press on a slider to the picture it asks for.

Measured with Debian's Chromium, headless, on the same cores as the server; the yardstick is the arithmetic and decoding of
one answer alone.

    python benchmarks/explorer.py WS     a workspace of pixels, such as demo-out/workspace
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "benchmarks"))

from explorer_server import browsing, serving  # noqa: E402
from report import show, write  # noqa: E402

PRESSES = 60
_WAIT = """
([selector, before]) => new Promise(resolve => {
  const started = performance.now();
  const look = () => {
    const found = document.querySelector(selector);
    const now = found && (found.currentSrc || found.innerText);
    if (now && now !== before && (found.tagName !== 'IMG' || found.complete)) resolve(performance.now() - started);
    else requestAnimationFrame(look);
  };
  look();
})
"""


def answers_ms(tab: object, selector: str, presses: int = PRESSES) -> np.ndarray:
    """From a key press on the first slider to the new content of `selector`, painted."""
    slider = tab.get_by_role("slider").first
    slider.focus()
    taken = []
    for press in range(presses):
        before = tab.evaluate(
            "s => { const e = document.querySelector(s); return e.currentSrc || e.innerText; }", selector
        )
        began = time.perf_counter()
        slider.press("ArrowRight" if press % 20 < 10 else "ArrowLeft")
        tab.evaluate(_WAIT, [selector, before])
        taken.append(1000 * (time.perf_counter() - began))
        tab.wait_for_timeout(60)
    return np.array(taken[5:])


def arithmetic_ms(workspace: Path) -> float:
    """One answer of the page Directions without browser and server: the step, its control, three pictures decoded."""
    from index import Workspace
    from index.statistics import load_manifold
    from manifold.edits import Edit

    opened = Workspace.open(workspace)
    fitted, encoder = load_manifold(opened), opened.encoder()
    taken = []
    for number in range(30):
        began = time.perf_counter()
        edit = Edit({0: 0.1 * number, 3: -1.0})
        moved = fitted.mean + torch.stack([edit.step(fitted), edit.control(fitted), torch.zeros(fitted.d)])
        encoder.decode(moved.view(3, *opened.latents.shape))
        taken.append(1000 * (time.perf_counter() - began))
    return float(np.median(taken))


def main() -> None:
    """Measure and print."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python benchmarks/explorer.py WS, with Chromium installed")
    workspace = Path(sys.argv[1])
    rows: list[list[object]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        browsing() as browser,
        serving(workspace, log=Path(folder) / "log") as address,
    ):
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.set_default_timeout(120_000)
        began = time.perf_counter()
        tab.goto(address)
        tab.locator(".js-plotly-plot").first.wait_for()
        rows.append(["first page, server just up, to its first figure", 1000 * (time.perf_counter() - began), None])
        for path, selector, name in (
            ("directions", ".st-key-sticky img", "Directions, 8 sliders"),
            ("directions?sliders=40", ".st-key-sticky img", "Directions, 40 sliders"),
            ("outline", "[data-testid=stColumn]:nth-child(3) img", "Outline first"),
            ("retrieve", "[data-testid=stColumn]:nth-child(2) img", "Retrieve, neighbours of another noise level"),
        ):
            tab.goto(f"{address}/{path}")
            tab.locator(selector).first.wait_for()
            tab.wait_for_timeout(1500)
            taken = answers_ms(tab, selector)
            rows.append([name, float(np.median(taken)), float(np.quantile(taken, 0.95))])
    rows.append(["arithmetic and decoding of one answer alone", arithmetic_ms(workspace), None])
    shown = [[name, middle, "" if high is None else f"{high:.0f}"] for name, middle, high in rows]
    show("Explorer, milliseconds", ["what", "median", "95th percentile"], shown)
    write("explorer", [{"what": name, "median_ms": middle, "p95_ms": high} for name, middle, high in rows])


if __name__ == "__main__":
    main()
