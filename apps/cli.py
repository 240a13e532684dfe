"""The `manifold` command. Each command calls one library function with the same keywords.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage, 130
stopped by Ctrl-C. Our own errors become one sentence; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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

_KEYWORD = re.compile(r"(?<![\w./-])[a-z]+(?:_[a-z]+)+(?![\w/-]|\.\w)|^[a-z]+(?= must )")
"""What may be a function's keyword: a name with an underscore that is no part of a path, and what a sentence is about."""

app = typer.Typer(
    name="manifold",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # the other mode takes what stands in brackets for a style, and drops it
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
            with _interruptible():
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


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C stop an import too, which may turn it into an error of any kind."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # it is ignored, as under nohup
        yield
        return
    stopped = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    except Exception:
        if stopped:
            sys.exit(130)
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _fail(sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(1)


def _sentence(error: Exception) -> str:
    if isinstance(error, PermissionError) and not isinstance(error, ManifoldError):
        return f"no permission to read {error.filename or 'a file'}; ask for it, or copy the folder"
    # An OSError prints its error number first; the sentence alone is what a person needs.
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return _KEYWORD.sub(lambda found: _options().get(found[0], found[0]), told)


def _options() -> dict[str, str]:
    """The options of the command that was called by the keywords of its function, of which that function's errors speak."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    called = next((commands[word] for word in sys.argv[1:] if word in commands), None)
    parameters = called.params if called else []
    return {one.name: max(one.opts, key=len) for one in parameters if one.param_type_name == "option"}
