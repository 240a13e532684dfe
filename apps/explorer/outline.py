"""The page Outline first: a clean image under noise, what can be told of it, and what is decided already."""

from __future__ import annotations

import plotly.graph_objects as go
import streamlit as st
import torch

from manifold.noising import Decided, decided, noised

from .choosing import Start, choose_start
from .figures import AMBER, BLUE, GREY, SERIES, figure, pair, show_figure
from .live import class_input, label_name, network_target, open_painter
from .loading import Opened, explained
from .noise import LEVELS, level_board, seed_input
from .painting import NO_CLASS
from .pictures import decode, grid, same_size, show

__all__ = ["page"]

_DRAWS = 6
_FIGURES = "decided"
"""Key of the fragment below the pictures."""
_MODES = (1, 2, 5, 10, 30, 100, 300)
"""Ranks whose curves are drawn."""


def page(opened: Opened, others: tuple[str, ...]) -> None:
    """Show the page."""
    st.title("Outline first")
    st.markdown(
        "Light and outline of an image are decided under noise in which nothing can be seen; details come later."
    )
    start = choose_start(opened)
    if start is None:
        st.info("Upload an image to put it under noise.", icon=":material/upload:")
        return
    _time(opened, start)
    _figures(opened)


@st.fragment
@explained
def _time(opened: Opened, start: Start) -> None:
    board = level_board(rest=_FIGURES)
    sigma = board.values["sigma"]
    controls = st.container(horizontal=True, vertical_alignment="bottom")
    place = controls.container()
    seed = seed_input(controls)
    painter = open_painter(opened)
    label = class_input(controls, opened, start) if painter is not None else NO_CLASS
    manifold = opened.manifold
    x_t = noised(start.latent, 1.0, sigma, seed)
    posterior = manifold.posterior(x_t, 1.0, sigma)
    draws = posterior.sample(_DRAWS, torch.Generator().manual_seed(seed))[:, 0]
    own = None if painter is None else network_target(painter, x_t, sigma, label)
    targets = [posterior.mean] if own is None else [posterior.mean, own]
    pictures = decode(opened, torch.cat([start.latent, same_size(x_t, start.latent), *targets, draws]))
    captions = [
        f"x0: {start.about}",
        f"x_t: under noise of σ = {sigma:g}, at the length of x0",
        "x0_hat in closed form: the mean of p(x0 | x_t)",
    ]
    if own is not None:
        captions.append(f"x0_hat of the network itself, told {label_name(label)}")
    columns = st.columns([*[3] * len(captions), 4], gap="medium", wrap=False)
    for column, picture, caption in zip(columns[:-1], pictures, captions, strict=False):
        with column:
            show(picture, caption)
    with columns[-1]:
        show(
            grid(pictures[len(captions) :], 3, 128),
            f"{_DRAWS} samples of p(x0 | x_t): where they agree, the image is decided",
        )
    board.show(place)


@st.fragment(key=_FIGURES)
@explained
def _figures(opened: Opened) -> None:
    """What is decided: drawn anew where the slider comes to rest, for a browser takes longer over it than over pictures."""
    manifold = opened.manifold
    sigma = level_board().values["sigma"]
    now = decided(manifold, 1.0, sigma)
    left, right = pair("outline")
    with left:
        st.subheader("Decided at this level")
        ranks = list(range(1, manifold.k + 1))
        show_figure(
            share_figure(now, ranks),
            f"{now.count:,} of {manifold.k:,} directions, with {now.variance:.1%} of the variance, are half decided: "
            "their curve lies above the dotted line.",
            {"rank": ranks, "share of final value": now.shares.tolist()},
            "decided-now",
        )
    with right:
        st.subheader("When each direction is decided")
        curves = {rank: _curve(opened, rank) for rank in _MODES if rank <= manifold.k}
        show_figure(
            emergence_figure(curves, sigma),
            "Each curve is one direction and time runs to the right: the directions of largest variance are decided first, "
            "half of each at the noise level √(3λ).",
            {"sigma": LEVELS, **{f"direction {rank}": curve for rank, curve in curves.items()}},
            "emergence",
        )


@st.cache_data(max_entries=16, show_spinner=False)
def _curves(token: str, _opened: Opened) -> list[list[float]]:
    return [decided(_opened.manifold, 1.0, level).shares[: max(_MODES)].tolist() for level in LEVELS]


def _curve(opened: Opened, rank: int) -> list[float]:
    return [shares[rank - 1] for shares in _curves(opened.token, opened)]


def share_figure(now: Decided, ranks: list[int]) -> go.Figure:
    """Share of its final value that x0_hat has reached, by direction."""
    drawn = figure("rank of the direction", "share of its final value (%)", log_x=True, height=360)
    drawn.add_scatter(
        x=ranks,
        y=(100 * now.shares).tolist(),
        mode="lines",
        line={"color": BLUE, "width": 2.4},
        name="share",
        fill="tozeroy",
    )
    drawn.add_hline(y=50, line={"color": GREY, "dash": "dot", "width": 1.5})
    drawn.update_yaxes(range=[0, 104])
    drawn.update_layout(showlegend=False)
    return drawn


def emergence_figure(curves: dict[int, list[float]], sigma: float) -> go.Figure:
    """Share of the final value by noise level, for some directions, and where the slider stands."""
    drawn = figure(
        "noise level σ (latent units), falling with time", "share of its final value (%)", log_x=True, height=360
    )
    for number, (rank, curve) in enumerate(curves.items()):
        line = {"color": SERIES[number % len(SERIES)], "width": 2}
        drawn.add_scatter(x=LEVELS, y=[100 * share for share in curve], mode="lines", name=f"{rank}", line=line)
    drawn.update_layout(legend={"title": {"text": "direction "}})
    drawn.add_vline(x=sigma, line={"color": AMBER, "width": 2})
    drawn.update_xaxes(autorange="reversed")
    drawn.update_yaxes(range=[0, 104])
    return drawn
