"""The commands around the model that ships with the project: demo, train-demo."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .cli_options import (
    DeviceOption,
)

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add these commands to the `manifold` command."""
    app.command(name="demo")(demo)
    app.command(name="train-demo")(train_demo)


def demo(
    workspace: Annotated[
        Path, typer.Option("--workspace", "-w", metavar="DIR", help="Folder for the demo's files and pictures.")
    ] = Path("demo-out"),
) -> None:
    """Tell the whole story on the small model that ships with the project, and write pictures to look at.

    Example: manifold demo -w demo-out
    """
    from .console import RESUMES, long_work, out
    from .demo import run_demo
    from .describe import describe_workspace, description_table

    with long_work(RESUMES) as progress:
        pictures = run_demo(workspace, progress=progress)
    out.print(description_table(describe_workspace(workspace / "workspace")))
    out.print("\nLook at:")
    for picture in pictures:
        out.print(f"  {picture.path}\n      {picture.what}", soft_wrap=True)
    example = f"manifold search {shlex.quote(str(workspace / 'workspace'))} --row 100 --sigma 2 --sheet out.png"
    out.print(f"\nThen try: {example}", soft_wrap=True)


def train_demo(
    data: Annotated[
        Path,
        typer.Option(
            "--data", metavar="IMAGES", help="Labelled images, such as CIFAR-10 as parquet with a column `label`."
        ),
    ],
    folder: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the training state and the finished model.")
    ] = Path("demo-model"),
    autoencoder_steps: Annotated[int, typer.Option(help="Steps of 32 images for the autoencoder.")] = 3_200,
    decoder_steps: Annotated[int, typer.Option(help="Steps of 32 images for the decoder alone, after that.")] = 30_000,
    denoiser_steps: Annotated[int, typer.Option(help="Steps of --batch-size images for the denoiser.")] = 60_000,
    minutes: Annotated[float | None, typer.Option(help="Stop the denoiser after so many minutes.")] = None,
    batch_size: Annotated[
        int, typer.Option(help="Latents in a step of the denoiser; more of them make better use of a GPU.")
    ] = 128,
    start: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="Folder of a finished model whose decoder and denoiser to train on."),
    ] = None,
    checkpoints: Annotated[
        bool,
        typer.Option("--checkpoints", help="Keep the denoiser at every doubling of steps, for manifold report."),
    ] = False,
    device: DeviceOption = None,
) -> None:
    """Train the small latent diffusion model that ships with the project; run again to train on.

    Example: manifold train-demo --data cifar10-train.parquet -o demo-model
    """
    from .console import RESUMES, long_work, out
    from .training.card import read_history
    from .training.run import train_demo as train

    with long_work(RESUMES) as progress:
        painter = train(
            data, folder, autoencoder_steps=autoencoder_steps, decoder_steps=decoder_steps,
            denoiser_steps=denoiser_steps, minutes=minutes, batch_size=batch_size,
            start=start, device=device, checkpoints=checkpoints, progress=progress,
        )  # fmt: skip
    for network, last in asdict(read_history(painter)).items():
        losses = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in last.items() if isinstance(value, float)]
        if losses:
            out.print(f"{network}: {last['images']:,} images seen, {', '.join(losses)}", soft_wrap=True)
    out.print(f"{painter}: the model, its card README.md, and a gallery of its pictures")
