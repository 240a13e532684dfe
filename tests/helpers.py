"""Data and tolerances shared by the tests."""

from pathlib import Path

import pytest
import torch

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
