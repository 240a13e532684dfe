"""A diffusers autoencoder, scaled exactly as the model's own pipeline does.

AutoencoderKL        posterior mode or sample z; (z - shift_factor) * scaling_factor,
                     or (z - latents_mean) * scaling_factor / latents_std where the model has those
AutoencoderKLFlux2   posterior mode or sample z; its 2 x 2 patches as channels, then (z - mean) / sqrt(var + eps)
                     with the running statistics of its batch norm
AutoencoderTiny      the latent z; (z - shift_factor) * scaling_factor
AutoencoderDC        the latent z; z * scaling_factor
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from manifold.errors import InputError

from .pixels import require_shape
from .spec import EncoderSpec, image_to_unit, unit_to_image

__all__ = ["SUPPORTED", "VaeEncoder"]

SUPPORTED = ("AutoencoderKL", "AutoencoderKLFlux2", "AutoencoderTiny", "AutoencoderDC")
"""Autoencoder classes of diffusers that are supported."""

_WITH_POSTERIOR = ("AutoencoderKL", "AutoencoderKLFlux2")


class VaeEncoder:
    """A diffusers autoencoder as an encoder of square images. Open one with `open_encoder`.

    Arguments
        vae: the loaded model, one of `SUPPORTED`, in the type it is to compute in.
        id, image_size, revision, config_hash, mode, dtype, tile, seed: as in EncoderSpec.
        device: where it runs.

    Raises: InputError if the image size does not fit the model's factor, or a sample is asked of a model without a
        posterior.
    """

    def __init__(
        self,
        vae: Any,
        *,
        id: str,
        image_size: int,
        revision: str | None = None,
        config_hash: str = "",
        mode: str = "mode",
        dtype: str = "float32",
        tile: int | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self._kind = type(vae).__name__
        if mode == "sample" and self._kind not in _WITH_POSTERIOR:
            raise InputError(f"{id} is an {self._kind}, which has no posterior to sample; use --mode mode")
        factor = self._factor(vae)
        if image_size % factor or image_size < factor:
            below, above = max(factor, image_size // factor * factor), (image_size // factor + 1) * factor
            raise InputError(
                f"the image size must be a multiple of {factor} for {id}, it is {image_size}; "
                f"use --size {below}" + (f" or {above}" if above != below else "")
            )
        if tile is not None:
            _set_tile(vae, self._kind, tile, factor)
        self._vae = vae.eval().requires_grad_(False).to(device)
        self._dtype = vae.dtype
        self._device = torch.device(device)
        scaling, shift = _scaling(vae, self._kind)
        channels = int(vae.config.latent_channels) * (4 if self._kind == "AutoencoderKLFlux2" else 1)
        self.spec = EncoderSpec(
            id=id,
            kind=self._kind,
            latent_shape=(channels, image_size // factor, image_size // factor),
            image_size=image_size,
            revision=revision,
            config_hash=config_hash,
            scaling=scaling,
            shift=shift,
            mode=mode,
            dtype=dtype,
            tile=tile,
            seed=seed,
        )
        self._scaling = torch.tensor(scaling, device=device).view(1, -1, 1, 1)
        self._shift = torch.tensor(shift, device=device).view(1, -1, 1, 1)

    @torch.inference_mode()
    def encode(self, images: Tensor, first_row: int = 0) -> Tensor:
        """Latents of uint8 images; see `Encoder.encode`."""
        size = self.spec.image_size
        require_shape(images, (3, size, size), "images")
        encoded = self._vae.encode(image_to_unit(images.to(self._device)).to(self._dtype))
        if self._kind in _WITH_POSTERIOR:
            posterior = encoded.latent_dist
            raw = posterior.mode().float()
            if self.spec.mode == "sample":
                raw = raw + posterior.std.float() * self._noise(raw, first_row)
        else:
            raw = (encoded.latents if self._kind == "AutoencoderTiny" else encoded.latent).float()
        if self._kind == "AutoencoderKLFlux2":
            raw = torch.nn.functional.pixel_unshuffle(raw, 2)
        return (raw - self._shift) * self._scaling

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Images of latents; see `Encoder.decode`."""
        require_shape(latents, self.spec.latent_shape, "latents")
        raw = latents.to(self._device).float() / self._scaling + self._shift
        if self._kind == "AutoencoderKLFlux2":
            raw = torch.nn.functional.pixel_shuffle(raw, 2)
        return unit_to_image(self._vae.decode(raw.to(self._dtype)).sample)

    def _noise(self, like: Tensor, first_row: int) -> Tensor:
        """Standard normal noise (n, C, h, w), each row from a seed of its own."""
        rows = []
        for row in range(first_row, first_row + len(like)):
            digest = hashlib.sha256(f"{self.spec.seed}:{row}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
            rows.append(torch.randn(like.shape[1:], generator=generator, dtype=torch.float32))
        return torch.stack(rows).to(like.device)

    @staticmethod
    def _factor(vae: Any) -> int:
        """Image pixels per latent pixel along one side."""
        kind = type(vae).__name__
        if kind == "AutoencoderTiny":
            # Not its spatial_scale_factor, which diffusers computes from the number of colours.
            return int(2 ** (len(vae.config.encoder_block_out_channels) - 1))
        if kind == "AutoencoderDC":
            return int(vae.spatial_compression_ratio)
        return int(2 ** (len(vae.config.block_out_channels) - 1)) * (2 if kind == "AutoencoderKLFlux2" else 1)


def _scaling(vae: Any, kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Scaling and shift of z = (raw - shift) * scaling, one number or one per channel."""
    config = vae.config
    if kind == "AutoencoderKLFlux2":
        deviation = torch.sqrt(vae.bn.running_var.double() + config.batch_norm_eps)
        return tuple((1 / deviation).tolist()), tuple(vae.bn.running_mean.double().tolist())
    factor = float(getattr(config, "scaling_factor", None) or 1.0)
    mean, deviations = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if kind == "AutoencoderKL" and mean is not None and deviations is not None:
        return tuple(factor / float(one) for one in deviations), tuple(float(one) for one in mean)
    return (factor,), (float(getattr(config, "shift_factor", None) or 0.0),)


def _set_tile(vae: Any, kind: str, tile: int, factor: int) -> None:
    """Cut images larger than `tile` pixels into overlapping tiles of that side."""
    if tile % factor or tile < 2 * factor:
        raise InputError(f"a tile's side must be a multiple of {factor}, at least {2 * factor}, it is {tile}")
    if kind == "AutoencoderTiny":
        if vae.config.latent_channels != 4:
            raise InputError(
                "diffusers tiles an AutoencoderTiny only if it has 4 latent channels; encode without --tile"
            )
        vae.spatial_scale_factor = factor
    if kind == "AutoencoderDC":
        stride = max(factor, tile * 3 // 4 // factor * factor)
        vae.enable_tiling(tile, tile, stride, stride)
    else:
        vae.tile_sample_min_size, vae.tile_latent_min_size = tile, tile // factor
        vae.enable_tiling()
