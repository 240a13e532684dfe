"""The explorer's frame: which pages there are, what stands beside them, and where errors go."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import streamlit as st
from PIL import Image, ImageDraw

from .loading import Opened, explained, open_or_explain

__all__ = ["PAGES", "PageEntry", "show"]


@dataclass(frozen=True)
class PageEntry:
    """One page: a module of this folder with a function `page(opened, others)`, others being files to lay beside it."""

    module: str
    title: str


PAGES = (
    PageEntry("spectrum", "Spectrum"),
    PageEntry("directions", "Directions"),
    PageEntry("outline", "Outline first"),
    PageEntry("retrieve", "Retrieve"),
    PageEntry("trajectories", "Trajectories"),
    PageEntry("mapping", "Map"),
    PageEntry("health", "Health"),
)


_STYLE = """<style>
.stMainBlockContainer {max-width: 1360px; padding-top: 4.2rem; padding-bottom: 3rem}
@media (max-width: 1000px) {.stMainBlockContainer {padding-left: 1.5rem; padding-right: 1.5rem}}
@media (max-width: 720px) {[class*="st-key-pair"] .stColumn {min-width: 100%}}
@media (min-width: 640px) {.stColumn:has(.st-key-sticky) {align-self: flex-start; position: sticky; top: 4rem}}
.stMainBlockContainer .stColumn {min-width: 0}
.stMainBlockContainer [data-testid="stButtonGroup"] button {min-height: 2.5rem}
.stMainBlockContainer h1 {font-size: 2.1rem; padding: 0.2rem 0}
.stMainBlockContainer h3 {font-size: 1.4rem}
</style>"""
"""Two figures stand side by side where each has 330 pixels or more, and below each other where they have not."""


def show(
    workspaces: Sequence[str], only: str | None = None, recordings: Sequence[str] = (), encoder: str | None = None
) -> None:
    """Run the page that the address asks for.

    Arguments
        workspaces: the folder explored, then those that may be laid over it.
        only: run this page, whatever the address; for tests.
        recordings: files of recorded runs, for the page Trajectories.
        encoder: where the encoder of the folder explored lies now, if it moved.
    """
    st.set_page_config(page_title="latent-manifold", page_icon=_badge(), layout="wide")
    st.html(_STYLE)
    if only is not None:
        next(_runner(entry, workspaces, recordings, encoder) for entry in PAGES if entry.module == only)()
        return
    pages = [
        st.Page(
            _runner(entry, workspaces, recordings, encoder),
            title=entry.title,
            url_path=entry.module,
            default=number == 0,
        )
        for number, entry in enumerate(PAGES)
    ]
    st.navigation(pages, position="top").run()


def _runner(
    entry: PageEntry, workspaces: Sequence[str], recordings: Sequence[str], encoder: str | None
) -> Callable[[], None]:
    def run() -> None:
        opened = open_or_explain(workspaces[0], encoder)
        _about(opened)
        module = importlib.import_module(f".{entry.module}", __package__)
        explained(module.page)(opened, tuple(recordings if entry.module == "trajectories" else workspaces[1:]))

    run.__name__ = entry.module
    return run


def _badge() -> Image.Image:
    """The icon of the browser's tab, drawn here: a named one would be fetched from the network."""
    badge = Image.new("RGBA", (64, 64))
    draw = ImageDraw.Draw(badge)
    for radius, color in ((30, "#2456a6"), (19, "#7fa8e6"), (8, "#ffffff")):
        draw.ellipse((32 - radius, 32 - radius, 32 + radius, 32 + radius), fill=color)
    return badge


def _about(opened: Opened) -> None:
    """One line on the workspace, and what of it is missing."""
    manifest = opened.workspace.manifest
    encoder = manifest.recipe.encoder
    shape = " × ".join(str(side) for side in encoder.latent_shape)
    facts = (
        f"**{opened.name}**",
        manifest.recipe.source,
        f"{manifest.count:,} image{'' if manifest.count == 1 else 's'}",
        f"{encoder.kind}, {shape}, d = {encoder.d:,}",
    )
    st.caption(" · ".join(facts))
    for text in opened.missing.values():
        st.caption(f":material/info: {text}")
