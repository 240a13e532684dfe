"""Of the page Trajectories: images painted on request by the project's own model, and the same ones teleported."""

from __future__ import annotations

from typing import Any

import streamlit as st

from manifold.demo_model import CLASS_NAMES
from manifold.recording import Recording

from .figures import AMBER, BLUE, figure, show_figure
from .live import classes, label_name
from .loading import Opened, explained
from .painting import Moved, Order, Painter, class_of
from .pictures import decode, grid, show
from .sliders import Board
from .work import kept, known, working

__all__ = ["paint_on_request", "teleport_beside"]

_EVERY = "every class in turn"
_MOST = 40
_SHOWN = 10
"""Pictures side by side; of more images the first ones."""
_A_ROW = 5


def paint_on_request(painter: Painter, opened: Opened) -> tuple[Order, Recording] | None:
    """The controls, and the run that was painted last; None until the button was pressed."""
    row = st.container(horizontal=True, vertical_alignment="bottom")
    name = row.selectbox("Class", (_EVERY, *CLASS_NAMES, "no class"), key="paint", bind="query-params", width=190)
    count = int(row.number_input("Images", 1, _MOST, 10, key="images", bind="query-params", width=120))
    seed = int(
        row.number_input(
            "First seed", 0, 2**31 - 1 - _MOST, 1_000_000, key="seed", bind="query-params", width=150,
            help="Of the first image's noise; the next image has the next seed.",
        )
    )  # fmt: skip
    steps = int(row.number_input("Steps", 2, 100, 25, key="steps", bind="query-params", width=120))
    guidance = float(
        row.number_input(
            "Guidance", 0.0, 10.0, 1.5, 0.5, key="guidance", bind="query-params", width=120,
            help="w in v(none) + w (v(class) - v(none)); 1 is none, and asks the network once a step.",
        )
    )  # fmt: skip
    labels = tuple(place % len(CLASS_NAMES) if name == _EVERY else class_of(name) for place in range(count))
    order = Order(labels, tuple(range(seed, seed + count)), steps, guidance)
    state: Any = st.session_state
    if row.button("Paint", icon=":material/brush:", type="primary", key="paint-now"):
        with working("Painting") as progress:
            kept(_key(opened, order), lambda: painter.paint(order, progress))
        state["painted"] = order
    shown: Order | None = state.get("painted")
    if shown is None or not known(_key(opened, shown)):
        st.info("Choose a class and press Paint: the run is recorded and shown here.", icon=":material/brush:")
        return None
    if shown != order:
        st.caption(":material/info: Shown is the run painted last; press Paint for the one chosen above.")
    return shown, kept(_key(opened, shown), lambda: painter.paint(shown))


def _key(opened: Opened, order: Order) -> tuple[Any, ...]:
    return ("painted", opened.token, order)


@st.fragment
@explained
def teleport_beside(painter: Painter, opened: Opened, order: Order, recording: Recording, chosen: int) -> None:
    """The run started late, from the state that the closed form says its noise would reach, beside the run of all steps."""
    st.subheader("Teleportation")
    board = Board(
        {"skip": "Steps left out"}, range(0, 100, 10), 30, unit="%",
        hint="The first steps of the sampler, replaced by one step in closed form.",
    )  # fmt: skip
    percent = board.values["skip"]
    place = st.container(width=360)
    full = recording.x_t[-1]
    key = ("moved", opened.token, order, percent)
    statistics = classes(opened)
    if not known(key):
        with working("Painting the rest") as progress:
            kept(key, lambda: painter.move(order, full, percent / 100, opened.manifold, statistics, progress))
    moved: Moved = kept(key, lambda: painter.move(order, full, percent / 100, opened.manifold, statistics))
    _numbers(moved, chosen)
    shown = min(len(order.labels), _SHOWN)
    left, right = st.columns(2, gap="medium", wrap=False)
    whose = "its own class" if moved.by_class else "the collection"
    across = min(shown, _A_ROW)
    with left:
        show(
            grid(decode(opened, full[:shown]), across),
            f"all steps: {moved.evaluations + moved.saved} evaluations of the network",
        )
    with right:
        show(
            grid(decode(opened, moved.latents[:shown]), across),
            f"teleported: {moved.evaluations} evaluations, each image moved there by the statistics of {whose}",
        )
    if len(order.labels) > 1:
        _differences(moved, order)
    board.show(place)


def _numbers(moved: Moved, chosen: int) -> None:
    first, second, third, fourth = st.columns(4)
    first.metric("Evaluations saved", f"{moved.saved} of {moved.evaluations + moved.saved}")
    second.metric("Starts at σ / α", f"{moved.start:.3g}")
    third.metric(
        "RMS difference, mean (sd)", f"{float(moved.differences.mean()):.3f}",
        help="Of the latents, in standard deviations of the collection; unrelated images are about 1.41 apart.",
    )  # fmt: skip
    fourth.metric(f"Of trajectory {chosen + 1} (sd)", f"{float(moved.differences[chosen]):.3f}")


def _differences(moved: Moved, order: Order) -> None:
    names = [f"{place + 1} {label_name(label)}" for place, label in enumerate(order.labels)]
    drawn = figure("trajectory, and its class", "RMS difference (sd)", height=260)
    drawn.add_bar(x=names, y=moved.differences.tolist(), marker={"color": BLUE})
    drawn.add_hline(y=2**0.5, line={"color": AMBER, "dash": "dot", "width": 1.5})
    show_figure(
        drawn,
        "Distance of each image from that of all steps, in standard deviations (sd) of the collection; at the dotted line "
        "images are unrelated.",
        {
            "trajectory": list(range(1, len(names) + 1)),
            "class": [label_name(label) for label in order.labels],
            "seed": list(order.seeds),
            "RMS difference (sd)": moved.differences.tolist(),
        },
        "teleport",
    )
