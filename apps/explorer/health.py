"""The page Health: what came in, what was turned away and why, what is there twice, and what stands out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from index.duplicates import default_threshold
from index.health import reason_counts
from index.originals import find_originals
from index.shards import counted_rejects

from .figures import AMBER, BLUE, figure, pair, show_figure
from .loading import Opened, explained
from .measured import duplicates, likelihoods
from .paging import page_rows
from .pictures import show, strip, thumbnails
from .rejected import glimpse_of

if TYPE_CHECKING:
    from index.originals import Originals

__all__ = ["page"]

_A_PAGE = 12
_A_ROW = 6
_MEMBERS = 4
_REJECTS_A_ROW = 4


def page(opened: Opened, others: tuple[str, ...]) -> None:
    """Show the page."""
    st.title("Health")
    st.markdown("What the collection holds that its owner may not want.")
    manifest = opened.workspace.manifest
    rejects = counted_rejects(opened.workspace)
    removed = [("Removed", manifest.removed)] if manifest.removed else []
    row = st.container(horizontal=True, gap="medium")
    for label, value in (
        ("Inputs", manifest.inputs),
        ("Images", manifest.count),
        ("Rejected", manifest.rejects),
        *removed,
        ("Shards", len(manifest.shards)),
    ):
        row.metric(label, f"{value:,}", width="content")
    if rejects:
        left, right = pair("health")
        with left:
            st.subheader("Rejected")
            _rejects(opened, rejects)
    else:
        st.success("Every input could be used.", icon=":material/check_circle:")
        right = st.container()
    _likelihood(opened, right)
    st.subheader("Near-duplicates")
    _duplicates(opened)


@explained
def _likelihood(opened: Opened, place: Any) -> None:
    with place:
        st.subheader("Likelihood")
        values = likelihoods(opened)
        _histogram(values)
    st.subheader("Least likely images")
    _outliers(opened, values)


def _rejects(opened: Opened, rejects: list[dict[str, Any]]) -> None:
    counted = reason_counts(rejects)
    drawn = figure("inputs", "reason", height=max(140, 60 + 34 * len(counted)))
    drawn.add_bar(x=list(counted.values()), y=list(counted), orientation="h", marker={"color": AMBER}, width=0.6)
    drawn.update_yaxes(type="category", autorange="reversed")
    drawn.update_xaxes(dtick=1 if max(counted.values()) < 10 else None, rangemode="tozero")
    show_figure(
        drawn,
        "A longer bar is a more frequent reason; the table names each input.",
        {"reason": list(counted), "inputs": list(counted.values())},
        "rejects",
    )
    names = ("input", "reason", "image_path", "key")
    st.dataframe({name: [reject[name] for reject in rejects] for name in names}, hide_index=True, height=180)
    _rejected_pictures(opened, rejects)


@st.fragment
@explained
def _rejected_pictures(opened: Opened, rejects: list[dict[str, Any]]) -> None:
    """What can still be seen of the rejected files, page by page."""
    originals = _originals(opened.token, opened)
    if originals is None:
        st.caption(
            f":material/info: The files are not beside the workspace, so they have no pictures here; start the explorer "
            f"in the folder that holds {Path(opened.workspace.manifest.recipe.source).name}."
        )
        return
    part = [rejects[place] for place in page_rows(len(rejects), _A_PAGE, "rejects")]
    found = _glimpses(opened.token, originals, [(one["reason"], one["image_path"], one["key"]) for one in part])
    seen = [(reject, picture) for reject, picture in zip(part, found, strict=True) if picture is not None]
    for first in range(0, len(seen), _REJECTS_A_ROW):
        columns = st.columns(_REJECTS_A_ROW, gap="small", wrap=False)
        for column, (reject, picture) in zip(columns, seen[first : first + _REJECTS_A_ROW], strict=False):
            with column:
                show(picture, f"input {reject['input']}  \n{reject['reason']}", side=128)
    closed = len(part) - len(seen)
    if closed:
        whole = "it holds" if closed == 1 else "they hold"
        st.caption(
            f"{closed:,} of {len(part):,} rejected files here cannot be opened at all: {whole} no picture that can be read."
        )


@st.cache_resource(max_entries=6, show_spinner="Looking for the files …")
def _originals(token: str, _opened: Opened) -> Originals | None:
    return find_originals(_opened.workspace)


@st.cache_data(max_entries=64, show_spinner="Opening what can be opened …")
def _glimpses(token: str, _originals: Originals, rejects: list[tuple[str, str, str]]) -> list[np.ndarray | None]:
    names = ("reason", "image_path", "key")
    return [glimpse_of(_originals, dict(zip(names, one, strict=True))) for one in rejects]


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
@explained
def _outliers(opened: Opened, values: np.ndarray) -> None:
    order = np.argsort(values, kind="stable")
    rows = order[list(page_rows(len(order), _A_PAGE, "outliers"))].tolist()
    pictures = thumbnails(opened, rows)
    for first in range(0, len(rows), _A_ROW):
        columns = st.columns(_A_ROW, gap="small", wrap=False)
        for column, place in zip(columns, range(first, min(first + _A_ROW, len(rows))), strict=False):
            with column:
                show(pictures[place], f"row {rows[place]}  \n{_signed(values[rows[place]])} nats", side=128)
    st.caption("From the least likely on; a low value says that an image is unusual, not that it is wrong.")


def _signed(value: float) -> str:
    """Rounded, with a minus sign rather than a hyphen."""
    return f"{value:,.0f}".replace("-", "−")


@st.fragment
@explained
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
    shown = page_rows(len(found.groups), _A_PAGE, "groups", row)
    for first in range(0, len(shown), _A_ROW // 2):
        columns = st.columns(_A_ROW // 2, gap="medium", wrap=False)
        for column, place in zip(columns, shown[first : first + _A_ROW // 2], strict=False):
            rows = found.groups[place].tolist()
            names = ", ".join(str(one) for one in rows[:_MEMBERS]) + (" …" if len(rows) > _MEMBERS else "")
            with column:
                about = f"rows {names}  \nat most {found.distances[place].max():.3g} from the first (latent units)"
                show(strip(thumbnails(opened, rows[:_MEMBERS]), 128), about)
    st.caption(
        f"Groups: {len(found.groups):,}; images beyond the first of each: {found.surplus:,}. Two images of this collection "
        f"usually lie {found.typical_distance:,.3g} latent units apart."
    )
