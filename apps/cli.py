"""The `manifold` command. Each command calls one library function with the same keywords.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage, 130
stopped by Ctrl-C. Our own errors become one sentence; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import sys
from contextlib import suppress
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated, NoReturn

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


def _version(asked: bool) -> None:
    if asked:
        print(f"latent-manifold {version('latent-manifold')}")
        raise typer.Exit


@app.callback()
def options(
    version_: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names that a terminal's encoding lacks are no reason to stop
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # a full device is told here, and not by Python at its end
    except (ManifoldError, PermissionError) as error:
        if "--debug" in sys.argv:
            raise
        _fail(_sentence(error))
    except OSError as error:
        if "--debug" in sys.argv or error.errno not in (errno.ENAMETOOLONG, errno.ENOSPC, errno.EPIPE):
            raise
        if error.errno == errno.ENAMETOOLONG:
            _fail(f"{str(error.filename)[:40]}... is longer than the file system takes names; check the path")
        with suppress(OSError):
            sys.stdout.close()  # or Python would try once more to write
        if error.errno == errno.EPIPE:  # who read has gone: nobody to tell
            sys.exit(1)
        _fail("the output cannot be written, its device is full; free some space and run the same command again")


def _fail(sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(1)


def _sentence(error: Exception) -> str:
    if isinstance(error, PermissionError) and not isinstance(error, ManifoldError):
        return f"no permission to read {error.filename or 'a file'}; ask for it, or copy the folder"
    # An OSError prints its error number first; the sentence alone is what a person needs.
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
