"""The project's own model at work in the explorer: what it paints, what it predicts, and what teleportation makes of it.

No page is drawn here; the pages ask, and show the answers.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from index.latents import LatentStore
from index.progress import Progress, each_step, silent
from index.workspace import Workspace
from manifold.class_flow import ClassFlow
from manifold.class_moments import ClassMoments
from manifold.demo_model import CLASS_NAMES
from manifold.denoiser import DiffusersDenoiser
from manifold.errors import ShapeError
from manifold.gaussian import GaussianManifold
from manifold.recording import Recording, record
from manifold.schedule import NoiseSchedule
from manifold.teleport import teleport

__all__ = ["NO_CLASS", "Moved", "Order", "Painter", "class_manifolds", "class_of", "is_painted", "rms_difference"]

NO_CLASS = len(CLASS_NAMES)
"""The label that means "no class"."""
_BATCH_ROWS = 4096


@dataclass(frozen=True)
class Order:
    """What is to be painted: the same order gives the same images.

    Attributes
        labels: class of each image, NO_CLASS for none. seeds: of each image's noise.
        steps: of the sampler. guidance_scale: 1 for none.
    """

    labels: tuple[int, ...]
    seeds: tuple[int, ...]
    steps: int = 25
    guidance_scale: float = 1.5

    def options(self) -> dict[str, Any]:
        """Keyword arguments of the pipeline, with fresh generators."""
        return {
            "class_labels": list(self.labels),
            "generator": [torch.Generator().manual_seed(seed) for seed in self.seeds],
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "output_type": "latent",
        }


@dataclass(frozen=True, eq=False)
class Moved:
    """A run that started late, beside the run of all steps.

    Attributes
        latents: (n, C, H, W) that it painted.
        evaluations, saved: of the network. start: sigma / alpha of its first one.
        differences: (n,) see `rms_difference`.
        by_class: whether each image moved by the statistics of its class, rather than all by those of the collection.
    """

    latents: Tensor
    evaluations: int
    saved: int
    start: float
    differences: Tensor
    by_class: bool


class Painter:
    """A class-conditional pipeline that several readers share: one call at a time.

    Arguments
        pipeline: of `manifold.demo_model.load_demo_model`.
    """

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self._schedule = NoiseSchedule.from_scheduler(pipeline.scheduler)
        self._lock = threading.Lock()

    def paint(self, order: Order, progress: Progress = silent) -> Recording:
        """The recorded run of an order; `progress` is told of ("paint", steps done, steps). Raises: as `record`."""
        with self._lock:
            return record(
                self.pipeline, **order.options(), callback_on_step_end=each_step(progress, "paint", order.steps)
            )

    def move(
        self,
        order: Order,
        full: Tensor,
        skip: float,
        everything: GaussianManifold,
        classes: dict[int, GaussianManifold],
        progress: Progress = silent,
    ) -> Moved:
        """The same order with the first steps replaced by the closed form.

        Arguments
            full: (n, C, H, W) what all steps painted.
            skip: share of the steps to leave out, in [0, 1).
            everything: Gaussian of the collection. classes: of each class, by label, where known; without classes, or for
                images that have none, the collection's moves.

        Raises: as `teleport`.
        """
        flow = ClassFlow(everything, classes, order.labels, order.guidance_scale)
        with self._lock:
            found = teleport(
                self.pipeline,
                flow,
                skip=skip,
                **order.options(),
                callback_on_step_end=each_step(progress, "paint", order.steps),
            )
        alpha, sigma = found.start_level
        latents = found.output.images
        return Moved(
            latents, found.evaluations, found.saved, sigma / alpha, rms_difference(full, latents, everything),
            any(label in classes for label in order.labels),
        )  # fmt: skip

    def x0_hat(self, x_t: Tensor, alpha: float, sigma: float, label: int) -> Tensor:
        """The network's own predicted target of states (n, d) or (n, C, H, W), asked for a class or for none.

        Raises: InputError for a noise level that the network was not trained at.
        """
        alpha, sigma = self._reached(alpha, sigma)
        config = self.pipeline.unet.config
        shape = (int(config.in_channels), int(config.sample_size), int(config.sample_size))
        conditions = {"class_labels": torch.tensor([label])}
        with self._lock:
            network = DiffusersDenoiser(self.pipeline.unet, self._schedule, conditions=conditions, shape=shape)
            return network.denoise(x_t, alpha, sigma)

    def _reached(self, alpha: float, sigma: float) -> tuple[float, float]:
        """The level, or the schedule's lowest where that is less than 1 % above: 0.0100005 where 0.01 is asked."""
        low_alpha, low_sigma = self._schedule.levels(0)
        lowest = float(low_sigma / low_alpha)
        near = 0.99 * lowest <= sigma / alpha < lowest
        return (float(low_alpha), float(low_sigma)) if near else (alpha, sigma)


def is_painted(workspace: Workspace) -> bool:
    """Whether a workspace's latents are those of the shipped model."""
    return workspace.manifest.recipe.encoder.id == "demo-vae"


def class_of(caption: Any) -> int:
    """The label of a caption that is the name of a class, else NO_CLASS."""
    return CLASS_NAMES.index(caption) if caption in CLASS_NAMES else NO_CLASS


def class_manifolds(store: LatentStore, progress: Progress = silent) -> dict[int, GaussianManifold]:
    """A Gaussian for each class that two images or more are captioned with, by label; `progress` is told of rows.

    Cost: one pass over the latents, and one decomposition (d, d) for each class.
    """
    labels = np.array([class_of(caption) for caption in store.metadata(["caption"])["caption"].to_pylist()])
    if (labels == NO_CLASS).all():
        return {}
    moments = ClassMoments(store.d)
    done = 0
    for batch in store.batches(_BATCH_ROWS):
        moments.update(batch, labels[done : done + len(batch)])
        done += len(batch)
        progress("read", done, len(store))
    known = [label for label in moments.labels if label != NO_CLASS and moments[label].count > 1]
    return {label: GaussianManifold.from_moments(moments[label]) for label in known}


def rms_difference(first: Tensor, second: Tensor, everything: GaussianManifold) -> Tensor:
    """Root mean square difference of latents image by image, (n,), in standard deviations of the collection.

    sqrt(|a - b|^2 / tr C), C the covariance: unrelated images are about sqrt(2) apart.

    Raises: ShapeError if the two differ in shape.
    """
    if first.shape != second.shape:
        raise ShapeError(f"both must be of one shape, they are {tuple(first.shape)} and {tuple(second.shape)}")
    squared = (first.double() - second.double()).flatten(1).square().sum(1)
    return (squared / everything.total_variance).sqrt()
