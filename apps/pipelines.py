"""Pipelines of diffusers: opened by folder or hub id, and what they can be asked for."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from index.encoders.opening import choose_device, choose_dtype
from manifold.errors import InputError, MissingExtraError, first_line
from manifold.files import read_json

__all__ = ["conditions", "has_steps", "open_pipeline", "require_steps"]


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
    if not has_steps(scheduler, steps):
        raise InputError(f"a {kind} cannot make {steps:,} steps: one would be at timestep -1; ask for one step fewer")


def has_steps(scheduler: Any, steps: int) -> bool:
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

    Raises: InputError if it takes neither, or its prompts are missing, or it takes none.
    """
    takes, name = inspect.signature(pipeline.__call__).parameters, type(pipeline).__name__
    if "class_labels" in takes and "output_type" in takes and hasattr(pipeline, "classes"):
        if prompts:
            raise InputError(f"{name} paints classes, not from text; leave --prompt out")
        classes = int(pipeline.classes)
        return {"class_labels": [seed % classes if labelled else classes for seed in seeds]}
    if "prompt" not in takes:
        raise InputError(f"{name} takes neither class labels nor prompts with output_type='latent'; measure another")
    if not prompts:
        raise InputError(f"{name} paints from text; give at least one --prompt")
    return {"prompt": [prompts[seed % len(prompts)] for seed in seeds]}
