"""Read any covariance model back from its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from manifold.errors import FormatError
from manifold.files import load_tensors

from .base import CovarianceModel
from .full import FullCovariance
from .lowrank import LowRankCovariance

__all__ = ["load"]

_MODELS = {model.model: model for model in (LowRankCovariance, FullCovariance)}


def load(path: Path) -> tuple[CovarianceModel, dict[str, Any]]:
    """Read a model that `CovarianceModel.save` wrote; returns it, on the CPU, and the caller's metadata.

    Raises: FileNotFoundError; FormatError if the file is damaged, holds no model, or one this version does not know.
    """
    path = Path(path)
    tensors, metadata = load_tensors(path)
    name = metadata.pop("model", None)
    if name not in _MODELS:
        raise FormatError(
            f"{path} must hold a covariance model ({', '.join(_MODELS)}), it holds {name!r}; fit again to make it"
        )
    return _MODELS[name].from_tensors(tensors, path), metadata
