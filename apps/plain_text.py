"""Texts as people read them: counts with their nouns, and words of strangers fit for a terminal."""

from __future__ import annotations

from unicodedata import category

__all__ = ["counted", "plain"]

_UNSHOWN = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control signs, half signs and what ends lines."""


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number and what it is of: 1 image, 2,000 images."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def plain(text: str, most: int = 200) -> str:
    """A name or a caption of a stranger's, fit for a terminal: no control signs, and not longer than `most`."""
    shown = "".join("\ufffd" if category(sign) in _UNSHOWN else sign for sign in text[: most + 1])
    return shown if len(text) <= most else shown[: most - 1] + "\u2026"
