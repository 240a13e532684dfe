"""A static picture of a network's way past the analytic denoisers during its training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from manifold.bootstrap import bootstrap_mean
from manifold.learning import Learning

from .figures import (
    AMBER,
    BLUE,
    GREEN,
    GREY,
    PURPLE,
    Words,
    band,
    finish,
    heading,
    in_our_style,
    legend,
    noise_name,
    plain_log,
    room_above,
    two_panels,
)

__all__ = ["middle_level", "plot_learning"]

_COLOURS = {"Gaussian": AMBER, "empirical": PURPLE}
_FLOOR = 1e-3
"""Per cent of the variance; a distance of nothing has no place on a logarithmic axis."""


def middle_level(found: Learning) -> int:
    """The place of the level in the middle of those measured."""
    return len(found.sigmas) // 2


@in_our_style
def plot_learning(found: Learning, path: Path, name: str = "", *, bare: bool = False) -> Words:
    """Write as PNG a network's distance from analytic denoisers (left) and the errors of all (right) by steps of training.

    Arguments
        found: of `manifold.measure_learning`; drawn at its middle level. path: the file to write. name: of the model.
        bare: without heading, facts and caption, which are returned either way.
    """
    level = middle_level(found)
    figure, (left, right) = two_panels()
    steps = np.array(found.stages)
    error = bootstrap_mean(100 * found.error[:, level])
    band(right, steps, error, BLUE, "network", marker="o")
    for place, label in enumerate(found.names):
        nothing = label.startswith("null")
        colour = GREY if nothing else _COLOURS.get(label, GREEN)
        band(
            left,
            steps,
            bootstrap_mean(100 * found.distance[:, level, place]),
            colour,
            label,
            ":" if nothing else "-",
            "o",
            _FLOOR,
        )
        other = 100 * float(found.analytic_error[level, place].mean())
        right.axhline(other, color=colour, linestyle=":" if nothing else "--", linewidth=1.4, label=label)
    if found.null_distance is not None and found.null_error is not None:
        lost = found.null_distance[level, found.names.index("Gaussian")]
        for axis, values in ((left, lost), (right, found.null_error[level])):
            height = 100 * float(values.mean())
            axis.axhline(height, color=GREY, linestyle="-.", linewidth=1.2, label="null: shuffled")
    left.set_ylabel("distance² from each (% of variance)")
    left.set_yscale("log")
    plain_log(left.yaxis)
    right.set_ylabel("error² to the clean latent (% of variance)")
    lowest = 0.9 * min(float(error.mean.min()), 100 * float(found.analytic_error[level].mean(1).min()))
    right.set_ylim(bottom=lowest)
    for axis in (left, right):
        room_above(axis, 0.3)
        _step_axis(axis, steps)
        legend(axis, "upper right", columns=2)
    noise = noise_name(float(found.alphas[level]), float(found.sigmas[level]))
    facts = f"{found.error.shape[2]:,} states at σ / α = {noise}, {len(steps)} networks kept during training"
    caption = (
        "How to read it: a network that learns the Gaussian's structure first comes near to it early (left) and leaves it "
        "for what more is to be known, when its error falls below the Gaussian's (right). Shuffled: the last network with "
        "its weights in random order, on the left its distance from the Gaussian."
    )
    return finish(figure, path, Words(heading("What the network learned first", name), facts, caption), bare)


def _step_axis(axis: Any, steps: np.ndarray) -> None:
    """Steps on a logarithmic axis, with room for 0 at its left."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    first = int(steps[steps > 0].min(initial=max(int(steps.max()), 1)))
    axis.set_xscale("symlog", linthresh=first, linscale=0.6)
    axis.set_xlim(-0.15 * first if steps[0] == 0 else 0.8 * first, 1.5 * max(int(steps[-1]), 1))
    shown = steps[:: -(-len(steps) // 7)]
    axis.set_xticks(shown)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_xlabel("steps of training")
