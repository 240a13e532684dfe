"""Static pictures of recorded trajectories: one figure an analysis, the prediction and the null beside the measured."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from index.anticipation import Anticipation
from manifold.alignment import Agreement, Alignment
from manifold.bootstrap import Interval, bootstrap_mean
from manifold.compare import Comparison
from manifold.emergence import Emergence
from manifold.errors import InputError
from manifold.path_pca import PathPCA
from manifold.path_rotation import PathRotation, RotationFit
from manifold.perturbation import Perturbation

from .plots import _AMBER, _BLUE, _FAINT, _INK, _pyplot, _save

__all__ = [
    "plot_alignment",
    "plot_anticipation",
    "plot_emergence",
    "plot_explained",
    "plot_path_pca",
    "plot_path_rotation",
    "plot_perturbation",
]

_GREEN, _PURPLE, _GREY = "#2f7d5b", "#7a4fa3", "#a4a8af"
_COLOURS = (_BLUE, _AMBER, _GREEN, _PURPLE, "#b03a48", "#3a8fa8")
_NOISE = "noise level σ / α (latent units), falling during generation"


def plot_path_pca(found: PathPCA, path: Path, name: str = "") -> None:
    """Write as PNG what the first components of a trajectory leave out, by number of components.

    Arguments
        found: of `manifold.measure_path_pca`. path: the file to write. name: of the model, for the heading.
    """
    pyplot, figure, axis = _one_panel()
    count = np.arange(1, found.measured.shape[1] + 1)
    shown = [("null: smooth path, same ends and length", found.null, _GREY, ":")]
    if found.shuffled is not None:
        shown.append(("null: network with shuffled weights", found.shuffled, _PURPLE, ":"))
    shown += [("Gaussian, same noise", found.gaussian, _AMBER, "--"), ("recorded", found.measured, _BLUE, "-")]
    top = 0.0
    for label, explained, colour, style in shown:
        left_out = bootstrap_mean(100 * (1 - explained).clamp_min(0).T)
        # At 1e-6 % round-off begins, and a logarithm of nothing cannot be drawn.
        _band(axis, count, left_out, colour, label, style, marker="o", floor=1e-6)
        top = max(top, float(left_out.high.max()))
    axis.set_yscale("log")
    axis.set_ylim(1e-6 if top < 1e-5 else None, max(2 * top, 1e-5))
    axis.set_xticks(count)
    axis.set_xlabel("number of principal components of a trajectory")
    axis.set_ylabel("variance left out (%)")
    _legend(axis, "best")
    second = min(1, found.measured.shape[1] - 1)
    shares = [float(one[:, second].mean()) for one in (found.measured, found.gaussian, found.null)]
    facts = (
        f"{len(found.measured):,} trajectories; in {'two components' if second else 'one component'}: "
        f"recorded {shares[0]:.2%}, Gaussian {shares[1]:.2%}, smooth null {shares[2]:.2%} of the variance"
    )
    caption = (
        "How to read it: a lower line is a flatter path; only what lies below the smooth null is more than smoothness."
    )
    _finish(pyplot, figure, path, _heading("Flatness of trajectories", name), facts, caption)


def plot_path_rotation(found: PathRotation, path: Path, name: str = "") -> None:
    """Write as PNG the angle in the plane of (x_T, x_0) on the left, and what lies outside the plane on the right.

    Arguments
        found: of `manifold.measure_path_rotation`. path: the file to write. name: of the model, for the heading.
    """
    pyplot, figure, (left, right) = _two_panels()
    noise, shown = _noise_axis(found.alphas, found.sigmas)
    fits: tuple[tuple[str, RotationFit, str, str], ...] = (
        ("null: smooth path", found.null, _GREY, ":"),
        ("Gaussian, same noise", found.gaussian, _AMBER, "--"),
        ("recorded", found.measured, _BLUE, "-"),
    )
    for label, fit, colour, style in fits:
        _band(left, noise, bootstrap_mean(fit.angle[shown].rad2deg()), colour, label, style)
        residual = bootstrap_mean(100 * fit.residual[shown])
        # The two ends lie in the plane by construction; their round-off would stretch the axis.
        inner = residual.mean > 1e-9
        part = Interval(residual.mean[inner], residual.low[inner], residual.high[inner])
        _band(right, noise[inner.numpy()], part, colour, label, style)
    formula = found.measured.formula_angle[shown].rad2deg().mean(1)
    left.plot(
        noise, formula, color=_INK, linewidth=1.2, linestyle=(0, (1, 1.5)), label=r"formula $\alpha x_0 + \sigma x_T$"
    )
    left.set_ylabel(r"angle from $x_T$ toward $x_0$ (degrees)")
    right.set_ylabel(r"share of $|x_t|^2$ outside the plane (%)")
    right.set_yscale("log")
    for axis in (left, right):
        _falling(axis, noise)
    _legend(left, "best")
    worst = [100 * float(fit.residual.mean(1).max()) for fit in (found.measured, found.gaussian, found.null)]
    facts = (
        f"{found.measured.angle.shape[1]:,} trajectories; most outside the plane at any level: recorded {worst[0]:.3g} %, "
        f"Gaussian {worst[1]:.3g} %, smooth null {worst[2]:.3g} %"
    )
    caption = (
        "How to read it: where recorded and formula agree on the left the state turns as the formula has it; on the right "
        "lower is flatter, and both ends are in the plane by construction."
    )
    _finish(pyplot, figure, path, _heading("Rotation in the plane of noise and sample", name), facts, caption)


def plot_alignment(found: Alignment, path: Path, name: str = "") -> None:
    """Write as PNG how well the closed form from the same noise follows: cosine on the left, distance on the right.

    Arguments
        found: of `manifold.measure_alignment`. path: the file to write. name: of the model, for the heading.
    """
    pyplot, figure, (left, right) = _two_panels()
    noise, shown = _noise_axis(found.alphas, found.sigmas)
    ahead, asked = _noise_axis(found.alphas[:-1], found.sigmas[:-1])
    parts: tuple[tuple[str, Agreement, np.ndarray, Tensor, str, str], ...] = (
        ("null: state, another's noise", found.null_state, noise, shown, _GREY, "-"),
        ("null: target, another's noise", found.null_target, ahead, asked, _GREY, "--"),
        (r"state $x_t$", found.state, noise, shown, _BLUE, "-"),
        ("predicted target", found.target, ahead, asked, _AMBER, "--"),
    )
    for label, part, levels, used, colour, style in parts:
        _band(left, levels, bootstrap_mean(part.cosine[used]), colour, label, style)
        _band(right, levels, bootstrap_mean(part.distance[used]), colour, label, style)
    for axis, ideal in ((left, 1.0), (right, 0.0)):
        axis.axhline(ideal, color=_INK, linewidth=0.8)
        _falling(axis, noise)
    left.set_ylim(top=1.05)
    left.set_ylabel("cosine with the closed form")
    right.set_ylabel("distance to the closed form (its own length)")
    _legend(left, "best")
    facts = f"{found.state.cosine.shape[1]:,} trajectories; {_agreement_facts(found)}"
    caption = (
        "How to read it: as long as the lines stay at 1 on the left and 0 on the right (black), the Gaussian closed form "
        "says where this very trajectory is; all are taken about the mean."
    )
    _finish(pyplot, figure, path, _heading("Agreement with the closed form from the same noise", name), facts, caption)


def plot_emergence(found: Emergence, path: Path, name: str = "") -> None:
    """Write as PNG the noise level at which each direction is decided on the left, and the rise of some on the right.

    Arguments
        found: of `manifold.measure_emergence`. path: the file to write. name: of the model, for the heading.
    """
    pyplot, figure, (left, right) = _two_panels()
    variance = found.eigvals.numpy()
    ordered = np.argsort(variance)
    factor = 1 / found.share**2 - 1
    law = f"predicted: sqrt({factor:.3g} variance)"
    left.plot(
        variance[ordered], found.predicted.numpy()[ordered], color=_AMBER, linestyle="--", linewidth=1.6, label=law
    )
    left.plot(
        variance, found.null_level.numpy(), "x", color=_GREY, markersize=5, label="null: random directions, any order"
    )
    level = found.level.numpy()
    reach = np.maximum(np.stack([level - found.low.numpy(), found.high.numpy() - level]), 0)
    left.errorbar(
        variance, level, yerr=reach, fmt="o", color=_BLUE, markersize=4.5, linewidth=1.2, label="recorded, 95 %"
    )
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_xlabel("variance of the direction (latent units squared)")
    left.set_ylabel(f"σ / α at {found.share:.0%} of the final value (latent units)")
    _legend(left, "best")
    finite = torch.isfinite(found.noise) & (found.noise > 0)
    noise = found.noise[finite].numpy()
    picked = np.unique(np.linspace(0, len(variance) - 1, min(4, len(variance))).round().astype(int))
    for colour, column in zip(_COLOURS, picked, strict=False):
        label = f"direction {int(found.modes[column]) + 1}"
        right.plot(noise, found.curve[finite, column].numpy(), color=colour, linewidth=1.8, label=label)
        right.plot(noise, found.predicted_curve[finite, column].numpy(), color=colour, linestyle="--", linewidth=1.1)
    permuted = found.permuted_curve[finite][:, picked].mean(1).numpy()
    right.plot(noise, permuted, color=_GREY, linestyle=":", linewidth=1.8, label="null: another's sample")
    right.axhline(found.share, color=_INK, linewidth=0.8)
    right.set_ylim(-0.15, 1.15)
    right.set_ylabel("share of the final value reached")
    _falling(right, noise)
    _legend(right, "best")
    facts = (
        f"level ~ variance^{found.exponent:.2f} (predicted 0.50); rank correlation with the prediction "
        f"{found.rank_correlation:.2f}, random directions {found.null_rank_correlation:.2f}; "
        f"{int(found.level.isfinite().sum())} of {len(level)} directions cross"
    )
    caption = (
        "How to read it: directions of high variance are decided first, at high noise; on the right solid is recorded, "
        "dashed predicted, and the black line the share looked for."
    )
    _finish(pyplot, figure, path, _heading("When each direction is decided", name), facts, caption)


def plot_perturbation(found: Sequence[Perturbation], path: Path, name: str = "") -> None:
    """Write as PNG the gain of a push by variance on the left, and measured against predicted on the right.

    Arguments
        found: of `manifold.measure_perturbation`, one for each level. path: the file to write. name: of the model.

    Raises: InputError without a level.
    """
    if not found:
        raise InputError("a plot of perturbations needs at least one level, none came")
    pyplot, figure, (left, right) = _two_panels()
    lowest = highest = None
    for colour, one in zip(_cycled(len(found)), found, strict=True):
        variance, label = one.eigvals.numpy(), f"σ / α = {_noise_name(one.alpha, one.sigma)}"
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
    right.plot(ends, ends, color=_INK, linewidth=0.8)
    right.plot([], [], "o", color=_FAINT, markersize=5, label="eigenvectors")
    right.plot([], [], "o", color=_FAINT, markersize=6, markerfacecolor="none", label="control: random directions")
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_yscale("log")
    left.set_xlabel("variance of the direction (latent units squared)")
    left.set_ylabel("change of the sample per unit of push")
    right.set_xlabel("gain predicted for Gaussian data")
    right.set_ylabel("gain measured")
    _legend(left, "best")
    _legend(right, "best")
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
    _finish(pyplot, figure, path, _heading("What a small push does to the sample", name), facts, caption)


def plot_explained(found: Sequence[Comparison], path: Path, name: str = "") -> None:
    """Write as PNG the explained variance of denoiser (left) and score (right) by noise level, a line for each predictor.

    Arguments
        found: of `manifold.compare_denoisers`, with null=True for the nulls. path: the file to write. name: of the target.

    Raises: InputError without a comparison.
    """
    if not found:
        raise InputError("a plot of explained variance needs at least one comparison, none came")
    pyplot, figure, (left, right) = _two_panels()
    names = list(dict.fromkeys(one.name for one in found))
    colours = iter(_cycled(len(names)))
    styles = iter((":", "-."))
    for label in names:
        rows = sorted(
            (one for one in found if one.name == label and one.alpha > 0), key=lambda one: one.sigma / one.alpha
        )
        null = label.startswith("null")
        colour, style = (_GREY, next(styles, ":")) if null else (next(colours), "-")
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
        axis.axhline(0, color=_INK, linewidth=0.8)
        _falling(axis, np.array([one.sigma / one.alpha for one in found if one.alpha > 0]))
    _legend(left, "best")
    facts = "values below -0.25 are left out; 1 is the target itself, 0 no better than the mean prediction"
    caption = (
        "How to read it: at high noise the score (right) is explained by anything that knows the mean, as it holds the "
        "state itself; judge by the denoiser (left) and by the nulls."
    )
    _finish(pyplot, figure, path, _heading("Explained variance by analytic denoisers", name), facts, caption)


def plot_anticipation(found: Anticipation, path: Path, name: str = "") -> None:
    """Write as PNG the share of the final sample's neighbours that is already returned, by noise level and by step.

    Arguments
        found: of `index.measure_anticipation`. path: the file to write. name: of the model, for the heading.
    """
    pyplot, figure, (left, right) = _two_panels()
    noise, shown = _noise_axis(found.alphas, found.sigmas)
    titles = {
        "target": "question target",
        "endpoint": "question endpoint",
        "source": "question source",
        "raw": r"baseline: raw $x_t / \alpha$",
        "network": "baseline: network",
        "random": "random rows",
    }
    fixed = {"target": _AMBER, "endpoint": _BLUE, "source": _PURPLE, "raw": _FAINT, "network": _GREEN, "random": _GREY}
    styles = {"raw": "--", "network": "--", "random": ":"}
    for label, interval in found.means.items():
        part = Interval(100 * interval.mean, 100 * interval.low, 100 * interval.high)
        cut = Interval(part.mean[shown], part.low[shown], part.high[shown])
        style = styles.get(label, "-")
        _band(left, noise, cut, fixed[label], titles[label], style)
        _band(right, found.steps.numpy(), part, fixed[label], titles[label], style)
    _falling(left, noise)
    right.set_xlabel("step of the sampler")
    for axis in (left, right):
        axis.set_ylim(-3, 103)
        axis.set_ylabel(f"final {found.k} neighbours already returned (%)")
    _legend(right, "lower right", above=0.06)
    n = next(iter(found.shares.values())).shape[1]
    facts = (
        f"{n:,} trajectories, {found.rows:,} rows in the collection; bands are 95 % bootstrap intervals; "
        f"chance {found.chance:.2%}"
    )
    caption = (
        "How to read it: the further left a line rises, the earlier it knows what the final sample will be near to; the "
        "two panels show the same shares by noise and by step."
    )
    _finish(pyplot, figure, path, _heading("Anticipation of the final neighbours", name), facts, caption)


def _one_panel() -> tuple[Any, Any, Any]:
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(8.6, 4.9))
    figure.subplots_adjust(left=0.095, right=0.98, top=0.84, bottom=0.2)
    return pyplot, figure, axis


def _two_panels() -> tuple[Any, Any, Any]:
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.9))
    figure.subplots_adjust(left=0.07, right=0.985, top=0.84, bottom=0.2, wspace=0.2)
    return pyplot, figure, axes


def _legend(axis: Any, place: str = "best", above: float = 0.0) -> None:
    """On a white ground, so that a line behind it does not make it unreadable."""
    corner = {"bbox_to_anchor": (1.0, above)} if above else {}
    axis.legend(frameon=True, framealpha=0.88, facecolor="white", edgecolor="none", fontsize=9, loc=place, **corner)


def _finish(pyplot: Any, figure: Any, path: Path, heading: str, facts: str, caption: str) -> None:
    width = figure.get_size_inches()[0]
    size = min(14.0, 14 * 8.3 * width / len(heading))
    figure.suptitle(heading, x=0.02, y=0.985, ha="left", fontsize=size, fontweight="bold")
    figure.text(0.02, 0.905, facts, color=_FAINT, fontsize=10)
    wrapped = textwrap.fill(caption, int(14.2 * width))
    figure.text(0.02, 0.012, wrapped, color=_FAINT, fontsize=9, va="bottom", linespacing=1.3)
    _save(pyplot, figure, path)


def _heading(what: str, name: str) -> str:
    return f"{what}: {name}" if name else what


def _cycled(count: int) -> list[str]:
    return [_COLOURS[number % len(_COLOURS)] for number in range(count)]


def _noise_axis(alphas: Tensor, sigmas: Tensor) -> tuple[np.ndarray, Tensor]:
    """sigma / alpha where a logarithmic axis can show it, and which levels those are."""
    shown = (alphas > 0) & (sigmas > 0)
    return (sigmas[shown] / alphas[shown]).cpu().numpy(), shown


def _noise_name(alpha: float, sigma: float) -> str:
    return f"{sigma / alpha:.3g}" if alpha > 0 else "∞"


def _falling(axis: Any, noise: np.ndarray) -> None:
    """Noise on a logarithmic axis, from high to low as in generation."""
    axis.set_xscale("log")
    if len(noise):
        axis.set_xlim(1.3 * noise.max(), noise.min() / 1.3)
    axis.set_xlabel(_NOISE)


def _band(
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


def _agreement_facts(found: Alignment) -> str:
    """Lowest noise level down to which the mean cosine stays above 0.99."""
    noise, shown = _noise_axis(found.alphas, found.sigmas)
    close = found.state.cosine[shown].mean(1) > 0.99
    broken = (~close).nonzero()
    reached = int(broken[0]) - 1 if len(broken) else len(noise) - 1
    if reached < 0:
        return "the mean cosine of the states is below 0.99 from the start"
    return f"the mean cosine of the states is above 0.99 down to σ / α = {noise[reached]:.3g}"
