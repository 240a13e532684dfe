"""The findings in words and numbers: a claim that follows from them, and a table measured | Gaussian | null."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from index.anticipation import Anticipation
from manifold.alignment import Alignment
from manifold.bootstrap import bootstrap_mean
from manifold.emergence import Emergence
from manifold.learning import Learning
from manifold.nulls import isotropic
from manifold.path_pca import PathPCA
from manifold.path_rotation import PathRotation
from manifold.perturbation import Perturbation
from manifold.spectrum import participation_ratio

from .figures import noise_name
from .learning_plot import middle_level
from .report_measure import Explained, Findings
from .report_page import Table
from .report_plots import sample_variances

__all__ = [
    "about_alignment", "about_anticipation", "about_emergence", "about_explained", "about_flatness", "about_learning",
    "about_perturbation", "about_rotation", "about_spectrum",
]  # fmt: skip


def about_spectrum(found: Findings) -> tuple[str, Table]:
    """Samples of the model beside the images' statistics, and beside a Gaussian without directions."""
    gaussian, numbers = found.gaussian, found.diagnostics
    variances = sample_variances(gaussian, found.recording.x_t[-1])
    flat = found.recording.x_t[-1].flatten(1).double()
    total = float(flat.var(0).sum())
    cumulative = numbers.cumulative
    spread = bootstrap_mean((flat - flat.mean(0)).square().sum(1) * len(flat) / (len(flat) - 1))
    measured = f"{total:,.4g}\n{float(spread.low):,.4g} to {float(spread.high):,.4g}"
    rows: list[tuple[str, ...]] = [("total variance", measured, f"{numbers.trace:,.4g}", f"{numbers.trace:,.4g}")]
    if found.stepped_variance is not None:
        rows.append(("of which these sampler steps leave", "", f"{found.stepped_variance:,.4g}", ""))
    for leading in (1, 4, 16, 64):
        if leading < gaussian.k:
            shares = float(variances[:leading].sum()) / total, float(cumulative[leading - 1]), leading / gaussian.d
            name = "direction 1" if leading == 1 else f"directions 1 to {leading}"
            rows.append((f"share of variance in {name}", *(f"{one:.1%}" for one in shares)))
    ratio = float(variances.sum() ** 2 / variances.square().sum())
    rows.append(
        ("participation ratio", f"{ratio:,.3g}", f"{participation_ratio(gaussian.covariance):,.3g}", f"{gaussian.d:,}")
    )
    half, most = numbers.components[0], numbers.components[2]
    claim = (
        f"Of {gaussian.d:,} directions, {_counted(half)} hold half of the images' variance and {_counted(most)} hold 90 %; "
        f"the model's samples have {total / numbers.trace:.0%} of the images' total variance."
    )
    header = ("", f"measured: {len(flat)} samples", "Gaussian: the images", "null: no direction")
    return claim, Table(header, rows)


def about_flatness(found: PathPCA) -> tuple[str, Table]:
    """What the first components leave out."""
    rows = []
    nulls = [found.null, *([found.shuffled] if found.shuffled is not None else [])]
    for components in range(1, min(4, found.measured.shape[1] + 1)):
        cells = [_left_out(one, components) for one in (found.measured, found.gaussian, *nulls)]
        rows.append((f"variance outside {components} component{'s' if components > 1 else ''}", *cells))
    two = min(1, found.measured.shape[1] - 1)
    outside = [float((1 - one[:, two]).mean()) for one in (found.measured, found.gaussian, *nulls)]
    claim = (
        f"{'Two components leave' if two else 'One component leaves'} {outside[0]:.3%} of the variance of a trajectory out "
        f"(Gaussian {outside[1]:.3%}), a random smooth path with the same ends and length {outside[2]:.3%}: "
        + (
            "flatter than smoothness alone."
            if outside[0] < 0.5 * outside[2]
            else "hardly flatter than smoothness alone."
        )
    )
    if found.shuffled is not None:
        claim += f" The same network with shuffled weights leaves out {outside[3]:.3%}" + (
            ", so flatness alone is no sign of learning." if outside[3] < 2 * outside[0] else "."
        )
    header = ["", "measured", "Gaussian", "null: smooth path"]
    kinds = ["measured", "gaussian", "null"]
    if found.shuffled is not None:
        header.append("null: shuffled weights")
        kinds.append("null")
    return claim, Table(header, rows, kinds)


