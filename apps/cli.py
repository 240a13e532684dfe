"""The `manifold` command. Each command calls one library function with the same keywords.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage, 130
stopped by Ctrl-C. Our own errors become one sentence; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from manifold.errors import ManifoldError

from . import (
    cli_collection,
    cli_demo,
    cli_look,
    cli_report,
    cli_search,
    cli_spaces,
    cli_statistics,
    cli_teleport,
)

__all__ = ["app", "main"]

app = typer.Typer(
    name="manifold",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Measure a diffusion model's latent space, predict where a noisy state is heading, and retrieve what it leans on.",
)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Measure, predict and retrieve in a diffusion model's latent space."""
    from .console import show_warnings

    show_warnings()


for commands in (
    cli_collection,
    cli_statistics,
    cli_search,
    cli_look,
    cli_spaces,
    cli_report,
    cli_teleport,
    cli_demo,
):
    commands.register(app)


def main() -> None:
    """Entry point of the `manifold` command."""
    try:
        app()
    except (ManifoldError, PermissionError) as error:
        if "--debug" in sys.argv:
            raise
        print(f"error: {_sentence(error)}", file=sys.stderr)
        sys.exit(1)


def _sentence(error: Exception) -> str:
    if isinstance(error, PermissionError) and not isinstance(error, ManifoldError):
        return f"no permission to read {error.filename or 'a file'}; ask for it, or copy the folder"
    # An OSError prints its error number first; the sentence alone is what a person needs.
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
