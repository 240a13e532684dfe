"""A picture of what teleportation costs and saves: error and Fréchet distance, by evaluations and by start."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from .figures import AMBER, BLUE, FAINT, GREEN, GREY, INK, in_our_style, new_figure, save_figure
from .teleport_scores import Run, TeleportBench

__all__ = ["plot_teleport"]

_COLOURS = {"ddim": BLUE, "dpm": AMBER, "unipc": GREEN}
_NAMES = {"ddim": "DDIM", "dpm": "DPM-Solver++", "unipc": "UniPC"}
_STYLES = {"all": ("--", "started late"), "class": ("-.", "late, by class")}
_CAPTION = (
    "How to read it: on the left a broken line below the solid one of its colour means that starting late is worth it at "
    "equal evaluations; on the right the dotted line is the same sampler with all of its steps, and grey what chance or the "
    "reference itself leaves open."
)


@in_our_style
def plot_teleport(found: TeleportBench, path: Path) -> None:
    """Write a benchmark of teleportation as PNG: error above, Fréchet distance to other seeds below.

    Left: by network evaluations, plain (solid) and started late (broken, of each number of evaluations the start with
    the least error). Right: by the level started at, for the longest of the full runs.

    Arguments
        found: of `bench_teleport`. path: the file to write.
    """
    figure = new_figure(11, 8.6)
    axes = figure.subplots(2, 2)
    by = found.yardsticks
    for row, value in enumerate(("error", "seeds")):
        left, right = axes[row]
        for sampler in found.facts["samplers"]:
            _by_evaluations(left, found, sampler, value)
            _by_start(right, found, sampler, value)
        for axis in (left, right):
            if value == "error":
                axis.axhspan(0, by["reference_error"], color=GREY, alpha=0.35, linewidth=0)
                axis.set_yscale("log")
                _plain_ticks(axis.yaxis)
                drawn = [float(y) for line in axis.lines for y in line.get_ydata() if y > 0]
                if drawn:  # grey reaches down to 0, which a logarithmic axis would try to show
                    axis.set_ylim(0.8 * min(drawn), 1.25 * max(drawn))
                axis.set_ylabel("RMS error (deviations of the samples)")
            else:
                spread, middle = by["seeds_chance_sd"], by["seeds_reference"]
                axis.axhspan(max(middle - spread, 0.0), middle + spread, color=GREY, alpha=0.35, linewidth=0)
                axis.set_ylabel("Fréchet distance to other seeds")
        left.set_xlabel("network evaluations")
        left.set_xticks(sorted(set(found.facts["evaluations"])))
        right.set_xlabel("start σ / α (square roots of the largest variance)")
        right.set_xscale("log")
        _plain_ticks(right.xaxis)
        right.invert_xaxis()
    lines, labels = axes[0][0].get_legend_handles_labels()
    if lines:
        figure.legend(
            lines, labels, loc="upper left", bbox_to_anchor=(0.065, 0.925), ncols=len(found.facts["samplers"]),
            frameon=False, fontsize=9,
        )  # fmt: skip
    facts = found.facts
    figure.suptitle(
        f"Teleportation: {facts['model']}", x=0.02, y=0.99, ha="left", fontsize=14, fontweight="bold", color=INK
    )
    line = (
        f"{facts['seeds']} seeds, guidance {facts['guidance_scale']:g}, reference DDIM in {facts['reference_steps']} steps; "
        f"another seed's image is at error {by['other_seed_error']:.3g}"
    )
    figure.text(0.02, 0.94, line, color=FAINT, fontsize=10)
    figure.text(0.02, 0.01, textwrap.fill(_CAPTION, 156), color=FAINT, fontsize=9, va="bottom", linespacing=1.3)
    figure.subplots_adjust(left=0.085, right=0.985, top=0.835, bottom=0.12, wspace=0.22, hspace=0.27)
    save_figure(figure, path)


def _plain_ticks(axis: Any) -> None:
    """1, 2, 5, 10 ... instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _by_evaluations(axis: Any, found: TeleportBench, sampler: str, value: str) -> None:
    counts = sorted(set(found.facts["evaluations"]))
    plain = [run for count in counts if (run := found.plain(sampler, count)) is not None]
    _line(axis, plain, "evaluations", value, sampler, "-", _NAMES[sampler])
    for statistics in found.facts["statistics"]:
        late = [run for count in counts if (run := found.gain(sampler, count, statistics)) is not None]
        style, label = _STYLES[statistics]
        _line(axis, late, "evaluations", value, sampler, style, f"{_NAMES[sampler]}, {label}")


def _by_start(axis: Any, found: TeleportBench, sampler: str, value: str) -> None:
    if not found.facts["steps"]:
        return
    steps = max(found.facts["steps"])
    for statistics in found.facts["statistics"]:
        chosen = [run for run in found.chosen("steps", sampler, statistics) if run.steps == steps]
        cut = sorted(chosen, key=lambda run: run.start)
        _line(axis, cut, "start_relative", value, sampler, _STYLES[statistics][0], "")
    plain = found.plain(sampler, steps)
    if plain is not None:
        axis.axhline(getattr(plain, value), color=_COLOURS[sampler], linestyle=":", linewidth=1.3)


def _line(axis: Any, runs: list[Run], by: str, value: str, sampler: str, style: str, label: str) -> None:
    if not runs:
        return
    x, y = [getattr(run, by) for run in runs], [getattr(run, value) for run in runs]
    axis.plot(
        x, y, color=_COLOURS[sampler], linestyle=style, linewidth=1.7, marker="o", markersize=3.5,
        label=label or "_nolegend_",
    )  # fmt: skip
    if value == "error":
        axis.fill_between(
            x, [run.low for run in runs], [run.high for run in runs], color=_COLOURS[sampler], alpha=0.12, linewidth=0
        )
