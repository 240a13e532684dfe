"""Texts of strangers, as a terminal may be given them."""

from __future__ import annotations

from unicodedata import category

__all__ = ["plain"]

_UNSHOWN = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control signs, half signs and what ends lines."""


def plain(text: str, most: int = 200) -> str:
    """A name or a caption of a stranger's, fit for a terminal: no control signs, and not longer than `most`."""
    shown = "".join("\ufffd" if category(sign) in _UNSHOWN else sign for sign in text[: most + 1])
    return shown if len(text) <= most else shown[: most - 1] + "\u2026"
