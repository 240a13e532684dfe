"""The commands that look at a collection from outside the model: its map, and CLIP beside the latents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from .cli_options import DeviceOption, JsonOption, MovedEncoderOption, SheetOption, WorkspaceArgument

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add these commands to the `manifold` command."""
    app.command(name="map")(map_)
    app.command()(clip)
    app.command(name="clip-search")(clip_search)
    app.command(name="clip-compare")(clip_compare)
    app.command(name="clip-trajectory")(clip_trajectory)


def map_(
    workspace: WorkspaceArgument,
    method: Annotated[
        Literal["umap", "pca"], typer.Option(help="umap needs the extra `map`; pca is the two leading directions.")
    ] = "umap",
    space: Annotated[
        Literal["latent", "clip"] | None,
        typer.Option(help="What to map. [default: latents, and CLIP where there is one]"),
    ] = None,
    neighbours: Annotated[int, typer.Option(help="Neighbours kept for each image, and seen by UMAP.")] = 15,
    min_dist: Annotated[float, typer.Option(help="How closely UMAP packs images, 0 to 1.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of UMAP.")] = 0,
    picture: Annotated[bool, typer.Option(help="Draw the map, with images decoded from their latents.")] = True,
    encoder: MovedEncoderOption = None,
) -> None:
    """Lay the collection out on a plane: a table that embedding-atlas opens, and a picture with thumbnails.

    Each space has one map, and a new one takes the place of the one before.

    Example: manifold map ws --method umap
    """
    from index.clip.store import card_path
    from index.projection import Space, map_path, project_map
    from index.workspace import Workspace

    from .console import long_work, out
    from .map_plot import plot_map
    from .plain_text import counted

    spaces: list[Space] = [space] if space else ["latent", "clip"] if card_path(workspace).is_file() else ["latent"]
    left = "nothing was written"
    for one in spaces:
        before = map_path(Workspace.open(workspace), one).is_file()
        with long_work(left) as progress:
            made = project_map(
                workspace, method, space=one, neighbours=neighbours, min_dist=min_dist, seed=seed, progress=progress
            )
        left = f"{made.path} is written"
        instead = "; it took the place of the map before" if before else ""
        out.print(
            f"{made.path}: {len(made.points):,} images, each with {made.neighbours.ids.shape[1]} neighbours{instead}",
            soft_wrap=True,
        )
        if picture:
            path, shown = plot_map(workspace, made, encoder=encoder)
            out.print(f"{path}: {counted(shown, 'thumbnail') if shown else 'a dot for each'}", soft_wrap=True)
        elif (old := made.path.with_suffix(".png")).is_file():
            out.print(f"{old}: still the picture of the map before", soft_wrap=True)


def clip(
    workspace: WorkspaceArgument,
    model: Annotated[
        str,
        typer.Option(
            "--clip", metavar="MODEL", help="ARCHITECTURE/WEIGHTS as open_clip names it, hf-hub:ID, or a folder."
        ),
    ],
    images: Annotated[
        list[Path] | None,
        typer.Option(help="The collection that was encoded; repeat for several. [default: looked for beside WS]"),
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column with the images, for tables that have several.")
    ] = None,
    device: DeviceOption = None,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 64,
    workers: Annotated[int, typer.Option(help="Decoding processes; 0 decodes in this one.")] = 1,
) -> None:
    """Embed the workspace's images with CLIP, to search them by text and to compare the two spaces.

    Example: manifold clip ws --clip ViT-B-32/laion2b_s34b_b79k
    """
    from index.clip import embed_workspace

    from .console import RESUMES, long_work, out
    from .plain_text import counted

    with long_work(RESUMES) as progress:
        store = embed_workspace(
            workspace, model, images or (), image_column=image_column, device=device, batch_size=batch_size, workers=workers,
            progress=progress,
        )  # fmt: skip
    out.print(f"embedded {counted(len(store), 'image')}: {store.card.spec.d:,} values each, by {store.card.spec.id}")


def clip_search(
    workspace: WorkspaceArgument,
    query: Annotated[Path | None, typer.Argument(metavar="QUERY", help="Image file to search with.")] = None,
    text: Annotated[str | None, typer.Option(help="Search with words instead.")] = None,
    row: Annotated[
        int | None, typer.Option(help="Search with a row of the collection instead; needs no model.")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Neighbours to return.")] = 10,
    model: Annotated[
        str | None, typer.Option("--clip", metavar="MODEL", help="Where the CLIP model lies now, if it moved.")
    ] = None,
    device: DeviceOption = None,
    encoder: MovedEncoderOption = None,
    sheet: SheetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find images by words, by an image, or by a row, in CLIP's space.

    Example: manifold clip-search ws --text "a red car" --sheet cars.png
    """
    from .clip_query import search_clip
    from .console import out

    answer = search_clip(
        workspace, query, text=text, row=row, k=k, clip=model, device=device, encoder=encoder, sheet=sheet
    )
    if as_json:
        print(json.dumps(answer.to_dict(), indent=2))
        return
    out.print(answer.table())
    if sheet is not None:
        out.print(f"contact sheet: {sheet}")


def clip_compare(
    workspace: WorkspaceArgument,
    k: Annotated[
        list[int] | None, typer.Option("-k", help="Length of neighbour lists; repeat for several. [default: 1 10 100]")
    ] = None,
    directions: Annotated[int, typer.Option(help="Leading directions of CLIP to predict from the latents.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the held-out rows and of the nulls.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare the latent space with CLIP's: shared neighbours, and which of CLIP's directions the latents tell.

    Example: manifold clip-compare ws --json
    """
    from index.spaces import compare_spaces

    from .clip_query import comparison_text
    from .console import long_work, out

    with long_work() as progress:
        found = compare_spaces(workspace, ks=k or (1, 10, 100), directions=directions, seed=seed, progress=progress)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        out.print(comparison_text(found))


def clip_trajectory(
    workspace: WorkspaceArgument,
    model: Annotated[
        str | None,
        typer.Option(help="Pipeline's folder or hub id. [default: the model that ships with the project]"),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Generations to follow, at least 2.")] = 40,
    steps: Annotated[int, typer.Option(help="Steps of the sampler.")] = 25,
    k: Annotated[int, typer.Option("-k", help="Length of neighbour lists.")] = 10,
    prompt: Annotated[
        list[str] | None, typer.Option(help="For models that paint from text; repeat for several.")
    ] = None,
    clip: Annotated[
        str | None, typer.Option("--clip", metavar="MODEL", help="Where the CLIP model lies now, if it moved.")
    ] = None,
    device: DeviceOption = None,
    encoder: MovedEncoderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Follow generations in CLIP's space: how early the final image's neighbours are there, beside two nulls.

    Example: manifold clip-trajectory ws --model painter --seeds 20
    """
    from .clip_trajectory import follow_clip
    from .console import long_work, out

    with long_work() as progress:
        found = follow_clip(
            workspace, model, seeds=seeds, steps=steps, k=k, prompts=prompt or (), clip=clip, device=device, encoder=encoder,
            progress=progress,
        )  # fmt: skip
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        out.print(found.table())
