"""Small random diffusers autoencoders, saved to disk as their makers save the large ones."""

import json
from pathlib import Path
from typing import Any

import torch

__all__ = ["save_tiny_dc", "save_tiny_flux2", "save_tiny_kl", "save_tiny_pipeline", "save_tiny_taesd"]


def save_tiny_kl(folder: Path, **config: Any) -> Path:
    """AutoencoderKL with factor 2 and 4 channels."""
    from diffusers import AutoencoderKL

    sizes = {"block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 4, "sample_size": 16}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    torch.manual_seed(7)
    AutoencoderKL(**sizes, **blocks, **config).save_pretrained(folder)
    return folder


def save_tiny_flux2(folder: Path) -> Path:
    """AutoencoderKLFlux2 whose batch norm has seen something, factor 2 x 2 with its patches."""
    from diffusers import AutoencoderKLFlux2

    sizes = {"block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 4, "sample_size": 16}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    torch.manual_seed(8)
    vae = AutoencoderKLFlux2(**sizes, **blocks)
    vae.bn.running_mean.copy_(torch.randn_like(vae.bn.running_mean))
    vae.bn.running_var.copy_(torch.rand_like(vae.bn.running_var) + 0.5)
    vae.save_pretrained(folder)
    return folder


def save_tiny_taesd(folder: Path, **config: Any) -> Path:
    """AutoencoderTiny with factor 2."""
    from diffusers import AutoencoderTiny

    sizes = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "latent_channels": 4, **config}
    torch.manual_seed(9)
    AutoencoderTiny(**sizes, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).save_pretrained(folder)
    return folder


def save_tiny_dc(folder: Path) -> Path:
    """AutoencoderDC with factor 2."""
    from diffusers import AutoencoderDC

    torch.manual_seed(10)
    AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        upsample_block_type="interpolate",
        downsample_block_type="stride_conv",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    ).save_pretrained(folder)
    return folder


def save_tiny_pipeline(folder: Path) -> Path:
    """A pipeline's folder, as far as an encoder looks at it."""
    save_tiny_kl(folder / "vae")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder
