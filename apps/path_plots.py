"""Static pictures of recorded trajectories, the prediction and the null beside the measured: flatness, rotation, alignment,
emergence.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from manifold.alignment import Agreement, Alignment
from manifold.bootstrap import Interval, bootstrap_mean
from manifold.emergence import Emergence
from manifold.path_pca import PathPCA
from manifold.path_rotation import PathRotation, RotationFit

from .figures import (
    AMBER,
    BLUE,
    COLOURS,
    GREY,
    INK,
    PURPLE,
    Words,
    band,
    falling,
    finish,
    heading,
    in_our_style,
    legend,
    noise_axis,
    one_panel,
    plain_log,
    room_above,
    two_panels,
)  # fmt: skip

__all__ = ["plot_alignment", "plot_emergence", "plot_path_pca", "plot_path_rotation"]


@in_our_style
def plot_path_pca(found: PathPCA, path: Path, name: str = "", *, bare: bool = False) -> Words:
    """Write as PNG what the first components of a trajectory leave out, by number of components.

    Arguments
        found: of `manifold.measure_path_pca`. path: the file to write. name: of the model.
        bare: without heading, facts and caption, which are returned either way.
    """
    figure, axis = one_panel()
    count = np.arange(1, found.measured.shape[1] + 1)
    shown = [("null: smooth path, same ends and length", found.null, GREY, ":")]
    if found.shuffled is not None:
        shown.append(("null: network with shuffled weights", found.shuffled, PURPLE, ":"))
    shown += [("Gaussian, same noise", found.gaussian, AMBER, "--"), ("recorded", found.measured, BLUE, "-")]
    top = 0.0
    for label, explained, colour, style in shown:
        left_out = bootstrap_mean(100 * (1 - explained).clamp_min(0).T)
        # At 1e-6 % round-off begins, and a logarithm of nothing cannot be drawn.
        band(axis, count, left_out, colour, label, style, marker="o", floor=1e-6)
        top = max(top, float(left_out.high.max()))
    axis.set_yscale("log")
    axis.set_ylim(1e-6 if top < 1e-5 else None, max(2 * top, 1e-5))
    axis.set_xticks(count)
    axis.set_xlabel("number of principal components of a trajectory")
    axis.set_ylabel("variance left out (%)")
    legend(axis, "best")
    second = min(1, found.measured.shape[1] - 1)
    shares = [float(one[:, second].mean()) for one in (found.measured, found.gaussian, found.null)]
    facts = (
        f"{len(found.measured):,} trajectories; in {'two components' if second else 'one component'}: "
        f"recorded {shares[0]:.2%}, Gaussian {shares[1]:.2%}, smooth null {shares[2]:.2%} of the variance"
    )
    caption = (
        "How to read it: a lower line is a flatter path; only what lies below the smooth null is more than smoothness."
    )
    words = Words(heading("Flatness of trajectories", name), facts, caption)
    return finish(figure, path, words, bare)


@in_our_style
def plot_path_rotation(found: PathRotation, path: Path, name: str = "", *, bare: bool = False) -> Words:
    """Write as PNG the angle in the plane of (x_T, x_0) on the left, and what lies outside the plane on the right.

    Arguments
        found: of `manifold.measure_path_rotation`. path: the file to write. name: of the model.
        bare: without heading, facts and caption, which are returned either way.
    """
    figure, (left, right) = two_panels()
    noise, shown = noise_axis(found.alphas, found.sigmas)
    fits: tuple[tuple[str, RotationFit, str, str], ...] = (
        ("null: smooth path", found.null, GREY, ":"),
        ("Gaussian, same noise", found.gaussian, AMBER, "--"),
        ("recorded", found.measured, BLUE, "-"),
    )
    for label, fit, colour, style in fits:
        band(left, noise, bootstrap_mean(fit.angle[shown].rad2deg()), colour, label, style)
        residual = bootstrap_mean(100 * fit.residual[shown])
        # The two ends lie in the plane by construction; their round-off would stretch the axis.
        inner = residual.mean > 1e-9
        part = Interval(residual.mean[inner], residual.low[inner], residual.high[inner])
        band(right, noise[inner.numpy()], part, colour, label, style)
    formula = found.measured.formula_angle[shown].rad2deg().mean(1)
    left.plot(
        noise, formula, color=INK, linewidth=1.2, linestyle=(0, (1, 1.5)), label=r"formula $\alpha x_0 + \sigma x_T$"
    )
    left.set_ylabel(r"angle from $x_T$ toward $x_0$ (degrees)")
    right.set_ylabel(r"share of $|x_t|^2$ outside the plane (%)")
    right.set_yscale("log")
    for axis in (left, right):
        falling(axis, noise)
    legend(left, "best")
    worst = [100 * float(fit.residual.mean(1).max()) for fit in (found.measured, found.gaussian, found.null)]
    facts = (
        f"{found.measured.angle.shape[1]:,} trajectories; most outside the plane at any level: recorded {worst[0]:.3g} %, "
        f"Gaussian {worst[1]:.3g} %, smooth null {worst[2]:.3g} %"
    )
    caption = (
        "How to read it: where recorded and formula agree on the left the state turns as the formula has it; on the right "
        "lower is flatter, and both ends are in the plane by construction."
    )
    words = Words(heading("Rotation in the plane of noise and sample", name), facts, caption)
    return finish(figure, path, words, bare)


@in_our_style
def plot_alignment(found: Alignment, path: Path, name: str = "", *, bare: bool = False) -> Words:
    """Write as PNG how well the closed form from the same noise follows: cosine on the left, distance on the right.

    Arguments
        found: of `manifold.measure_alignment`. path: the file to write. name: of the model.
        bare: without heading, facts and caption, which are returned either way.
    """
    figure, (left, right) = two_panels()
    noise, shown = noise_axis(found.alphas, found.sigmas)
    ahead, asked = noise_axis(found.alphas[:-1], found.sigmas[:-1])
    parts: tuple[tuple[str, Agreement, np.ndarray, Tensor, str, str], ...] = (
        ("null: state, another's noise", found.null_state, noise, shown, GREY, "-"),
        ("null: target, another's noise", found.null_target, ahead, asked, GREY, "--"),
        (r"state $x_t$", found.state, noise, shown, BLUE, "-"),
        ("predicted target", found.target, ahead, asked, AMBER, "--"),
    )
    for label, part, levels, used, colour, style in parts:
        band(left, levels, bootstrap_mean(part.cosine[used]), colour, label, style)
        band(right, levels, bootstrap_mean(part.distance[used]), colour, label, style)
    for axis, ideal in ((left, 1.0), (right, 0.0)):
        axis.axhline(ideal, color=INK, linewidth=0.8)
        falling(axis, noise)
    left.set_ylim(top=1.05)
    left.set_ylabel("cosine with the closed form")
    right.set_ylabel("distance to the closed form (its own length)")
    legend(left, "best")
    facts = f"{found.state.cosine.shape[1]:,} trajectories; {_agreement_facts(found)}"
    caption = (
        "How to read it: as long as the lines stay at 1 on the left and 0 on the right (black), the Gaussian closed form "
        "says where this very trajectory is; all are taken about the mean."
    )
    return finish(
        figure,
        path,
        Words(heading("Agreement with the closed form from the same noise", name), facts, caption),
        bare,
    )


@in_our_style
def plot_emergence(found: Emergence, path: Path, name: str = "", *, bare: bool = False) -> Words:
    """Write as PNG the noise level at which each direction is decided on the left, and the rise of some on the right.

    Arguments
        found: of `manifold.measure_emergence`. path: the file to write. name: of the model.
        bare: without heading, facts and caption, which are returned either way.
    """
    figure, (left, right) = two_panels()
    variance = found.eigvals.numpy()
    ordered = np.argsort(variance)
    factor = 1 / found.share**2 - 1
    law = f"predicted: sqrt({factor:.3g} variance)"
    left.plot(
        variance[ordered], found.predicted.numpy()[ordered], color=AMBER, linestyle="--", linewidth=1.6, label=law
    )
    left.plot(
        variance, found.null_level.numpy(), "x", color=GREY, markersize=5, label="null: random directions, any order"
    )
    level = found.level.numpy()
    reach = np.maximum(np.stack([level - found.low.numpy(), found.high.numpy() - level]), 0)
    left.errorbar(
        variance, level, yerr=reach, fmt="o", color=BLUE, markersize=4.5, linewidth=1.2, label="recorded, 95 %"
    )
    left.set_xscale("log")
    left.set_yscale("log")
    room_above(left, 0.25)
    plain_log(left.xaxis)
    plain_log(left.yaxis)
    left.set_xlabel("variance of the direction (latent units squared)")
    left.set_ylabel(f"σ / α at {found.share:.0%} of the final value (latent units)")
    legend(left, "upper left")
    finite = torch.isfinite(found.noise) & (found.noise > 0)
    noise = found.noise[finite].numpy()
    picked = np.unique(np.linspace(0, len(variance) - 1, min(4, len(variance))).round().astype(int))
    for colour, column in zip(COLOURS, picked, strict=False):
        label = f"direction {int(found.modes[column]) + 1}"
        right.plot(noise, found.curve[finite, column].numpy(), color=colour, linewidth=1.8, label=label)
        right.plot(noise, found.predicted_curve[finite, column].numpy(), color=colour, linestyle="--", linewidth=1.1)
    permuted = found.permuted_curve[finite][:, picked].mean(1).numpy()
    right.plot(noise, permuted, color=GREY, linestyle=":", linewidth=1.8, label="null: another's sample")
    right.axhline(found.share, color=INK, linewidth=0.8)
    highest = float(found.curve[finite][:, picked].max())
    right.set_ylim(-0.15, min(max(highest, 1.05), 1.6) + 0.4)  # room above the curves for their names
    right.set_yticks(np.linspace(0, 1, 6))
    right.set_ylabel("share of the final value reached")
    falling(right, noise)
    legend(right, "upper right", columns=2)
    facts = (
        f"level ~ variance^{found.exponent:.2f} (predicted 0.50); rank correlation with the prediction "
        f"{found.rank_correlation:.2f}, random directions {found.null_rank_correlation:.2f}; "
        f"{int(found.level.isfinite().sum())} of {len(level)} directions cross"
    )
    caption = (
        "How to read it: directions of high variance are decided first, at high noise; on the right solid is recorded, "
        "dashed predicted, and the black line the share looked for."
    )
    words = Words(heading("When each direction is decided", name), facts, caption)
    return finish(figure, path, words, bare)


def _agreement_facts(found: Alignment) -> str:
    """Lowest noise level down to which the mean cosine stays above 0.99."""
    noise, shown = noise_axis(found.alphas, found.sigmas)
    close = found.state.cosine[shown].mean(1) > 0.99
    broken = (~close).nonzero()
    reached = int(broken[0]) - 1 if len(broken) else len(noise) - 1
    if reached < 0:
        return "the mean cosine of the states is below 0.99 from the start"
    return f"the mean cosine of the states is above 0.99 down to σ / α = {noise[reached]:.3g}"
