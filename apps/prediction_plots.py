"""Static pictures of predictions and what comes true: pushes, analytic denoisers, the neighbours of the final sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from index.anticipation import Anticipation
from manifold.bootstrap import Interval, bootstrap_mean
from manifold.compare import Comparison
from manifold.errors import InputError
from manifold.perturbation import Perturbation

from .figures import (
    AMBER,
    BLUE,
    FAINT,
    GREEN,
    GREY,
    INK,
    PURPLE,
    Words,
    band,
    cycled,
    falling,
    finish,
    heading,
    in_our_style,
    legend,
    noise_axis,
    noise_name,
    plain_log,
    two_panels,
)  # fmt: skip

__all__ = ["plot_anticipation", "plot_explained", "plot_perturbation"]


@in_our_style
def plot_perturbation(found: Sequence[Perturbation], path: Path, name: str = "", *, bare: bool = False) -> Words:
    """Write as PNG the gain of a push by variance on the left, and measured against predicted on the right.

    Arguments
        found: of `manifold.measure_perturbation`, one for each level. path: the file to write. name: of the model.
        bare: without heading, facts and caption, which are returned either way.

    Raises: InputError without a level.
    """
    if not found:
        raise InputError("a plot of perturbations needs at least one level, none came")
    figure, (left, right) = two_panels()
    lowest = highest = None
    for colour, one in zip(cycled(len(found)), found, strict=True):
        variance, label = one.eigvals.numpy(), f"σ / α = {noise_name(one.alpha, one.sigma)}"
        gain = bootstrap_mean(one.gain)
        reach = np.maximum(np.stack([gain.mean - gain.low, gain.high - gain.mean]), 0)
        left.errorbar(variance, gain.mean.numpy(), yerr=reach, fmt="o", color=colour, markersize=4.5, label=label)
        line = np.geomspace(variance.min(), variance.max(), 100)
        left.plot(
            line, np.sqrt(line / (one.alpha**2 * line + one.sigma**2)), color=colour, linestyle="--", linewidth=1.2
        )
        right.plot(one.predicted.numpy(), gain.mean.numpy(), "o", color=colour, markersize=5)
        right.plot(
            one.control_predicted.numpy(),
            one.control_gain.mean(1).numpy(),
            "o",
            color=colour,
            markersize=6,
            markerfacecolor="none",
        )
        every = torch.cat([one.predicted, gain.mean, one.control_predicted, one.control_gain.mean(1)])
        every = every[every > 0]
        if len(every):
            lowest = min(float(every.min()), lowest or torch.inf)
            highest = max(float(every.max()), highest or 0.0)
    ends = (0.7 * (lowest or 0.1), 1.4 * (highest or 1.0))
    right.plot(ends, ends, color=INK, linewidth=0.8)
    right.plot([], [], "o", color=FAINT, markersize=5, label="eigenvectors")
    right.plot([], [], "o", color=FAINT, markersize=6, markerfacecolor="none", label="control: random directions")
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_yscale("log")
        plain_log(axis.xaxis)
        plain_log(axis.yaxis)
    left.set_xlabel("variance of the direction (latent units squared)")
    left.set_ylabel("change of the sample per unit of push")
    right.set_xlabel("gain predicted for Gaussian data")
    right.set_ylabel("gain measured")
    legend(left, "best")
    legend(right, "best")
    error = torch.cat([(one.gain.mean(1) / one.predicted).log().abs() for one in found])
    ratio = float(error[error.isfinite()].median().exp()) if bool(error.isfinite().any()) else torch.nan
    facts = (
        f"{found[0].gain.shape[1]:,} states a level; half of the mean gains are within a factor of {ratio:.3g} of the "
        "prediction"
    )
    caption = (
        "How to read it: on the left dots are measured and dashes the prediction sqrt(λ / (α² λ + σ²)); on the right "
        "agreement lies on the black line."
    )
    words = Words(heading("What a small push does to the sample", name), facts, caption)
    return finish(figure, path, words, bare)


@in_our_style
def plot_explained(found: Sequence[Comparison], path: Path, name: str = "", *, bare: bool = False) -> Words:
    """Write as PNG the explained variance of denoiser (left) and score (right) by noise level, a line for each predictor.

    Arguments
        found: of `manifold.compare_denoisers`, with null=True for the nulls. path: the file to write. name: of the target.
        bare: without heading, facts and caption, which are returned either way.

    Raises: InputError without a comparison.
    """
    if not found:
        raise InputError("a plot of explained variance needs at least one comparison, none came")
    figure, (left, right) = two_panels()
    names = list(dict.fromkeys(one.name for one in found))
    colours = iter(cycled(len(names)))
    styles = iter((":", "-.", (0, (1, 3))))
    for label in names:
        rows = sorted(
            (one for one in found if one.name == label and one.alpha > 0), key=lambda one: one.sigma / one.alpha
        )
        null = label.startswith("null")
        colour, style = (GREY, next(styles, ":")) if null else (next(colours), "-")
        noise = [one.sigma / one.alpha for one in rows]
        for axis, values in (
            (left, [one.explained_denoiser for one in rows]),
            (right, [one.explained_score for one in rows]),
        ):
            axis.plot(
                noise, values, color=colour, linestyle=style, linewidth=1.8, marker="o", markersize=3.5, label=label
            )
    for axis, what in ((left, "denoiser"), (right, "score")):
        axis.set_ylim(-0.25, 1.04)
        axis.set_ylabel(f"share of the {what}'s variance explained")
        axis.axhline(0, color=INK, linewidth=0.8)
        falling(axis, np.array([one.sigma / one.alpha for one in found if one.alpha > 0]))
    legend(right, "center left")  # at high noise every score is near 1
    facts = "values below -0.25 are left out; 1 is the target itself, 0 no better than the mean prediction"
    caption = (
        "How to read it: at high noise the score (right) is explained by anything that knows the mean, as it holds the "
        "state itself; judge by the denoiser (left) and by the nulls."
    )
    words = Words(heading("Explained variance by analytic denoisers", name), facts, caption)
    return finish(figure, path, words, bare)


@in_our_style
def plot_anticipation(found: Anticipation, path: Path, name: str = "", *, bare: bool = False) -> Words:
    """Write as PNG the share of the final sample's neighbours that is already returned, by noise level and by step.

    Arguments
        found: of `index.measure_anticipation`. path: the file to write. name: of the model.
        bare: without heading, facts and caption, which are returned either way.
    """
    figure, (left, right) = two_panels()
    noise, shown = noise_axis(found.alphas, found.sigmas)
    titles = {
        "target": "target",
        "endpoint": "endpoint",
        "source": "source",
        "raw": r"raw $x_t / \alpha$",
        "network": "network",
        "random": "random",
    }
    fixed = {"target": AMBER, "endpoint": BLUE, "source": PURPLE, "raw": FAINT, "network": GREEN, "random": GREY}
    styles = {"raw": "--", "network": "--", "random": ":"}
    for label, interval in found.means.items():
        part = Interval(100 * interval.mean, 100 * interval.low, 100 * interval.high)
        cut = Interval(part.mean[shown], part.low[shown], part.high[shown])
        style = styles.get(label, "-")
        band(left, noise, cut, fixed[label], titles[label], style)
        band(right, found.steps.numpy(), part, fixed[label], titles[label], style)
    falling(left, noise)
    right.set_xlabel("step of the sampler")
    right.xaxis.get_major_locator().set_params(integer=True)
    for axis in (left, right):
        axis.set_ylim(-3, 124)  # room above the lines for their names
        axis.set_yticks(range(0, 101, 20))
        axis.set_ylabel(f"final {found.k} neighbours already returned (%)")
    legend(right, "upper right", columns=3)
    n = next(iter(found.shares.values())).shape[1]
    facts = (
        f"{n:,} trajectories, {found.rows:,} rows in the collection; bands are 95 % bootstrap intervals; "
        f"chance {found.chance:.2%}"
    )
    caption = (
        "How to read it: the further left a line rises, the earlier it knows what the final sample will be near to; solid "
        "are the questions, dashed the baselines, dotted rows drawn at random; the same shares by noise and by step."
    )
    words = Words(heading("Anticipation of the final neighbours", name), facts, caption)
    return finish(figure, path, words, bare)
