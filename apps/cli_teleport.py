"""The command that measures teleportation: `manifold bench-teleport`, and its tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_options import DeviceOption, JsonOption, named

if TYPE_CHECKING:
    from rich.table import Table

    from .teleport_scores import Run, TeleportBench

__all__ = ["register", "sentences", "tables"]


def register(app: typer.Typer) -> None:
    """Add the command to the `manifold` command."""
    app.command(name="bench-teleport")(bench_teleport)


def bench_teleport(
    workspace: Annotated[Path, typer.Argument(metavar="WS", help="Fitted, encoded by the model's autoencoder.")],
    model: Annotated[
        str | None, typer.Option(help="Pipeline's folder or hub id. [default: the model that ships with the project]")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Images per run, and the same number of others to compare with.")] = 200,
    sampler: Annotated[str, typer.Option(metavar="LIST", help="Of ddim, dpm, unipc.")] = "ddim,dpm,unipc",
    evaluations: Annotated[
        str, typer.Option(metavar="LIST", help="Network evaluations, for the comparison at equal numbers of them.")
    ] = "5,8,10,15,25",
    start: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Noise levels at which its teleported runs start, in units of sqrt(lambda_1).",
        ),
    ] = "4,2,1,0.5",
    steps: Annotated[
        str, typer.Option(metavar="LIST", help="Steps of the full runs, for the comparison by share left out.")
    ] = "25",
    skip: Annotated[
        str, typer.Option(metavar="LIST", help="Shares of those steps left out.")
    ] = "0.1,0.2,0.3,0.4,0.5,0.6,0.7",
    reference_steps: Annotated[int, typer.Option(help="Steps of DDIM for the reference.")] = 200,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Guidance of the model. [default: the pipeline's own]")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="For models that paint from text; repeat for several.")
    ] = None,
    no_class: Annotated[bool, typer.Option("--no-class", help="Ask a class-conditional model for no class.")] = False,
    per_class: Annotated[bool, typer.Option("--per-class", help="Measure the statistics of each class too.")] = False,
    clip: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Fréchet distances in the space of this CLIP model too; needs the extra `clip`."
        ),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Where the workspace's encoder lies now, if it moved; --clip needs it.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images per call.")] = 50,
    device: DeviceOption = None,
    figure: Annotated[Path | None, typer.Option(metavar="PNG", callback=named(".png"), help="Draw the curves.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what skipping the first steps costs and saves: error and Fréchet distance, with and without.

    Example: manifold bench-teleport ws --model painter --seeds 200 --figure teleport.png
    """
    from .bench_teleport import bench_teleport as measure
    from .console import long_work, out, print_whole
    from .teleport_plot import plot_teleport

    with long_work() as progress:
        found = measure(
            workspace, model, seeds=seeds, samplers=_words(sampler), evaluations=_numbers("--evaluations", evaluations, int),
            starts=_numbers("--start", start, float), steps=_numbers("--steps", steps, int),
            skips=_numbers("--skip", skip, float), reference_steps=reference_steps, guidance_scale=guidance_scale,
            prompts=prompt or (), labelled=not no_class, per_class=per_class, clip=clip, encoder=encoder,
            batch_size=batch_size, device=device, progress=progress,
        )  # fmt: skip
    if figure is not None:
        plot_teleport(found, figure)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
        return
    for table in tables(found):
        print_whole(table)
    for sentence in sentences(found):
        out.print(sentence, soft_wrap=True)
    if figure is not None:
        out.print(f"figure: {figure}")


def tables(found: TeleportBench) -> list[Table]:
    """The two comparisons, plain runs among the first."""
    with_clip = found.facts["clip"] is not None
    equal = _table("At equal network evaluations", "of plain", with_clip)
    steps = _table("At a fixed number of steps, the first left out", "of all steps", with_clip)
    for sampler in found.facts["samplers"]:
        for count in sorted(set(found.facts["evaluations"])):
            plain = found.plain(sampler, count)
            assert plain is not None
            equal.add_row(*_cells(plain, with_clip))
            for run in _of(found, "evaluations", sampler):
                if run.evaluations == count:
                    equal.add_row(*_cells(run, with_clip))
        for count in sorted(set(found.facts["steps"])):
            plain = found.plain(sampler, count)
            assert plain is not None
            steps.add_row(*_cells(plain, with_clip))
            for run in _of(found, "steps", sampler):
                if run.steps == count:
                    steps.add_row(*_cells(run, with_clip))
    return [table for table in (equal, steps) if table.row_count]


