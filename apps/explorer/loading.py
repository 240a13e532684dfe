"""What every page needs of a workspace, opened once and kept: manifold, searcher, encoder, and why one of them is missing.

A workspace that changes on disk (encoded further, fitted or indexed again) is opened anew at the next interaction; so is one
whose encoder could not be opened, as soon as something changes where the encoder should lie.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import streamlit as st

from index.latents import LatentStore
from index.search import Searcher
from index.statistics import load_manifold
from index.workspace import Workspace
from manifold.errors import ManifoldError, ManifoldWarning
from manifold.files import file_stamp
from manifold.gaussian import GaussianManifold

if TYPE_CHECKING:
    from index.encoders import Encoder

__all__ = ["Opened", "explained", "open_or_explain", "open_workspace", "sentence"]

P = ParamSpec("P")

_FILES = ("manifest.json", "stats/stats.safetensors", "index/image.json", "index/image.index")
"""Of a workspace, those that decide what is shown."""
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_ENCODER_FILES = ("model_index.json", "config.json", _WEIGHTS, "vae/config.json", f"vae/{_WEIGHTS}")


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
    """By part, `searcher` or `encoder`: why it could not be opened; `rows`: that the index lacks some. One sentence each."""
    looked_at: str = ""
    """What lay where the encoder should be, when it was looked for."""

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


def explained(part: Callable[P, None]) -> Callable[P, None]:
    """A page, or a fragment of one, whose errors the reader is told in a sentence."""

    @wraps(part)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            part(*args, **kwargs)
        except ManifoldError as error:
            st.error(sentence(error), icon=":material/error:")

    return run


def open_workspace(path: str, encoder: str | None = None) -> Opened:
    """Open a workspace, or return it as it was opened before if its files are the same.

    Arguments
        path: its folder. encoder: where its encoder lies now, if it moved.

    Raises: what `Workspace.open` and `load_manifold` raise; a missing index or encoder is noted in the result instead.
    """
    stamp = _stamp(Path(path), _FILES)
    opened = _open(path, encoder, stamp)
    if "encoder" in opened.missing and opened.looked_at != _encoder_stamp(opened.workspace, encoder):
        _open.clear(path, encoder, stamp)
        opened = _open(path, encoder, stamp)
    return opened


def open_or_explain(path: str, encoder: str | None = None) -> Opened:
    """Open a workspace; where that fails, show a page that says why and what to do, and end the run."""
    try:
        return open_workspace(path, encoder)
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
def _open(path: str, override: str | None, stamp: str) -> Opened:
    workspace = Workspace.open(path)
    workspace.require_complete()
    missing = {}
    searcher: Searcher | None = None
    encoder: Encoder | None = None
    looked_at = _encoder_stamp(workspace, override)
    try:
        with warnings.catch_warnings(action="ignore", category=ManifoldWarning):
            searcher = Searcher.open(path)
        workspace = searcher.workspace  # its rows alone, while others are being added
        if searcher.remark is not None:
            missing["rows"] = searcher.remark
    except ManifoldError as error:
        missing["searcher"] = sentence(error)
    manifold = load_manifold(workspace)
    try:
        encoder = workspace.encoder(override)
    except ManifoldError as error:
        missing["encoder"] = sentence(error)
    return Opened(f"{path} {stamp}", workspace, manifold, searcher, encoder, missing, looked_at)


def _encoder_stamp(workspace: Workspace, override: str | None) -> str:
    """Of the files that an encoder is opened from: in its folder, from the workspace or from here, or in the hub's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    name = override or workspace.manifest.recipe.encoder.id
    cached = Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "snapshots"
    folders = {Path(name).expanduser(), workspace.root / name, *(cached.iterdir() if cached.is_dir() else ())}
    return " ".join(_stamp(folder, _ENCODER_FILES) for folder in sorted(folders))


def _stamp(folder: Path, names: Sequence[str]) -> str:
    """Changes when one of the files does."""
    return " ".join(str(file_stamp(folder / name)) for name in names)
