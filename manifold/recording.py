"""What a diffusers pipeline did on the way to its images: every state, every predicted target, every noise level.

`scheduler.step` is replaced for the duration of the call by a function that looks and passes on, because only there do state,
guided prediction and timestep meet: `callback_on_step_end` is given no prediction by any pipeline of diffusers, and the
unconditional pipelines have no callback. A callback of the caller's runs as usual, and a last state that it changes is
recorded changed. Nothing is computed that the run could see, so its output is the same to the last bit.

x0_hat is what the sampler itself made of the guided prediction, where its step says so (`pred_original_sample`, and
`convert_model_output` of the solvers that work on x0), with its clipping or thresholding; else it follows from the
prediction by `NoiseSchedule.x0_hat`. One entry is one evaluation of the network: samplers of second order (Heun, KDPM2,
the first step of PNDM) have more of them than steps, the state between included.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from .errors import FormatError, InputError
from .files import load_tensors, save_tensors
from .pipeline_families import StateLayout, kept, replaced, state_layout, visited_levels, without_variance
from .schedule import NoiseSchedule, own_options

__all__ = ["Recording", "record"]

_TENSORS = ("x_t", "x0_hat", "alphas", "sigmas", "timesteps")
_FORMAT = "1"


@dataclass(frozen=True, eq=False)
class Recording:
    """A run of a pipeline with L evaluations of its network; tensors on the CPU.

    States are latents as the network sees them (see `manifold.pipeline_families`), x_t = alpha x0 + sigma eps in the
    sampler's own coordinates, which `metadata` names: "vp", "ve" (alpha = 1) or "flow".

    Attributes
        x_t: (L + 1, n, C, H, W); the last is what the sampler handed on, at the end of its schedule.
        x0_hat: (L, n, C, H, W), predicted from x_t[:-1].
        alphas, sigmas: (L,) float64, the levels of x_t[:-1].
        timesteps: (L,) float64, the scheduler's own.
        metadata: `pipeline`, `scheduler` and `coordinates`.
        output: what the pipeline returned; None after `load`.
    """

    x_t: Tensor
    x0_hat: Tensor
    alphas: Tensor
    sigmas: Tensor
    timesteps: Tensor
    metadata: dict[str, str]
    output: Any = None

    def save(self, path: Path | str) -> None:
        """Write all but `output` to a safetensors file, atomically. Raises: StorageError."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        save_tensors(Path(path), tensors, {**self.metadata, "recording": _FORMAT})

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what `save` wrote.

        Raises: FileNotFoundError; FormatError if the file is damaged or holds no recording.
        """
        tensors, metadata = load_tensors(Path(path))
        if set(tensors) != set(_TENSORS) or metadata.pop("recording", None) != _FORMAT:
            raise FormatError(f"{path} holds no recording of format {_FORMAT}; record the run again")
        return cls(**tensors, metadata=metadata)


def record(pipeline: Any, /, *args: Any, **kwargs: Any) -> Recording:
    """Run `pipeline(*args, **kwargs)` and keep all its states and predicted targets.

    Arguments
        pipeline: of diffusers, or one that calls `self.scheduler.step` as they do. Known to work: DDPM, DDIM, DiT,
            Stable Diffusion, SDXL, SD3, FLUX, PixArt, Sana.
        args, kwargs: as the pipeline takes them. One call of a pipeline at a time.

    Returns: Recording, the pipeline's own result in `output`, the same to the last bit as without recording.

    Raises: InputError if the pipeline never calls its scheduler, its states are of an unknown packing, or its scheduler
        has no (alpha, sigma) that we know how to read. Whatever the pipeline raises passes.

    Cost: 2 L + 1 states in main memory and as many copies to it; no evaluation of the network.
    """
    tape = _Tape(pipeline.scheduler, lambda state: state_layout(pipeline, state, args, kwargs))
    with ExitStack() as watched:
        watched.enter_context(replaced(pipeline.scheduler, "step", tape.watch_step))
        if _solves_for_x0(pipeline.scheduler):
            watched.enter_context(replaced(pipeline.scheduler, "convert_model_output", tape.watch_conversion))
        output = pipeline(*args, **tape.watch_callback(kwargs))
    if not tape.states:
        raise InputError(f"{type(pipeline).__name__} made no step with its scheduler, so there is nothing to record")
    layout = tape.layout
    alphas, sigmas = torch.tensor(tape.levels, dtype=torch.float64).T.contiguous()
    return Recording(
        x_t=torch.stack([layout.unpack(one) for one in (*tape.states, tape.last)]),
        x0_hat=torch.stack([layout.unpack(one) for one in tape.targets]),
        alphas=alphas,
        sigmas=sigmas,
        timesteps=torch.tensor(tape.timesteps, dtype=torch.float64),
        metadata={
            "pipeline": type(pipeline).__name__,
            "scheduler": type(pipeline.scheduler).__name__,
            "coordinates": tape.coordinates,
        },
        output=output,
    )


class _Tape:
    """What passes through a scheduler's step while a pipeline runs."""

    def __init__(self, scheduler: Any, layout_of: Callable[[Tensor], StateLayout]) -> None:
        self.scheduler = scheduler
        self.layout = StateLayout()
        self._layout_of = layout_of
        self.states: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.levels: list[tuple[float, float]] = []
        self.timesteps: list[float] = []
        self.last = torch.empty(0)
        self.coordinates = ""
        self._schedule: NoiseSchedule | None = None
        self._visited: list[tuple[float, float]] = []
        self._place = 0
        self._converted: Tensor | None = None

    def watch_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The scheduler's step, observed. The full result is asked for, and given on in the form the caller wanted."""
        signature = inspect.signature(step)

        def watched(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            given = bound.arguments
            state, timestep = given["sample"], float(given["timestep"])
            if not self.states:
                self.layout = self._layout_of(state)  # now, since a whole run is much to lose
            schedule = self._levels_at(timestep)
            self.states.append(kept(state))
            self.timesteps.append(timestep)
            wants_object = given.get("return_dict", True)
            given["return_dict"] = True
            self._converted = None
            result = step(*bound.args, **bound.kwargs)
            target = getattr(result, "pred_original_sample", None)
            target = self._converted if target is None else target
            if target is None:
                # At the level of this place: with many steps several may round to one timestep.
                target = schedule.x0_hat_at(without_variance(given["model_output"], state), state, *self.levels[-1])
            self.targets.append(kept(target))
            self.last = kept(result.prev_sample)
            return result if wants_object else result.to_tuple()

        return watched

    def watch_conversion(self, convert: Callable[..., Any]) -> Callable[..., Any]:
        """`convert_model_output` of a solver that works on x0, observed."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            self._converted = convert(*args, **kwargs)
            return self._converted

        return watched

    def watch_callback(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The caller's keywords; a `callback_on_step_end` among them may change the state that a step returned."""
        callback = kwargs.get("callback_on_step_end")
        if callback is None:
            return kwargs

        def watched(*args: Any, **tensors: Any) -> Any:
            changed = callback(*args, **tensors)
            if "latents" in changed:
                self.last = kept(changed["latents"])
            return changed

        kwargs = {**kwargs, "callback_on_step_end": watched}
        if hasattr(callback, "tensor_inputs"):  # diffusers' PipelineCallback, which pipelines know by its class
            kwargs["callback_on_step_end_tensor_inputs"] = callback.tensor_inputs
        return kwargs

    def _levels_at(self, timestep: float) -> NoiseSchedule:
        if self._schedule is None:
            self._schedule = NoiseSchedule.from_scheduler(self.scheduler)
            self.coordinates = self._schedule.coordinates
            alphas, sigmas = visited_levels(self.scheduler)
            self._visited = list(zip(alphas.tolist(), sigmas.tolist(), strict=True))
        ahead = self.scheduler.timesteps[self._place :].tolist()
        if timestep in ahead:  # else a pipeline steps where its scheduler's list does not: the level of the timestep
            self._place += ahead.index(timestep)
            self.levels.append(self._visited[self._place])
            self._place += 1
        else:
            alpha, sigma = self._schedule.levels(timestep)
            self.levels.append((float(alpha), float(sigma)))
        return self._schedule


def _solves_for_x0(scheduler: Any) -> bool:
    """Whether `convert_model_output` gives the x0 that a multistep solver then works with."""
    if not hasattr(scheduler, "convert_model_output"):
        return False
    options = own_options(scheduler)
    return bool(options.get("predict_x0")) or options.get("algorithm_type") in (
        "dpmsolver++",
        "sde-dpmsolver++",
        "data_prediction",
    )
