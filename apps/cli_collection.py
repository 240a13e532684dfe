"""The commands that make and change a collection: encode, run, add, remove."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_options import (
    BatchOption,
    ColumnOption,
    CropOption,
    DeviceOption,
    DtypeOption,
    EncoderOption,
    ImagesArgument,
    ModeOption,
    MovedEncoderOption,
    RankOption,
    RejectsOption,
    SeedOption,
    ShardOption,
    SizeOption,
    TileOption,
    WorkersOption,
    WorkspaceArgument,
    WorkspaceOption,
)

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add these commands to the `manifold` command."""
    app.command(name="encode")(encode)
    app.command(name="run")(run)
    app.command(name="add")(add)
    app.command(name="remove")(remove)


def encode(
    images: ImagesArgument,
    workspace: WorkspaceOption,
    image_column: ColumnOption = None,
    encoder: EncoderOption = "pixels",
    size: SizeOption = None,
    crop: CropOption = "center",
    mode: ModeOption = "mode",
    dtype: DtypeOption = "float32",
    tile: TileOption = None,
    device: DeviceOption = None,
    batch_size: BatchOption = None,
    workers: WorkersOption = None,
    seed: SeedOption = 0,
    max_rejects: RejectsOption = 0.05,
    shard_rows: ShardOption = None,
) -> None:
    """Encode a collection of images into a workspace; run again to continue a stopped run.

    Example: manifold encode photos/ -w ws --encoder stabilityai/sd-vae-ft-mse --size 512
    """
    from index.encode import encode_images

    from .console import RESUMES, long_work, out

    with long_work(RESUMES) as progress:
        made = encode_images(
            images, workspace, image_column=image_column, encoder=encoder, size=size, crop=crop, mode=mode, dtype=dtype,
            tile=tile, device=device, batch_size=batch_size, workers=workers, seed=seed, max_rejects=max_rejects,
            shard_rows=shard_rows, progress=progress,
        )  # fmt: skip
    out.print(_encoded(made.manifest.count, made.manifest.rejects, made.rejects_path))


def run(
    images: ImagesArgument,
    workspace: WorkspaceOption,
    image_column: ColumnOption = None,
    encoder: EncoderOption = "pixels",
    size: SizeOption = None,
    crop: CropOption = "center",
    dtype: DtypeOption = "float32",
    device: DeviceOption = None,
    workers: WorkersOption = None,
    max_rejects: RejectsOption = 0.05,
    rank: RankOption = None,
) -> None:
    """Encode, fit and index in one go, and say how far to trust the statistics; for more options run the three one by one.

    Example: manifold run photos/ -w ws --size 32
    """
    from index.fit import judge_workspace

    from .console import RESUMES, long_work, out
    from .describe import describe_workspace, description_table, reject_reasons
    from .run import run_images

    with long_work(RESUMES) as progress:
        run_images(
            images, workspace, image_column=image_column, encoder=encoder, size=size, crop=crop, dtype=dtype,
            device=device, workers=workers, max_rejects=max_rejects, rank=rank, progress=progress,
        )  # fmt: skip
        verdict = judge_workspace(workspace, progress=progress)
    out.print(description_table({**describe_workspace(workspace), "reject_reasons": reject_reasons(workspace)}))
    out.print(verdict, soft_wrap=True)


def add(
    workspace: WorkspaceArgument,
    images: ImagesArgument,
    image_column: ColumnOption = None,
    prefix: Annotated[
        str, typer.Option(help="Put before the keys of this collection, where another has equal ones.")
    ] = "",
    encoder: MovedEncoderOption = None,
    workers: WorkersOption = None,
    max_rejects: RejectsOption = 0.05,
) -> None:
    """Encode what is new in a collection into a workspace, and bring statistics and index up to it without a rebuild.

    Example: manifold add ws photos/
    """
    from index.add import add_images

    from .console import RESUMES, long_work, out
    from .plain_text import counted

    with long_work(RESUMES) as progress:
        done = add_images(
            images, workspace, image_column=image_column, prefix=prefix, encoder=encoder, workers=workers,
            max_rejects=max_rejects, progress=progress,
        )  # fmt: skip
    listed = f", {done.rejects:,} rejected (see {done.workspace.rejects_path})" if done.rejects else ""
    out.print(
        f"added {counted(done.rows, 'image')}{listed}, {counted(done.known, 'was', 'were')} known by their key; "
        f"{counted(done.workspace.manifest.count, 'latent')} in all"
    )


def remove(
    workspace: WorkspaceArgument,
    keys: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY...", help="Keys of images, as the metadata and searches show them."),
    ] = None,
    keys_from: Annotated[Path | None, typer.Option(metavar="FILE", help="Keys from a text file, one a line.")] = None,
) -> None:
    """Remove images from latents, metadata, statistics and index; run again to finish a removal that was killed.

    Example: manifold remove ws cat dogs/rex
    """
    from index.remove import remove_images

    from .console import RESUMES, long_work, out
    from .keys import read_keys
    from .plain_text import counted

    wanted = [*(keys or []), *(read_keys(keys_from) if keys_from is not None else [])]
    with long_work(RESUMES) as progress:
        done = remove_images(workspace, wanted, progress=progress)
    gone = f"; not there, or removed before: {counted(len(done.missing), 'key')}" if done.missing else ""
    listed = f" and {counted(done.rejects, 'reject')}" if done.rejects else ""
    left = counted(done.workspace.manifest.count, "latent is", "latents are")
    out.print(f"removed {counted(done.rows, 'image')}{listed}{gone}; {left} left")


def _encoded(count: int, rejects: int, rejects_path: Path) -> str:
    from .plain_text import counted

    listed = f"; {rejects:,} rejected, see {rejects_path}" if rejects else ", none rejected"
    return f"stored {counted(count, 'latent')}{listed}"
