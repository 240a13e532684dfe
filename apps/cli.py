"""The `manifold` command. Each command calls one library function with the same keywords.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage, 130
stopped by Ctrl-C. Our own errors become one sentence; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from manifold.errors import ManifoldError

from . import cli_report, cli_spaces, cli_teleport

__all__ = ["app", "main"]

app = typer.Typer(
    name="manifold",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Measure a diffusion model's latent space, predict where a noisy state is heading, and retrieve what it leans on.",
)

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
RejectsOption = Annotated[
    float, typer.Option(help="Stop when more than this share of the collection cannot be used, 0 to 1.")
]
ShardOption = Annotated[
    int | None, typer.Option(help="Rows per shard. [default: as many as fill 64 MiB, at most 2,048]")
]
RankOption = Annotated[int | None, typer.Option(help="Eigenpairs to keep. [default: all up to d = 4,096, above 1,024]")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Measure, predict and retrieve in a diffusion model's latent space."""
    from .console import show_warnings

    show_warnings()


@app.command()
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

    from .console import long_work, out

    with long_work() as progress:
        made = encode_images(
            images, workspace, image_column=image_column, encoder=encoder, size=size, crop=crop, mode=mode, dtype=dtype,
            tile=tile, device=device, batch_size=batch_size, workers=workers, seed=seed, max_rejects=max_rejects,
            shard_rows=shard_rows, progress=progress,
        )  # fmt: skip
    out.print(_encoded(made.manifest.count, made.manifest.rejects, made.rejects_path))


@app.command()
def fit(
    workspace: WorkspaceArgument,
    model: Annotated[
        Literal["auto", "full", "lowrank", "stationary"] | None,
        typer.Option(
            help="Covariance model; auto compares them on rows left out. [default: full up to d = 4,096, then lowrank]"
        ),
    ] = None,
    rank: RankOption = None,
    precision: Annotated[
        Literal["fast", "exact"], typer.Option(help="float32 products summed in float64, or float64 throughout.")
    ] = "fast",
    drift: Annotated[
        Path | None, typer.Option(metavar="OTHER", help="Then compare with the statistics of another workspace.")
    ] = None,
) -> None:
    """Estimate mean and covariance of the latents, and say how far to trust them.

    Example: manifold fit ws --model auto
    """
    from index.fit import fit_workspace, judge_workspace

    from .console import long_work, out

    with long_work() as progress:
        fitted = fit_workspace(workspace, model=model, rank=rank, precision=precision, progress=progress)
    out.print(
        f"fitted {fitted.count:,} latents of {fitted.d:,} values: total variance {fitted.total_variance:,.4g}, "
        f"{fitted.k:,} eigenvalues"
    )
    if "selection" in fitted.metadata:
        out.print(fitted.metadata["selection"])
    out.print(judge_workspace(workspace))
    if drift is not None:
        from .drift import compare_workspaces, drift_table

        out.print(drift_table(compare_workspaces(workspace, drift)))


@app.command(name="merge-stats")
def merge_stats(
    workspaces: Annotated[list[Path], typer.Argument(metavar="WS...", help="Fitted workspaces, or moments files.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Moments file to write.")],
) -> None:
    """Merge the exact moments of several collections, as if they had been one.

    Example: manifold merge-stats ws-a ws-b -o all.safetensors
    """
    from .console import out
    from .merge import merge_statistics

    moments = merge_statistics(workspaces, output)
    out.print(f"merged {moments.count:,} latents of {moments.d:,} values into {output}")


