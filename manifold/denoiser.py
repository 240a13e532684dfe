"""One interface for everything that predicts x0 from x_t, and a trained network behind it.

`GaussianManifold`, `GaussianMixture`, `EmpiricalDenoiser`, `CertifiedEmpiricalDenoiser` and the local denoisers satisfy
`Denoiser` as they are; `DiffusersDenoiser` puts a diffusers UNet or transformer behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from .errors import InputError, ShapeError
from .schedule import NoiseSchedule, levels_at_snr
from .states import Level, level_pair

__all__ = ["Denoiser", "DiffusersDenoiser"]


@runtime_checkable
class Denoiser(Protocol):
    """Predicts the clean latent."""

    def denoise(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """x0_hat of states x_t = alpha x0 + sigma eps, (n, d) or (n, C, H, W), in their shape, type and device."""
        ...


class DiffusersDenoiser:
    """A diffusers network as a Denoiser, at any (alpha, sigma) that its schedule reaches.

    The state is brought to the scale that the network was trained on, shown to it at the timestep of the same
    signal-to-noise ratio (between training timesteps, a fractional one), and its output turned into x0_hat.

    Arguments
        network: called as network(sample, timestep, **conditions); a `.sample` attribute or a tensor comes back. A
            UNet2DModel, UNet2DConditionModel or a DiT-style transformer fits; a model with another call (FLUX's packed
            tokens) is wrapped in a function of (sample, timestep).
        schedule: of the network's training, or its scheduler or the scheduler's folder.
        conditions: constant keyword arguments, such as encoder_hidden_states; tensors of one row are repeated.
        shape: (C, H, W), for states that come flat.
        round_timesteps: show the nearest whole timestep, as most samplers do, and answer for the level asked all the same.

    Source: prediction types as in `manifold.schedule.NoiseSchedule.x0_hat`.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        schedule: NoiseSchedule | Any,
        *,
        conditions: dict[str, Any] | None = None,
        shape: tuple[int, int, int] | None = None,
        round_timesteps: bool = False,
    ) -> None:
        if not isinstance(schedule, NoiseSchedule):
            schedule = NoiseSchedule.from_scheduler(schedule)
        self.network = network
        self.schedule: NoiseSchedule = schedule
        self.conditions = dict(conditions or {})
        self.shape = shape
        self.round_timesteps = round_timesteps

    @torch.no_grad()
    def denoise(self, x_t: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """x0_hat by the network, of the shape, dtype and device of `x_t`; without gradients.

        Raises: ShapeError for flat states without a shape; InputError for a level the schedule does not reach.

        Cost: one call of the network.
        """
        states = self._images(x_t)
        a, s = level_pair(alpha, sigma, len(states), torch.zeros((), dtype=torch.float64))
        a, s = a.expand(len(states), 1)[:, 0], s.expand(len(states), 1)[:, 0]
        if bool((s == 0).any()):
            raise InputError("a network is not trained at sigma = 0, where x0 is x_t / alpha")
        t = self.schedule.at_snr((a / s) ** 2)
        shown_at = t.round() if self.round_timesteps else t
        # The level asked, not that of t: a sampler that was given its steps may visit t at another.
        alpha_own, sigma_own = levels_at_snr(2 * (a.log() - s.log()), self.schedule.coordinates)
        old, new = torch.hypot(a, s), torch.hypot(alpha_own, sigma_own)
        wide = torch.promote_types(states.dtype, torch.float32)
        own = (states.to(wide) * (new / old).to(states.device, wide).reshape(-1, 1, 1, 1)).to(states)
        shown_at = shown_at.to(states.device, torch.promote_types(states.dtype, torch.float32))  # bfloat16 has 8 bits
        output = self.network(self.schedule.network_input_at(own, sigma_own), shown_at, **self._repeated(len(states)))
        output = getattr(output, "sample", output)
        if output.shape[1] == 2 * states.shape[1]:
            output = output[:, : states.shape[1]]  # the second half is a learned variance
        return self.schedule.x0_hat_at(output, own, alpha_own, sigma_own).reshape(x_t.shape).to(x_t)

    def _images(self, x_t: Tensor) -> Tensor:
        if x_t.ndim == 4:
            return x_t
        if self.shape is None or x_t.ndim != 2:
            raise ShapeError(f"the network takes (n, C, H, W), states are {tuple(x_t.shape)}; pass shape=(C, H, W)")
        return x_t.reshape(len(x_t), *self.shape)

    def _repeated(self, n: int) -> dict[str, Any]:
        return {
            name: value.expand(n, *value.shape[1:])
            if isinstance(value, Tensor) and value.ndim and len(value) == 1
            else value
            for name, value in self.conditions.items()
        }
