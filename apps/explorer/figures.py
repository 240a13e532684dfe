"""Figures as every page shows them: axes with units, a sentence that says how to read them, and both downloads.

Colours are those of Streamlit's theme, light or dark; the toolbar of a figure saves it as a picture.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import streamlit as st

__all__ = ["AMBER", "BLUE", "GREY", "SERIES", "figure", "pair", "show_figure", "table_csv"]

BLUE, AMBER, GREY = "#4c82d6", "#dd8b2c", "#8a8f98"
"""Legible on white and on black alike."""
SERIES = (BLUE, AMBER, "#3fa37a", "#c65b7c", "#8f6fd0", "#5aa9b8", "#b8a23a", "#9a6b4f", "#6f8a3a", "#d06fb5")
"""Colours of categories, in order."""


def figure(x: str, y: str, *, height: int = 400, log_x: bool = False, log_y: bool = False) -> go.Figure:
    """An empty figure with labelled axes.

    Arguments
        x, y: labels, each with its unit. height: in pixels. log_x, log_y: logarithmic axes, a label for each decade.
    """
    axis = {"showline": True, "linecolor": GREY, "ticks": "outside", "tickcolor": GREY, "automargin": True}
    # Plotly draws the labels of decades a quarter larger than it is told.
    logarithmic = {"type": "log", "dtick": 1, "exponentformat": "power", "tickfont": {"size": 10}}
    # In one piece: Plotly checks a layout anew at every update, which a page with a slider pays at every move.
    return go.Figure(
        layout={
            "height": height,
            "margin": {"l": 8, "r": 44, "t": 12, "b": 8},
            "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "title": None},
            "modebar": {"orientation": "v"},
            "hovermode": "closest",
            "xaxis": {"title": {"text": x}, **axis, **(logarithmic if log_x else {})},
            "yaxis": {"title": {"text": y}, **axis, **(logarithmic if log_y else {})},
        }
    )


def pair(name: str) -> tuple[Any, Any]:
    """Two columns that stand below each other on a narrow page. `name`: unique on the page."""
    left, right = st.container(key=f"pair-{name}").columns(2, gap="large")
    return left, right


def show_figure(
    drawn: go.Figure,
    caption: str,
    data: Mapping[str, Sequence[Any]],
    name: str,
    *,
    select: bool = False,
) -> Any:
    """Show a figure with its caption and the download of its data.

    Arguments
        drawn: the figure. caption: one sentence that says how to read it.
        data: columns of one length each, as drawn, written to CSV when asked for. name: of the files, and of the widgets.
        select: whether points can be selected by a click, a box or a lasso.

    Returns: the selection, if `select`.
    """
    config = {
        "displaylogo": False,
        "displayModeBar": True,
        "modeBarButtonsToRemove": [
            "zoomIn2d",
            "zoomOut2d",
            "autoScale2d",
            *([] if select else ["select2d", "lasso2d"]),
        ],
        "toImageButtonOptions": {"format": "png", "filename": name, "scale": 2},
    }
    chosen = None
    if select:
        chosen = st.plotly_chart(drawn, config=config, key=f"figure-{name}", on_select="rerun")
    else:
        st.plotly_chart(drawn, config=config, key=f"figure-{name}")
    row = st.container(horizontal=True, wrap=False, vertical_alignment="top")
    row.caption(caption)
    row.download_button(
        "CSV",
        lambda: table_csv(data),
        file_name=f"{name}.csv",
        mime="text/csv",
        key=f"data-{name}",
        icon=":material/download:",
        help="The data of this figure; the camera beside the figure saves it as a picture",
        on_click="ignore",
    )
    return chosen


def table_csv(data: Mapping[str, Sequence[Any]]) -> str:
    """Columns as CSV with a header; shorter columns end in empty cells."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(data)
    columns = [list(column) for column in data.values()]
    for row in range(max((len(column) for column in columns), default=0)):
        writer.writerow([column[row] if row < len(column) else "" for column in columns])
    return text.getvalue()
