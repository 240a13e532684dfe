"""A trained pipeline as the report looks at it: one deterministic flow from noise to sample, one denoiser, without guidance.

The statistics of a workspace are those of the whole collection, so the model is asked for all of it: a class-conditional
network is shown its label for "no class", one that paints from text an empty prompt, or the prompt that the collection was
painted from. A scheduler that draws noise of its own (DDPM, ancestral samplers) is replaced by DDIM over the same noise
schedule: only the probability flow has a closed form.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from index.progress import Progress, silent
from manifold.demo_model import MODEL_FOLDER
from manifold.denoiser import DiffusersDenoiser
from manifold.errors import InputError, MismatchError
from manifold.nulls import shuffled_network
from manifold.pipeline_families import without_variance
from manifold.recording import Recording, record
from manifold.schedule import NoiseSchedule, own_options
from manifold.teleport import first_orders, starts, timesteps_from

from .network_call import NetworkCall, first_call
from .pipelines import open_pipeline, require_steps
from .training.checkpoints import open_checkpoint

__all__ = ["SUPPORTED", "FlowModel", "open_flow_model"]

_FROM_TEXT = (
    "StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline",
    "Flux2Pipeline", "PixArtAlphaPipeline", "PixArtSigmaPipeline", "SanaPipeline",
)  # fmt: skip
SUPPORTED = ("ClassConditionalPipeline", "DiTPipeline", "LDMPipeline", "DDPMPipeline", "DDIMPipeline", *_FROM_TEXT)
"""Pipelines that the report knows how to ask for a sample of the whole collection."""

_BATCH = 16


@dataclass(frozen=True)
class FlowModel:
    """A pipeline ready for measurement. Made by `open_flow_model`.

    Attributes
        pipeline: of diffusers; its scheduler deterministic.
        name: of the folder it came from.
        steps: of the sampler.
        condition: what it is asked for and how it is guided, in words.
        call: keywords of every call of the pipeline, for one image.
        seen: how it calls its network.
        replaced_scheduler: class of a scheduler that draws noise and was replaced by DDIM; None otherwise.
        folder: that it came from; None if it came opened or from the hub.
    """

    pipeline: Any
    name: str
    steps: int
    condition: str
    call: Mapping[str, Any]
    seen: NetworkCall
    replaced_scheduler: str | None = None
    folder: Path | None = None

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
        return self.seen.shape

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
        place, own = self.seen.state.device, self.network.to("cpu")  # a large one has no room for two on a device
        try:
            with self._with_network(shuffled_network(own, seed=0).to(place)):
                return self.sample(seeds, progress, "shuffle")
        finally:
            own.to(place)

    def denoiser(self, network: Any = None) -> DiffusersDenoiser:
        """The network, or another that is called as it is, at any level that its schedule reaches."""
        schedule = NoiseSchedule.from_scheduler(self._fresh_scheduler())
        return DiffusersDenoiser(partial(self.seen.ask, self.network if network is None else network), schedule)

    def kept(self, folder: Path) -> Any:
        """The network as it was kept in `folder` during training, in the model's own type and place.

        Raises: MismatchError if it is another network; FormatError if it cannot be read.
        """
        network = open_checkpoint(type(self.network), folder)
        own, other = (
            {name: value.shape for name, value in one.state_dict().items()} for one in (self.network, network)
        )
        if own != other:
            raise MismatchError(
                f"{folder} holds another network than that of {self.name}; give checkpoints of its training"
            )
        return network.to(self.seen.state).eval()

    @property
    def starts(self) -> list[int]:
        """Steps that the sampler can start with."""
        try:
            return starts(self._planned_scheduler())
        except InputError:  # Runge-Kutta steps of PNDM
            return [0]

    def sampler_from(self, step: int) -> Callable[[Tensor], Tensor]:
        """The sampler's own way from the state before step `step`, one of `starts`, (n, C, H, W), to the final sample."""

        @torch.no_grad()
        def sampled(x_s: Tensor) -> Tensor:
            scheduler = self._planned_scheduler()
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(step)
            state = x_s.to(self.seen.state.device)
            for place, timestep in enumerate(timesteps_from(scheduler, step)):
                scaled = hasattr(scheduler, "scale_model_input")
                shown = scheduler.scale_model_input(state, timestep) if scaled else state
                output = self.seen.ask(self.network, shown, timestep)
                options = first_orders(scheduler.step, place + 1) if step else {}
                state = scheduler.step(without_variance(output, state), timestep, state, **options).prev_sample
            return state.to(x_s.device)

        return sampled

    def _record(self, seeds: list[int]) -> Recording:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        arguments = {**self.call, "generator": generators}
        if "class_labels" in arguments:
            arguments["class_labels"] = arguments["class_labels"] * len(seeds)
        elif type(self.pipeline).__name__ in _FROM_TEXT:
            arguments["num_images_per_prompt"] = len(seeds)
        else:
            arguments["batch_size"] = len(seeds)
        return record(self.pipeline, **arguments)

    def _fresh_scheduler(self) -> Any:
        return type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config)

    def _planned_scheduler(self) -> Any:
        """A fresh scheduler with the steps that the pipeline gave its own."""
        scheduler = self._fresh_scheduler()
        arguments, keywords = self.seen.planned
        scheduler.set_timesteps(*arguments, **keywords)
        return scheduler

    @contextmanager
    def _with_network(self, network: Any) -> Iterator[None]:
        name, own = self.network_name, self.network
        setattr(self.pipeline, name, network)
        try:
            yield
        finally:
            setattr(self.pipeline, name, own)


