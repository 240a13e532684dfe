"""The page Health: what came in, what was turned away and why, what is there twice, and what stands out."""

from __future__ import annotations

import numpy as np
import streamlit as st

from index.duplicates import default_threshold
from index.health import reason_counts
from index.shards import read_rejects

from .figures import AMBER, BLUE, figure, pair, show_figure
from .loading import Opened
from .measured import duplicates, likelihoods
from .pictures import show, strip, thumbnails

__all__ = ["page"]

_A_PAGE = 12
_A_ROW = 6
_MEMBERS = 4


def page(opened: Opened, others: tuple[str, ...]) -> None:
    """Show the page."""
    st.title("Health")
    st.markdown("What the collection holds that its owner may not want.")
    manifest = opened.workspace.manifest
    rejects = read_rejects(opened.workspace)
    row = st.container(horizontal=True, gap="medium")
    for label, value in (
        ("Inputs", manifest.recipe.inputs),
        ("Images", manifest.count),
        ("Rejected", len(rejects)),
        ("Shards", len(manifest.shards)),
    ):
        row.metric(label, f"{value:,}", width="content")
    left, right = pair("health")
    with left:
        st.subheader("Rejected")
        _rejects(rejects)
    with right:
        st.subheader("Likelihood")
        values = likelihoods(opened)
        _histogram(values)
    st.subheader("Least likely images")
    _outliers(opened, values)
    st.subheader("Near-duplicates")
    _duplicates(opened)


def _rejects(rejects: list[dict[str, object]]) -> None:
    if not rejects:
        st.success("Every input could be used.", icon=":material/check_circle:")
        return
    counted = reason_counts(rejects)
    drawn = figure("inputs", "reason", height=max(140, 60 + 34 * len(counted)))
    drawn.add_bar(x=list(counted.values()), y=list(counted), orientation="h", marker={"color": AMBER}, width=0.6)
    drawn.update_yaxes(type="category", autorange="reversed")
    drawn.update_xaxes(dtick=1 if max(counted.values()) < 10 else None, rangemode="tozero")
    show_figure(
        drawn,
        "A longer bar is a more frequent reason; the table names each input. They cannot be decoded, so there is no picture.",
        {"reason": list(counted), "inputs": list(counted.values())},
        "rejects",
    )
    names = ("input", "reason", "image_path", "key")
    st.dataframe({name: [reject[name] for reject in rejects] for name in names}, hide_index=True, height=180)


def _histogram(values: np.ndarray) -> None:
    drawn = figure("log-likelihood (nats)", "images", height=340)
    drawn.add_histogram(x=values, nbinsx=60, marker={"color": BLUE}, name="images")
    drawn.update_layout(bargap=0.05, showlegend=False)
    show_figure(
        drawn,
        "Images in the tail at the left are unusual for this collection, in ways its own Gaussian counts.",
        {"row": range(len(values)), "log-likelihood (nats)": values.tolist()},
        "likelihoods",
    )


@st.fragment
def _outliers(opened: Opened, values: np.ndarray) -> None:
    order = np.argsort(values, kind="stable")
    pages = -(-len(order) // _A_PAGE)
    number = int(st.number_input(f"Page, 1 to {pages:,}", 1, pages, 1, key="outliers", bind="query-params", width=180))
    rows = order[(number - 1) * _A_PAGE : number * _A_PAGE].tolist()
    pictures = thumbnails(opened, rows)
    for first in range(0, len(rows), _A_ROW):
        columns = st.columns(_A_ROW, gap="small", wrap=False)
        for column, place in zip(columns, range(first, min(first + _A_ROW, len(rows))), strict=False):
            with column:
                show(pictures[place], f"row {rows[place]}  \n{values[rows[place]]:,.0f} nats", side=128)
    st.caption("From the least likely on; a low value says that an image is unusual, not that it is wrong.")


@st.fragment
def _duplicates(opened: Opened) -> None:
    if opened.searcher is None:
        st.info(opened.missing["searcher"], icon=":material/info:")
        return
    row = st.container(horizontal=True, vertical_alignment="bottom")
    usual = default_threshold(opened.manifold.total_variance)
    threshold = row.number_input(
        "Closer than (latent units)",
        0.0,
        value=float(f"{usual:.3g}"),
        format="%.3g",
        key="closer",
        bind="query-params",
        width=220,
        help="A tenth of the usual distance of two images unless changed.",
    )
    if not row.toggle("Look for them", key="duplicates", bind="query-params", help="Compares the images by pairs."):
        return
    found = duplicates(opened, float(threshold or 0.0))
    if not found.groups:
        st.success("No two images are that close.", icon=":material/check_circle:")
        return
    pages = -(-len(found.groups) // _A_PAGE)
    number = int(row.number_input(f"Page, 1 to {pages:,}", 1, pages, 1, key="groups", bind="query-params", width=180))
    begin = (number - 1) * _A_PAGE
    shown = range(begin, min(begin + _A_PAGE, len(found.groups)))
    for first in range(0, len(shown), _A_ROW // 2):
        columns = st.columns(_A_ROW // 2, gap="medium", wrap=False)
        for column, place in zip(columns, shown[first : first + _A_ROW // 2], strict=False):
            rows = found.groups[place].tolist()
            names = ", ".join(str(one) for one in rows[:_MEMBERS]) + (" …" if len(rows) > _MEMBERS else "")
            with column:
                about = f"rows {names}  \nat most {found.distances[place].max():.3g} from the first (latent units)"
                show(strip(thumbnails(opened, rows[:_MEMBERS]), 128), about)
    st.caption(
        f"{len(found.groups):,} groups with {found.surplus:,} images beyond the first of each; two images of this collection "
        f"usually lie {found.typical_distance:,.3g} latent units apart."
    )