@app.command()
def index(
    workspace: WorkspaceArgument,
    rank: Annotated[
        int | None,
        typer.Option(help="Eigen-coordinates to keep. [default: as few as the recall needs, 16 to 256]"),
    ] = None,
    memory: Annotated[
        str, typer.Option(metavar="BYTES", help="Memory the index may take to build and to search, such as 512M or 4G.")
    ] = "1G",
    recall: Annotated[
        float | None, typer.Option(help="Share of the true neighbours to find, above 0 and below 1. [default: 0.99]")
    ] = None,
    kind: Annotated[
        Literal["Flat", "SQfp16", "SQ8", "RaBitQ", "HNSW", "IVF-Flat", "IVF-SQ8", "IVF-PQ"] | None,
        typer.Option(help="Kind of index. [default: the most precise that fits]"),
    ] = None,
) -> None:
    """Build the FAISS index of a fitted workspace: planned first, measured afterwards.

    Example: manifold index ws --memory 4G --recall 0.95
    """
    from index.build import build_index, plan_workspace

    from .console import long_work, out
    from .describe import recall_text

    plan = plan_workspace(workspace, rank=rank, kind=kind, memory=memory, recall=recall)
    out.print(plan.sentence())
    with long_work() as progress:
        card = build_index(workspace, plan=plan, recall=recall, progress=progress)
    out.print(
        f"indexed {card['count']:,} latents: {card['kind']} over {card['k']} coordinates with "
        f"{card['variance_kept']:.1%} of the variance, {card['index_bytes'] / 2**20:,.1f} MiB; {recall_text(card['recall'])}"
    )


@app.command()
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
    """Encode, fit and index in one go; for more options run the three one by one.

    Example: manifold run photos/ -w ws --size 64
    """
    from .console import long_work, out
    from .describe import describe_workspace, description_table
    from .run import run_images

    with long_work() as progress:
        run_images(
            images, workspace, image_column=image_column, encoder=encoder, size=size, crop=crop, dtype=dtype,
            device=device, workers=workers, max_rejects=max_rejects, rank=rank, progress=progress,
        )  # fmt: skip
    out.print(description_table(describe_workspace(workspace)))


@app.command()
def add(
    workspace: WorkspaceArgument,
    images: ImagesArgument,
    image_column: ColumnOption = None,
    prefix: Annotated[
        str, typer.Option(help="Put before the keys of this collection, where another has equal ones.")
    ] = "",
    encoder: Annotated[str | None, typer.Option(help="Where the workspace's encoder lies now, if it moved.")] = None,
    workers: WorkersOption = None,
    max_rejects: RejectsOption = 0.05,
) -> None:
    """Encode what is new in a collection into a workspace, and bring statistics and index up to it without a rebuild.

    Example: manifold add ws photos/
    """
    from index.add import add_images

    from .console import long_work, out

    with long_work() as progress:
        done = add_images(
            images, workspace, image_column=image_column, prefix=prefix, encoder=encoder, workers=workers,
            max_rejects=max_rejects, progress=progress,
        )  # fmt: skip
    listed = f", {done.rejects:,} rejected (see {done.workspace.rejects_path})" if done.rejects else ""
    out.print(
        f"added {done.rows:,} images{listed}, {done.known:,} were known by their key; "
        f"{done.workspace.manifest.count:,} latents in all"
    )


@app.command()
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

    from .console import long_work, out
    from .keys import read_keys

    wanted = [*(keys or []), *(read_keys(keys_from) if keys_from is not None else [])]
    with long_work() as progress:
        done = remove_images(workspace, wanted, progress=progress)
    gone = f"; not there, or removed before: {len(done.missing):,} keys" if done.missing else ""
    listed = f" and {done.rejects:,} rejects" if done.rejects else ""
    out.print(f"removed {done.rows:,} images{listed}{gone}; {done.workspace.manifest.count:,} latents are left")


