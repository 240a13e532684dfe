"""A pipeline of diffusers run for many seeds, under a sampler of choice, from its first step or from a later one.

Noise is drawn from one generator a seed, so a seed's image is the same in every batch and under every sampler.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from index.progress import Progress, silent
from manifold.errors import InputError, MismatchError
from manifold.pipeline_families import visited_levels
from manifold.schedule import NoiseSchedule
from manifold.teleport import FlowSolver, teleport

from .pipelines import conditions, has_steps, require_steps

__all__ = ["Sampler", "SeededRuns"]

Sampler = Literal["ddim", "dpm", "unipc"]

_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpm": ("DPMSolverMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}


class SeededRuns:
    """Latents that a pipeline paints from given seeds.

    Arguments
        pipeline: one that takes class labels or prompts and gives latents (`output_type="latent"`).
        d: values of a latent, as the statistics have them.
        guidance_scale: the pipeline's own default unless given.
        prompts, labelled: see `conditions`.
        batch_size: seeds a call.
        progress: told of ("paint", network evaluations done, in all); one for every seed and step.

    Raises: InputError if the pipeline takes neither labels nor prompts, its prompts are missing, batch_size is below 1, or
        its scheduler is not of the DDPM type, of which the samplers here are made.
    """

    def __init__(
        self,
        pipeline: Any,
        d: int,
        *,
        guidance_scale: float | None = None,
        prompts: Sequence[str] = (),
        labelled: bool = True,
        batch_size: int = 50,
        progress: Progress = silent,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, it is {batch_size}")
        self.pipeline, self.d, self.batch_size, self.progress = pipeline, d, batch_size, progress
        scheduler = pipeline.scheduler
        flow = NoiseSchedule.from_scheduler(scheduler).coordinates == "flow"
        if flow or not hasattr(scheduler, "alphas_cumprod"):
            raise InputError(
                "DDIM, DPM-Solver++ and UniPC are compared on schedules with alphas_cumprod, the "
                f"{type(scheduler).__name__} of {type(pipeline).__name__} {'is of flow matching' if flow else 'has none'}; "
                "measure a model of the DDPM type"
            )
        self._conditions = partial(conditions, pipeline, prompts=prompts, labelled=labelled)
        self._conditions([0])  # so that what is missing is said now
        takes = inspect.signature(pipeline.__call__).parameters
        default = takes["guidance_scale"].default if "guidance_scale" in takes else 1.0
        self.guidance_scale = float(default if guidance_scale is None else guidance_scale)
        self._common: dict[str, Any] = {"output_type": "latent"}
        if "guidance_scale" in takes:
            self._common["guidance_scale"] = self.guidance_scale
        self._config = scheduler.config
        self._ratios: dict[tuple[str, int], Tensor] = {}
        self._done = self._planned = 0

    def labels(self, seed: int) -> int | None:
        """The class that a seed's image is asked for, "no class" included; None from a pipeline that has none."""
        label: int | None = self._conditions([seed]).get("class_labels", [None])[0]
        return label

    def plan(self, evaluations: int) -> None:
        """Say how many network evaluations `paint` will make in all, for `progress`."""
        self._done, self._planned = 0, evaluations

    def require(self, sampler: Sampler, steps: int) -> None:
        """Raise InputError unless diffusers can make a run of so many steps."""
        require_steps(self._scheduler(sampler), steps)

    def ratios(self, sampler: Sampler, steps: int) -> Tensor:
        """sigma / alpha at each step of a sampler, (steps,) float64, falling."""
        if (sampler, steps) not in self._ratios:
            scheduler = self._scheduler(sampler)
            scheduler.set_timesteps(steps)
            alphas, sigmas = visited_levels(scheduler)
            self._ratios[sampler, steps] = sigmas / alphas
        return self._ratios[sampler, steps]

    def longer_run(self, sampler: Sampler, evaluations: int, start: float) -> int:
        """Steps of the run whose last `evaluations` begin nearest to sigma / alpha = `start`, by its logarithm."""
        best, distance = evaluations, float("inf")
        scheduler = self._scheduler(sampler)
        for steps in range(evaluations, int(self._config.num_train_timesteps) + 1):
            if not has_steps(scheduler, steps):
                continue
            ratio = float(self.ratios(sampler, steps)[steps - evaluations])
            away = abs(float(torch.tensor(ratio / start).log()))
            if away < distance:
                best, distance = steps, away
            if ratio < start:
                break
        return best

    def paint(
        self,
        sampler: Sampler,
        steps: int,
        seeds: Sequence[int],
        first: int = 0,
        solver: Callable[[list[int]], FlowSolver] | None = None,
    ) -> Tensor:
        """The final latents of seeds, (n, d) float32 on the CPU.

        Arguments
            steps: of the full run. first: the first of them to be made, the noise moved there; 0 is the plain run.
            solver: gives the closed form for a batch of seeds; needed for `first` above 0.

        Raises: InputError for a number of steps that diffusers cannot make; MismatchError if the pipeline's latents are not
            of length d; what the pipeline raises.
        """
        self.require(sampler, steps)
        painted = []
        with self._sampling(sampler):
            for low in range(0, len(seeds), self.batch_size):
                batch = list(seeds[low : low + self.batch_size])
                draws = [torch.Generator().manual_seed(seed) for seed in batch]
                asked = {**self._conditions(batch), **self._common, "generator": draws, "num_inference_steps": steps}
                if first and solver is not None:
                    images = teleport(self.pipeline, solver(batch), skip=first / steps, **asked).output.images
                else:
                    images = self.pipeline(**asked).images
                latents = images.detach().float().cpu().reshape(len(batch), -1)
                if latents.shape[1] != self.d:
                    raise MismatchError(
                        f"the model's latents have {latents.shape[1]} values, the workspace's {self.d}; encode a collection "
                        "with this model's autoencoder at its image size"
                    )
                painted.append(latents)
                self._done += (steps - first) * len(batch)
                self.progress("paint", self._done, max(self._planned, self._done))
        return torch.cat(painted)

    def _scheduler(self, sampler: Sampler) -> Any:
        import diffusers

        if sampler not in get_args(Sampler):
            raise InputError(f"a sampler must be one of {', '.join(get_args(Sampler))}, it is {sampler!r}")
        name, options = _SCHEDULERS[sampler]
        return getattr(diffusers, name).from_config(self._config, **options)

    @contextmanager
    def _sampling(self, sampler: Sampler) -> Iterator[None]:
        """The pipeline under another scheduler."""
        before = self.pipeline.scheduler
        self.pipeline.scheduler = self._scheduler(sampler)
        try:
            yield
        finally:
            self.pipeline.scheduler = before
