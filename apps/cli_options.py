"""Arguments and options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = [
    "BatchOption",
    "ColumnOption",
    "CropOption",
    "DeviceOption",
    "DtypeOption",
    "EncoderOption",
    "ImagesArgument",
    "JsonOption",
    "ModeOption",
    "MovedEncoderOption",
    "RankOption",
    "RejectsOption",
    "SeedOption",
    "ShardOption",
    "SheetOption",
    "SizeOption",
    "TileOption",
    "WorkersOption",
    "WorkspaceArgument",
    "WorkspaceOption",
    "named",
]

WorkspaceArgument = Annotated[Path, typer.Argument(metavar="WS", help="Folder of the workspace.")]
WorkspaceOption = Annotated[
    Path, typer.Option("--workspace", "-w", metavar="WS", help="Folder of the workspace to make or continue.")
]
ImagesArgument = Annotated[
    str,
    typer.Argument(
        metavar="IMAGES",
        help="Folder of images, webdataset shards (braces allowed), parquet, saved Hugging Face dataset, or embeddings.",
    ),
]
EncoderOption = Annotated[
    str,
    typer.Option(help="`pixels`, `demo-vae`, or a diffusers autoencoder: a local folder or a hub id (pipelines too)."),
]
MovedEncoderOption = Annotated[
    str | None, typer.Option("--encoder", help="Where the workspace's encoder lies now, if it moved.")
]
ColumnOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Column with the images, for tables that have several.")
]
SizeOption = Annotated[
    int | None,
    typer.Option(help="Side of the square image in pixels. [default: 64 for pixels, 32 for demo-vae, else 512]"),
]
CropOption = Annotated[
    Literal["center", "squash"], typer.Option(help="Cut the middle square, or distort the whole image.")
]
ModeOption = Annotated[Literal["mode", "sample"], typer.Option(help="Mode of the posterior, or a seeded sample.")]
DtypeOption = Annotated[
    Literal["float32", "float16", "bfloat16"], typer.Option(help="What the autoencoder computes in.")
]
TileOption = Annotated[int | None, typer.Option(help="Encode in tiles of this side in pixels, for very large images.")]
DeviceOption = Annotated[str | None, typer.Option(help="Such as cuda or cpu. [default: cuda if there is one]")]
BatchOption = Annotated[
    int | None, typer.Option(help="Images per forward pass. [default: about a million pixels' worth]")
]
WorkersOption = Annotated[
    int | None, typer.Option(help="Decoding processes; 0 decodes in this one. [default: cores - 1]")
]
SeedOption = Annotated[int, typer.Option(help="Seed of posterior samples.")]


_FORMATS = {".bmp", ".csv", ".gif", ".html", ".jpeg", ".jpg", ".json", ".jsonl", ".parquet", ".pdf", ".png", ".svg",
            ".tif", ".tiff", ".tsv", ".txt", ".webp"}  # fmt: skip
"""What the end of a name may promise; another dot in a name promises nothing."""


def named(suffix: str) -> Callable[[Path | None], Path | None]:
    """The check, before the work, that a file can be written and is not called something that it will not be."""

    def check(path: Path | None) -> Path | None:
        if path is None or not path.name:
            return path
        if path.suffix.lower() in _FORMATS - {suffix}:
            raise typer.BadParameter(f"{path.name} would be {suffix[1:].upper()}; call it {path.stem}{suffix}")
        if path.is_dir():
            raise typer.BadParameter(f"{path} is a folder; name a file in it")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise typer.BadParameter(f"{path} cannot be written; name a file in another folder")
        return path

    return check


SheetOption = Annotated[
    Path | None, typer.Option("--sheet", metavar="PNG", callback=named(".png"), help="Write a contact sheet.")
]
RejectsOption = Annotated[
    float, typer.Option(help="Stop when more than this share of the collection cannot be used, 0 to 1.")
]
ShardOption = Annotated[
    int | None, typer.Option(help="Rows per shard. [default: as many as fill 64 MiB, at most 2,048]")
]
RankOption = Annotated[
    int | None,
    typer.Option(help="Eigenpairs to keep. [default: all that vary, at most 1,024 above d = 4,096]"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
