"""The explorer's frame: which pages there are, what stands beside them, and where errors go."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import streamlit as st

from manifold.errors import ManifoldError

from .loading import Opened, open_or_explain, sentence

__all__ = ["PAGES", "PageEntry", "show"]


@dataclass(frozen=True)
class PageEntry:
    """One page: a module of this folder with a function `page(opened, others)`."""

    module: str
    title: str
    icon: str


PAGES = (PageEntry("spectrum", "Spectrum", ":material/show_chart:"),)


def show(workspaces: Sequence[str], only: str | None = None) -> None:
    """Run the page that the address asks for.

    Arguments
        workspaces: the folder explored, then those that may be laid over it.
        only: run this page, whatever the address; for tests.
    """
    st.set_page_config(page_title="latent-manifold", page_icon=":material/blur_on:", layout="wide")
    st.html("<style>.block-container{padding-top:3.2rem;max-width:1400px}</style>")
    if only is not None:
        next(_runner(entry, workspaces) for entry in PAGES if entry.module == only)()
        return
    pages = [
        st.Page(
            _runner(entry, workspaces), title=entry.title, icon=entry.icon, url_path=entry.module, default=number == 0
        )
        for number, entry in enumerate(PAGES)
    ]
    st.navigation(pages).run()


def _runner(entry: PageEntry, workspaces: Sequence[str]) -> Callable[[], None]:
    def run() -> None:
        opened = open_or_explain(workspaces[0])
        _beside(opened)
        module = importlib.import_module(f".{entry.module}", __package__)
        try:
            module.page(opened, tuple(workspaces[1:]))
        except ManifoldError as error:
            st.error(sentence(error), icon=":material/error:")

    run.__name__ = entry.module
    return run


def _beside(opened: Opened) -> None:
    manifest = opened.workspace.manifest
    encoder = manifest.recipe.encoder
    shape = " × ".join(str(side) for side in encoder.latent_shape)
    with st.sidebar:
        st.markdown(f"**{opened.name}**")
        st.caption(
            f"{manifest.recipe.source}  \n{manifest.count:,} images  \n{encoder.kind}, {shape}, d = {encoder.d:,}  \n"
            f"total variance {opened.manifold.total_variance:,.4g}"
        )
        for text in opened.missing.values():
            st.caption(f":material/info: {text}")
