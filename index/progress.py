"""How long work reports that it is alive: a function of stage, units done and units in all.

The library never prints; a caller passes `progress` and draws what it likes (the command line draws a bar).
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "silent"]

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total), often; `stage` is a word such as "encode"."""


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""
