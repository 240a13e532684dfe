"""The commands that look at a workspace: info, verify, explore."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .cli_options import (
    JsonOption,
    MovedEncoderOption,
    WorkspaceArgument,
)

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add these commands to the `manifold` command."""
    app.command(name="info")(info)
    app.command(name="verify")(verify)
    app.command(name="explore")(explore)


def info(workspace: WorkspaceArgument, as_json: JsonOption = False) -> None:
    """Describe a workspace: collection, encoder, counts, spectrum, index.

    Example: manifold info ws --json
    """
    from .console import out
    from .describe import describe_workspace, description_table, reject_reasons

    described = {**describe_workspace(workspace), "reject_reasons": reject_reasons(workspace)}
    if as_json:
        print(json.dumps(described, indent=2))
    else:
        out.print(description_table(described))


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
            out.print(problem, soft_wrap=True)
    if not found.whole:
        raise typer.Exit(1)


def explore(
    workspace: WorkspaceArgument,
    compare: Annotated[
        list[Path] | None,
        typer.Option(metavar="OTHER", help="A workspace whose spectrum may be laid over it; repeatable."),
    ] = None,
    recording: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A recorded run, for the page Trajectories; repeatable.")
    ] = None,
    encoder: MovedEncoderOption = None,
    port: Annotated[int, typer.Option(help="Port of 127.0.0.1 to serve at.")] = 8501,
) -> None:
    """Look at a workspace in the browser: spectrum, directions, noisy states, neighbours, map, health.

    Example: manifold explore ws
    """
    from .explore import explore as serve

    serve([workspace, *(compare or [])], port=port, recordings=recording or [], encoder=encoder)
