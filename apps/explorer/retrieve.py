"""The page Retrieve: which images a noisy state could have come from, and which it is heading to."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import streamlit as st
import torch

from index.anticipation import Anticipation, measure_anticipation
from index.search import Hits, Question
from manifold.noising import noised, noised_path

from .choosing import Start, choose_start
from .figures import BLUE, GREY, SERIES, figure, show_figure
from .live import class_input, class_now, label_name, network_target, open_painter
from .loading import Opened, explained
from .noise import LEVELS, level_board, seed_input
from .painting import NO_CLASS, Painter
from .pictures import decode, same_size, show, thumbnails
from .work import working

__all__ = ["page"]

_ASKED: dict[Question, str] = {
    "source": "Which images could this state have come from? Bayes' posterior over the whole collection.",
    "target": "What is it heading to? As endpoint, corrected by the network's own prediction where there is one.",
    "endpoint": "What will the final image be near to? Distance to the closed-form solution without noise.",
}
_CURVES = {"target": "target", "endpoint": "endpoint", "raw": "plain distance to x_t", "network": "plain distance to x0_hat",
           "random": "at random"}  # fmt: skip
_PATHS = 8
_A_ROW = 5


def page(opened: Opened, others: tuple[str, ...]) -> None:
    """Show the page."""
    st.title("Retrieve")
    st.markdown("Search the collection from a noisy state, before the image is finished.")
    if opened.searcher is None:
        st.info(opened.missing["searcher"], icon=":material/search_off:")
        return
    start = choose_start(opened)
    if start is None:
        st.info("Upload an image to search with.", icon=":material/upload:")
        return
    _search(opened, start)
    _anticipation(opened, start)


@st.fragment
@explained
def _search(opened: Opened, start: Start) -> None:
    assert opened.searcher is not None
    controls = st.container(horizontal=True, vertical_alignment="bottom")
    question: Question = controls.segmented_control(
        "Question", list(_ASKED), default="source", required=True, key="question", bind="query-params"
    )
    k = int(controls.number_input("Neighbours", 1, 50, 10, key="k", bind="query-params", width=140))
    seed = seed_input(controls)
    painter = open_painter(opened) if question == "target" else None
    label = NO_CLASS if painter is None else class_input(controls, opened, start)
    board = level_board(1.0)
    sigma = board.values["sigma"]
    place = st.container()
    x_t = noised(start.latent, 1.0, sigma, seed)
    own = None if painter is None else network_target(painter, x_t, sigma, label)
    hits = opened.searcher.search(x_t, 1.0, sigma, question, k, x0_hat=own)
    target = opened.searcher.predict(x_t, 1.0, sigma)
    st.caption(_ASKED[question])
    latents = [start.latent, same_size(x_t, start.latent), target]
    captions = [f"query: {start.about}", f"x_t at σ = {sigma:g}", "x0_hat, predicted target"]
    if own is not None:
        latents.append(own)
        captions.append(f"x0_hat of the network, told {label_name(label)}")
    pictures = decode(opened, torch.cat(latents))
    columns = st.columns(_A_ROW, gap="small", wrap=False)
    for column, picture, caption in zip(columns, pictures, captions, strict=False):
        with column:
            show(picture, caption)
    st.subheader("Neighbours, best first")
    rows = hits.rows()
    _neighbours(opened, hits, rows, start.row)
    _table(rows, hits.score_name)
    board.show(place)


def _neighbours(opened: Opened, hits: Hits, rows: list[dict[str, Any]], own: int | None) -> None:
    pictures = thumbnails(opened, hits.ids[0].tolist())
    for first in range(0, len(rows), _A_ROW):
        columns = st.columns(_A_ROW, gap="small", wrap=False)
        for column, place in zip(columns, range(first, min(first + _A_ROW, len(rows))), strict=False):
            with column:
                row = rows[place]
                mark = " · the query itself" if row["row"] == own else ""
                show(
                    pictures[place], f"{_score(hits.score_name, row)}  \nrow {row['row']}{_label(row)}{mark}", side=128
                )


def _score(name: str, row: dict[str, Any]) -> str:
    if name == "distance":
        return f"distance {row[name]:.3g}"
    return f"{row[name]:.1%}" if row[name] >= 0.001 else "under 0.1%"


def _label(row: dict[str, Any]) -> str:
    if row.get("caption"):
        return f", {row['caption']}"
    return "" if row.get("label") is None else f", label {row['label']}"


def _table(rows: list[dict[str, Any]], score: str) -> None:
    names = ["row", score, "label", "caption", "key", "image_path", "width", "height"]
    with st.expander("As a table", icon=":material/table_rows:"):
        st.dataframe({name: [row.get(name) for row in rows] for name in names}, hide_index=True)


def _anticipation(opened: Opened, start: Start) -> None:
    """How much of the clean image's neighbourhood is known at each noise level, on request."""
    st.subheader("Anticipation")
    st.caption(
        f"How many of the clean image's neighbours are found at each noise level, over {_PATHS} draws of the noise, and what "
        "plain distances would find."
    )
    painter = open_painter(opened)
    label = NO_CLASS if painter is None else class_now(opened, start)
    if painter is not None:
        st.caption(f"Predictions x0_hat are those of the network, told {label_name(label)}.")
    key = f"anticipation {opened.token} {start.about} {float(start.latent.sum())} {label}"
    if key not in st.session_state:
        if not st.button("Measure", icon=":material/timeline:", key="measure"):
            return
        with working("Searching at every noise level") as progress:
            st.session_state[key] = _measured(opened, start, painter, label, progress)
        st.rerun()
    found: Anticipation = st.session_state[key]
    sigmas = found.sigmas.tolist()
    show_figure(
        anticipation_figure(found),
        "The earlier a curve rises, the sooner the neighbours of the finished image are known; bands are 95 % intervals "
        "over draws of the noise.",
        {"sigma": sigmas, **{label: found.means[name].mean.tolist() for name, label in _CURVES.items()}},
        "anticipation",
    )


