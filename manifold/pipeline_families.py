"""What differs between the families of diffusers pipelines, for those who watch or move the state of a run.

Every pipeline of diffusers asks `scheduler.set_timesteps` for its steps and calls `scheduler.step(output, t, state)` once for
each evaluation of its network: there the state x_t, the guided prediction and the timestep meet, whatever the family. A
callback (`callback_on_step_end`) is given the state alone, and DDPMPipeline, DDIMPipeline and DiTPipeline have none.
What does differ is how the state lies in memory:

    DDPM, DDIM, SD, SDXL, SD3, PixArt, Sana        (n, C, H, W)
    DiT                  (2 n, C, H, W) under guidance: every state twice
    FLUX and its kin     tokens (n, H/2 * W/2, 4 C), each a 2 x 2 patch
    FLUX.2               tokens (n, H * W, C): its latents have their 2 x 2 patches as channels already

Units: the state is the latent as the network sees it, that is z = (raw - shift) * scaling, what `index.encoders` stores; a
pipeline undoes the scaling when it decodes. So statistics of a workspace and states of its model's pipeline need no factor.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import InputError
from .schedule import NoiseSchedule, evaluated_sigmas, levels_at_snr

__all__ = ["StateLayout", "arguments_of", "kept", "replaced", "state_layout", "visited_levels", "without_variance"]


@dataclass(frozen=True)
class StateLayout:
    """How a state lies in memory, and the ways to (n, C, H, W) and back.

    Attributes
        grid: (h, w) in tokens; None if the state is not packed.
        patch: side of the patch that a token holds.
        copies: how often each state is there, one batch after the other.
    """

    grid: tuple[int, int] | None = None
    patch: int = 1
    copies: int = 1

    def unpack(self, state: Tensor) -> Tensor:
        """A state as the pipeline keeps it, as (n, C, H, W)."""
        state = state[: len(state) // self.copies]
        if self.grid is None:
            return state
        (h, w), p = self.grid, self.patch
        tokens = state.reshape(len(state), h, w, -1, p, p)
        return tokens.permute(0, 3, 1, 4, 2, 5).reshape(len(state), -1, h * p, w * p)

    def pack(self, state: Tensor) -> Tensor:
        """A state (n, C, H, W) as the pipeline keeps it."""
        state = torch.cat([state] * self.copies) if self.copies > 1 else state
        if self.grid is None:
            return state
        (h, w), p = self.grid, self.patch
        patches = state.reshape(len(state), -1, h, p, w, p)
        return patches.permute(0, 2, 4, 1, 3, 5).reshape(len(state), h * w, -1)


def state_layout(pipeline: Any, state: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> StateLayout:
    """How `pipeline(*args, **kwargs)` keeps its state, of which one is given.

    Raises: InputError if it is neither (n, C, H, W) nor tokens of a family we know.
    """
    name = type(pipeline).__name__
    arguments = arguments_of(pipeline, args, kwargs)
    if state.ndim == 4:
        return StateLayout(copies=2 if name == "DiTPipeline" and arguments["guidance_scale"] > 1 else 1)
    if state.ndim != 3 or not hasattr(pipeline, "_pack_latents") or not hasattr(pipeline, "vae_scale_factor"):
        raise InputError(
            f"states must be (n, C, H, W) or FLUX's tokens, those of {name} have shape {tuple(state.shape)}; "
            "videos and other packings are not supported"
        )
    factor = int(pipeline.vae_scale_factor)
    h, w = (
        int(arguments.get(side) or pipeline.default_sample_size * factor) // (2 * factor)
        for side in ("height", "width")
    )
    if h * w != state.shape[1]:
        raise InputError(
            f"{name} keeps {state.shape[1]} tokens, an image of its size should have {h} x {w}; this packing is not known"
        )
    return StateLayout((h, w), 1 if name.startswith("Flux2") else 2)


def arguments_of(pipeline: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a call gives the pipeline, by name, defaults included."""
    bound = inspect.signature(pipeline.__call__).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def visited_levels(scheduler: Any) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) at every entry of `scheduler.timesteps`, float64, in the coordinates of its states.

    Read by place and not by timestep: rounded timesteps, as of Karras' spacing, repeat with different levels.

    Raises: InputError if the scheduler has no (alpha, sigma) that we know how to read.
    """
    schedule = NoiseSchedule.from_scheduler(scheduler)
    timesteps = scheduler.timesteps
    if not hasattr(scheduler, "sigmas"):
        return schedule.levels(timesteps)
    sigmas = evaluated_sigmas(scheduler)
    log_snr = -2 * sigmas.log()
    if schedule.coordinates == "flow":
        log_snr = log_snr + 2 * (1 - sigmas).log()
    return levels_at_snr(log_snr, schedule.coordinates)


@contextmanager
def replaced(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Within the context `owner.name` is make(owner.name), with its signature; afterwards all is as before.

    The signature matters: pipelines look at it to know what `set_timesteps` and `step` take.
    """
    original = getattr(owner, name)
    own = name in vars(owner)
    setattr(owner, name, functools.wraps(original)(make(original)))
    try:
        yield
    finally:
        if own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)


def without_variance(output: Tensor, state: Tensor) -> Tensor:
    """A network's output without the learned variance that some append as further channels."""
    if state.ndim == 4 and output.shape[1] == 2 * state.shape[1]:
        return output[:, : state.shape[1]]
    return output


def kept(tensor: Tensor) -> Tensor:
    """A copy on the CPU that later steps cannot change."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
