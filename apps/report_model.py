"""A trained pipeline as the report looks at it: one deterministic flow from noise to sample, one denoiser, without a class.

The statistics of a workspace are those of the whole collection, so the model is asked for all of it: a class-conditional
network is shown its label for "no class", and no guidance is used. A scheduler that draws noise of its own (DDPM,
ancestral samplers) is replaced by DDIM over the same noise schedule: only the probability flow has a closed form.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from index.progress import Progress, silent
from manifold.demo_model.weights import quiet_diffusers
from manifold.denoiser import DiffusersDenoiser
from manifold.errors import FormatError, InputError, MismatchError, NotFittedError
from manifold.nulls import shuffled_network
from manifold.pipeline_families import without_variance
from manifold.recording import Recording, record
from manifold.schedule import NoiseSchedule
from manifold.teleport import first_orders, starts, timesteps_from

from .seeded_runs import require_steps

__all__ = ["SUPPORTED", "FlowModel", "open_flow_model"]

SUPPORTED = ("ClassConditionalPipeline", "DiTPipeline", "LDMPipeline", "DDPMPipeline", "DDIMPipeline")
"""Pipelines that the report knows how to ask for a sample of the whole collection."""

_BATCH = 16


@dataclass(frozen=True)
class FlowModel:
    """A pipeline ready for measurement. Made by `open_flow_model`.

    Attributes
        pipeline: of diffusers; its scheduler deterministic.
        name: of the folder it came from.
        steps: of the sampler.
        null_label: the label that means "no class"; None for a network without classes.
        replaced_scheduler: class of a scheduler that draws noise and was replaced by DDIM; None otherwise.
    """

    pipeline: Any
    name: str
    steps: int
    null_label: int | None
    replaced_scheduler: str | None = None

    @property
    def network_name(self) -> str:
        """Of the network in the pipeline: unet or transformer."""
        return _network_name(self.pipeline)

    @property
    def network(self) -> Any:
        """The UNet or transformer."""
        return getattr(self.pipeline, self.network_name)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a state."""
        config = self.network.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return int(config.in_channels), int(height), int(width)

    def sample(self, seeds: list[int], progress: Progress = silent, stage: str = "sample") -> Recording:
        """Record one trajectory for each seed, in batches of 16: a seed's trajectory does not depend on the others.

        Returns: Recording of all of them. Raises: whatever the pipeline raises. Cost: `steps` evaluations a seed.
        """
        runs = []
        for start in range(0, len(seeds), _BATCH):
            progress(stage, start, len(seeds))
            runs.append(self._record(seeds[start : start + _BATCH]))
        progress(stage, len(seeds), len(seeds))
        return Recording(
            x_t=torch.cat([run.x_t for run in runs], 1),
            x0_hat=torch.cat([run.x0_hat for run in runs], 1),
            alphas=runs[0].alphas,
            sigmas=runs[0].sigmas,
            timesteps=runs[0].timesteps,
            metadata=runs[0].metadata,
        )

    def sample_shuffled(self, seeds: list[int], progress: Progress = silent) -> Recording:
        """The same from a network whose weights are in random order, see `manifold.nulls.shuffled_network`."""
        with self._with_network(shuffled_network(self.network, seed=0)):
            return self.sample(seeds, progress, "shuffle")

    def denoiser(self, network: Any = None) -> DiffusersDenoiser:
        """The network, or another that is called as it is, at any level that its schedule reaches."""
        return DiffusersDenoiser(
            network or self.network,
            NoiseSchedule.from_scheduler(self._fresh_scheduler()),
            conditions=self._conditions(1),
        )

    def kept(self, folder: Path) -> Any:
        """The network as it was kept in `folder` during training, in float32.

        Raises: MismatchError if it is another network; FormatError if it cannot be read.
        """
        with quiet_diffusers():
            try:
                network = type(self.network).from_pretrained(folder, low_cpu_mem_usage=False)
            except (OSError, ValueError, RuntimeError, SafetensorError) as error:
                raise FormatError(f"{folder} cannot be opened as a {type(self.network).__name__}: {error}") from error
        own, other = (
            {name: value.shape for name, value in one.state_dict().items()} for one in (self.network, network)
        )
        if own != other:
            raise MismatchError(
                f"{folder} holds another network than that of {self.name}; give checkpoints of its training"
            )
        return network.float().eval()

    @property
    def starts(self) -> list[int]:
        """Steps that the sampler can start with."""
        scheduler = self._fresh_scheduler()
        scheduler.set_timesteps(self.steps)
        try:
            return starts(scheduler)
        except InputError:  # Runge-Kutta steps of PNDM
            return [0]

    def sampler_from(self, step: int) -> Callable[[Tensor], Tensor]:
        """The sampler's own way from the state before step `step`, one of `starts`, (n, C, H, W), to the final sample."""

        @torch.no_grad()
        def sampled(x_s: Tensor) -> Tensor:
            scheduler = self._fresh_scheduler()
            scheduler.set_timesteps(self.steps)
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(step)
            state = x_s
            for place, timestep in enumerate(timesteps_from(scheduler, step)):
                shown = scheduler.scale_model_input(state, timestep)
                output = self.network(shown, timestep.expand(len(shown)), **self._conditions(len(shown)))
                options = first_orders(scheduler.step, place + 1) if step else {}
                state = scheduler.step(without_variance(output.sample, state), timestep, state, **options).prev_sample
            return state

        return sampled

    def _record(self, seeds: list[int]) -> Recording:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        parameters = inspect.signature(type(self.pipeline).__call__).parameters
        arguments: dict[str, Any] = {"generator": generators, "num_inference_steps": self.steps}
        if "class_labels" in parameters:
            arguments |= {"class_labels": [self.null_label] * len(seeds), "guidance_scale": 1.0}
        else:
            arguments["batch_size"] = len(seeds)
        if type(self.pipeline).__name__ == "ClassConditionalPipeline":
            arguments["output_type"] = "latent"  # the others decode whatever they are asked for
        return record(self.pipeline, **arguments)

    def _conditions(self, n: int) -> dict[str, Any]:
        return {} if self.null_label is None else {"class_labels": torch.full((n,), self.null_label)}

    def _fresh_scheduler(self) -> Any:
        return type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config)

    @contextmanager
    def _with_network(self, network: Any) -> Iterator[None]:
        name, own = self.network_name, self.network
        setattr(self.pipeline, name, network)
        try:
            yield
        finally:
            setattr(self.pipeline, name, own)


