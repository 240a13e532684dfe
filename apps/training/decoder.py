"""The demo model's decoder, trained on alone: the encoder stays, and with it every latent and the denoiser.

A pixel loss is served best by the middle of all images that share a latent, which is a blur. A critic that is shown small
patches of real and of painted images says which way a picture becomes more like a real one, and the decoder follows it as
far as the pixels allow (Isola et al., arXiv 1611.07004, section 3.2; Esser et al., arXiv 2012.09841, section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .autoencoder import pixel_loss
from .images import TrainingImages
from .latents import Latents
from .loop import Losses, Settings

__all__ = ["SETTINGS", "DecoderAndCritic", "decoder_losses"]

SETTINGS = Settings(batch_size=32, learning_rate=3e-4, plateau_steps=10_000)
_CRITIC_WEIGHT, _CRITIC_SHARE = 0.02, 16.0
"""The weight of the critic, and how long its pull on the pixels may be, relative to that of the pixel loss: a critic that is
sure of itself is steep, and would drown the pixels."""


class DecoderAndCritic(nn.Module):
    """The decoder, and the critic that judges it: both are trained together, and one state holds them.

    Arguments
        decoder: an AutoencoderKL's.
    """

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder
        self.critic = nn.Sequential(
            nn.Conv2d(3, 48, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(48, 96, 4, stride=2, padding=1),
            nn.GroupNorm(8, 96),
            nn.LeakyReLU(0.2),
            nn.Conv2d(96, 96, 3, padding=1),
            nn.GroupNorm(8, 96),
            nn.LeakyReLU(0.2),
            nn.Conv2d(96, 1, 3, padding=1),
        )


def decoder_losses(
    vae: Any, images: TrainingImages, latents: Latents, batch_size: int
) -> Callable[[Any, torch.Generator], Losses]:
    """The pixel loss of the autoencoder's own training, a critic's pull, and the critic's hinge loss, in one sum.

    Each part reaches one network only: the decoder is pulled along the critic's gradient at its pixels, taken as given, and
    the critic judges pictures cut off from the decoder.
    """
    config = vae.config

    def losses(network: Any, generator: torch.Generator) -> Losses:
        device = next(network.parameters()).device
        rows = torch.randint(len(latents.means), (batch_size,), generator=generator)
        x0 = images.chosen(rows).to(device)
        latent = latents.draw(rows, generator).to(device)
        painted = network.decoder(vae.post_quant_conv(latent / config.scaling_factor + config.shift_factor)).float()
        pixels = pixel_loss(painted, x0)
        (towards_pixels,) = torch.autograd.grad(pixels, painted, retain_graph=True)
        shown = painted.detach().requires_grad_()
        real, fake = network.critic(x0).float(), network.critic(shown).float()
        (towards_real,) = torch.autograd.grad(-fake.mean(), shown, retain_graph=True)
        weight = (_CRITIC_SHARE * towards_pixels.norm() / towards_real.norm()).clamp_max(_CRITIC_WEIGHT)
        judging = (1 - real).relu().mean() + (1 + fake).relu().mean()
        return {
            "loss": pixels + weight * (painted * towards_real).sum() + judging,
            "pixels": pixels,
            "squared_error": (painted - x0).square().mean(),
            "critic": judging,
        }

    return losses
