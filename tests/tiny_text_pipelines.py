"""Small randomly initialised text-to-image pipelines of diffusers: the real classes, called with prompt embeddings.

Their modules cannot be imported without transformers, of whose classes they name some as types. None is used where prompts
come as embeddings, so `write_names` makes a package that gives those names, for environments without the real one.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

__all__ = ["FAMILIES", "build", "environment"]

_NAMES = """
import importlib.abc, importlib.machinery, sys, types
__version__ = "4.57.0"
class _Names(types.ModuleType):
    __path__ = []
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        made = name if name.isupper() else type(name, (), {})
        setattr(self, name, made)
        return made
class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name == "tokenizers" or name.startswith("transformers."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
    def create_module(self, spec):
        return _Names(spec.name)
    def exec_module(self, module):
        pass
sys.meta_path.append(_Finder())
sys.modules[__name__].__class__ = _Names
"""


def environment(folder: Path) -> dict[str, str]:
    """Environment variables of a process in which the text pipelines can be imported; writes into `folder` if need be."""
    paths = [str(Path(__file__).parent)]
    if find_spec("transformers") is None:
        (folder / "transformers").mkdir()
        (folder / "transformers" / "__init__.py").write_text(_NAMES)
        about = folder / "transformers-4.57.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 4.57.0\n")
        paths.append(str(folder))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}


def build(family: str) -> tuple[Any, dict[str, Any]]:
    """A pipeline and the keywords of a call that makes two images with guidance, in few steps."""
    torch.manual_seed(0)
    pipeline, call = FAMILIES[family]()
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipeline, {"num_inference_steps": 6, "output_type": "latent", "return_dict": False, **call}


def _kl(channels: int = 4, **config: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=channels,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **config,
    )


def _unet(**config: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **config,
    )


def _embeds(*names: str, tokens: int | None = 7, width: int = 12) -> dict[str, Any]:
    shape = (2, width) if tokens is None else (2, tokens, width)
    return {name: torch.randn(shape) for name in names}


def _sd() -> tuple[Any, dict[str, Any]]:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
    )
    parts = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipeline = StableDiffusionPipeline(
        vae=_kl(), unet=_unet(), scheduler=scheduler, requires_safety_checker=False, **parts
    )
    return pipeline, {**_embeds("prompt_embeds", "negative_prompt_embeds"), "guidance_scale": 5.0}


def _sdxl() -> tuple[Any, dict[str, Any]]:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="leading", steps_offset=1
    )
    unet = _unet(addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=36)
    parts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipeline = StableDiffusionXLPipeline(vae=_kl(), unet=unet, scheduler=scheduler, add_watermarker=False, **parts)
    pooled = _embeds("pooled_prompt_embeds", "negative_pooled_prompt_embeds", tokens=None)
    return pipeline, {**_embeds("prompt_embeds", "negative_prompt_embeds"), **pooled, "guidance_scale": 5.0}


def _sd3() -> tuple[Any, dict[str, Any]]:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=12, out_channels=16,
        pos_embed_max_size=8,
    )  # fmt: skip
    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_kl(16, scaling_factor=1.5305, shift_factor=0.0609),
        **dict.fromkeys(names),
    )
    pooled = _embeds("pooled_prompt_embeds", "negative_pooled_prompt_embeds", tokens=None)
    return pipeline, {**_embeds("prompt_embeds", "negative_prompt_embeds"), **pooled, "guidance_scale": 4.0}


def _flux() -> tuple[Any, dict[str, Any]]:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=12, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
    )
    parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipeline = FluxPipeline(
        scheduler=scheduler, vae=_kl(scaling_factor=0.3611, shift_factor=0.1159), transformer=transformer, **parts
    )
    pooled = _embeds("pooled_prompt_embeds", tokens=None)
    return pipeline, {**_embeds("prompt_embeds"), **pooled, "guidance_scale": 3.5, "height": 16, "width": 24}


def _flux2() -> tuple[Any, dict[str, Any]]:
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Pipeline, Flux2Transformer2DModel

    transformer = Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=12, timestep_guidance_channels=8, axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKLFlux2(block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, sample_size=16, **blocks)
    pipeline = Flux2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )
    return pipeline, {**_embeds("prompt_embeds"), "guidance_scale": 3.5, "height": 16, "width": 24}


def _pixart() -> tuple[Any, dict[str, Any]]:
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    transformer = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        patch_size=2, caption_channels=12, cross_attention_dim=16, norm_num_groups=1, use_additional_conditions=False,
    )  # fmt: skip
    pipeline = PixArtSigmaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=_kl(),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02),
    )
    return pipeline, {**_masked(), "guidance_scale": 4.5, "height": 16, "width": 16, "use_resolution_binning": False}


def _sana() -> tuple[Any, dict[str, Any]]:
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    transformer = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=12,
        sample_size=8, patch_size=1,
    )  # fmt: skip
    blocks = {f"{side}_block_types": ("ResBlock", "ResBlock") for side in ("encoder", "decoder")}
    widths = {f"{side}_block_out_channels": (8, 16) for side in ("encoder", "decoder")}
    layers = {f"{side}_layers_per_block": (1, 1) for side in ("encoder", "decoder")}
    multiscales = {f"{side}_qkv_multiscales": ((), ()) for side in ("encoder", "decoder")}
    vae = AutoencoderDC(
        latent_channels=4, attention_head_dim=4, **blocks, **widths, **layers, **multiscales,
        upsample_block_type="interpolate", downsample_block_type="stride_conv", decoder_norm_types="rms_norm",
        decoder_act_fns="silu", scaling_factor=0.41407,
    )  # fmt: skip
    scheduler = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    pipeline = SanaPipeline(tokenizer=None, text_encoder=None, vae=vae, transformer=transformer, scheduler=scheduler)
    return pipeline, {**_masked(), "guidance_scale": 4.5, "height": 32, "width": 32, "use_resolution_binning": False}


def _masked() -> dict[str, Any]:
    masks = {name: torch.ones(2, 7) for name in ("prompt_attention_mask", "negative_prompt_attention_mask")}
    return {**_embeds("prompt_embeds", "negative_prompt_embeds"), **masks, "negative_prompt": None}


FAMILIES = {
    "sd": _sd,
    "sdxl": _sdxl,
    "sd3": _sd3,
    "flux": _flux,
    "flux2": _flux2,
    "pixart": _pixart,
    "sana": _sana,
}