def open_flow_model(model: str | Path | Any, steps: int = 25) -> FlowModel:
    """Open a pipeline for measurement.

    Arguments
        model: folder of a diffusers pipeline, `demo` for the model that ships with the project, or an opened pipeline; one
            of `SUPPORTED`.
        steps: of its sampler.

    Raises: NotFittedError if there is no such folder; InputError for a pipeline that is not supported, or a number of
        steps that its sampler cannot make.
    """
    pipeline, name = _opened(model)
    kind = type(pipeline).__name__
    if kind not in SUPPORTED:
        raise InputError(
            f"the report needs an unconditional or class-conditional pipeline ({', '.join(SUPPORTED)}), {name} is a {kind}"
        )
    require_steps(pipeline.scheduler, steps)
    pipeline.set_progress_bar_config(disable=True)
    scheduler, replaced = pipeline.scheduler, None
    if _draws_noise(scheduler):
        from diffusers import DDIMScheduler

        replaced = type(scheduler).__name__
        pipeline = copy.copy(pipeline)
        pipeline.scheduler = DDIMScheduler.from_config(scheduler.config, timestep_spacing="trailing")
    return FlowModel(pipeline, name, steps, _null_label(pipeline), replaced)


def _opened(model: Any) -> tuple[Any, str]:
    if not isinstance(model, str | Path):
        return model, type(model).__name__
    from manifold.demo_model import MODEL_FOLDER, load_demo_model

    folder = MODEL_FOLDER if str(model) == "demo" else Path(model).expanduser()
    if not (folder / "model_index.json").is_file():
        raise NotFittedError(
            f"{folder} holds no diffusers pipeline (no model_index.json); name the folder of one, or make one with "
            "manifold train-demo"
        )
    from manifold.files import read_json

    if read_json(folder / "model_index.json").get("_class_name") == "ClassConditionalPipeline":
        return load_demo_model(folder), "demo" if str(model) == "demo" else folder.name
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(str(folder)), folder.name


def _network_name(pipeline: Any) -> str:
    return "transformer" if hasattr(pipeline, "transformer") else "unet"


def _null_label(pipeline: Any) -> int | None:
    if type(pipeline).__name__ == "ClassConditionalPipeline":
        return int(pipeline.classes)
    if type(pipeline).__name__ == "DiTPipeline":
        return int(pipeline.transformer.config.num_embeds_ada_norm)
    return None


def _draws_noise(scheduler: Any) -> bool:
    """Whether a step of this scheduler adds noise of its own with its default arguments."""
    if type(scheduler).__name__ == "DPMSolverSDEScheduler":  # its noise comes from a seed of its own
        return True
    ends = []
    for seed in (0, 1):
        fresh = type(scheduler).from_config(scheduler.config)
        fresh.set_timesteps(4)
        state = torch.ones(1, 1, 2, 2)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for timestep in fresh.timesteps[:2]:
                shown = fresh.scale_model_input(state, timestep) if hasattr(fresh, "scale_model_input") else state
                state = fresh.step(0.1 * shown, timestep, state).prev_sample
        ends.append(state)
    return not torch.equal(*ends)
