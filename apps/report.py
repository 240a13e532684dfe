"""`manifold report`: one page about a trained model and the statistics of a workspace of the same latents."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index.encoders import Encoder
from index.progress import Progress, silent
from index.workspace import Workspace
from manifold.errors import InputError
from manifold.files import atomic_path
from manifold.learning import Learning

from .figures import Words
from .learning_plot import plot_learning
from .path_plots import plot_alignment, plot_emergence, plot_path_pca, plot_path_rotation
from .prediction_plots import plot_anticipation, plot_explained, plot_perturbation
from .report_measure import Findings, measure_model, model_encoder
from .report_model import FlowModel, open_flow_model
from .report_page import Picture, Section, Table, page
from .report_plots import plot_sample_spectrum, plot_targets
from .report_sections import (
    about_alignment,
    about_anticipation,
    about_emergence,
    about_explained,
    about_flatness,
    about_learning,
    about_perturbation,
    about_rotation,
    about_spectrum,
)
from .training.checkpoints import find_checkpoints, spread_out

__all__ = ["Report", "write_report"]

_RESERVATION = (
    "Gaussian is the closed form for data with the images' own mean and covariance; a null keeps what is trivial about a "
    "finding and destroys the rest. Brackets and bands are 95 % bootstrap intervals over trajectories."
)


_STAGES = 12


@dataclass(frozen=True)
class Report:
    """What `write_report` made: the page, and the findings it shows."""

    path: Path
    findings: Findings


def write_report(
    workspace: str | Path,
    model: str | Path | Any,
    output: str | Path = "report.html",
    *,
    seeds: int = 64,
    steps: int = 25,
    prompt: str = "",
    call: Mapping[str, Any] | None = None,
    checkpoints: str | Path | None = None,
    device: str | None = None,
    dtype: str = "float32",
    progress: Progress = silent,
) -> Report:
    """Measure a trained pipeline against the statistics of a workspace, and write one self-contained HTML page.

    Arguments
        workspace: folder of latents of the model's own autoencoder, fitted; indexed for the section on anticipation.
        model: folder or hub id of a diffusers pipeline, one of `manifold_apps.report_model.SUPPORTED`; `demo` for the one
            that ships with the project; or an opened pipeline.
        output: the page to write; replaced if it is there.
        seeds: trajectories, from the seeds 0, 1, ...; at least 4. steps: of the sampler.
        prompt: for a pipeline that paints from text: empty, or that of the whole collection.
        call: further keywords of such a pipeline, such as prompt_embeds in place of the prompt.
        checkpoints: folder of networks kept during the model's training, for a section on what was learned first; see
            `manifold_apps.training.checkpoints`. Of more than 12 those are taken that are spread best over the doublings of
            steps.
        device, dtype: such as cuda and bfloat16; a CUDA device if there is one, unless given. An opened pipeline stays as it
            is.
        progress: told of the stages sample, shuffle, push, explain, learn, anticipate.

    Returns: Report.

    Raises: NotFittedError if there are no statistics; MissingExtraError without transformers for a pipeline that paints from
        text; MismatchError if the workspace's latents are not the model's, or checkpoints are of another network; InputError
        for a folder without a pipeline, another kind of pipeline, a prompt that it does not take, too few seeds or rows, a
        folder without checkpoints, or steps that its sampler cannot make; FormatError; StorageError.

    Cost: see `manifold_apps.report_measure.measure_model`; about a minute on two cores for the demo model.
    """
    opened = Workspace.open(workspace)
    opened.require_complete()
    size = opened.manifest.recipe.encoder.image_size or None
    flow = open_flow_model(model, steps, prompt=prompt, call=call, image_size=size, device=device, dtype=dtype)
    if steps < 2:
        raise InputError(
            f"a report compares states early and late on the way, so it needs 2 steps or more, not {steps}"
        )
    encoder = model_encoder(opened, flow)
    kept = {} if checkpoints is None else spread_out(find_checkpoints(checkpoints, flow.network_name), _STAGES)
    if kept:
        flow.kept(kept[max(kept)])  # so that networks of another training are refused before the long work
    found = measure_model(opened, flow, seeds=seeds, checkpoints=kept, progress=progress)
    path = Path(output)
    with tempfile.TemporaryDirectory() as folder:
        sections = _sections(found, encoder, Path(folder))
        text = page(
            f"{flow.name} and the Gaussian theory",
            f"How a trained diffusion model moves, beside what the mean and covariance of {opened.manifest.count:,} latents "
            "predict.",
            _facts(opened, flow, found),
            sections,
            f"{_RESERVATION} Theory: Wang & Vastola, arXiv 2303.02490 and 2412.09726. Written by manifold report.",
        )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Report(path, found)


def _facts(workspace: Workspace, flow: FlowModel, found: Findings) -> list[tuple[str, str]]:
    recipe = workspace.manifest.recipe
    pipeline, run = flow.pipeline, found.recording.metadata
    weights = sum(parameter.numel() for parameter in flow.network.parameters())
    noise = found.recording.sigmas / found.recording.alphas
    facts = [
        (
            "model",
            f"{flow.name}: {type(pipeline).__name__}, {type(flow.network).__name__}, {weights / 1e6:,.1f} M weights",
        ),
        (
            "trajectories",
            f"{found.recording.x_t.shape[1]} from the seeds 0 to {found.recording.x_t.shape[1] - 1}, {flow.condition}",
        ),
        (
            "sampler",
            f"{run['scheduler']}, {flow.steps} steps, σ / α from {float(noise[0]):.3g} to {float(noise[-1]):.3g} and then 0",
        ),
        ("images", f"{recipe.source}: {workspace.manifest.count:,} latents in {workspace.root.name}/"),
        (
            "latents",
            f"{' x '.join(map(str, recipe.encoder.latent_shape))}, d = {recipe.encoder.d:,}, by {recipe.encoder.kind}"
            + (f" at {recipe.encoder.image_size} px" if recipe.encoder.image_size else ""),
        ),
        ("statistics", f"{type(found.gaussian.covariance).__name__}, {found.gaussian.k:,} eigenpairs"),
        ("date", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")),
    ]
    return facts + [("note", remark) for remark in found.remarks]


def _sections(found: Findings, encoder: Encoder, folder: Path) -> list[Section]:
    def drawn(name: str, plot: Callable[..., Words], *what: Any) -> Picture:
        path = folder / f"{name}.png"
        words = plot(*what, path, bare=True)
        return Picture(path, f"{words.heading}: {words.facts}", words.caption)

    def section(title: str, about: tuple[str, Table], *pictures: Picture, note: str = "") -> Section:
        return Section(title, about[0], pictures, (about[1],), note)

    targets = folder / "targets.png"
    plot_targets(found.targets, encoder, targets)
    thumbnails = Picture(
        targets,
        "Predicted targets of network and closed form, decoded",
        "How to read it: each pair of rows is one trajectory, above what the network predicts on the way and below what the "
        "closed form predicts from the same noise, never having seen the network.",
    )
    claim, explained = about_explained(found.explained)
    anticipation = (
        Section(
            "Anticipation",
            "Not measured: the workspace has no index that fits it. Run manifold index, then this report again.",
        )
        if found.anticipation is None
        else section(
            "Are the final neighbours known early?",
            about_anticipation(found.anticipation),
            drawn("anticipation", plot_anticipation, found.anticipation),
        )
    )
    return [
        section(
            "The spectrum",
            about_spectrum(found),
            drawn("spectrum", plot_sample_spectrum, found.gaussian, found.recording.x_t[-1]),
            note="The Gaussian's prediction for the samples is the images' own statistics. Few steps lose variance by "
            "themselves: what they would leave of it, with the Gaussian in the network's place, stands in the second row.",
        ),
        section("Are paths flat?", about_flatness(found.flatness), drawn("flatness", plot_path_pca, found.flatness)),
        section(
            "Do paths turn in one plane?",
            about_rotation(found.rotation),
            drawn("rotation", plot_path_rotation, found.rotation),
        ),
        section(
            "Does the theory follow each path?",
            about_alignment(found.alignment),
            thumbnails,
            drawn("alignment", plot_alignment, found.alignment),
            note="The Gaussian's prediction is 1 in every row; both sides are taken about the images' mean.",
        ),
        section(
            "Outline first, details later?",
            about_emergence(found.emergence),
            drawn("emergence", plot_emergence, found.emergence),
        ),
        section(
            "What does a small push do?",
            about_perturbation(found.perturbations, found),
            drawn("perturbation", plot_perturbation, found.perturbations),
            note="Along random directions the Gaussian predicts the mean of its gains, and has no null of its own.",
        ),
        Section(
            "How much of the network is analytic?",
            claim,
            (drawn("explained", plot_explained, found.explained.rows),),
            explained,
            f"{found.explained.held_out} rows of the workspace, left out of all analytic denoisers (the others, "
            f"{found.explained.fitted:,}, are what they were fitted to), noised. Explained is the variance of the network's "
            "predictions; the last table has the mean squared error an element of each, the network included, to the clean "
            "latent. The empirical denoiser is the exact optimum for the rows that it has.",
        ),
        anticipation,
        *([] if found.learning is None else [_learned(found.learning, drawn)]),
    ]


def _learned(found: Learning, drawn: Callable[..., Picture]) -> Section:
    claim, tables = about_learning(found)
    return Section(
        "What was learned first?",
        claim,
        (drawn("learning", plot_learning, found),),
        tables,
        "Squared distances between predictions, and errors to the clean latent, of the rows that the analytic denoisers of "
        "section 8 were not given (the network may have been), "
        "in hundredths of the variance of these rows: a unit that is the same at all stages. Rows named after an analytic "
        "denoiser tell how far it is from the others.",
    )
