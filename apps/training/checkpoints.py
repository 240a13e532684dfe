"""A network as it was during training: folders checkpoint-STEP, as the training scripts of diffusers leave them."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from manifold.demo_model.weights import quiet_diffusers
from manifold.errors import FormatError, InputError
from manifold.files import storage_errors

__all__ = ["find_checkpoints", "keep_checkpoint", "kept_step", "open_checkpoint", "spread_out"]

_FIRST_KEPT = 25


def kept_step(step: int) -> bool:
    """Whether a network is kept after so many steps: untrained, and at 25 steps and every doubling of them."""
    doublings, odd = divmod(step, _FIRST_KEPT)
    return not odd and doublings & (doublings - 1) == 0


def keep_checkpoint(network: Any, folder: Path, step: int) -> None:
    """Write a diffusers network, in float16, to FOLDER/checkpoint-STEP/unet.

    Raises: StorageError.
    """
    with storage_errors(folder):
        copy.deepcopy(network).half().save_pretrained(folder / f"checkpoint-{step}" / "unet")


def open_checkpoint(kind: Any, path: Path) -> Any:
    """A kept network of a class of diffusers, on the CPU. Raises: FormatError if it cannot be read as one."""
    with quiet_diffusers():
        try:
            return kind.from_pretrained(path, low_cpu_mem_usage=False)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise FormatError(f"{path} cannot be opened as a {kind.__name__}: {error}") from error


def find_checkpoints(folder: str | Path, name: str) -> dict[int, Path]:
    """Where a network was kept, by step, rising: FOLDER/checkpoint-STEP/NAME, or NAME_ema, the average, where there is one.

    Arguments
        name: of the network in its pipeline, `unet` or `transformer`.

    Raises: InputError if there is none.
    """
    found = {}
    for path in Path(folder).expanduser().glob("checkpoint-*"):
        step = re.fullmatch(r"checkpoint-(\d+)", path.name)
        networks = [path / f"{name}_ema", path / name]
        kept = next((one for one in networks if (one / "config.json").is_file()), None)
        if step and kept:
            found[int(step[1])] = kept
    if not found:
        raise InputError(
            f"{folder} holds no networks kept during training (checkpoint-STEP/{name}, as the training scripts of diffusers "
            "and manifold train-demo --checkpoints write them)"
        )
    return dict(sorted(found.items()))


def spread_out(checkpoints: dict[int, Path], most: int) -> dict[int, Path]:
    """At most so many of them, first and last included, spread evenly over the doublings of steps between them."""
    if len(checkpoints) <= most:
        return checkpoints
    steps = np.array(list(checkpoints))
    places = np.log1p(steps)
    wanted = np.linspace(places[0], places[-1], most)
    chosen = {int(steps[np.abs(places - one).argmin()]) for one in wanted}
    return {step: checkpoints[step] for step in sorted(chosen)}
