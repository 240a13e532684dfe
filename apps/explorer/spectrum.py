"""The page Spectrum: how variance is spread over directions, channels and spatial frequencies."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
import streamlit as st
from torch import Tensor

from manifold.covariance import LowRankCovariance
from manifold.diagnostics import Diagnostics, diagnose, verdict
from manifold.errors import ManifoldError
from manifold.reproducibility import SplitHalf
from manifold.spectrum import SHARES, power_law_line

from .figures import AMBER, BLUE, GREY, SERIES, figure, pair, show_figure
from .loading import Opened, open_workspace, sentence
from .measured import halves

__all__ = ["page", "prepare"]

_GREEN = SERIES[2]
_QUICK = 10**9
"""Multiplications, of two covariances and their decompositions, that need no question: under a second."""


def page(opened: Opened, others: tuple[str, ...]) -> None:
    """Show the page."""
    st.title("Spectrum")
    st.markdown("How the variance of the collection is spread over the directions of its latent space.")
    numbers, known = prepare(opened)
    other = _other(others)
    _facts(opened, numbers)
    split = _asked(opened) if known is None else known
    if split is not None:
        st.info(verdict(_diagnose_with(opened, split)), icon=":material/verified:")
    left, right = pair("spectrum")
    with left:
        st.subheader("Eigenvalues")
        show_figure(
            eigenvalue_figure(opened, numbers, split, other),
            _reading(numbers, split),
            {"rank": range(1, opened.manifold.k + 1), "variance": opened.manifold.eigvals.tolist()},
            "eigenvalues",
        )
    with right:
        st.subheader("Variance explained")
        show_figure(
            cumulative_figure(opened, numbers, other),
            "The curve says which share of the variance the leading directions hold together; the dots count them for "
            "50, 80, 90, 95 and 99 %.",
            {"directions": range(1, opened.manifold.k + 1), "share of variance": numbers.cumulative.tolist()},
            "variance-explained",
        )
    if numbers.channel_variance is not None and numbers.radial_power is not None:
        _power(opened, numbers, other)


def _reading(numbers: Diagnostics, split: SplitHalf | None) -> str:
    """How to read the eigenvalues, as much of it as is drawn."""
    parts = ["The steeper the fall, the fewer directions hold most of the variance"]
    if numbers.power_law is not None:
        parts.append(f"the dashed exponent is {numbers.power_law.low:.2f} to {numbers.power_law.high:.2f}")
    if split is not None and split.reproducible:
        parts.append("two halves of the images agree on the directions in the shaded range")
    if numbers.noise_edge is not None:
        parts.append("below the dotted Marchenko–Pastur edge independent noise alone could make such eigenvalues")
    return "; ".join(parts) + "."


def _facts(opened: Opened, numbers: Diagnostics) -> None:
    row = st.container(horizontal=True, gap="medium")
    half = numbers.components[SHARES.index(0.5)]
    most = numbers.components[SHARES.index(0.95)]
    facts = (
        ("Images", f"{numbers.count:,}", "Latents behind the estimate."),
        ("Total variance", f"{numbers.trace:,.4g}", "Trace of the covariance, in latent units squared."),
        (
            "Participation ratio",
            f"{numbers.participation_ratio:.3g}",
            "Number of equal directions with the same spread.",
        ),
        ("Directions for 50 %", _count(half, opened), "Leading directions that hold half of the variance."),
        ("Directions for 95 %", _count(most, opened), "Leading directions that hold 95 % of the variance."),
    )
    for label, value, help_text in facts:
        row.metric(label, value, help=help_text, width="content")


def _count(needed: int | None, opened: Opened) -> str:
    return f"over {opened.manifold.k:,}" if needed is None else f"{needed:,}"


def prepare(opened: Opened) -> tuple[Diagnostics, SplitHalf | None]:
    """What the page shows unasked, measured once: the numbers, and two halves compared where that is known or quick."""
    numbers = _diagnose(opened.token, opened)
    if not isinstance(opened.manifold.covariance, LowRankCovariance):
        return numbers, None
    d = opened.manifold.d
    return numbers, halves(opened, make_it=(len(opened.store) + d) * d**2 <= _QUICK)


def _asked(opened: Opened) -> SplitHalf | None:
    """The comparison of two halves, if the reader asks for it."""
    if not isinstance(opened.manifold.covariance, LowRankCovariance):
        return None
    if st.button(
        "How far can it be trusted?",
        icon=":material/rule:",
        help="Fits two halves of the images apart and compares their directions: one pass and two eigendecompositions.",
    ):
        halves(opened, make_it=True)
        st.rerun()
    return None


def _other(others: tuple[str, ...]) -> Opened | None:
    """The workspace laid over this one, if there is one to choose and it is chosen."""
    if not others:
        return None
    chosen = st.selectbox(
        "Lay over",
        ["nothing", *others],
        key="over",
        bind="query-params",
        width=560,
    )
    if chosen not in others:
        return None
    try:
        return open_workspace(chosen)
    except ManifoldError as error:
        st.warning(sentence(error), icon=":material/folder_off:")
        return None


@st.cache_data(max_entries=16, show_spinner="Measuring the spectrum …")
def _diagnose(token: str, _opened: Opened) -> Diagnostics:
    return diagnose(_opened.manifold.covariance, len(_opened.store), shape=_opened.manifold.shape)


def _diagnose_with(opened: Opened, split: SplitHalf) -> Diagnostics:
    return diagnose(opened.manifold.covariance, len(opened.store), split=split)


def eigenvalue_figure(opened: Opened, numbers: Diagnostics, split: SplitHalf | None, other: Opened | None) -> go.Figure:
    """Eigenvalues by rank with the power law, the edge of noise and the reliable range."""
    drawn = figure("rank of the direction", "variance (latent units²)", log_x=True, log_y=True)
    _curve(drawn, _positive(opened.manifold.eigvals), BLUE, opened.name)
    if other is not None:
        _curve(drawn, _positive(other.manifold.eigvals), _GREEN, other.name)
    law = numbers.power_law
    if law is not None:
        ranks, heights = power_law_line(opened.manifold.eigvals, law)
        label = f"∝ rank<sup>−{law.exponent:.2f}</sup>, ranks {law.first} to {law.last}"
        line = {"color": AMBER, "dash": "dash", "width": 2}
        drawn.add_scatter(x=ranks, y=heights, mode="lines", name=label, line=line)
    edge = numbers.noise_edge
    if edge is not None:
        drawn.add_hline(y=edge.edge, line={"color": GREY, "dash": "dot", "width": 1.5})
        label = f"noise edge, {edge.above:,} above"
        line = {"color": GREY, "dash": "dot", "width": 1.5}
        drawn.add_scatter(x=[None], y=[None], mode="lines", name=label, line=line)
    if split is not None and split.reproducible:
        drawn.add_vrect(x0=1, x1=split.reproducible, fillcolor=_GREEN, opacity=0.14, line_width=0)
        label = f"reliable: the first {split.reproducible:,}"
        drawn.add_scatter(x=[None], y=[None], mode="markers", name=label, marker={"color": _GREEN, "symbol": "square"})
    return drawn


def cumulative_figure(opened: Opened, numbers: Diagnostics, other: Opened | None) -> go.Figure:
    """Share of the variance in the leading directions."""
    drawn = figure("number of leading directions", "variance explained (%)", log_x=True)
    _curve(drawn, 100 * numbers.cumulative, BLUE, opened.name)
    if other is not None:
        _curve(drawn, 100 * _diagnose(other.token, other).cumulative, _GREEN, other.name)
    dots = [needed for needed in numbers.components if needed is not None]
    heights = [100 * float(numbers.cumulative[needed - 1]) for needed in dots]
    drawn.add_scatter(
        x=dots,
        y=heights,
        mode="markers+text",
        text=[f"{needed:,}" for needed in dots],
        textposition="top left",
        marker={"color": AMBER, "size": 9},
        name="50, 80, 90, 95, 99 %",
        showlegend=False,
    )
    drawn.update_yaxes(range=[0, 106])
    return drawn


def _power(opened: Opened, numbers: Diagnostics, other: Opened | None) -> None:
    assert numbers.radial_power is not None
    assert numbers.channel_variance is not None
    names = channel_names(opened)
    left, right = pair("power")
    frequency, power = numbers.radial_power.frequency.tolist(), numbers.radial_power.power
    with left:
        st.subheader("Spatial frequencies")
        drawn = figure(
            "spatial frequency (cycles per latent pixel)", "variance per coefficient (latent units²)", log_y=True
        )
        columns: dict[str, Any] = {"cycles per latent pixel": frequency}
        for channel, name in enumerate(names):
            color = channel_color(name, channel)
            drawn.add_scatter(
                x=frequency, y=power[channel].tolist(), mode="lines+markers", name=name, line={"color": color}
            )
            columns[name] = power[channel].tolist()
        show_figure(
            drawn,
            "Each point is the mean variance of the Fourier coefficients in one ring of frequencies: smooth images fall "
            "steeply, noise is flat.",
            columns,
            "radial-power",
        )
    with right:
        st.subheader("Channels")
        drawn = figure("channel", "mean variance of a value (latent units²)")
        values = numbers.channel_variance.tolist()
        colors = [channel_color(name, channel) for channel, name in enumerate(names)]
        drawn.add_bar(x=names, y=values, marker={"color": colors}, showlegend=False, width=0.5)
        drawn.update_xaxes(type="category")
        show_figure(
            drawn,
            "A taller bar is a channel that differs more from image to image.",
            {"channel": names, "mean variance": values},
            "channel-variance",
        )


def channel_names(opened: Opened) -> list[str]:
    """Of the latent: the colours of pixels, or numbers."""
    spec = opened.workspace.manifest.recipe.encoder
    return (
        ["red", "green", "blue"] if spec.kind == "pixels" else [f"channel {one}" for one in range(spec.latent_shape[0])]
    )


def channel_color(name: str, number: int) -> str:
    """Red for red; the others in the order of the palette."""
    return {"red": "#d0605e", "green": "#4da06b", "blue": BLUE}.get(name, SERIES[number % len(SERIES)])


def _positive(eigvals: Tensor) -> Tensor:
    """Without the trailing zeros of a collection with fewer images than dimensions, which a logarithm cannot show."""
    return eigvals[eigvals > eigvals[0] * 1e-9]


def _curve(drawn: go.Figure, values: Tensor, color: str, name: str) -> None:
    drawn.add_scatter(
        x=list(range(1, len(values) + 1)),
        y=values.tolist(),
        mode="lines",
        name=name,
        line={"color": color, "width": 2.2},
    )
