"""Keys of images from a text file."""

from __future__ import annotations

from pathlib import Path

from manifold.errors import InputError

__all__ = ["read_keys"]


def read_keys(path: Path) -> list[str]:
    """Keys from a UTF-8 text file, one a line; empty lines are skipped. Raises: InputError if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the keys in {path} ({error}); give a text file with one key a line") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
