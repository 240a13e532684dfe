"""The shipped weights: where they lie, and how to open them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from manifold.errors import NotFittedError

if TYPE_CHECKING:
    from .pipeline import ClassConditionalPipeline

__all__ = ["CLASS_NAMES", "MODEL_FOLDER", "load_demo_model", "quiet_diffusers"]

MODEL_FOLDER = Path(__file__).parent / "painter"
"""A diffusers pipeline folder: model_index.json, vae, unet, scheduler and the model card README.md."""

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""What the labels 0 to 9 stand for."""


def load_demo_model(
    folder: str | Path = MODEL_FOLDER, *, dtype: torch.dtype = torch.float32
) -> ClassConditionalPipeline:
    """The demo model, or another one that `manifold train-demo` made.

    Arguments
        folder: of the pipeline; the shipped one unless given.
        dtype: that it computes in; the weights are stored in float16.

    Returns: a pipeline on the CPU, with its progress bar off.

    Raises: NotFittedError if the folder holds no pipeline.

    Cost: 15 MB read.
    """
    from .pipeline import ClassConditionalPipeline

    if not (Path(folder) / "model_index.json").is_file():
        raise NotFittedError(
            f"{folder} holds no diffusers pipeline (no model_index.json); make one with manifold train-demo"
        )
    with quiet_diffusers():
        pipeline = ClassConditionalPipeline.from_pretrained(str(folder), low_cpu_mem_usage=False).to(dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Without diffusers' bars and its advice to install another package."""
    from diffusers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
