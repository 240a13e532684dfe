"""What the commands share at the terminal: progress bars, warnings of one line, and an orderly end on Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from index.progress import Progress

__all__ = ["RESUMES", "err", "long_work", "out", "print_whole", "show_warnings"]

RESUMES = "what is committed is kept, run the same command again to continue"
"""What Ctrl-C leaves of a command that goes on where it was stopped."""

_WIDEST = 1000
# Lines of a file are as long as they are: a name broken in two is found by no search.
out = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else _WIDEST)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)
"""Names of files come as they are: brackets and colons in them mean nothing."""

_UNITS = {
    "encode": "images",
    "fit": "latents",
    "judge": "latents",
    "index": "latents",
    "verify": "shards",
    "clip": "images",
    "project": "latents",
    "neighbours": "rows",
    "compare": "latents",
    "remove": "shards",
}


class _Rate(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        unit = _UNITS.get(task.description, "")
        return Text(f"{speed:,.0f} {unit}/s" if speed else "", style="dim")


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as schedulers and a shutdown send it."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM stop the work as Ctrl-C does; signals belong to the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def long_work(left: str = "nothing was written") -> Iterator[Progress]:
    """Draw a bar for every stage reported, on the error stream and only where that is a terminal.

    Arguments
        left: what there is if the work is stopped, by Ctrl-C or SIGTERM; `RESUMES` where it goes on from there.
    """
    bars = Bars(
        TextColumn("{task.description:>7}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=err,
        disable=not err.is_terminal,
    )
    tasks: dict[str, TaskID] = {}

    def report(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done, total=total)

    try:
        with bars, _terminable():
            yield report
    except KeyboardInterrupt as stopped:
        err.print(f"stopped; {left}")
        raise typer.Exit(143 if isinstance(stopped, _Terminated) else 130) from None


def print_whole(table: Table) -> None:
    """Print a table of figures with all of them, wider than the terminal if it must be."""
    width = Measurement.get(out, out.options.update(max_width=_WIDEST), table).maximum
    # Of its own width: one that is there prints nothing wider than its terminal.
    Console(highlight=False, markup=False, emoji=False, width=max(width, out.width)).print(table)


def show_warnings() -> None:
    """Print warnings as one line each, without the place in the code they came from."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        print(f"warning: {message}", file=file or sys.stderr)

    warnings.showwarning = show
