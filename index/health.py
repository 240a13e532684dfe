"""What a collection was given and did not take: the inputs that could not be used, by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["reason_counts"]


def reason_counts(rejects: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many inputs were rejected for each reason, most frequent first. `rejects`: from `index.shards.read_rejects`."""
    counted = Counter(str(reject["reason"]) for reject in rejects)
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))
