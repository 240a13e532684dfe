"""Long work inside a page: a bar that moves, and an end when the reader asks for one.

Streamlit stops a run at its next message to the page when the reader presses Stop, changes a widget or goes to another
page; a bar that is drawn again at every report is such a message, so the work ends there and then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import streamlit as st

from index.progress import Progress
from manifold.rows import RowStore

__all__ = ["Watched", "kept", "known", "working"]

_EVERY_S = 0.1
_KEPT = 24

T = TypeVar("T")


@contextmanager
def working(what: str) -> Iterator[Progress]:
    """Show a bar under the words `what` while the block runs; yields the function to report to."""
    bar = st.progress(0.0, f"{what} … (Stop, at the top right, ends it)")
    drawn = time.monotonic()

    def report(stage: str, done: int, total: int) -> None:
        nonlocal drawn
        if time.monotonic() - drawn > _EVERY_S:
            drawn = time.monotonic()
            bar.progress(
                min(done / max(total, 1), 1.0), f"{what}: {done:,} of {total:,} (Stop, at the top right, ends it)"
            )

    try:
        yield report
    finally:
        bar.empty()


def kept(key: Hashable, make: Callable[[], T]) -> T:
    """The result of `make`, from memory if it was made before under this key; the latest 24 are kept, for all readers.

    For work that draws a bar, which a function cached by Streamlit itself must not.
    """
    results = _results()
    if key not in results:
        results[key] = make()
        while len(results) > _KEPT:
            del results[next(iter(results))]
    value: T = results[key]  # type: ignore[assignment]
    return value


def known(key: Hashable) -> bool:
    """Whether `kept` has a result under this key."""
    return key in _results()


@st.cache_resource(show_spinner=False)
def _results() -> dict[Hashable, object]:
    return {}


class Watched:
    """A store that reports the rows read from it, for library functions that take a store and no progress.

    Arguments
        store: the rows. progress: told of rows read. passes: how often the function reads the store.
    """

    def __init__(self, store: RowStore, progress: Progress, passes: int = 1) -> None:
        self._store, self._progress, self._total, self._done = store, progress, passes * len(store), 0
        self.d = store.d

    def __len__(self) -> int:
        return len(self._store)

    def batches(self, rows: int) -> Iterator[np.ndarray]:
        """As the store's own."""
        for batch in self._store.batches(rows):
            self._done += len(batch)
            self._progress("read", self._done, self._total)
            yield batch
