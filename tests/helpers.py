"""Data and tolerances shared by the tests."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from index.encoders import PixelEncoder, embedding_spec
from index.shards import ShardWriter
from index.workspace import Manifest, Recipe, Workspace

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SHARED = _SHARED if _SHARED.is_dir() else None
needs_shared = pytest.mark.skipif(
    SHARED is None, reason="needs the data folder ../shared/data, which is not part of the project"
)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-2}
"""Relative tolerance per floating-point type; tests that need another say why."""


def assert_close(actual: torch.Tensor, expected: torch.Tensor, scale: float | None = None) -> None:
    """Largest error, relative to the largest expected value, within the tolerance of `actual`'s type."""
    expected = expected.to(actual.device)
    limit = TOLERANCE[actual.dtype] * (scale if scale is not None else max(float(expected.abs().max()), 1e-30))
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=limit)


def make_workspace(
    root: Path,
    latents: np.ndarray,
    shape: tuple[int, int, int] | None = None,
    labels: list[int] | None = None,
    shard_rows: int = 1000,
) -> Workspace:
    """A complete workspace holding `latents` (n, d), as pixels where the shape is (3, s, s) and as embeddings otherwise."""
    shape = shape or (latents.shape[1], 1, 1)
    square = shape[0] == 3 and shape[1] == shape[2]
    spec = PixelEncoder(shape[1]).spec if square else replace(embedding_spec(latents.shape[1]), latent_shape=shape)
    recipe = Recipe("test", len(latents), "test", spec, "none", 64, shard_rows)
    root.mkdir(parents=True, exist_ok=True)
    workspace = Workspace(root, Manifest(recipe, "manifold encode test -w WS"))
    workspace.commit()
    records = [
        {
            "image_path": f"{number:06d}.png",
            "key": f"{number:06d}",
            "width": shape[2],
            "height": shape[1],
            "status": "success",
            "caption": None,
            "label": None if labels is None else labels[number],
        }
        for number in range(len(latents))
    ]
    with ShardWriter(workspace) as writer:
        start = 0
        while start < len(latents):
            stop = min(len(latents), start + writer.free_rows)
            writer.append(latents[start:stop], records[start:stop], next_input=stop)
            start = stop
        writer.finish()
    return Workspace.open(root)
