"""What a fit says of itself, drawn: reproducible directions, power by channel and frequency, convergence with n."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from manifold.power import RadialPower
from manifold.reproducibility import Convergence, SplitHalf

from .figures import (
    AMBER,
    BLUE,
    COLOURS,
    FAINT,
    GREEN,
    GREY,
    RED,
    Words,
    finish,
    heading,
    in_our_style,
    legend,
    one_panel,
    plain_log,
    two_panels,
)  # fmt: skip
from .plain_text import counted

__all__ = ["plot_convergence", "plot_power", "plot_reproducible"]

_NAMED_CHANNELS = len(COLOURS)


@in_our_style
def plot_reproducible(split: SplitHalf, path: Path, name: str = "") -> Words:
    """Write the overlap of the leading directions of two halves of the data as PNG.

    Arguments
        split: from `split_half`. path: the file to write. name: of the collection, for the heading.
    """
    figure, axis = one_panel()
    count = len(split.overlap)
    ranks = np.arange(1, count + 1)
    chance = split.chance.numpy()
    axis.plot(ranks, 100 * split.overlap.numpy(), color=BLUE, linewidth=1.8, label="two halves of the data")
    axis.plot(
        ranks, 100 * (chance + split.threshold * (1 - chance)), color=AMBER, linestyle="--", linewidth=1.4,
        label=f"{split.threshold:.0%} agreement beyond chance",
    )  # fmt: skip
    axis.plot(ranks, 100 * chance, color=GREY, linewidth=1.4, label="unrelated directions (chance)")
    if split.reproducible:
        height = 100 * float(split.overlap[split.reproducible - 1])
        axis.plot(split.reproducible, height, "o", color=AMBER, markersize=6, clip_on=False)
        early = split.reproducible < count / 3
        axis.annotate(
            f"{split.reproducible:,} reproducible", (split.reproducible, height), color=AMBER, fontweight="bold",
            xytext=(8, 8) if early else (-8, -34), textcoords="offset points", ha="left" if early else "right",
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_xlim(1, max(count, 2))
    axis.set_ylim(0, 104)
    axis.set_xlabel("number of leading directions")
    axis.set_ylabel("overlap of the two halves' subspaces (%)")
    legend(axis, "lower left")
    words = Words(
        heading("How many directions are reproducible", name),
        f"each half has {split.rows:,} latents; the leading {counted(count, 'direction was', 'directions were')} compared",
        "How to read it: up to the dot, two halves of the data span the same space with their leading directions, to its "
        "right they do not, and more data are needed; where the line dips before it, directions of like variance swap.",
    )
    return finish(figure, path, words)


@in_our_style
def plot_power(
    variance: np.ndarray, radial: RadialPower, path: Path, name: str = "", *, colours: bool = False
) -> Words:
    """Write power by spatial frequency (left) and variance by channel (right) as PNG.

    Arguments
        variance: (C,) of each channel. radial: power in rings of frequency. path: the file to write. name: of the
            collection. colours: whether the channels are red, green and blue.
    """
    figure, (left, right) = two_panels()
    power, frequency = radial.power.numpy(), radial.frequency.numpy()
    channels = len(power)
    named = channels <= _NAMED_CHANNELS
    shades = [RED, GREEN, BLUE] if colours else COLOURS
    names = ["red", "green", "blue"] if colours else [f"channel {channel}" for channel in range(channels)]
    drawn = frequency > 0
    for channel in range(channels):
        colour, width = (shades[channel], 1.8) if named else (GREY, 0.8)
        label = names[channel] if named else ("each channel" if channel == 0 else None)
        left.plot(frequency[drawn], power[channel][drawn], color=colour, linewidth=width, label=label)
    if channels > 1:
        left.plot(
            frequency[drawn],
            power.mean(0)[drawn],
            color="black",
            linestyle="--",
            linewidth=1.6,
            label="mean of channels",
        )
    left.set_xscale("log")
    left.set_yscale("log")
    plain_log(left.xaxis)
    plain_log(left.yaxis)
    left.set_xlabel("spatial frequency (cycles per latent pixel)")
    left.set_ylabel("variance of a Fourier coefficient")
    legend(left)
    bars = [shades[channel] for channel in range(channels)] if named else BLUE
    right.bar(np.arange(channels), variance, color=bars, width=0.7)
    right.grid(axis="x", visible=False)
    right.set_axisbelow(True)
    right.set_xticks(np.arange(channels) if channels <= 16 else np.arange(0, channels, 4))
    if colours:
        right.set_xticklabels(names)
    right.set_xlabel("channel")
    right.set_ylabel("variance (latent units squared)")
    words = Words(
        heading("Power by spatial frequency and channel", name),
        f"{counted(channels, 'channel')}, {int(radial.coefficients.sum()):,} frequencies in {len(frequency)} rings; "
        "frequency 0, the channels' means, is left out on the left",
        "How to read it: a steep fall on the left means smooth latents, a flat line white ones; a straight line is a power "
        "law. Bars of unequal height mean channels of unequal scale.",
    )
    return finish(figure, path, words)


@in_our_style
def plot_convergence(points: Sequence[Convergence], path: Path, name: str = "") -> Words:
    """Write how each number of a fit settles as latents are added, as PNG.

    Left, scalars as a share of their value from all rows. Right, what has many values: directions by their overlap with
    those from all rows, power spectra by the root mean square of their relative errors.

    Arguments
        points: from `convergence`, ascending in rows, the last of them from all. path: the file to write. name: of the
            collection.
    """
    figure, (left, right) = two_panels()
    counts = np.array([point.count for point in points])
    scalars: list[tuple[str, Callable[[Convergence], float | None], str]] = [
        ("total variance", lambda p: p.trace, BLUE),
        ("largest eigenvalue", lambda p: p.largest, AMBER),
        ("participation ratio", lambda p: p.participation_ratio, GREEN),
        ("effective rank", lambda p: p.effective_rank, COLOURS[3]),
        ("components for 90 %", lambda p: p.components[2], COLOURS[4]),
        ("power-law exponent", lambda p: p.exponent, COLOURS[5]),
    ]
    for label, value, colour in scalars:
        values = np.array([np.nan if value(point) is None else value(point) for point in points], dtype=float)
        if np.isfinite(values[-1]) and np.isfinite(values).sum() > 1:
            left.plot(
                counts, 100 * values / values[-1], color=colour, marker="o", markersize=4, linewidth=1.8, label=label
            )
    left.axhline(100, color=FAINT, linewidth=0.8)
    left.set_ylabel("share of the value from all latents (%)")
    overlap = np.array([point.overlap for point in points])
    right.plot(counts, 100 * (1 - overlap), color=BLUE, marker="o", markersize=4, linewidth=1.8,
               label=f"leading {counted(points[-1].directions, 'direction')} not shared")  # fmt: skip
    for label, spectra, colour in (
        ("radial power", [point.radial_power for point in points], AMBER),
        ("channel variance", [point.channel_variance for point in points], GREEN),
    ):
        last = spectra[-1]
        if last is not None:
            errors = [float((one / last - 1).square().mean().sqrt()) for one in spectra if one is not None]
            right.plot(
                counts, 100 * np.array(errors), color=colour, marker="o", markersize=4, linewidth=1.8, label=label
            )
    right.set_ylabel("distance from the value of all latents (%)")
    right.set_ylim(bottom=0)
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.set_xticks(counts, [f"{count:,}" for count in counts])
        axis.minorticks_off()
        axis.set_xlabel("latents used")
    legend(left)
    legend(right, "upper right")
    words = Words(
        heading("What settles with how many latents", name),
        f"the same statistics from {', '.join(f'{count:,}' for count in counts[:-1])} and all {counts[-1]:,} latents",
        "How to read it: lines that are flat at the right have settled; those still moving will move on with more data. "
        "The last point is the yardstick, so it is 100\N{NO-BREAK SPACE}% on the left and 0 on the right by definition.",
    )
    return finish(figure, path, words)
