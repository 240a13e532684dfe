"""The training loop: any time is a good time to stop.

The learning rate falls as 1 / sqrt(step) after a plateau, and the weights that are kept are a power-function average over
training, whose length grows with training itself (Karras et al., arXiv 2312.02696, section 3 and equation 127). Neither needs
to know how long the training will be, so a run can be stopped, looked at and continued.

A step draws everything random from a generator seeded with (seed, step). A run that was stopped and resumed therefore sees
the batches and the noise that an unbroken run sees.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from index.progress import Progress, silent
from manifold.errors import MismatchError, NonFiniteError
from manifold.files import load_tensors, save_tensors, storage_errors

from .checkpoints import keep_checkpoint, kept_step
from .precision import mixed_precision

__all__ = ["Losses", "Settings", "Trainer"]

Losses = dict[str, Tensor]
"""Scalars by name. The one called `loss` is minimised, the others are logged."""


@dataclass(frozen=True)
class Settings:
    """How a network is trained."""

    batch_size: int
    learning_rate: float
    warmup_steps: int = 200
    plateau_steps: int = 4_000
    weight_decay: float = 0.0
    average_width: float = 0.1
    """Width of the average of weights, relative to the training so far."""
    gradient_norm: float = 1.0
    seed: int = 0


class Trainer:
    """One network in training, in a folder of its own.

    Arguments
        network: trained in place, in float32; the average is `average`.
        losses: losses(network, generator) -> Losses, of one batch drawn from the generator.
        folder: state.safetensors (everything needed to continue) and losses.jsonl.
        settings: must be those of the earlier part of a resumed run.
        name: the stage told to progress.
        steps_before: steps that made the weights `network` comes with. The optimiser's own state is not kept with finished
            weights, so it begins anew, with a warm-up; learning rate and average go on from there.

    Raises: MismatchError if the folder holds a run with other settings.
    """

    def __init__(
        self,
        network: nn.Module,
        losses: Callable[[nn.Module, torch.Generator], Losses],
        folder: Path,
        settings: Settings,
        name: str,
        *,
        steps_before: int = 0,
    ) -> None:
        self.network = network
        self.losses = losses
        self.folder = folder
        self.settings = settings
        self.name = name
        self.step = self._began = steps_before
        self.average = copy.deepcopy(network).requires_grad_(False)
        self._optimizer = torch.optim.AdamW(
            network.parameters(),
            lr=settings.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        if self._state_path.is_file():
            self._resume()

    def run(
        self,
        steps: int,
        *,
        minutes: float | None = None,
        save_every_s: float = 120.0,
        progress: Progress = silent,
        kept_in: Path | None = None,
    ) -> None:
        """Train until step `steps`, or for so many minutes, whichever comes first; saved at the end and now and then.

        With `kept_in` the average, a network of diffusers, is kept in that folder on the way; see `checkpoints`.

        Raises: NonFiniteError if the loss is not finite; the last saved state is untouched. StorageError.
        """
        began = saved = time.monotonic()
        sums: dict[str, float] = {}
        counted = 0
        device = next(self.network.parameters()).device
        self.network.train()
        self._keep(kept_in, kept_step(self.step))
        while self.step < steps and (minutes is None or time.monotonic() - began < 60 * minutes):
            generator = torch.Generator().manual_seed(self.settings.seed * 2**32 + self.step)
            with mixed_precision(device):
                found = self.losses(self.network, generator)
            found["loss"].backward()
            norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.gradient_norm)
            if not bool(norm.isfinite()):
                raise NonFiniteError(
                    f"{self.name}: the gradient at step {self.step} is not finite; lower the learning rate"
                )
            for group in self._optimizer.param_groups:
                group["lr"] = self._learning_rate()
            self._optimizer.step()
            self._optimizer.zero_grad()
            self.step += 1
            self._update_average()
            for key, value in found.items():
                sums[key] = sums.get(key, 0.0) + float(value.detach())
            counted += 1
            self._keep(kept_in, kept_step(self.step))
            if self.step % 100 == 0:
                self._log({key: value / counted for key, value in sums.items()})
                sums, counted = {}, 0
                progress(self.name, self.step, steps)
            if time.monotonic() - saved > save_every_s:
                self.save()
                saved = time.monotonic()
        if counted:
            self._log({key: value / counted for key, value in sums.items()})
        progress(self.name, self.step, max(steps, self.step))
        self._keep(kept_in, not kept_step(self.step))
        self.save()

    def _keep(self, folder: Path | None, now: bool) -> None:
        if folder is not None and now:
            keep_checkpoint(self.average, folder, self.step)

    def save(self) -> None:
        """Write everything needed to continue."""
        tensors: dict[str, Tensor] = {}
        names = {id(parameter): name for name, parameter in self.network.named_parameters()}
        for parameter, state in self._optimizer.state.items():
            for key in ("exp_avg", "exp_avg_sq"):
                tensors[f"optimizer.{key}.{names[id(parameter)]}"] = state[key].cpu()
        tensors |= {f"network.{name}": value.cpu() for name, value in self.network.state_dict().items()}
        tensors |= {f"average.{name}": value.cpu() for name, value in self.average.state_dict().items()}
        metadata = {"step": str(self.step), "began": str(self._began), "settings": json.dumps(asdict(self.settings))}
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        save_tensors(self._state_path, {key: value.contiguous() for key, value in tensors.items()}, metadata)

    @property
    def _state_path(self) -> Path:
        return self.folder / "state.safetensors"

    def _resume(self) -> None:
        tensors, metadata = load_tensors(self._state_path)
        if json.loads(metadata["settings"]) != asdict(self.settings):
            raise MismatchError(f"{self.folder} holds a run with other settings; give another folder")
        for prefix, module in (("network.", self.network), ("average.", self.average)):
            own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            try:
                module.load_state_dict(own)
            except RuntimeError as error:  # names or shapes, as of a network for another number of classes
                raise MismatchError(f"{self.folder} holds a run of another network; give another folder") from error
        self.step, self._began = int(metadata["step"]), int(metadata["began"])
        if self.step == self._began:
            return  # saved before the first step, when the optimiser has no state
        for name, parameter in self.network.named_parameters():
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(self.step - self._began), device=parameter.device),
                "exp_avg": tensors[f"optimizer.exp_avg.{name}"].to(parameter),
                "exp_avg_sq": tensors[f"optimizer.exp_avg_sq.{name}"].to(parameter),
            }

    def _learning_rate(self) -> float:
        settings = self.settings
        rising = min((self.step - self._began + 1) / settings.warmup_steps, 1.0)
        return settings.learning_rate * rising / max(self.step / settings.plateau_steps, 1.0) ** 0.5

    @torch.no_grad()
    def _update_average(self) -> None:
        kept = (1 - 1 / self.step) ** (_exponent(self.settings.average_width) + 1)
        torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - kept)

    def _log(self, means: dict[str, float]) -> None:
        record: dict[str, Any] = {"step": self.step, "images": self.step * self.settings.batch_size, **means}
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "losses.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")


def _exponent(width: float) -> float:
    """gamma of the power-function average whose standard deviation is `width` of its length.

    sigma_rel = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))), solved by bisection.
    """
    low, high = 0.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        if ((middle + 1) / ((middle + 2) ** 2 * (middle + 3))) ** 0.5 > width:
            low = middle
        else:
            high = middle
    return low