@app.command()
def search(
    workspace: WorkspaceArgument,
    query: Annotated[Path | None, typer.Argument(metavar="QUERY", help="Image file to search with.")] = None,
    row: Annotated[int | None, typer.Option(help="Search with a row of the collection instead of an image.")] = None,
    sigma: Annotated[float, typer.Option(help="Noise the query to this level first, with alpha = 1.")] = 0.0,
    timestep: Annotated[float | None, typer.Option(help="Noise the query to this timestep of --scheduler.")] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Folder of a diffusers scheduler, or of a pipeline.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    question: Annotated[
        Literal["source", "target", "endpoint"],
        typer.Option(help="What could it come from, what is it heading to, what will it end near?"),
    ] = "endpoint",
    k: Annotated[int, typer.Option("-k", help="Neighbours to return.")] = 10,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="Only rows whose metadata meet it: label=3, label in 1,2, width>=512, caption~dog; repeatable.",
        ),
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="Where the workspace's encoder lies now, if it moved.")] = None,
    sheet: Annotated[Path | None, typer.Option(metavar="PNG", help="Write a contact sheet.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Find neighbours of an image, or of a noisy state of it.

    Example: manifold search ws cat.jpg --sigma 2 --question target --sheet cat.png
    """
    from .console import out
    from .query import save_answer, search_workspace

    answer = search_workspace(
        workspace, query, row=row, sigma=sigma, timestep=timestep, scheduler=scheduler, seed=seed, question=question,
        k=k, where=where or (), encoder=encoder,
    )  # fmt: skip
    if sheet is not None:
        save_answer(answer, workspace, sheet, encoder=encoder)
    if as_json:
        print(json.dumps(answer.to_dict(), indent=2))
        return
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name, justify in (("rank", "right"), ("row", "right"), (answer.score_name, "right"), ("image", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("caption or label", justify="left")
    for rank, found in enumerate(answer.rows, 1):
        about = found["caption"] or ("" if found["label"] is None else str(found["label"]))
        score = f"{found[answer.score_name]:.4g}"
        table.add_row(str(rank), str(found["row"]), score, found["image_path"] or "", about)
    out.print(table)
    if answer.where:
        given = "; probabilities are given that it is one of them" if answer.score_name == "probability" else ""
        out.print(f"among the {answer.among:,} images with {' and '.join(answer.where)}{given}")
    if sheet is not None:
        out.print(f"contact sheet: {sheet}")


@app.command()
def serve(
    workspace: WorkspaceArgument,
    host: Annotated[
        str, typer.Option(help="Address to listen at; others than this machine's are warned of.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 takes a free one.")] = 8765,
    images: Annotated[
        Path | None,
        typer.Option(metavar="IMAGES", help="Where the collection lies, for thumbnails. [default: beside WS, or here]"),
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="Where the workspace's encoder lies now, if it moved.")] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Another name that requests may call a local address by; repeatable."),
    ] = None,
    max_body_mb: Annotated[float, typer.Option(help="Largest request, in megabytes.")] = 20.0,
    max_megapixels: Annotated[float, typer.Option(help="Largest image that is decoded.")] = 50.0,
    max_k: Annotated[int, typer.Option(help="Most neighbours in an answer.")] = 1000,
) -> None:
    """Serve a workspace over HTTP: search with images or latents, metadata, thumbnails.

    Example: manifold serve ws --port 8765
    """
    from .console import out
    from .serve import serve_workspace

    try:
        serve_workspace(
            workspace, host=host, port=port, images=images, encoder=encoder, allow_hosts=allow_host or (),
            max_body_mb=max_body_mb, max_megapixels=max_megapixels, max_k=max_k,
            announce=lambda line: out.print(line, soft_wrap=True),
        )  # fmt: skip
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command()
def duplicates(
    workspace: WorkspaceArgument,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Distance between latents up to which two images are joined. [default: 0.1 of the root mean square one]"
        ),
    ] = None,
    as_json: JsonOption = False,
    parquet: Annotated[
        Path | None, typer.Option("--out", metavar="PARQUET", help="Write every member of every group.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Write a contact sheet of the largest groups.")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="Where the workspace's encoder lies now, if it moved.")] = None,
) -> None:
    """Find groups of images whose latents nearly coincide: connected components over all pairs within a distance, exact.

    Example: manifold duplicates ws --sheet duplicates.png
    """
    from index.duplicates import find_duplicates

    from .console import long_work, out
    from .duplicates import duplicates_summary, duplicates_table, save_duplicates, save_duplicates_sheet, to_dict

    with long_work() as progress:
        found = find_duplicates(workspace, threshold=threshold, progress=progress)
    if parquet is not None:
        save_duplicates(found, parquet)
    if sheet is not None:
        save_duplicates_sheet(found, workspace, sheet, encoder=encoder)
    if as_json:
        print(json.dumps(to_dict(found), indent=2))
        return
    if found.groups:
        out.print(duplicates_table(found))
    out.print(duplicates_summary(found))


@app.command()
def info(workspace: WorkspaceArgument, as_json: JsonOption = False) -> None:
    """Describe a workspace: collection, encoder, counts, spectrum, index.

    Example: manifold info ws --json
    """
    from .console import out
    from .describe import describe_workspace, description_table

    described = describe_workspace(workspace)
    if as_json:
        print(json.dumps(described, indent=2))
    else:
        out.print(description_table(described))


@app.command()
def verify(workspace: WorkspaceArgument, as_json: JsonOption = False) -> None:
    """Prove a workspace whole: every file read, every checksum and count compared. Exit code 1 if anything is wrong.

    Example: manifold verify ws
    """
    from index.verify import verify_workspace

    from .console import long_work, out

    with long_work() as progress:
        found = verify_workspace(workspace, progress=progress)
    if as_json:
        print(json.dumps({"whole": found.whole, "checked": found.checked, "problems": found.problems}, indent=2))
    elif found.whole:
        out.print(f"whole: {len(found.checked):,} files read, nothing wrong")
    else:
        for problem in found.problems:
            out.print(problem)
    if not found.whole:
        raise typer.Exit(1)


@app.command()
def explore(
    workspace: WorkspaceArgument,
    compare: Annotated[
        list[Path] | None,
        typer.Option(metavar="OTHER", help="A workspace whose spectrum may be laid over it; repeatable."),
    ] = None,
    recording: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A recorded run, for the page Trajectories; repeatable.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port of 127.0.0.1 to serve at.")] = 8501,
) -> None:
    """Look at a workspace in the browser: spectrum, directions, noisy states, neighbours, map, health.

    Example: manifold explore ws
    """
    from .explore import explore as serve

    serve([workspace, *(compare or [])], port=port, recordings=recording or [])


@app.command("train-demo")
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
    autoencoder_steps: Annotated[int, typer.Option(help="Steps of 32 images for the autoencoder.")] = 12_000,
    denoiser_steps: Annotated[int, typer.Option(help="Steps of 256 images for the denoiser.")] = 60_000,
    minutes: Annotated[float | None, typer.Option(help="Stop the denoiser after so many minutes.")] = None,
    start: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="Folder of a finished model whose denoiser to train on.")
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Train the small latent diffusion model that ships with the project; run again to train on.

    Example: manifold train-demo --data cifar10-train.parquet -o demo-model
    """
    from .console import long_work, out
    from .training.run import train_demo as train

    with long_work() as progress:
        painter = train(
            data, folder, autoencoder_steps=autoencoder_steps, denoiser_steps=denoiser_steps, minutes=minutes,
            start=start, device=device, progress=progress,
        )  # fmt: skip
    out.print(f"{painter}: the model, its card README.md, and a gallery of its pictures")


@app.command()
def demo(
    workspace: Annotated[
        Path, typer.Option("--workspace", "-w", metavar="DIR", help="Folder for the demo's files and pictures.")
    ] = Path("demo-out"),
) -> None:
    """Tell the whole story on the small model that ships with the project, and write pictures to look at.

    Example: manifold demo -w demo-out
    """
    from .console import long_work, out
    from .demo import run_demo
    from .describe import describe_workspace, description_table

    with long_work() as progress:
        pictures = run_demo(workspace, progress=progress)
    out.print(description_table(describe_workspace(workspace / "workspace")))
    out.print("\nLook at:")
    for picture in pictures:
        out.print(f"  {picture.path}\n      {picture.what}", soft_wrap=True)
    example = f"manifold search {workspace / 'workspace'} --row 100 --sigma 2 --sheet out.png"
    out.print(f"\nThen try: {example}", soft_wrap=True)


cli_report.register(app)
cli_spaces.register(app)
cli_teleport.register(app)


def _encoded(count: int, rejects: int, rejects_path: Path) -> str:
    listed = f"; {rejects:,} rejected, see {rejects_path}" if rejects else ", none rejected"
    return f"stored {count:,} latents{listed}"


def main() -> None:
    """Entry point of the `manifold` command."""
    try:
        app()
    except ManifoldError as error:
        if "--debug" in sys.argv:
            raise
        # An OSError prints its error number first; the sentence alone is what a person needs.
        sentence = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(1)