def about_rotation(found: PathRotation) -> tuple[str, Table]:
    """How far out of the plane, and how far from the formula within it."""
    fits = found.measured, found.gaussian, found.null
    outside = [100 * float(fit.residual.mean(1).max()) for fit in fits]
    formula = [100 * float(fit.formula_residual.mean(1).max()) for fit in fits]
    angle = [float((fit.angle - fit.formula_angle).abs().mean(1).max().rad2deg()) for fit in fits]
    span = [float(fit.angle[-1].mean().rad2deg()) for fit in fits]
    rows = [
        ("most of |x_t|² outside the plane", *(f"{one:.2g} %" for one in outside)),
        ("most of |x_t|² off the rotation formula", *(f"{one:.2g} %" for one in formula)),
        ("largest mean error of the formula's angle", *(f"{one:.1f}°" for one in angle)),
        ("angle between noise and sample", *(f"{one:.1f}°" for one in span)),
    ]
    claim = (
        f"A trajectory turns from its noise to its sample through {span[0]:.0f}° and never has more than {outside[0]:.2g} % "
        f"of its squared length outside the plane of the two (Gaussian {outside[1]:.2g} %, smooth path {outside[2]:.2g} %)."
    )
    return claim, Table(("", "measured", "Gaussian", "null: smooth path"), rows)


def about_alignment(found: Alignment) -> tuple[str, Table]:
    """Cosines with the closed form from the same noise."""
    noise = found.sigmas[:-1] / found.alphas[:-1]
    usable = noise.isfinite() & (noise > 0) & found.target.cosine.isfinite().all(1)
    places = usable.nonzero().flatten()
    chosen = places[torch.linspace(0, len(places) - 1, min(5, len(places))).round().long()]
    rows = []
    for place in chosen.tolist():
        null_state, null_target = (float(one.cosine[place].mean()) for one in (found.null_state, found.null_target))
        rows.append(
            (
                f"{float(noise[place]):.3g}",
                _interval(found.state.cosine[place]),
                f"{null_state:.3f}",
                _interval(found.target.cosine[place]),
                f"{null_target:.3f}",
            )
        )
    end = found.state.cosine[-1]
    rows.append(("0 (sample)", _interval(end), f"{float(found.null_state.cosine[-1].mean()):.3f}", "", ""))
    until = _reach(noise[usable], found.target.cosine[usable].mean(1))
    cosine, null = float(end.mean()), float(found.null_state.cosine[-1].mean())
    claim = (
        f"From the same noise, the closed form's predicted target has a mean cosine above 0.9 with the network's {until}, "
        f"and its endpoint a cosine of {cosine:.2f} with the sample ({null:.2f} with another's)."
    )
    header = ("σ / α", "state x_t", "null: another's noise", "target x̂₀", "null: another's noise")
    return claim, Table(header, rows, ("measured", "null", "measured", "null"))


def about_emergence(found: Emergence) -> tuple[str, Table]:
    """The law of emergence, its order, and the level of some directions."""
    null_exponent = _slope(found.eigvals, found.null_level)
    rows = [
        ("exponent p of level ~ variance^p", f"{found.exponent:.2f}", "0.50", f"{null_exponent:.2f}"),
        (
            "rank correlation with the prediction",
            f"{found.rank_correlation:.2f}",
            "1.00",
            f"{found.null_rank_correlation:.2f}",
        ),
    ]
    for column in range(len(found.modes)):
        rank = int(found.modes[column]) + 1
        if rank in (1, 4, 16, 32):
            level = found.level[column]
            bounds = f"\n{float(found.low[column]):.3g} to {float(found.high[column]):.3g}" if level.isfinite() else ""
            rows.append(
                (
                    f"σ / α at which direction {rank} is half decided",
                    _number(float(level)) + bounds,
                    _number(float(found.predicted[column])),
                    _number(float(found.null_level[column])),
                )
            )
    claim = (
        f"The noise level at which a direction is decided grows as its variance to the power {found.exponent:.2f} (predicted "
        f"0.50), and the order of the directions agrees with the prediction at a rank correlation of "
        f"{found.rank_correlation:.2f} (random directions {found.null_rank_correlation:.2f})."
    )
    return claim, Table(("", "measured", "Gaussian", "null: random directions"), rows)


