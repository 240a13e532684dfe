"""The demo model's network: a class-conditional UNet on 4 x 8 x 8 latents that predicts velocity.

With v = alpha eps - sigma x0 (Salimans & Ho, arXiv 2202.00512, appendix D) the network answers for the noise where there is
little of it and for the image where there is much, so its x0_hat is well determined at every level.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .latents import Latents
from .loop import Losses, Settings

__all__ = ["SETTINGS", "build_denoiser", "build_scheduler", "denoiser_losses"]

SETTINGS = Settings(batch_size=128, learning_rate=1e-3, plateau_steps=4_000)
_LABEL_DROPOUT = 0.1
_NOISE_MEDIAN, _NOISE_SPREAD = 1.5, 1.1
"""sigma / alpha is drawn log-normally: most of it where pictures are decided, little where the closed form says nearly all
and where nearly nothing is left to say (Karras et al., arXiv 2206.00364, section 5)."""


def build_denoiser(classes: int) -> Any:
    """A randomly initialised UNet2DModel of 5.8 million parameters; label `classes` stands for no label."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(128, 160),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=32,
        num_class_embeds=classes + 1,
    )


def build_scheduler() -> Any:
    """DDIM over the 1,000 linear betas of Ho et al. (arXiv 2006.11239, section 4), sigma / alpha from 0.01 to 157."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
    )


def denoiser_losses(
    latents: Latents, labels: Tensor, classes: int, batch_size: int
) -> Callable[[nn.Module, torch.Generator], Losses]:
    """Squared error of the velocity at random noise levels.

    Arguments
        latents: posteriors; a fresh sample is drawn each time.
        labels: (n,) int64, of each. classes: their number.
    """
    alphas_cumprod = build_scheduler().alphas_cumprod
    log_noise = ((1 - alphas_cumprod) / alphas_cumprod).log() / 2

    def losses(network: nn.Module, generator: torch.Generator) -> Losses:
        device = next(network.parameters()).device
        rows = torch.randint(len(latents.means), (batch_size,), generator=generator)
        x0 = latents.draw(rows, generator)
        noise = torch.randn(x0.shape, generator=generator)
        drawn = math.log(_NOISE_MEDIAN) + _NOISE_SPREAD * torch.randn(batch_size, generator=generator)
        timesteps = torch.searchsorted(log_noise, drawn).clamp_max(len(log_noise) - 1)
        dropped = torch.rand(batch_size, generator=generator) < _LABEL_DROPOUT
        shown = torch.where(dropped, classes, labels[rows])
        alpha = alphas_cumprod[timesteps].sqrt()[:, None, None, None]
        sigma = (1 - alphas_cumprod[timesteps]).sqrt()[:, None, None, None]
        x_t = alpha * x0 + sigma * noise
        predicted = network(x_t.to(device), timesteps.to(device), class_labels=shown.to(device)).sample.float()
        return {"loss": (predicted - (alpha * noise - sigma * x0).to(device)).square().mean()}

    return losses
