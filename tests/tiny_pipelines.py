"""Small randomly initialised pipelines of diffusers, and a network that denoises a known Gaussian exactly.

`LatentPipeline` is written as diffusers' own latent pipelines are (retrieve_timesteps, prepare_latents, scale_model_input,
guidance by a doubled batch, callback_on_step_end), with class labels where they have prompts; it needs no text model.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers.callbacks import PipelineCallback
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

__all__ = [
    "ExactGaussian",
    "LatentPipeline",
    "quiet",
    "tiny_ddim",
    "tiny_ddpm",
    "tiny_demo",
    "tiny_dit",
    "tiny_latent",
    "tiny_vae",
]

CLASSES = 5
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_unet(channels: int = 3, **config: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **config,
    ).eval()


def tiny_vae(channels: int = 4, **config: Any) -> Any:
    torch.manual_seed(1)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=channels,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **config,
    ).eval()


def tiny_ddpm() -> Any:
    return quiet(diffusers.DDPMPipeline(tiny_unet(), diffusers.DDPMScheduler()))


def tiny_ddim() -> Any:
    return quiet(diffusers.DDIMPipeline(tiny_unet(), diffusers.DDIMScheduler()))


def tiny_dit() -> Any:
    torch.manual_seed(2)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, sample_size=8, num_layers=1,
        num_embeds_ada_norm=1000, norm_num_groups=4,
    ).eval()  # fmt: skip
    return quiet(diffusers.DiTPipeline(network, tiny_vae(), diffusers.DDIMScheduler(clip_sample=False)))


def tiny_latent(scheduler: Any) -> LatentPipeline:
    return quiet(LatentPipeline(tiny_unet(4, num_class_embeds=CLASSES + 1), tiny_vae(), scheduler))


def tiny_demo(scheduler: Any) -> Any:
    from manifold.demo_model import ClassConditionalPipeline

    return quiet(ClassConditionalPipeline(tiny_vae(), tiny_unet(4, num_class_embeds=CLASSES + 1), scheduler))


class ExactGaussian(nn.Module):
    """The optimal network for data N(mu, Sigma): what the scheduler's prediction type says, in float64 inside.

    Arguments
        mean: (C, H, W). covariance: (d, d). scheduler: whose whole timesteps or flow times it is shown.
    """

    def __init__(self, mean: Tensor, covariance: Tensor, scheduler: Any) -> None:
        super().__init__()
        self.mean, self.covariance = mean.double(), covariance.double()
        self.squared = None if "FlowMatch" in type(scheduler).__name__ else scheduler.alphas_cumprod.double()
        self.config = SimpleNamespace(sample_size=mean.shape[-1], in_channels=len(mean), num_class_embeds=None)
        self.dtype, self.device, self.calls = torch.float32, torch.device("cpu"), 0

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None, return_dict: bool = True) -> Any:
        self.calls += 1
        if self.squared is None:
            sigma = float(t) / 1000
            alpha = 1 - sigma
        else:
            assert float(t) == int(t)
            alpha, sigma = float(self.squared[int(t)].sqrt()), float((1 - self.squared[int(t)]).sqrt())
        y = (x.double() - alpha * self.mean).flatten(1)
        noisy = alpha**2 * self.covariance + sigma**2 * torch.eye(y.shape[1], dtype=torch.float64)
        solved = torch.linalg.solve(noisy, y.T).T
        eps = (sigma * solved).view_as(x)
        x0 = self.mean + (alpha * solved @ self.covariance).view_as(x)
        output = (eps - x0 if self.squared is None else eps).to(x)
        return SimpleNamespace(sample=output) if return_dict else (output,)


class LatentPipeline(diffusers.DiffusionPipeline):
    """Class-conditional latent diffusion."""

    _callback_tensor_inputs = ("latents",)

    def __init__(self, unet: Any, vae: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, vae=vae, scheduler=scheduler)

    def prepare_latents(self, n: int, dtype: torch.dtype, device: Any, generator: Any, latents: Any = None) -> Tensor:
        side = self.unet.config.sample_size
        if latents is None:
            shape = (n, self.unet.config.in_channels, side, side)
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        else:
            latents = latents.to(device)
        return latents * getattr(self.scheduler, "init_noise_sigma", 1.0)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: list[int],
        num_inference_steps: int = 10,
        timesteps: list[int] | None = None,
        guidance_scale: float = 1.0,
        eta: float = 0.0,
        generator: Any = None,
        latents: Tensor | None = None,
        output_type: str = "pt",
        callback_on_step_end: Any = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] = ("latents",),
    ) -> Any:
        if isinstance(callback_on_step_end, PipelineCallback):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        guided = guidance_scale > 1
        labels = torch.tensor(class_labels)
        if guided:
            labels = torch.cat([torch.full_like(labels, CLASSES), labels])
        if timesteps is None:
            self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        else:
            assert "timesteps" in inspect.signature(self.scheduler.set_timesteps).parameters
            self.scheduler.set_timesteps(timesteps=timesteps, device=self._execution_device)
        visited = self.scheduler.timesteps
        latents = self.prepare_latents(len(class_labels), self.unet.dtype, self._execution_device, generator, latents)
        takes = inspect.signature(self.scheduler.step).parameters
        extra = {name: value for name, value in (("eta", eta), ("generator", generator)) if name in takes}
        for i, t in enumerate(visited):
            shown = torch.cat([latents] * 2) if guided else latents
            if hasattr(self.scheduler, "scale_model_input"):
                shown = self.scheduler.scale_model_input(shown, t)
            conditions = {} if self.unet.config.num_class_embeds is None else {"class_labels": labels}
            output = self.unet(shown, t, **conditions, return_dict=False)[0]
            if guided:
                free, conditional = output.chunk(2)
                output = free + guidance_scale * (conditional - free)
            latents = self.scheduler.step(output, t, latents, **extra, return_dict=False)[0]
            if callback_on_step_end is not None:
                here = locals()
                tensors = {name: here[name] for name in callback_on_step_end_tensor_inputs}
                latents = callback_on_step_end(self, i, t, tensors).pop("latents", latents)
        if output_type != "latent":
            latents = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
        return SimpleNamespace(images=latents)