def about_perturbation(found: list[Perturbation], findings: Findings) -> tuple[str, Table]:
    """Gains of pushes along eigenvectors, and what comes out sideways."""
    nothing = isotropic(findings.gaussian).total_variance / findings.gaussian.d
    rows, ratios = [], []
    for one in found:
        level = f"{one.sigma / one.alpha:.3g}" if one.alpha else "∞"
        for place, rank in enumerate(one.modes.tolist()):
            null = math.sqrt(nothing / (one.alpha**2 * nothing + one.sigma**2))
            predicted = float(one.predicted[place])
            gain = one.gain[place]
            ratios.append(abs(math.log(max(float(gain.mean()), 1e-12) / predicted)))
            rows.append((f"σ / α = {level}, direction {rank + 1}", _interval(gain), f"{predicted:.3f}", f"{null:.3f}"))
        controls = float(one.control_gain.mean()), float(one.control_predicted.mean())
        rows.append((f"σ / α = {level}, random directions", f"{controls[0]:.3f}", f"{controls[1]:.3f}", ""))
    factor = math.exp(sorted(ratios)[len(ratios) // 2])
    claim = (
        f"A small push along an eigenvector changes the sample along it as predicted within a factor of {factor:.2f} in the "
        "median; a Gaussian without directions would answer alike whatever is pushed."
    )
    return claim, Table(("gain of the push", "measured", "Gaussian", "null: no direction"), rows)


def about_explained(found: Explained) -> tuple[str, tuple[Table, Table, Table]]:
    """Explained variance of denoiser and score, and the error of every denoiser against the clean latents."""
    levels = sorted({one.sigma / one.alpha for one in found.rows}, reverse=True)
    names = list(dict.fromkeys(one.name for one in found.rows))
    denoiser, score = [], []
    for level in levels:
        cells = {one.name: one for one in found.rows if one.sigma / one.alpha == level}
        denoiser.append((f"{level:.3g}", *(_share(cells[name].explained_denoiser) for name in names)))
        score.append((f"{level:.3g}", *(_share(cells[name].explained_score) for name in names)))
    kinds = ["null" if name.startswith("null") else "gaussian" if name == "Gaussian" else "" for name in names]
    gaussian = {one.sigma / one.alpha: one for one in found.rows if one.name == "Gaussian"}
    nothing = {one.sigma / one.alpha: one for one in found.rows if one.name == "null: isotropic"}
    high, low = levels[0], levels[-1]
    middle = min(levels, key=lambda level: abs(math.log(level)))
    shares = {level: _share(gaussian[level].explained_denoiser) for level in (high, middle, low)}
    claim = (
        f"Of the variance of the network's predicted targets, the Gaussian explains {shares[high]} at σ / α = {high:.3g}, "
        f"{shares[middle]} at {middle:.3g} and {shares[low]} at {low:.3g}; of its score at {high:.3g} it explains "
        f"{_share(gaussian[high].explained_score)}, but so does one that knows no direction "
        f"({_share(nothing[high].explained_score)})."
    )
    truth_names = list(dict.fromkeys(one.name for one in found.truth))
    truth_rows = []
    for level in levels:
        cells = {one.name: one for one in found.truth if one.sigma / one.alpha == level}
        truth_rows.append((f"{level:.3g}", *(f"{cells[name].mse:.4f}" for name in truth_names)))
    truth_kinds = [
        "measured"
        if name == "network"
        else "gaussian"
        if name == "Gaussian"
        else "null"
        if name.startswith("null")
        else ""
        for name in truth_names
    ]
    return (
        claim,
        (
            Table(("denoiser explained, at σ / α", *names), denoiser, kinds),
            Table(("score explained, at σ / α", *names), score, kinds),
            Table(("error to the clean latent, at σ / α", *truth_names), truth_rows, truth_kinds),
        ),
    )


def about_learning(found: Learning) -> tuple[str, tuple[Table, ...]]:
    """When the network was nearest to the Gaussian, and when ahead of it; a table for each level."""
    level = middle_level(found)
    place = found.names.index("Gaussian")
    nearest, ahead = found.nearest_stage("Gaussian", level), found.ahead_from("Gaussian", level)
    distance = found.distance[:, level, place].mean(1).tolist()
    noise = noise_name(float(found.alphas[level]), float(found.sigmas[level]))
    last = len(found.stages) - 1
    claim = f"At σ / α = {noise} the network was nearest to the Gaussian after {found.stages[nearest]:,} steps"
    claim += f"{', the last' if nearest == last else ''}, at {distance[nearest]:.2%} of the latents' variance"
    claim += "" if nearest == 0 else f" (after {found.stages[0]:,} steps {distance[0]:.2%})"
    if found.null_distance is not None:
        claim += f"; with shuffled weights it is {float(found.null_distance[level, place].mean()):.2%} away"
    away = bootstrap_mean(found.distance[-1, level, place] - found.distance[nearest, level, place])
    left = nearest != last and float(away.low) > 0  # the same states at both stages
    claim += f". It left it, to {distance[-1]:.2%} after {found.stages[-1]:,}. " if left else ". "
    better = bootstrap_mean(found.analytic_error[level, place] - found.error[-1, level])
    claim += (
        "At the last step its error is not below the Gaussian's."
        if ahead is None or not float(better.low) > 0
        else f"Its error is below the Gaussian's from step {found.stages[ahead]:,} on."
    )
    return claim, tuple(_learning_table(found, level) for level in range(len(found.sigmas)))


def _learning_table(found: Learning, level: int) -> Table:
    def cells(distance: Tensor, error: Tensor) -> list[str]:
        return [f"{100 * float(one):.3g}" for one in (*distance.mean(1), error.mean())]

    rows = [
        (f"{step:,} steps", *cells(found.distance[stage, level], found.error[stage, level]))
        for stage, step in enumerate(found.stages)
    ]
    for place, name in enumerate(found.names):
        rows.append((name, *cells(found.analytic_distance[level, place], found.analytic_error[level, place])))
    if found.null_distance is not None and found.null_error is not None:
        rows.append(("null: shuffled weights", *cells(found.null_distance[level], found.null_error[level])))
    noise = noise_name(float(found.alphas[level]), float(found.sigmas[level]))
    header = (f"% of variance, at σ / α = {noise}", *(f"from {name}" for name in found.names), "error")
    kinds = ["gaussian" if name == "Gaussian" else "null" if name.startswith("null") else "" for name in found.names]
    return Table(header, rows, [*kinds, "measured"])


def about_anticipation(found: Anticipation) -> tuple[str, Table]:
    """Shares of the final neighbours by question and baseline."""
    noise = found.sigmas / found.alphas
    every = ("endpoint", "target", "network", "raw", "random")
    names: list[str] = [name for name in every if name in found.means]
    titles = {"endpoint": "closed form alone (endpoint)", "target": "with the network (target)", "network": "network's x̂₀",
              "raw": "raw x_t / α", "random": "null: random rows"}  # fmt: skip
    kinds = {"endpoint": "gaussian", "target": "", "network": "measured", "raw": "", "random": "null"}
    places = torch.linspace(0, len(noise) - 1, min(7, len(noise))).round().long().tolist()
    rows = []
    for place in places:
        cells = [float(found.means[name].mean[place]) for name in names]
        level = "∞" if not math.isfinite(float(noise[place])) else f"{float(noise[place]):.3g}"
        rows.append(
            (
                f"step {int(found.steps[place])}, σ / α = {level}",
                *(f"{one:.1%}" if math.isfinite(one) else "–" for one in cells),
            )
        )
    halves = {name: found.first_step(name) for name in names}
    known = {name: "never" if step is None else f"from step {step}" for name, step in halves.items()}
    rows.append(("half of them known", *(known[name] for name in names)))
    closed = halves["endpoint"]
    middle = {name: float(found.means[name].mean[len(noise) // 2]) for name in names}
    claim = (
        f"Halfway through the sampler, the closed form alone returns {middle['endpoint']:.0%} of the sample's final "
        f"{found.k} neighbours, corrected by the network's prediction {middle['target']:.0%}, that prediction by itself "
        f"{middle['network']:.0%}, the raw state {middle['raw']:.0%}; chance is {found.chance:.1%}. Alone it knows half of "
        "them "
        f"{'at no step' if closed is None else f'from step {closed} on'}."
    )
    return claim, Table(
        ("final neighbours already returned", *(titles[name] for name in names)), rows, [kinds[name] for name in names]
    )


def _reach(noise: Tensor, cosine: Tensor) -> str:
    """The longest run of levels at which the cosine is above 0.9, in words."""
    runs: list[list[int]] = [[]]
    for place, value in enumerate(cosine.tolist()):
        if value > 0.9:
            runs[-1].append(place)
        elif runs[-1]:
            runs.append([])
    longest = max(runs, key=len)
    if not longest:
        return "at no noise level"
    return f"from σ / α = {float(noise[longest[0]]):.3g} down to {float(noise[longest[-1]]):.3g}"


def _counted(number: int | None) -> str:
    return "more than are kept" if number is None else f"{number:,}"


def _left_out(explained: Tensor, components: int) -> str:
    interval = bootstrap_mean(100 * (1 - explained[:, components - 1]).clamp_min(0))
    return f"{float(interval.mean):.2g} %\n{float(interval.low):.2g} to {float(interval.high):.2g}"


def _interval(values: Tensor) -> str:
    """Mean over trajectories and its 95 % bootstrap interval."""
    interval = bootstrap_mean(values)
    return f"{float(interval.mean):.3f}\n{float(interval.low):.3f} to {float(interval.high):.3f}"


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "–"


def _share(value: float) -> str:
    """A share of variance; far below 0 only that, and a dash where there is no variance to have a share of."""
    if not math.isfinite(value):
        return "–"
    text = f"{100 * value:.1f} %".replace("-0.0", "0.0").replace("-", "−")
    return text if value > -1 else "< −100 %"


def _slope(variance: Tensor, level: Tensor) -> float:
    """Exponent of level ~ variance^p by least squares in logarithms; NaN with fewer than two levels."""
    used = level.isfinite() & (level > 0) & (variance > 0)
    if int(used.sum()) < 2:
        return math.nan
    x, y = variance[used].log(), level[used].log()
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())
