"""Latents that were painted rather than encoded, as a workspace: what a pipeline returns with output_type="latent"."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manifold.errors import ShapeError

from .encode import begin_workspace, import_into, portable_spec
from .encoders import EncoderSpec
from .progress import Progress, silent
from .shards import ShardWriter
from .workspace import Recipe, Workspace, writing

__all__ = ["deposit_latents", "painted_records"]

_SHARD_ROWS = 2048


def deposit_latents(
    latents: Tensor,
    records: Sequence[Mapping[str, Any]],
    workspace: str | Path,
    *,
    encoder: EncoderSpec,
    source: str,
    progress: Progress = silent,
) -> Workspace:
    """Store latents in a workspace as the encoder named would have made them.

    Arguments
        latents: (n, C, H, W), scaled and shifted as the encoder's are; stored as float16.
        records: n mappings with a unique `key`, and `caption` and `label` where known.
        workspace: the folder to make; one that holds these very latents is left as it is.
        encoder: the spec of the encoder whose `decode` makes pictures of them.
        source: name of the collection.
        progress: told of ("encode", rows done, rows in all).

    Returns: the complete workspace.

    Raises: ShapeError if latents, records and encoder do not fit together; InputError (the folder holds something else);
        MismatchError (it holds another collection); NonFiniteError; StorageError.
    """
    if tuple(latents.shape[1:]) != encoder.latent_shape or len(latents) != len(records):
        raise ShapeError(
            f"latents must be (n, C, H, W) of shape {encoder.latent_shape} with a record each, they are "
            f"{tuple(latents.shape)} with {len(records)} records"
        )
    root = Path(workspace)
    rows = latents.detach().cpu().to(torch.float16).flatten(1).contiguous().numpy()
    recipe = Recipe(
        source=source,
        inputs=len(rows),
        fingerprint=hashlib.sha256(rows.tobytes()).hexdigest(),
        encoder=portable_spec(encoder, root),
        crop="none",
        batch_size=_SHARD_ROWS,
        shard_rows=_SHARD_ROWS,
    )
    with writing(root):
        made = begin_workspace(root, recipe)
        if not made.manifest.complete:
            done = made.manifest.next_input
            with ShardWriter(made) as writer:
                import_into(
                    writer, [(rows[done:], _columns(records[done:], encoder.image_size))], done, len(rows), progress
                )
                writer.finish()
    return Workspace.open(root)


def _columns(records: Sequence[Mapping[str, Any]], side: int) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        name: [record.get(name) for record in records] for name in ("key", "caption", "label")
    }
    columns["image_path"] = [record["key"] for record in records]
    columns["width"] = columns["height"] = [side] * len(records)
    columns["status"] = ["success"] * len(records)
    return columns


def painted_records(labels: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Records of class-conditional pictures: keys `painted/00000` on, the class as label and, by name, as caption."""
    return [
        {"key": f"painted/{row:05d}", "label": int(label), "caption": names[int(label)]}
        for row, label in enumerate(labels)
    ]
