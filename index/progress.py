"""How long work reports that it is alive: a function of stage, units done and units in all.

The library never prints; a caller passes `progress` and draws what it likes (the command line draws a bar).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Progress", "each_step", "silent"]

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total), often; `stage` is a word such as "encode"."""


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""


def each_step(progress: Progress, stage: str, steps: int) -> Callable[..., dict[str, Any]]:
    """A diffusers `callback_on_step_end` that reports each step of one run of a pipeline and changes nothing."""
    done = 0

    def tell(*_: Any) -> dict[str, Any]:
        nonlocal done
        done += 1
        progress(stage, done, steps)
        return {}

    return tell
