"""Keys of images from a text file."""

from __future__ import annotations

from pathlib import Path

from manifold.errors import InputError

__all__ = ["read_keys"]


def read_keys(path: Path) -> list[str]:
    """Keys from a UTF-8 text file, one a line, spaces and all; empty lines are skipped.

    Raises: InputError if it cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputError(f"cannot read the keys in {path} ({reason}); give a text file with one key a line") from error
    lines = (line.removesuffix("\r") for line in text.split("\n"))  # a key may hold whatever else ends lines for Python
    return [line for line in lines if line]
