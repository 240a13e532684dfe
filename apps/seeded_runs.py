"""A pipeline of diffusers run for many seeds, under a sampler of choice, from its first step or from a later one.

Noise is drawn from one generator a seed, so a seed's image is the same in every batch and under every sampler.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from index.encoders.opening import choose_device, choose_dtype
from index.progress import Progress, silent
from manifold.errors import InputError, MismatchError, MissingExtraError, first_line
from manifold.files import read_json
from manifold.pipeline_families import visited_levels
from manifold.schedule import NoiseSchedule
from manifold.teleport import FlowSolver, teleport

__all__ = ["Sampler", "SeededRuns", "conditions", "open_pipeline", "require_steps"]

Sampler = Literal["ddim", "dpm", "unipc"]

_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpm": ("DPMSolverMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}


def open_pipeline(model: str | Path | None, device: str | None = None, dtype: str = "float32") -> Any:
    """The pipeline in a folder or of a hub id; the one that ships with the project if none is named.

    Arguments
        device: such as cuda; a CUDA device if there is one, unless given.
        dtype: that it computes in, float32, float16 or bfloat16.

    Raises: InputError if there is none, or no such device or type; NotFittedError if the project's own was never made;
        MissingExtraError for one that paints from text where transformers is not installed.
    """
    import diffusers

    from manifold.demo_model import MODEL_FOLDER, load_demo_model
    from manifold.demo_model.weights import quiet_diffusers

    place, wanted = choose_device(device), choose_dtype(dtype)
    folder = MODEL_FOLDER if model is None else Path(model).expanduser()
    card = folder / "model_index.json"
    kind = read_json(card).get("_class_name") if card.is_file() else None
    if model is None or kind == "ClassConditionalPipeline":
        return load_demo_model(folder, dtype=wanted).to(place)
    if folder.is_dir() and not card.is_file():
        raise InputError(
            f"{folder} holds no diffusers pipeline (no model_index.json); name a pipeline's folder or hub id, or make one "
            "with manifold train-demo"
        )
    if isinstance(kind, str) and not hasattr(diffusers, kind):
        raise InputError(f"{card} names the pipeline {kind!r}, which the installed diffusers does not have")
    try:
        with quiet_diffusers(), warnings.catch_warnings():
            # Said here and not later, so that diffusers keeps in float32 what must stay there; by the older of its two names,
            # for the oldest versions overlook the newer.
            warnings.filterwarnings("ignore", ".*torch_dtype", FutureWarning)
            source = str(folder) if folder.is_dir() else str(model)
            pipeline = diffusers.DiffusionPipeline.from_pretrained(source, torch_dtype=wanted)
    except (ImportError, AttributeError) as error:
        if find_spec("transformers") is not None:
            raise
        raise MissingExtraError(f"{model} needs transformers; install it with: pip install transformers") from error
    except (OSError, ValueError) as error:
        if not folder.exists():
            raise InputError(
                f"{model} is no folder here and could not be fetched from the hub; check the name and the network, or give "
                "a folder"
            ) from error
        raise InputError(f"{model} cannot be opened as a diffusers pipeline: {first_line(error)}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(place)


def require_steps(scheduler: Any, steps: int) -> None:
    """Raise InputError unless a scheduler of diffusers can make so many steps: one to as many as it was trained with, but for
    those few that it has no spacing for.
    """
    kind, most = type(scheduler).__name__, int(scheduler.config.num_train_timesteps)
    if not 1 <= steps <= most:
        raise InputError(f"a {kind} makes 1 to {most:,} steps, {steps:,} were asked for")
    if not _spaced(scheduler, steps):
        raise InputError(f"a {kind} cannot make {steps:,} steps: one would be at timestep -1; ask for one step fewer")


def _spaced(scheduler: Any, steps: int) -> bool:
    """Whether diffusers has a run of so many steps: for some, trailing spacing makes one timestep too many, -1.

    Raises: InputError if it refuses them by itself.
    """
    # Shifts that depend on the image's size are of no matter here, and would have to be told.
    fresh = type(scheduler).from_config(scheduler.config, use_dynamic_shifting=False)
    try:
        fresh.set_timesteps(steps)
    except ValueError as error:  # such as more steps than a consistency model was distilled with
        raise InputError(f"a {type(scheduler).__name__} cannot make {steps:,} steps: {first_line(error)}") from error
    return -1 not in fresh.timesteps.tolist()  # timesteps that are logarithms may be below 0


def conditions(pipeline: Any, seeds: Sequence[int], prompts: Sequence[str], labelled: bool = True) -> dict[str, Any]:
    """What a pipeline that gives latents is asked for, by keyword: its classes, no class, or prompts, seed by seed in turn.

    Arguments
        prompts: for text pipelines. labelled: whether a class-conditional one is asked for its classes, or for no class.

    Raises: InputError if it takes neither, or its prompts are missing.
    """
    takes, name = inspect.signature(pipeline.__call__).parameters, type(pipeline).__name__
    if "class_labels" in takes and "output_type" in takes and hasattr(pipeline, "classes"):
        classes = int(pipeline.classes)
        return {"class_labels": [seed % classes if labelled else classes for seed in seeds]}
    if "prompt" not in takes:
        raise InputError(f"{name} takes neither class labels nor prompts with output_type='latent'; measure another")
    if not prompts:
        raise InputError(f"{name} paints from text; give at least one --prompt")
    return {"prompt": [prompts[seed % len(prompts)] for seed in seeds]}


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
            if not _spaced(scheduler, steps):
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
