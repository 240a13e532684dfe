"""The page Map: the collection in two dimensions, coloured, and the pictures behind the points that are selected."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from manifold.errors import InputError

from .figures import BLUE, SERIES, figure, show_figure
from .loading import Opened, explained
from .measured import coordinates, groups, labels, likelihoods, umap_points
from .paging import page_rows
from .pictures import show, thumbnails

__all__ = ["map_figure", "page"]

_A_PAGE = 24
_A_ROW = 8
_IN_ADDRESS = 200
"""Points of a selection that the address keeps; of more it would grow too long to be shared."""


def page(opened: Opened, others: tuple[str, ...]) -> None:
    """Show the page."""
    st.title("Map")
    st.markdown("Every image as a point; click one, or draw a box or a lasso around several, to see the pictures.")
    _map(opened)


@st.fragment
@explained
def _map(opened: Opened) -> None:
    rows = coordinates(opened)
    most = rows.shape[1]
    if most < 2:
        raise InputError(f"a map needs two directions, {opened.name} has one; fit it again with more")
    named = labels(opened.token, opened)
    row = st.container(horizontal=True, vertical_alignment="bottom")
    method = row.segmented_control(
        "Layout",
        ["PCA", "UMAP"],
        default="PCA",
        required=True,
        key="layout",
        bind="query-params",
        help="PCA is exact: two eigen-coordinates. UMAP shows which images are neighbours; its distances mean little.",
    )
    choices = ["label", "cluster", "likelihood", "nothing"] if named else ["cluster", "likelihood", "nothing"]
    color = row.segmented_control(
        "Colour", choices, default=choices[0], required=True, key="colour", bind="query-params"
    )
    if method == "PCA":
        across = int(row.number_input("Direction →", 1, most, 1, key="x", bind="query-params", width=130))
        up = int(row.number_input("Direction ↑", 1, most, 2, key="y", bind="query-params", width=130))
        points = rows[:, [across - 1, up - 1]].numpy()
        axes = tuple(f"coordinate on direction {one} (latent units)" for one in (across, up))
        caption = "Each point is an image, placed by two of its eigen-coordinates; near points share light and layout."
    else:
        if find_spec("umap") is None:
            st.info("UMAP needs umap-learn; run: pip install 'latent-manifold[map]'", icon=":material/info:")
            return
        points = umap_points(opened)
        axes = ("UMAP 1 (no unit)", "UMAP 2 (no unit)")
        caption = "Near points are neighbours in the full space; distances between groups mean nothing."
    categories: list[str] | None = None
    values: np.ndarray | None = None
    if color == "label":
        categories = named
    elif color == "cluster":
        categories = [f"group {one + 1}" for one in groups(opened.token, rows, min(8, len(rows)))]
    elif color == "likelihood":
        values = likelihoods(opened)
    columns: dict[str, Any] = {
        "row": range(len(points)),
        axes[0]: points[:, 0].tolist(),
        axes[1]: points[:, 1].tolist(),
    }
    if categories is not None or values is not None:
        columns[color] = categories if categories is not None else values
    chosen = show_figure(map_figure(points, axes, categories, values), caption, columns, "map", select=True)
    _selected(opened, chosen, categories)


def map_figure(
    points: np.ndarray, axes: tuple[str, ...], categories: list[str] | None, values: np.ndarray | None
) -> go.Figure:
    """Points coloured by category, or by value; each carries its row number.

    Arguments
        points: (n, 2). axes: their two labels. categories: (n,) names. values: (n,) numbers.
    """
    drawn = figure(axes[0], axes[1], height=560)
    size = 7 if len(points) < 3000 else 5 if len(points) < 20_000 else 3
    if categories is not None:
        names = np.asarray(categories)
        for number, name in enumerate(sorted(set(categories), key=_by_number)):
            rows = np.flatnonzero(names == name)
            _points(drawn, points, rows, size, {"color": SERIES[number % len(SERIES)]}, name)
        drawn.update_layout(legend={"itemsizing": "constant"})
    elif values is not None:
        bar = {"title": {"text": "log-likelihood (nats)", "side": "right"}, "thickness": 14, "x": 1.06}
        low, high = np.quantile(values, [0.01, 0.99])
        marker = {"color": values, "colorscale": "Viridis", "cmin": low, "cmax": high, "colorbar": bar}
        _points(drawn, points, np.arange(len(points)), size, marker, "images")
        drawn.update_layout(showlegend=False)
    else:
        _points(drawn, points, np.arange(len(points)), size, {"color": BLUE}, "images")
        drawn.update_layout(showlegend=False)
    drawn.update_layout(dragmode="pan", clickmode="event+select")
    return drawn


def _by_number(name: str) -> tuple[int, str]:
    digits = "".join(character for character in name if character.isdigit())
    return (int(digits) if digits else 0, name)


def _points(
    drawn: go.Figure, points: np.ndarray, rows: np.ndarray, size: int, marker: dict[str, Any], name: str
) -> None:
    drawn.add_scattergl(
        x=points[rows, 0].astype(np.float32),
        y=points[rows, 1].astype(np.float32),
        mode="markers",
        marker={"size": size, "opacity": 0.75, **marker},
        unselected={"marker": {"opacity": 0.25}},
        customdata=rows.astype(np.int32),
        name=name,
        hovertemplate=f"row %{{customdata}}<extra>{name}</extra>",
    )


def _selected(opened: Opened, chosen: Any, categories: list[str] | None) -> None:
    rows = [row for row in _kept(_rows(chosen)) if row < len(opened.store)]
    if not rows:
        st.caption("Nothing is selected.")
        return
    st.subheader(f"Selected: {len(rows):,}")
    if len(rows) > _IN_ADDRESS:
        st.caption(f"The address keeps selections of up to {_IN_ADDRESS} points, so this one is not shared with it.")
    part = [rows[place] for place in page_rows(len(rows), _A_PAGE, "selected")]
    pictures = thumbnails(opened, part)
    for begin in range(0, len(part), _A_ROW):
        columns = st.columns(_A_ROW, gap="small", wrap=False)
        for column, place in zip(columns, range(begin, min(begin + _A_ROW, len(part))), strict=False):
            with column:
                about = f"  \n{categories[part[place]]}" if categories is not None else ""
                show(pictures[place], f"row {part[place]}{about}", side=128)


def _kept(rows: list[int]) -> list[int]:
    """The selection, written to the address; the one that the address names until the reader selects something."""
    state: Any = st.session_state
    if rows:
        state["selected-before"] = True
        if len(rows) <= _IN_ADDRESS:
            st.query_params["rows"] = ",".join(str(row) for row in rows)
            return rows
    elif not state.get("selected-before"):
        named = st.query_params.get("rows", "")
        return sorted({int(one) for one in named.split(",")[:_IN_ADDRESS] if one.isdecimal()})
    if "rows" in st.query_params:
        del st.query_params["rows"]
    return rows


def _rows(chosen: Any) -> list[int]:
    """Row numbers of the selected points, in order."""
    rows = []
    for point in (chosen or {}).get("selection", {}).get("points", []):
        custom = point.get("customdata")
        row = custom[0] if isinstance(custom, list) else custom
        if isinstance(row, int | float):
            rows.append(int(row))
    return sorted(set(rows))
