"""What the pages share of the project's own model: opened once, its classes to choose from, and its statistics by class."""

from __future__ import annotations

from typing import Any

import streamlit as st
from torch import Tensor

from manifold.demo_model import CLASS_NAMES
from manifold.errors import InputError, ManifoldError
from manifold.gaussian import GaussianManifold

from .choosing import Start
from .loading import Opened, sentence
from .painting import NO_CLASS, Painter, class_manifolds, class_of, is_painted
from .work import kept, working

__all__ = ["class_input", "class_now", "classes", "label_name", "network_target", "open_painter", "why_no_painter"]

OWN = "its own"
"""The choice of the class that the image is captioned with."""


def open_painter(opened: Opened) -> Painter | None:
    """The model whose latents the workspace holds; None if they are another's, or it is not installed."""
    if not is_painted(opened.workspace):
        return None
    found = _painter()
    return found if isinstance(found, Painter) else None


def why_no_painter(opened: Opened) -> str | None:
    """Why a workspace of the project's own latents has no painter; None if it has one, or its latents are another's."""
    found = _painter() if is_painted(opened.workspace) else None
    return found if isinstance(found, str) else None


@st.cache_resource(show_spinner="Opening the model …")
def _painter() -> Painter | str:
    from manifold.demo_model import load_demo_model

    try:
        return Painter(load_demo_model())
    except ManifoldError as error:
        return sentence(error)


def label_name(label: int) -> str:
    """Of a class, or "no class"."""
    return "no class" if label == NO_CLASS else CLASS_NAMES[label]


def class_input(row: Any, opened: Opened, start: Start) -> int:
    """Let the reader choose the class that the network is asked for: the image's own, another one, or none."""
    chosen = row.selectbox(
        "Class told to the network",
        (OWN, *CLASS_NAMES, "no class"),
        key="class",
        bind="query-params",
        width=200,
        help="Its own is the class that the image is captioned with; no class where there is none.",
    )
    return _resolved(chosen, opened, start)


def class_now(opened: Opened, start: Start) -> int:
    """The class that `class_input` stands at; the image's own where the page does not ask at the moment."""
    return _resolved(st.session_state.get("class", OWN), opened, start)


def _resolved(chosen: str, opened: Opened, start: Start) -> int:
    if chosen != OWN:
        return class_of(chosen)
    return NO_CLASS if start.row is None else class_of(opened.store.rows([start.row])[0].get("caption"))


def network_target(painter: Painter, x_t: Tensor, sigma: float, label: int) -> Tensor | None:
    """The network's own x0_hat at alpha = 1; None, and a sentence on the page, at a level that it does not know."""
    try:
        return painter.x0_hat(x_t, 1.0, sigma, label)
    except InputError:
        st.caption(f":material/info: The network was not trained at σ = {sigma:g}, so it predicts nothing here.")
        return None


def classes(opened: Opened) -> dict[int, GaussianManifold]:
    """The Gaussian of each class of the collection, measured once."""

    def make() -> dict[int, GaussianManifold]:
        with working("Measuring the classes") as progress:
            return class_manifolds(opened.store, progress)

    return kept(("classes", opened.token), make)
