"""What teleportation costs and saves on a model: quality at equal network evaluations, and by the share left out.

All runs of a seed start from the same noise; what they are judged by is in `teleport_scores`. Two comparisons:

    at equal evaluations   the plain sampler with N steps against a longer run of which only the last N are made
    at equal steps         the same sampler with more and more of its first steps left out: how far this is free

The plain run of equally many evaluations is the fair rival; that of equally many steps is the dearer one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from index.encoders.opening import choose_device
from index.progress import Progress, silent
from index.statistics import load_directions
from index.workspace import Workspace
from manifold.class_flow import ClassFlow
from manifold.class_moments import ClassMoments
from manifold.errors import InputError, ManifoldWarning
from manifold.gaussian import GaussianManifold
from manifold.teleport import FlowSolver, steps_left_out

from .clip_embedding import latent_embedder
from .pipelines import open_pipeline
from .seeded_runs import Sampler, SeededRuns
from .teleport_scores import Scored, Scorer, TeleportBench

__all__ = ["PUBLISHED", "STARTS", "bench_teleport"]

STARTS = (4.0, 2.0, 1.0, 0.5)
"""Noise levels to start at, in sqrt(lambda_1)."""
PUBLISHED = (10 / math.sqrt(220), 40 / math.sqrt(220))
"""The start recommended for CIFAR-10 pixels, sigma / alpha of 10 to 40 where lambda_1 is about 220, in sqrt(lambda_1)."""


def bench_teleport(
    workspace: str | Path,
    model: str | Path | None = None,
    *,
    seeds: int = 200,
    samplers: Sequence[Sampler] = ("ddim", "dpm", "unipc"),
    evaluations: Sequence[int] = (5, 8, 10, 15, 25),
    starts: Sequence[float] = STARTS,
    steps: Sequence[int] = (25,),
    skips: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    reference_steps: int = 200,
    guidance_scale: float | None = None,
    prompts: Sequence[str] = (),
    labelled: bool = True,
    per_class: bool = False,
    clip: str | None = None,
    encoder: str | None = None,
    batch_size: int = 50,
    device: str | None = None,
    progress: Progress = silent,
) -> TeleportBench:
    """Measure teleportation with a workspace's statistics on the model whose latents they are of.

    Arguments
        workspace: fitted, encoded by the model's autoencoder.
        model: pipeline's folder or hub id, or a pipeline; the one that ships unless given.
        seeds: images a run; as many others for the reference of the Fréchet distance.
        samplers: ddim, dpm (DPM-Solver++), unipc.
        evaluations: of the network, for the comparison at equal evaluations.
        starts: sigma / alpha in sqrt(lambda_1) that its teleported runs begin at, or nearest to.
        steps, skips: full runs, and shares of their steps left out, for the comparison at a fixed number of steps.
        reference_steps: of DDIM, even; its error is estimated by half of them.
        guidance_scale, prompts, labelled, batch_size: see `SeededRuns`.
        per_class: measure the statistics of each image's class too, combined as guidance combines (`ClassFlow`).
        clip: CLIP model, as `index.clip.open_clip_model` takes it, for Fréchet distances in its space too; the pictures are
            decoded by the workspace's autoencoder. encoder: where that lies now, if it moved.
        progress: told of ("paint", network evaluations done, in all).

    Warns: ManifoldWarning if a share of the steps is less than one of them.

    Raises: InputError for options out of range, or per_class without whole-number labels; NotFittedError; MismatchError if
        workspace and model do not belong together; MissingExtraError for clip without open_clip; what opening the models
        raises.

    Cost: seeds times the evaluations of all runs and 2.5 times `reference_steps`; guided ones ask the network twice.
    """
    _require(seeds, samplers, evaluations, starts, steps, skips, reference_steps)
    _warn_of_nothing_skipped(steps, skips)
    device = choose_device(device)
    opened = Workspace.open(workspace)
    manifold = load_directions(opened)
    embed = None if clip is None else latent_embedder(opened, clip, device=device, encoder=encoder)
    pipeline = open_pipeline(model, device) if model is None or isinstance(model, str | Path) else model
    runs = SeededRuns(
        pipeline, manifold.d, guidance_scale=guidance_scale, prompts=prompts, labelled=labelled, batch_size=batch_size,
        progress=progress,
    )  # fmt: skip
    for sampler in samplers:
        for count in (*evaluations, *steps):
            runs.require(sampler, count)
    for count in (reference_steps, reference_steps // 2):
        runs.require("ddim", count)
    solvers: dict[str, Callable[[list[int]], FlowSolver]] = {"all": lambda batch: manifold}
    if per_class:
        classes = _class_manifolds(opened)

        def of_classes(batch: list[int]) -> FlowSolver:
            labels = [runs.labels(seed) for seed in batch]
            known = [-1 if label is None else label for label in labels]
            return ClassFlow(manifold, classes, known, runs.guidance_scale)

        solvers["class"] = of_classes
    scale = math.sqrt(float(manifold.eigvals[0]))
    plan = _plan(runs, samplers, evaluations, [start * scale for start in starts], steps, skips)
    plain = [(sampler, count, 0) for sampler, count, first in plan if first == 0]
    moved = [one for one in plan if one[2]]
    cost = sum(count for _, count, _ in plain) + len(solvers) * sum(count - first for _, count, first in moved)
    runs.plan(round(seeds * (cost + 2.5 * reference_steps)))
    mine, others = range(seeds), range(seeds, 2 * seeds)
    reference = runs.paint("ddim", reference_steps, mine)
    other = runs.paint("ddim", reference_steps, others)
    scorer = Scorer(reference, other, manifold, scale, embed)
    rough = runs.paint("ddim", reference_steps // 2, mine)

    def measured(one: tuple[Sampler, int, int], statistics: str) -> Scored:
        sampler, count, first = one
        painted = runs.paint(sampler, count, mine, first, solvers.get(statistics))
        return scorer.score(painted, sampler, statistics, count, first, float(runs.ratios(sampler, count)[first]))

    rivals = {one: measured(one, "none") for one in plain}
    found = [scored.run for scored in rivals.values()]
    for one, comparisons in plan.items():
        sampler, count, first = one
        if first == 0:
            continue
        for statistics in solvers:
            scored = measured(one, statistics)
            for comparison in comparisons:
                rival = rivals[sampler, count - first if comparison == "evaluations" else count, 0]
                found.append(scorer.against(scored, rival, comparison, list(rivals.values())))
    facts = {
        "workspace": opened.root.name, "model": _name(model, pipeline), "seeds": seeds, "rows": len(opened.latents),
        "samplers": list(samplers), "evaluations": list(evaluations), "steps": list(steps), "statistics": list(solvers),
        "reference_steps": reference_steps, "guidance_scale": runs.guidance_scale, "labelled": labelled,
        "clip": clip, "lambda_1": scale**2, "deviation": scorer.deviation,
        "frechet_directions": scorer.directions, "frechet_variance": scorer.variance_kept,
        "published_start": [bound * scale for bound in PUBLISHED],
    }  # fmt: skip
    yardsticks = scorer.yardsticks(rough, _random_rows(opened, seeds))
    return TeleportBench(tuple(found), facts, yardsticks)


def _require(
    seeds: int,
    samplers: Sequence[str],
    evaluations: Sequence[int],
    starts: Sequence[float],
    steps: Sequence[int],
    skips: Sequence[float],
    reference_steps: int,
) -> None:
    if seeds < 2:
        raise InputError(f"a comparison needs at least 2 seeds, it is {seeds}")
    if reference_steps < 2 or reference_steps % 2:
        raise InputError(f"the reference must have an even number of steps, at least 2, it is {reference_steps}")
    if not samplers:
        raise InputError("name at least one sampler of ddim, dpm, unipc")
    for name, least, values in (("evaluations", 1, evaluations), ("steps", 1, steps)):
        if any(value < least for value in values):
            raise InputError(f"{name} must be at least {least}, they are {', '.join(map(str, values))}")
    if any(not start > 0 for start in starts):
        raise InputError(f"starts must be above 0, they are {', '.join(f'{one:g}' for one in starts)}")
    if any(not 0 < skip < 1 for skip in skips):
        raise InputError(f"shares to skip must lie between 0 and 1, they are {', '.join(f'{one:g}' for one in skips)}")


def _plan(
    runs: SeededRuns,
    samplers: Sequence[Sampler],
    evaluations: Sequence[int],
    starts: Sequence[float],
    steps: Sequence[int],
    skips: Sequence[float],
) -> dict[tuple[Sampler, int, int], list[str]]:
    """The runs to make, (sampler, steps, first step made), each once, with the comparisons it is for."""
    plan: dict[tuple[Sampler, int, int], list[str]] = {}

    def add(one: tuple[Sampler, int, int], comparison: str) -> None:
        wanted = plan.setdefault(one, [])
        if one[2] and comparison not in wanted:
            wanted.append(comparison)

    for sampler in samplers:
        for count in (*evaluations, *steps):
            add((sampler, count, 0), "plain")
        for count in evaluations:
            for start in starts:
                longer = runs.longer_run(sampler, count, start)
                add((sampler, longer, longer - count), "evaluations")
        for count in steps:
            for skip in skips:
                add((sampler, count, steps_left_out(skip, count)), "steps")
    return plan


def _warn_of_nothing_skipped(steps: Sequence[int], skips: Sequence[float]) -> None:
    for count in steps:
        nothing = [f"{skip:g}" for skip in skips if steps_left_out(skip, count) == 0]
        if nothing:
            warnings.warn(
                f"skipping {', '.join(nothing)} of {count} steps leaves out no whole step, so it is not measured",
                ManifoldWarning,
                stacklevel=3,
            )


def _class_manifolds(workspace: Workspace) -> dict[int, GaussianManifold]:
    """A Gaussian for each label of a workspace."""
    labels = workspace.latents.metadata(["label"])["label"].to_pylist()
    if not all(isinstance(label, int) for label in labels):
        raise InputError(f"statistics of classes need a whole-number label for every image of {workspace.root}")
    moments = ClassMoments(workspace.latents.d)
    done = 0
    for batch in workspace.latents.batches(4096):
        moments.update(batch, np.array(labels[done : done + len(batch)], dtype=np.int64))
        done += len(batch)
    few = [label for label in moments.labels if moments[label].count < 2]
    if few:
        raise InputError(f"class {few[0]} has only one image; statistics of classes need at least 2 of each")
    return {label: GaussianManifold.from_moments(moments[label]) for label in moments.labels}


def _random_rows(workspace: Workspace, n: int, draws: int = 20) -> list[Tensor]:
    rng = np.random.default_rng(0)
    n = min(n, len(workspace.latents))
    drawn = (np.sort(rng.choice(len(workspace.latents), n, replace=False)) for _ in range(draws))
    return [torch.from_numpy(workspace.latents.read(rows)).float() for rows in drawn]


def _name(model: Any, pipeline: Any) -> str:
    return Path(model).name if isinstance(model, str | Path) else type(pipeline).__name__
