"""A long list, a page of it at a time; the page's number stands in the address."""

from __future__ import annotations

from typing import Any

import streamlit as st

__all__ = ["page_rows"]


def page_rows(count: int, a_page: int, key: str, row: Any = st, *, always: bool = False) -> range:
    """Places of the list that are shown, as the reader chose them.

    Arguments
        count: length of the list. a_page: how many are shown at once. key: of the widget, unique on the page.
        row: where the widget stands. always: show it for a single page too.
    """
    pages = max(1, -(-count // a_page))
    state: Any = st.session_state
    if state.get(key, 1) > pages:
        state[key] = 1  # of a list before this one, which was longer
    number = 1
    if pages > 1 or always:
        number = int(row.number_input(f"Page, 1 to {pages:,}", 1, pages, 1, key=key, bind="query-params", width=180))
    return range((number - 1) * a_page, min(number * a_page, count))
