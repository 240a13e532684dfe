"""The card of an index, WS/index/image.json: what the index is, and what it was built from.

Index and card are two files, and a process may be killed between the two. So a new card is announced, as WS/index/next.json,
before its index takes the place of the old one, and takes its own place after it: whichever of the two cards has the checksum
of the index is the card.
"""

from __future__ import annotations

from typing import Any

from manifold.errors import FormatError
from manifold.files import read_json, sha256_file, write_json

from .workspace import Workspace

__all__ = ["INDEX_SCHEMA", "announce_card", "has_card", "read_card", "write_card"]

INDEX_SCHEMA = 2

_NEEDED = {
    "kind", "k", "count", "candidates", "variance_kept", "index_bytes", "index_sha256", "latents_sha256", "stats_sha256",
}  # fmt: skip


def has_card(workspace: Workspace) -> bool:
    """Whether there is a card, sound or not."""
    return workspace.index_card_path.is_file() or _announced(workspace) is not None


def read_card(workspace: Workspace) -> dict[str, Any]:
    """The card of a workspace that has one.

    Returns: the card; that of another version has its `schema` and whatever else that version wrote.

    Raises: FormatError if it cannot be read.
    """
    announced = _announced(workspace)
    if announced is not None:
        return announced
    path = workspace.index_card_path
    card = read_json(path)
    if "schema" not in card or (card["schema"] == INDEX_SCHEMA and _NEEDED - card.keys()):
        raise FormatError(f"{path} is damaged; build the index again with: manifold index {workspace.root}")
    return card


def announce_card(workspace: Workspace, card: dict[str, Any]) -> None:
    """Write the card of an index that is about to take its place; `write_card` is to follow. Raises: StorageError."""
    earlier = _announced(workspace)  # of a process that was killed: its card is the card, and must not be overwritten
    if earlier is not None:
        write_card(workspace, earlier)
    write_json(workspace.next_card_path, card)


def write_card(workspace: Workspace, card: dict[str, Any]) -> None:
    """Write the card of the index that is there. Raises: StorageError."""
    write_json(workspace.index_card_path, card)
    workspace.next_card_path.unlink(missing_ok=True)


def _announced(workspace: Workspace) -> dict[str, Any] | None:
    """The announced card, if its index has come."""
    try:
        card = read_json(workspace.next_card_path)
        return card if card.get("index_sha256") == sha256_file(workspace.index_path) else None
    except FileNotFoundError:
        return None
