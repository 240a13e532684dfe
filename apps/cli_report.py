"""The command that sets a trained model beside the theory, on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .cli_options import DeviceOption, named

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add this command to the `manifold` command."""
    app.command()(report)


def report(
    workspace: Annotated[Path, typer.Argument(metavar="WS", help="Folder of the workspace.")],
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="Folder or hub id of a diffusers pipeline, such as Stable Diffusion; `demo` for the one that ships.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="HTML", callback=named(".html"), help="Page to write.")
    ] = Path("report.html"),
    seeds: Annotated[int, typer.Option(help="Trajectories to record, at least 4.")] = 64,
    steps: Annotated[int, typer.Option(help="Steps of the sampler.")] = 25,
    prompt: Annotated[
        str, typer.Option(help="For a model that paints from text: empty, or what all images of the workspace show.")
    ] = "",
    checkpoints: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Networks kept during training, checkpoint-STEP/unet or transformer, to see what was learned first.",
        ),
    ] = None,
    device: DeviceOption = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], typer.Option(help="What the model computes in.")
    ] = "float32",
) -> None:
    """Measure a trained model against the statistics of its latents: one page, each number beside prediction and null.

    Example: manifold report ws --model painter/ -o report.html
    """
    from .console import long_work, out
    from .report import write_report

    with long_work() as progress:
        made = write_report(
            workspace, model, output, seeds=seeds, steps=steps, prompt=prompt, checkpoints=checkpoints, device=device,
            dtype=dtype, progress=progress,
        )  # fmt: skip
    out.print(
        f"{made.path}: one page, {made.path.stat().st_size / 2**20:.1f} MiB, that needs nothing else", soft_wrap=True
    )
