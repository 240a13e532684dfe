"""A server of the explorer and a headless Chromium to look at it with, for the browser tests and the benchmark."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--enable-unsafe-swiftshader",
]
LIMIT_MS = 120_000


def find_chromium() -> str | None:
    """Debian's Chromium, or another one on the path."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@contextmanager
def browsing() -> Iterator[Any]:
    """Yields a headless Chromium of Playwright's, and closes it."""
    from playwright.sync_api import sync_playwright

    chromium = find_chromium()
    if chromium is None:
        raise SystemExit("needs Chromium: apt-get install chromium chromium-driver")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def serving(*workspaces: Path, log: Path) -> Iterator[str]:
    """Serve workspaces as `manifold explore` does; yields the address, ends the process at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from manifold_apps.cli import main; main()", "explore", str(workspaces[0])]
    for other in workspaces[1:]:
        command += ["--compare", str(other)]
    with log.open("wb") as output:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=output, stderr=output, env={**os.environ})
    try:
        _wait(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _wait(address: str, process: subprocess.Popen, log: Path, limit_s: float = 300) -> None:
    began = time.monotonic()
    while time.monotonic() - began < limit_s:
        try:
            with urllib.request.urlopen(f"{address}/_stcore/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None:
                break
            time.sleep(0.1)
    raise RuntimeError(f"the explorer did not come up: {log.read_text()}")


class Reader:
    """One tab, and what went wrong in it."""

    def __init__(self, browser: Any, address: str, width: int = 1280, scheme: str = "light") -> None:
        self.address = address
        self.faults: list[str] = []
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(LIMIT_MS)
        self.tab.on("pageerror", lambda error: self.faults.append(str(error)))
        self.tab.on("console", self._said)
        self.tab.on("request", self._asked)

    def _said(self, message: Any) -> None:
        # Opened at an address such as /directions, Streamlit first looks for its server below it, is told 404, and goes on.
        probing = "/_stcore/" in str(message.location.get("url", "")) and "404" in message.text
        if message.type == "error" and not probing:
            self.faults.append(f"{message.text} {message.location}")

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.address, "ws://127.0.0.1", "data:", "blob:")):
            self.faults.append(f"asked the network for {request.url}")

    def open(self, path: str) -> Any:
        """Go to an address below the server's; returns the tab once the page has run."""
        self.tab.goto(f"{self.address}/{path}")
        self.tab.wait_for_selector("h1")
        self.settle()
        return self.tab

    def settle(self) -> None:
        """Wait until the script has run."""
        self.tab.wait_for_timeout(150)
        self.tab.wait_for_selector("[data-test-script-state=notRunning]", state="attached")

    def sound(self) -> None:
        """Fail if the page shows an error, or the console or the network had one."""
        assert self.tab.locator("[data-testid=stException]").count() == 0
        assert self.tab.locator("[data-testid=stAlertContentError]").count() == 0
        assert not self.faults, self.faults
