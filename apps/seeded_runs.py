"""A pipeline of diffusers run for many seeds, under a sampler of choice, from its first step or from a later one.

Noise is drawn from one generator a seed, so a seed's image is the same in every batch and under every sampler.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from index.encoders.opening import choose_device
from index.progress import Progress, silent
from manifold.errors import InputError, MismatchError, MissingExtraError
from manifold.files import read_json
from manifold.pipeline_families import visited_levels
from manifold.teleport import FlowSolver, teleport

__all__ = ["Sampler", "SeededRuns", "open_pipeline", "require_steps"]

Sampler = Literal["ddim", "dpm", "unipc"]

_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpm": ("DPMSolverMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}


def open_pipeline(model: str | Path | None, device: str | None = None, dtype: str = "float32") -> Any:
    """The pipeline in a folder or of a hub id; the one that ships with the project if none is named.

    Arguments
        device: such as cuda; a CUDA device if there is one, unless given. dtype: that it computes in, such as bfloat16.

    Raises: InputError if there is none, or no such device; NotFittedError if the project's own was never made;
        MissingExtraError for one that paints from text where transformers is not installed.
    """
    import diffusers

    from manifold.demo_model import MODEL_FOLDER, load_demo_model
    from manifold.demo_model.weights import quiet_diffusers

    place = choose_device(device)
    folder = MODEL_FOLDER if model is None else Path(model)
    card = folder / "model_index.json"
    if model is None or (card.is_file() and read_json(card).get("_class_name") == "ClassConditionalPipeline"):
        return load_demo_model(folder, dtype=getattr(torch, dtype)).to(place)
    if folder.is_dir() and not card.is_file():
        raise InputError(
            f"{folder} holds no diffusers pipeline (no model_index.json); name a pipeline's folder or hub id"
        )
    try:
        with quiet_diffusers():
            # Said here and not later, so that diffusers keeps in float32 what must stay there.
            wanted = {} if dtype == "float32" else {"dtype": getattr(torch, dtype)}
            pipeline = diffusers.DiffusionPipeline.from_pretrained(str(model), **wanted)
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
        raise InputError(f"{model} cannot be opened as a diffusers pipeline: {str(error).splitlines()[0]}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(place)


def require_steps(scheduler: Any, steps: int) -> None:
    """Raise InputError unless a scheduler of diffusers can make so many steps: one to as many as it was trained with."""
    most = int(scheduler.config.num_train_timesteps)
    if not 1 <= steps <= most:
        raise InputError(f"a {type(scheduler).__name__} makes 1 to {most:,} steps, {steps:,} were asked for")


class SeededRuns:
    """Latents that a pipeline paints from given seeds.

    Arguments
        pipeline: one that takes class labels or prompts and gives latents (`output_type="latent"`).
        d: values of a latent, as the statistics have them.
        guidance_scale: the pipeline's own default unless given.
        prompts: for text pipelines, seed by seed in turn.
        labelled: whether a class-conditional pipeline is asked for its classes, seed by seed in turn, or for no class.
        batch_size: seeds a call.
        progress: told of ("paint", network evaluations done, in all); one for every seed and step.

    Raises: InputError if the pipeline takes neither, its prompts are missing, or its scheduler has no alphas_cumprod, from
        which the samplers here are made.
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
        self.pipeline, self.d, self.batch_size, self.progress = pipeline, d, batch_size, progress
        takes = inspect.signature(pipeline.__call__).parameters
        name = type(pipeline).__name__
        if not hasattr(pipeline.scheduler, "alphas_cumprod"):
            raise InputError(
                f"DDIM, DPM-Solver++ and UniPC are compared on schedules with alphas_cumprod, {name} has a "
                f"{type(pipeline.scheduler).__name__}; measure a model of the DDPM type"
            )
        self.labels: Callable[[int], int | None] = lambda seed: None
        self._conditions: Callable[[Sequence[int]], dict[str, Any]]
        if "class_labels" in takes and "output_type" in takes and hasattr(pipeline, "classes"):
            classes = int(pipeline.classes)
            self.labels = lambda seed: seed % classes if labelled else classes
            self._conditions = lambda seeds: {"class_labels": [self.labels(seed) for seed in seeds]}
        elif "prompt" in takes:
            if not prompts:
                raise InputError(f"{name} paints from text; give at least one --prompt")
            self._conditions = lambda seeds: {"prompt": [prompts[seed % len(prompts)] for seed in seeds]}
        else:
            raise InputError(
                f"{name} takes neither class labels nor prompts with output_type='latent'; measure another"
            )
        default = takes["guidance_scale"].default if "guidance_scale" in takes else 1.0
        self.guidance_scale = float(default if guidance_scale is None else guidance_scale)
        self._common: dict[str, Any] = {"output_type": "latent"}
        if "guidance_scale" in takes:
            self._common["guidance_scale"] = self.guidance_scale
        self._config = pipeline.scheduler.config
        self._ratios: dict[tuple[str, int], Tensor] = {}
        self._done = self._planned = 0

    def plan(self, evaluations: int) -> None:
        """Say how many network evaluations `paint` will make in all, for `progress`."""
        self._done, self._planned = 0, evaluations

    def require(self, sampler: Sampler, steps: int) -> None:
        """Raise InputError unless diffusers can make a run of so many steps."""
        require_steps(self._scheduler(sampler), steps)
        if not self._possible(sampler, steps):
            raise InputError(
                f"diffusers cannot make {steps} steps of {sampler}: one would be at timestep -1; ask for one step fewer"
            )

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
        for steps in range(evaluations, int(self._config.num_train_timesteps) + 1):
            if not self._possible(sampler, steps):
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

    def _possible(self, sampler: Sampler, steps: int) -> bool:
        """Whether diffusers has a run of so many steps: for some, trailing spacing makes one timestep too many, -1."""
        scheduler = self._scheduler(sampler)
        scheduler.set_timesteps(steps)
        return float(scheduler.timesteps.min()) >= 0

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
