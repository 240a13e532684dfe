"""What the static figures share: panels, colours, the axis of noise, a mean with its band, and the words around a figure."""

from __future__ import annotations

import logging
import os
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
from torch import Tensor

from manifold.bootstrap import Interval
from manifold.files import atomic_path

__all__ = [
    "AMBER", "BLUE", "COLOURS", "FAINT", "GREEN", "GREY", "INK", "NOISE", "PURPLE", "RED", "Words", "band", "cycled",
    "falling", "finish", "heading", "in_our_style", "legend", "new_figure", "noise_axis", "noise_name", "one_panel",
    "plain_log", "room_above", "save_figure", "two_panels",
]  # fmt: skip

INK, FAINT, BLUE, AMBER = "#1c1e22", "#6e727a", "#2456a6", "#c4731b"
GREEN, PURPLE, RED, GREY = "#2f7d5b", "#7a4fa3", "#b03a48", "#a4a8af"
COLOURS = (BLUE, AMBER, GREEN, PURPLE, RED, "#3a8fa8")
NOISE = "noise σ / α (latent units), falling during generation"
_STYLE = {
    "figure.dpi": 150,
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": "#c8cbd0",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "axes.grid": True,
    "grid.color": "#eceef1",
}

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Words:
    """What is written around a figure: its heading, one line of facts above it, and how to read it below it."""

    heading: str
    facts: str
    caption: str


def in_our_style(draw: Callable[P, R]) -> Callable[P, R]:
    """`draw` in the project's style, quiet, with the caller's matplotlib left as it was: its backend, options and figures."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        if "MPLCONFIGDIR" not in os.environ and not os.access(Path.home(), os.W_OK):
            os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="matplotlib-")
        log = logging.getLogger("matplotlib")
        level = log.level
        log.setLevel(logging.ERROR)
        try:
            from matplotlib import style

            with style.context(["default", _STYLE]):
                return draw(*args, **kwargs)
        finally:
            log.setLevel(level)

    return drawn


def new_figure(width: float, height: float) -> Any:
    """A figure of so many inches that is drawn to a file and known to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def one_panel() -> tuple[Any, Any]:
    """A figure and its one axis."""
    figure = new_figure(8.6, 4.9)
    axis = figure.subplots()
    figure.subplots_adjust(left=0.095, right=0.98, top=0.84, bottom=0.2)
    return figure, axis


def two_panels() -> tuple[Any, Any]:
    """A figure, and its axes left and right."""
    figure = new_figure(11, 4.9)
    axes = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.07, right=0.985, top=0.84, bottom=0.2, wspace=0.2)
    return figure, axes


def legend(axis: Any, place: str = "best", columns: int = 1) -> None:
    """On a white ground, so that a line behind it does not make it unreadable."""
    axis.legend(
        frameon=True, framealpha=0.88, facecolor="white", edgecolor="none", fontsize=9, loc=place, ncols=columns,
        columnspacing=1.2,
    )  # fmt: skip


def room_above(axis: Any, share: float) -> None:
    """Raise the upper end of an axis by a share of its length, for the names of the curves."""
    bottom, top = axis.get_ylim()
    axis.set_ylim(top=top * (top / bottom) ** share if axis.get_yscale() == "log" else top + share * (top - bottom))


def finish(figure: Any, path: Path, words: Words, bare: bool = False) -> Words:
    """Write the figure as PNG with its words around it, or bare for a page that prints them itself; returns the words."""
    if bare:
        if figure.get_size_inches()[0] > 9:  # a page shows it narrower, and its labels must stay readable
            figure.set_size_inches(9, 4.1)
            figure.subplots_adjust(left=0.085, wspace=0.24)
        figure.subplots_adjust(top=0.975, bottom=0.125)
    else:
        width = figure.get_size_inches()[0]
        size = min(14.0, 14 * 8.3 * width / len(words.heading))
        figure.suptitle(words.heading, x=0.02, y=0.985, ha="left", fontsize=size, fontweight="bold")
        figure.text(0.02, 0.905, words.facts, color=FAINT, fontsize=10)
        caption = words.caption.replace(" %", "\u00a0%")  # no line begins with a unit
        wrapped = textwrap.fill(caption, int(14.2 * width))
        figure.text(0.02, 0.012, wrapped, color=FAINT, fontsize=9, va="bottom", linespacing=1.3)
    save_figure(figure, path)
    return words


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def heading(what: str, name: str) -> str:
    """What is shown, and of what model where it is named."""
    return f"{what}: {name}" if name else what


def cycled(count: int) -> list[str]:
    """So many colours, again from the first when they run out."""
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def noise_axis(alphas: Tensor, sigmas: Tensor) -> tuple[np.ndarray, Tensor]:
    """sigma / alpha where a logarithmic axis can show it, and which levels those are."""
    shown = (alphas > 0) & (sigmas > 0)
    return (sigmas[shown] / alphas[shown]).cpu().numpy(), shown


def noise_name(alpha: float, sigma: float) -> str:
    """sigma / alpha in a few digits."""
    return f"{sigma / alpha:.3g}" if alpha > 0 else "∞"


def falling(axis: Any, noise: np.ndarray) -> None:
    """Noise on a logarithmic axis, from high to low as in generation."""
    axis.set_xscale("log")
    if len(noise):
        axis.set_xlim(1.3 * noise.max(), noise.min() / 1.3)
    plain_log(axis.xaxis)
    axis.set_xlabel(NOISE)


def plain_log(axis: Any) -> None:
    """Numbers as people write them on a logarithmic axis (an axis's `xaxis` or `yaxis`), with 2 and 5 where few fit."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    subs = (1.0, 2.0, 5.0) if high < 120 * low else (1.0,)
    axis.set_major_locator(LogLocator(10, subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def band(
    axis: Any,
    x: np.ndarray,
    interval: Interval,
    colour: str,
    label: str,
    style: str = "-",
    marker: str | None = None,
    floor: float | None = None,
) -> None:
    """A mean as a line and its interval as a band; values below `floor` are not drawn."""
    mean, low, high = (one.cpu().numpy() for one in (interval.mean, interval.low, interval.high))
    if floor is not None:
        mean, low, high = (np.where(mean >= floor, each, np.nan) for each in (mean, np.maximum(low, floor), high))
    axis.plot(x, mean, color=colour, linestyle=style, linewidth=1.8, label=label, marker=marker, markersize=4)
    axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