def open_flow_model(
    model: str | Path | Any,
    steps: int = 25,
    *,
    prompt: str = "",
    call: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    device: str | None = None,
    dtype: str = "float32",
) -> FlowModel:
    """Open a pipeline for measurement.

    Arguments
        model: folder or hub id of a diffusers pipeline, `demo` for the model that ships with the project, or an opened
            pipeline; one of `SUPPORTED`.
        steps: of its sampler.
        prompt: for a pipeline that paints from text.
        call: further keywords for every call of such a pipeline, such as prompt_embeds, of one prompt, in its place.
        image_size: that it is to paint, in pixels; its own choice unless given.
        device, dtype: such as cuda and bfloat16, where and in which type a pipeline that is not opened yet computes; a CUDA
            device if there is one, unless given.

    Raises: InputError if there is no pipeline by that name or in that folder, for one that is not supported, a prompt or
        keyword that it does not take, guidance, a flow-matching sampler that draws noise, no such device, or a number of
        steps that its sampler cannot make; MissingExtraError without transformers.
    """
    pipeline, name, folder = _opened(model, device, dtype)
    kind = type(pipeline).__name__
    if kind not in SUPPORTED:
        raise InputError(f"the report knows {', '.join(SUPPORTED)}; {name} is a {kind}")
    if (prompt or call) and kind not in _FROM_TEXT:
        what = "a prompt; leave the prompt out" if prompt else f"further keywords; leave {', '.join(call or ())} out"
        raise InputError(f"{name} is a {kind}, which paints without {what}")
    pipeline.set_progress_bar_config(disable=True)
    scheduler, replaced = pipeline.scheduler, None
    if _draws_noise(scheduler):
        from diffusers import DDIMScheduler

        replaced = type(scheduler).__name__
        if NoiseSchedule.from_scheduler(scheduler).coordinates == "flow":
            raise InputError(
                f"the {replaced} of {name} draws noise at every step; give the pipeline a deterministic sampler, such as "
                "FlowMatchEulerDiscreteScheduler without stochastic_sampling"
            )
        pipeline = copy.copy(pipeline)
        clips = bool(own_options(scheduler).get("clip_sample", False))
        pipeline.scheduler = DDIMScheduler.from_config(scheduler.config, timestep_spacing="trailing", clip_sample=clips)
    require_steps(pipeline.scheduler, steps)
    size = {} if image_size is None else {"height": image_size, "width": image_size}
    asked, condition = _asked(pipeline, steps, prompt, {**size, **(call or {})})
    seen = first_call(pipeline, getattr(pipeline, _network_name(pipeline)), asked)
    return FlowModel(pipeline, name, steps, condition, asked, seen, replaced, folder)