def _measured(opened: Opened, start: Start, painter: Painter | None, label: int, progress: Any) -> Anticipation:
    assert opened.searcher is not None
    sigmas = [*LEVELS[::3], 0.0]
    path = noised_path(start.latent.expand(_PATHS, -1), [1.0] * len(sigmas), sigmas)
    targets = torch.stack(
        [
            opened.manifold.denoise(state, 1.0, sigma) if painter is None else painter.x0_hat(state, 1.0, sigma, label)
            for state, sigma in zip(path[:-1], sigmas[:-1], strict=True)
        ]
    )
    return measure_anticipation(opened.searcher, path, targets, [1.0] * len(sigmas), sigmas, progress=progress)


def anticipation_figure(found: Anticipation) -> go.Figure:
    """Shares of the true neighbours by noise level."""
    drawn = figure("noise level σ (latent units), falling with time", "neighbours found (%)", log_x=True)
    colors = {"target": BLUE, "endpoint": SERIES[2], "raw": SERIES[1], "network": SERIES[3], "random": GREY}
    for name, label in _CURVES.items():
        interval = found.means[name]
        color = colors[name]
        if name in ("target", "endpoint"):
            edge = np.concatenate([interval.high.numpy(), interval.low.numpy()[::-1]])
            around = np.concatenate([found.sigmas.numpy(), found.sigmas.numpy()[::-1]])
            drawn.add_scatter(
                x=around, y=100 * edge, fill="toself", fillcolor=color, opacity=0.18, line={"width": 0}, hoverinfo="skip",
                showlegend=False, mode="lines",
            )  # fmt: skip
        line = {"color": color, "width": 2, "dash": "dot" if name == "random" else "solid"}
        drawn.add_scatter(
            x=found.sigmas.tolist(), y=(100 * interval.mean).tolist(), mode="lines", name=label, line=line
        )
    drawn.update_xaxes(autorange="reversed")
    drawn.update_yaxes(range=[-3, 103])
    return drawn
