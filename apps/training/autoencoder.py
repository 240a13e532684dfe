"""The demo model's autoencoder: 32 x 32 colours to 4 x 8 x 8 latents and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .images import TrainingImages
from .loop import Losses, Settings

__all__ = ["SETTINGS", "autoencoder_losses", "build_autoencoder", "pixel_loss", "set_scaling"]

SETTINGS = Settings(batch_size=32, learning_rate=1e-3, plateau_steps=2_000)
_KL_WEIGHT = 2e-4
_EDGE_WEIGHT = 0.5


def build_autoencoder() -> Any:
    """A randomly initialised AutoencoderKL of 1.4 million parameters."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 32, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=32,
    )


def autoencoder_losses(images: TrainingImages, batch_size: int) -> Callable[[Any, torch.Generator], Losses]:
    """The pixel loss, and the divergence of the posterior from N(0, 1)."""

    def losses(network: Any, generator: torch.Generator) -> Losses:
        device = next(network.parameters()).device
        x0 = images.batch(batch_size, generator)[0].to(device)
        posterior = network.encode(x0).latent_dist
        mean, std = posterior.mean.float(), posterior.std.float()
        noise = torch.randn(mean.shape, generator=generator).to(device)
        painted = network.decode(mean + std * noise).sample.float()
        divergence = (mean.square() + std.square() - 1 - 2 * std.log()).mean() / 2
        return {
            "loss": pixel_loss(painted, x0) + _KL_WEIGHT * divergence,
            "squared_error": (painted - x0).square().mean(),
            "kl_nats": divergence,
        }

    return losses


def pixel_loss(painted: Tensor, x0: Tensor) -> Tensor:
    """Absolute error of pixels and of their differences.

    Pixels alone would be served best by the median of what is possible, which is a blur; differences between neighbouring
    pixels make edges count.
    """
    edges = [(painted.diff(dim=dim) - x0.diff(dim=dim)).abs().mean() for dim in (-1, -2)]
    return (painted - x0).abs().mean() + _EDGE_WEIGHT * (edges[0] + edges[1]) / 2


@torch.no_grad()
def set_scaling(network: Any, images: TrainingImages, count: int = 4_096) -> None:
    """Write the shift and scale that give latents of mean 0 and variance 1 into the model's configuration."""
    generator = torch.Generator().manual_seed(0)
    device = next(network.parameters()).device
    means = torch.cat(
        [network.encode(images.batch(256, generator)[0].to(device)).latent_dist.mean for _ in range(count // 256)]
    )
    network.register_to_config(shift_factor=float(means.mean()), scaling_factor=1 / float(means.std()))
