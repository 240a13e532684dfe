"""The card of an index, WS/index/image.json: what the index is, and what it was built from."""

from __future__ import annotations

from typing import Any

from manifold.errors import FormatError
from manifold.files import read_json

from .workspace import Workspace

__all__ = ["INDEX_SCHEMA", "read_card"]

INDEX_SCHEMA = 2

_NEEDED = {
    "kind", "k", "count", "candidates", "variance_kept", "index_bytes", "index_sha256", "latents_sha256", "stats_sha256",
}  # fmt: skip


def read_card(workspace: Workspace) -> dict[str, Any]:
    """The card of a workspace's index, whose file must be there.

    Returns: the card; that of another version has its `schema` and whatever else that version wrote.

    Raises: FormatError if it cannot be read.
    """
    path = workspace.index_card_path
    card = read_json(path)
    if not isinstance(card, dict) or "schema" not in card or (card["schema"] == INDEX_SCHEMA and _NEEDED - card.keys()):
        raise FormatError(f"{path} is damaged; build the index again with: manifold index {workspace.root}")
    return card
