"""Read any covariance model back from its file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from manifold.errors import FormatError, NonFiniteError, NotPSDError, ShapeError
from manifold.files import load_tensors

from .base import CovarianceModel
from .full import FullCovariance
from .lowrank import LowRankCovariance
from .stationary import StationaryCovariance

__all__ = ["load", "model_from"]

_READERS: dict[str, Callable[[Mapping[str, Tensor], Path], CovarianceModel]] = {
    LowRankCovariance.model: LowRankCovariance.from_tensors,
    FullCovariance.model: FullCovariance.from_tensors,
    StationaryCovariance.model: StationaryCovariance.from_tensors,
}


def load(path: Path) -> tuple[CovarianceModel, dict[str, Any]]:
    """Read a model that `CovarianceModel.save` wrote; returns it, on the CPU, and the caller's metadata.

    Raises: FileNotFoundError; FormatError if the file is damaged, holds no model, or one this version does not know.
    """
    path = Path(path)
    tensors, metadata = load_tensors(path)
    return model_from(metadata.pop("model", None), tensors, path), metadata


def model_from(name: str | None, tensors: Mapping[str, Tensor], path: Path) -> CovarianceModel:
    """The model of that name whose `tensors()` a file held. Raises: FormatError naming the file."""
    if name not in _READERS:
        raise FormatError(
            f"{path} must hold a covariance model ({', '.join(_READERS)}), it holds {name!r}; fit again to make it"
        )
    for part, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise FormatError(f"{path} is damaged: {part} holds NaN or infinity; fit again to make it")
    try:
        return _READERS[name](tensors, path)
    except (NonFiniteError, NotPSDError, ShapeError, RuntimeError) as error:
        raise FormatError(f"{path} holds parts that do not make a {name} covariance: {error}") from error