def sentences(found: TeleportBench) -> list[str]:
    """What the tables are read by, and how far teleportation was free."""
    from .plain_text import counted

    facts, by = found.facts, found.yardsticks
    scale = facts["lambda_1"] ** 0.5
    low, high = facts["published_start"]
    told = [
        f"{facts['seeds']} seeds, guidance {facts['guidance_scale']:g}; sqrt(lambda_1) = {scale:.3g}, so the published start "
        f"(sigma / alpha 10 to 40 on CIFAR-10 pixels) is {low:.3g} to {high:.3g} here",
        f"errors are over the reference's own deviation of {facts['deviation']:.3g}; another seed's image is at "
        f"{by['other_seed_error']:.3g}, the reference (DDIM, {facts['reference_steps']} steps) itself is off by about "
        f"{by['reference_error']:.2g}",
        f"Fréchet distance in the {facts['frechet_directions']} leading directions, {facts['frechet_variance']:.0%} of the "
        f"variance; to other seeds: the reference itself {by['seeds_reference']:.4g}, by chance {by['seeds_chance']:.4g} +- "
        f"{by['seeds_chance_sd']:.2g}; to the data: the reference {by['data_reference']:.4g}, rows of the data "
        f"{by['data_chance']:.4g} +- {by['data_chance_sd']:.2g}",
    ]
    if facts["clip"] is not None:
        told.append(
            f"the same to other seeds in the space of {facts['clip']}: the reference itself {by['clip_reference']:.4g}, by "
            f"chance {by['clip_chance']:.4g} +- {by['clip_chance_sd']:.2g}"
        )
    for sampler in facts["samplers"]:
        for count in facts["steps"]:
            for statistics in facts["statistics"]:
                run = found.free_start(sampler, count, statistics)
                name = f"{sampler}, {counted(count, 'step')}" + (", class statistics" if statistics == "class" else "")
                told.append(
                    f"{name}: no cost down to sigma / alpha = {run.start:.3g} ({run.start_relative:.2g} sqrt(lambda_1)), "
                    f"{run.saved} of {count} evaluations saved"
                    if run is not None
                    else f"{name}: every start measured cost something"
                )
                within = [run.seeds_change for run in found.recommended(sampler, count, statistics)]
                changes = [change for change in within if change is not None]
                if changes:
                    told.append(
                        f"{name}: starts within the published range change the Fréchet distance to other seeds by "
                        f"{min(changes):+.2g} to {max(changes):+.2g}, the choice of seeds by {by['seeds_chance_sd']:.2g}"
                    )
    return told


def _of(found: TeleportBench, comparison: str, sampler: str) -> list[Run]:
    every = [run for name in found.facts["statistics"] for run in found.chosen(comparison, sampler, name)]
    return sorted(every, key=lambda run: (run.statistics, -run.start))


def _table(title: str, rival: str, with_clip: bool) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), title=title, title_justify="left")
    table.add_column("sampler")
    table.add_column("moved by")
    for name in (
        "evaluations", "saved", "start", "in sqrt(l1)", "error", f"error {rival}", "as plain", "Fréchet seeds", "data",
        *(("in CLIP",) if with_clip else ()), "variance",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    return table


def _cells(run: Run, with_clip: bool) -> list[str]:
    plain = run.comparison == "plain"
    return [
        run.sampler if plain else "",
        "plain" if plain else run.statistics,
        str(run.evaluations),
        "" if plain else str(run.saved),
        "" if plain else f"{run.start:.3g}",
        "" if plain else f"{run.start_relative:.2g}",
        f"{run.error:.3g}",
        "" if run.ratio is None else f"{run.ratio:.2f} ({run.ratio_low:.2f} to {run.ratio_high:.2f})",
        "" if run.equals_plain is None else f"{run.equals_plain:.1f}",
        _distance(run.seeds, run.seeds_change),
        f"{run.data:.4g}",
        *((_distance(run.clip, run.clip_change),) if with_clip else ()),
        f"{run.variance:.3f}",
    ]


def _distance(value: float | None, change: float | None) -> str:
    return "" if value is None else f"{value:.4g}" + ("" if change is None else f" ({change:+.2g})")


def _words(text: str) -> list[Any]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(option: str, text: str, kind: type) -> list[Any]:
    """Numbers separated by commas. Raises: InputError naming the option."""
    from manifold.errors import InputError

    try:
        return [kind(word) for word in _words(text)]
    except ValueError as error:
        raise InputError(f"{option} must be numbers separated by commas, such as 5,10; it is {text!r}") from error
