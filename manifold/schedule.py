"""Noise levels of diffusers schedulers: the pair (alpha, sigma) with x_t = alpha * x0 + sigma * eps.

alpha is the signal coefficient itself: the square root of what diffusers calls alphas_cumprod.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .errors import InputError
from .files import read_json

__all__ = ["level_at", "load_scheduler"]


def load_scheduler(folder: str | Path) -> Any:
    """The diffusers scheduler in a folder, or in `scheduler/` of a pipeline's folder.

    Raises: InputError if there is none, or diffusers does not know its class.
    """
    import diffusers

    root = Path(folder)
    for path in (root / "scheduler_config.json", root / "scheduler" / "scheduler_config.json"):
        if path.is_file():
            name = read_json(path).get("_class_name", "")
            kind = getattr(diffusers, name, None)
            if kind is None:
                raise InputError(f"{path} names the scheduler {name!r}, which the installed diffusers does not have")
            return kind.from_pretrained(path.parent)
    raise InputError(
        f"{root} holds no scheduler_config.json, neither itself nor in scheduler/; name a scheduler's folder"
    )


def level_at(scheduler: Any, timestep: float) -> tuple[float, float]:
    """alpha and sigma at a training timestep of a scheduler.

    Schedulers with alphas_cumprod (DDPM, DDIM, PNDM, DPM-Solver, UniPC, Euler, Heun, LMS): sqrt(alphas_cumprod[t]) and
    sqrt(1 - alphas_cumprod[t]), whatever coordinates they sample in. Flow matching: 1 - t / N and t / N, with N training
    timesteps; a shift moves which t are visited, not what a t means.

    Raises: InputError if the timestep is out of range, or the scheduler has neither.
    """
    last = int(scheduler.config.num_train_timesteps)
    if hasattr(scheduler, "alphas_cumprod"):
        if timestep != int(timestep) or not 0 <= timestep < last:
            raise InputError(f"the timestep must be a whole number from 0 to {last - 1}, it is {timestep:g}")
        cumulative = float(scheduler.alphas_cumprod[int(timestep)])
        return math.sqrt(cumulative), math.sqrt(1 - cumulative)
    if "FlowMatch" in type(scheduler).__name__:
        if not 0 <= timestep <= last:
            raise InputError(f"the timestep must lie between 0 and {last}, it is {timestep:g}")
        return 1 - timestep / last, timestep / last
    raise InputError(f"{type(scheduler).__name__} has no levels by timestep; give the noise level with --sigma")