def _asked(pipeline: Any, steps: int, prompt: str, call: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Keywords that ask the pipeline for one image, without guidance and not decoded where it can be; and for what."""
    kind = type(pipeline).__name__
    takes = inspect.signature(type(pipeline).__call__).parameters
    asked: dict[str, Any] = {"num_inference_steps": steps}
    if kind in _FROM_TEXT:
        return _asked_in_words(pipeline, takes, asked, prompt, call)
    if "class_labels" not in takes:
        return asked, "unconditional, no guidance"
    asked |= {"class_labels": [_null_label(pipeline)], "guidance_scale": 1.0}
    if kind == "ClassConditionalPipeline":
        asked["output_type"] = "latent"  # the others decode whatever they are asked for
    return asked, "no class, no guidance"


def _asked_in_words(
    pipeline: Any, takes: Mapping[str, inspect.Parameter], asked: dict[str, Any], prompt: str, call: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """See `_asked`, of a pipeline that paints from text."""
    unknown = sorted(set(call) - set(takes))
    if unknown:
        raise InputError(f"a {type(pipeline).__name__} takes no {', '.join(unknown)}")
    embedded = "prompt_embeds" in call
    if embedded and prompt:
        raise InputError("give either a prompt or prompt_embeds, not both")
    told = bool(getattr(pipeline, _network_name(pipeline)).config.get("guidance_embeds", False))
    if not told and float(call.get("guidance_scale", 1.0)) > 1:
        raise InputError(
            "a report asks without guidance, for only that has the workspace's statistics; leave guidance_scale out"
        )
    # None: Sana would put its instructions to a language model before the prompt.
    wanted = {"output_type": "latent", "use_resolution_binning": False, "complex_human_instruction": None}
    if not told:
        wanted["guidance_scale"] = 1.0
    asked |= {name: value for name, value in wanted.items() if name in takes} | dict(call)
    if not embedded:
        asked |= {"prompt": prompt} if prompt or not _zeros_stand_for_nothing(pipeline) else _no_prompt(pipeline)
    scale = asked.get("guidance_scale", takes["guidance_scale"].default)
    guided = f"guidance {scale:g}, which the network is told" if told else "no guidance"
    what = "prompt embeddings" if embedded else f'prompt "{prompt}"'
    return asked, f"{what}, {guided}"


def _zeros_stand_for_nothing(pipeline: Any) -> bool:
    """Whether the pipeline's own unconditional is not the embedding of an empty prompt, as in SDXL."""
    return bool(pipeline.config.get("force_zeros_for_empty_prompt", False))


def _no_prompt(pipeline: Any) -> dict[str, Any]:
    """The embeddings that SDXL sets against a prompt's under guidance."""
    _, nothing, _, pooled = pipeline.encode_prompt("", do_classifier_free_guidance=True)
    return {"prompt_embeds": nothing, "pooled_prompt_embeds": pooled}


def _opened(model: Any, device: str | None, dtype: str) -> tuple[Any, str, Path | None]:
    """A pipeline, its name, and the folder that it came from if there is one."""
    if not isinstance(model, str | Path):
        return model, type(model).__name__, None
    if str(model) == "demo":
        return open_pipeline(None, device, dtype), "demo", MODEL_FOLDER
    folder = Path(model).expanduser()
    return open_pipeline(model, device, dtype), folder.name, folder if folder.is_dir() else None


def _network_name(pipeline: Any) -> str:
    return "transformer" if hasattr(pipeline, "transformer") else "unet"


def _null_label(pipeline: Any) -> int:
    return int(pipeline.classes if hasattr(pipeline, "classes") else pipeline.transformer.config.num_embeds_ada_norm)


def _draws_noise(scheduler: Any) -> bool:
    """Whether a step of this scheduler adds noise of its own with its default arguments."""
    if type(scheduler).__name__ == "DPMSolverSDEScheduler":  # its noise comes from a seed of its own
        return True
    ends = []
    for seed in (0, 1):
        # Shifts that depend on the image's size are of no matter here, and would have to be told.
        fresh = type(scheduler).from_config(scheduler.config, use_dynamic_shifting=False)
        fresh.set_timesteps(4)
        state = torch.ones(1, 1, 2, 2)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for timestep in fresh.timesteps[:2]:
                shown = fresh.scale_model_input(state, timestep) if hasattr(fresh, "scale_model_input") else state
                state = fresh.step(0.1 * shown, timestep, state).prev_sample
        ends.append(state)
    return not torch.equal(*ends)
