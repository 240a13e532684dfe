"""The commands that search a collection: index, search, duplicates, serve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from .cli_options import (
    JsonOption,
    MovedEncoderOption,
    SheetOption,
    WorkspaceArgument,
    named,
)

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add these commands to the `manifold` command."""
    app.command(name="index")(index)
    app.command(name="search")(search)
    app.command(name="duplicates")(duplicates)
    app.command(name="serve")(serve)


def index(
    workspace: WorkspaceArgument,
    rank: Annotated[
        int | None,
        typer.Option(help="Eigen-coordinates to keep. [default: what answers soonest, 16 to 256]"),
    ] = None,
    memory: Annotated[
        str, typer.Option(metavar="BYTES", help="Memory the index may take to build and to search, such as 512M or 4G.")
    ] = "1G",
    recall: Annotated[
        float | None, typer.Option(help="Share of the true neighbours to find, above 0 and below 1. [default: 0.99]")
    ] = None,
    kind: Annotated[
        Literal["Flat", "SQfp16", "SQ8", "Int8", "FastScan", "RaBitQ", "HNSW", "IVF-Flat", "IVF-SQ8", "IVF-PQ"] | None,
        typer.Option(help="Kind of index. [default: the quickest that fits]"),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Build nothing; measure again what the index finds, as after additions.")
    ] = False,
) -> None:
    """Build the FAISS index of a fitted workspace: planned first, measured afterwards.

    With --measure an index that is there already is measured again.

    Example: manifold index ws --memory 4G --recall 0.95
    """
    from index.build import build_index, measure_index, plan_workspace

    from .console import long_work, out
    from .describe import recall_text
    from .plain_text import counted

    if measure:
        if rank is not None or kind is not None or recall is not None:
            raise typer.BadParameter("--measure builds nothing; leave --rank, --kind and --recall out")
        with long_work() as progress:
            out.print(recall_text(measure_index(workspace, progress=progress)["recall"]))
        return
    plan = plan_workspace(workspace, rank=rank, kind=kind, memory=memory, recall=recall)
    out.print(plan.sentence())
    with long_work() as progress:
        card = build_index(workspace, plan=plan, recall=recall, progress=progress)
    if card["kind"] != plan.kind:
        out.print(f"{plan.kind} missed the recall wanted: these data are far from Gaussian; a finer index was built")
    out.print(
        f"indexed {card['count']:,} latents: {card['kind']} over {counted(card['k'], 'coordinate')} with "
        f"{card['variance_kept']:.1%} of the variance, {card['index_bytes'] / 2**20:,.1f} MiB; {recall_text(card['recall'])}"
    )


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
        typer.Option(
            help="What could it come from, what is it heading to, what will it end near? Without a network's prediction, "
            "which a Searcher and the server take, target answers as endpoint."
        ),
    ] = "endpoint",
    k: Annotated[int, typer.Option("-k", help="Neighbours to return.")] = 10,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="Only rows whose metadata meet it: label=3, label in 1,2, width>=512, caption~dog; repeatable.",
        ),
    ] = None,
    encoder: MovedEncoderOption = None,
    sheet: SheetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find neighbours of an image, or of a noisy state of it.

    Example: manifold search ws cat.jpg --sigma 2 --question endpoint --sheet cat.png
    """
    from .console import out
    from .plain_text import counted
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
    out.print(answer.table())
    if answer.where:
        given = "; probabilities are given that it is one of them" if answer.score_name == "probability" else ""
        out.print(f"among the {counted(answer.among or 0, 'image')} with {' and '.join(answer.where)}{given}")
    if sheet is not None:
        out.print(f"contact sheet: {sheet}")


def duplicates(
    workspace: WorkspaceArgument,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Distance between latents up to which two images are joined. [default: 0.1 of the root mean square distance]"
        ),
    ] = None,
    as_json: JsonOption = False,
    parquet: Annotated[
        Path | None,
        typer.Option("--out", metavar="PARQUET", callback=named(".parquet"), help="Write every member of every group."),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="PNG", callback=named(".png"), help="Write a contact sheet of the largest groups."),
    ] = None,
    encoder: MovedEncoderOption = None,
) -> None:
    """Find groups of images whose latents nearly coincide: connected components over all pairs within a distance, exact.

    Example: manifold duplicates ws --sheet duplicates.png
    """
    from index.duplicates import find_duplicates

    from .console import err, long_work, out
    from .duplicates import duplicates_summary, duplicates_table, save_duplicates, save_duplicates_sheet, to_dict

    with long_work() as progress:
        found = find_duplicates(workspace, threshold=threshold, progress=progress)
    if parquet is not None:
        save_duplicates(found, parquet)
    if as_json:
        print(json.dumps(to_dict(found), indent=2))
    else:
        if found.groups:
            out.print(duplicates_table(found))
        out.print(duplicates_summary(found))
    if sheet is not None and found.groups:
        save_duplicates_sheet(found, workspace, sheet, encoder=encoder)
    elif sheet is not None:
        err.print(f"no group to draw, so {sheet} was not written", soft_wrap=True)


def serve(
    workspace: WorkspaceArgument,
    host: Annotated[
        str, typer.Option(help="Address to listen at; a warning is printed for any but this machine's own.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 takes a free one.")] = 8765,
    images: Annotated[
        Path | None,
        typer.Option(metavar="IMAGES", help="Where the collection lies, for thumbnails. [default: beside WS, or here]"),
    ] = None,
    encoder: MovedEncoderOption = None,
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
