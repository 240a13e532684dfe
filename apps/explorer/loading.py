"""What every page needs of a workspace, opened once and kept: manifold, searcher, encoder, and why one of them is missing.

A workspace that changes on disk (encoded further, fitted or indexed again) is opened anew at the next interaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from index.latents import LatentStore
from index.search import Searcher
from index.statistics import load_manifold
from index.workspace import Workspace
from manifold.errors import ManifoldError
from manifold.gaussian import GaussianManifold

if TYPE_CHECKING:
    from index.encoders import Encoder

__all__ = ["Opened", "open_or_explain", "open_workspace", "sentence"]


@dataclass(frozen=True)
class Opened:
    """A workspace, and what could be opened of it."""

    token: str
    """Changes whenever the files change: the key of everything that is cached about this workspace."""
    workspace: Workspace
    manifold: GaussianManifold
    searcher: Searcher | None
    encoder: Encoder | None
    missing: dict[str, str]
    """By part, `searcher` or `encoder`: the sentence that says why it could not be opened."""

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.workspace.root.resolve().name

    @property
    def store(self) -> LatentStore:
        """Its latents."""
        return self.workspace.latents


def sentence(error: ManifoldError) -> str:
    """An error as the one sentence a person needs."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def open_workspace(path: str) -> Opened:
    """Open a workspace, or return it as it was opened before if its files are the same.

    Raises: what `Workspace.open` and `load_manifold` raise; a missing index or encoder is noted in the result instead.
    """
    return _open(path, _stamp(Path(path)))


def open_or_explain(path: str) -> Opened:
    """Open a workspace; where that fails, show a page that says why and what to do, and end the run."""
    try:
        return open_workspace(path)
    except ManifoldError as error:
        st.title("This workspace cannot be shown")
        st.error(sentence(error), icon=":material/folder_off:")
        st.markdown(
            "The explorer needs a folder that `manifold run IMAGES -w WS` has made, or `encode` followed by `fit`. "
            "`manifold verify WS` reads every file of a workspace and names those that are damaged. "
            "Put it right, then:"
        )
        st.button("Try again", icon=":material/refresh:")
        st.stop()


@st.cache_resource(max_entries=6, show_spinner="Opening the workspace …")
def _open(path: str, stamp: str) -> Opened:
    workspace = Workspace.open(path)
    workspace.require_complete()
    manifold = load_manifold(workspace)
    missing = {}
    searcher: Searcher | None = None
    encoder: Encoder | None = None
    try:
        searcher = Searcher.open(path)
    except ManifoldError as error:
        missing["searcher"] = sentence(error)
    try:
        encoder = workspace.encoder()
    except ManifoldError as error:
        missing["encoder"] = sentence(error)
    return Opened(f"{path} {stamp}", workspace, manifold, searcher, encoder, missing)


def _stamp(root: Path) -> str:
    """Size and time of the files that decide what is shown."""
    names = ("manifest.json", "stats/stats.safetensors", "index/image.json")
    files = [root / name for name in names]
    return " ".join(f"{file.stat().st_mtime_ns}:{file.stat().st_size}" if file.is_file() else "-" for file in files)
