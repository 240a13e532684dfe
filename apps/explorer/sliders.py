"""Boards of sliders that answer while they are dragged, where Streamlit's own wait until the reader pauses.

The sliders are the browser's own, so they work by mouse, touch and keyboard. A board sends a move at once and holds the next
ones back until the page has answered, so the latest position wins and no answer is cut off by the one after it. Positions
are plain values of the session's state; the board writes those that are not the usual one to the address, in place of what
stood there, so that Back leaves the page rather than undoing a drag.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

__all__ = ["Board"]

_draw = st.components.v2.component(
    "manifold-sliders",
    html="<div class='board'></div>",
    css=Path(__file__).with_name("sliders.css").read_text(encoding="utf-8"),
    js=Path(__file__).with_name("sliders.js").read_text(encoding="utf-8"),
)


class Board:
    """Sliders over the same stops, each with a value in the session's state under its own name.

    A value is taken from the state, else from the address, else it is the default; one between two stops goes to the nearer.
    Create the board, read `values`, draw what depends on them, and call `show` last, all in one fragment: the board's own
    coming tells the browser that the page has answered.

    Arguments
        labels: by the slider's name, unique among all pages, what stands above it.
        stops: rising or falling, from the left end to the right. default: the stop nearest to it.
        rest: key of a fragment that is slower to draw and runs again when the sliders come to rest.
        unit: after each value. columns: side by side. hint: shown where the mouse rests on a label.
    """

    def __init__(
        self,
        labels: Mapping[str, str],
        stops: Sequence[float],
        default: float,
        *,
        rest: str | None = None,
        unit: str = "",
        columns: int = 1,
        hint: str = "",
    ) -> None:
        self.labels, self.stops = dict(labels), stops
        self.default = self._nearest(default)
        self._rest = rest
        self._look = {"unit": unit, "columns": columns, "hint": hint}
        for name in labels:
            st.session_state[name] = self._nearest(st.session_state.get(name, st.query_params.get(name, default)))

    @property
    def values(self) -> dict[str, float]:
        """Where the sliders stand, by name."""
        return {name: st.session_state[name] for name in self.labels}

    def show(self, place: Any = None) -> None:
        """Draw the board into a container, or here."""
        key = f"board-{next(iter(self.labels))}"
        with place or st.container():
            _draw(
                key=key,
                data={
                    "sliders": list(self.labels.items()),
                    "stops": [f"{stop:g}" for stop in self.stops],
                    "default": self.stops.index(self.default),
                    "places": [self.stops.index(value) for value in self.values.values()],
                    "answered": st.session_state.get(f"{key}-answered", 0),
                    "rests": self._rest is not None,
                    **self._look,
                },
                on_moved_change=lambda: self._move(key),
                on_rested_change=lambda: st.rerun(self._rest) if self._rest else None,
            )

    def _move(self, key: str) -> None:
        """Take over what the browser sent: its number, and the places that changed, by name."""
        sent = st.session_state[key]["moved"]
        st.session_state[f"{key}-answered"] = sent["number"]
        for name, place in sent["places"].items():
            if name in self.labels:
                st.session_state[name] = self.stops[place]

    def _nearest(self, value: Any) -> float:
        try:
            wanted = float(value)
        except ValueError:
            return self.default
        return min(self.stops, key=lambda stop: abs(stop - wanted))
