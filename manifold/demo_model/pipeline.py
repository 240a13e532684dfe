"""A class-conditional latent diffusion pipeline, as diffusers would write it: the kind of model that ships with the project.

diffusers has a class-conditional pipeline for transformers (DiTPipeline) and an unconditional one for latent UNets
(LDMPipeline), none for class-conditional latent UNets. This one follows their conventions, so that recording and
teleportation treat it like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from manifold.errors import InputError, ShapeError

__all__ = ["ClassConditionalPipeline"]


class ClassConditionalPipeline(DiffusionPipeline):
    """Paints images of given classes.

    Arguments
        vae: AutoencoderKL. unet: UNet2DModel with one class embedding more than there are classes; the last means "no
            class" and serves classifier-free guidance. scheduler: any of diffusers' for its prediction type.
    """

    model_cpu_offload_seq = "unet->vae"
    _callback_tensor_inputs = ("latents",)

    def __init__(self, vae: Any, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler)
        self.image_processor = VaeImageProcessor(vae_scale_factor=2 ** (len(vae.config.block_out_channels) - 1))

    @property
    def classes(self) -> int:
        """Number of classes; as a label it means "no class"."""
        return int(self.unet.config.num_class_embeds) - 1

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int],
        *,
        num_inference_steps: int = 25,
        guidance_scale: float = 3.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Tensor]], dict[str, Tensor]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> Any:
        """One image for each label.

        Arguments
            class_labels: 0 to `classes`, one for each image; `classes` itself paints without a class.
            num_inference_steps: steps of the scheduler.
            guidance_scale: w in v(none) + w (v(class) - v(none)); 1 asks the network once a step, others twice.
            generator: of the starting noise, and of the scheduler where it draws.
            latents: (n, C, H, W) standard normal starting noise, instead of drawing it.
            output_type: `pil`, `np`, `pt`, or `latent` for scaled latents as a workspace stores them.
            callback_on_step_end: called as callback(pipeline, step, timestep, tensors) after each step; may return
                tensors to go on with.

        Returns: ImagePipelineOutput, or a tuple of its one field.

        Raises: InputError for a label out of range, or a number of steps that diffusers cannot make; ShapeError for latents
            of another shape.
        """
        most = int(self.scheduler.config.num_train_timesteps)
        if not 1 <= num_inference_steps <= most:
            raise InputError(f"num_inference_steps must lie between 1 and {most:,}, it is {num_inference_steps:,}")
        labels = [class_labels] if isinstance(class_labels, int) else [int(label) for label in class_labels]
        if not labels or not all(0 <= label <= self.classes for label in labels):
            raise InputError(f"class labels must lie between 0 and {self.classes} (no class), they are {labels[:5]}")
        device, dtype = self._execution_device, self.unet.dtype
        side = int(self.unet.config.sample_size)
        shape = (len(labels), int(self.unet.config.in_channels), side, side)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        elif tuple(latents.shape) != shape:
            raise ShapeError(f"latents must be {shape} for {len(labels)} labels, they are {tuple(latents.shape)}")
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        if self.scheduler.timesteps[-1] < 0:  # of trailing spacing, for some numbers of steps
            raise InputError(
                f"diffusers cannot make {num_inference_steps} steps: one would be at timestep -1; ask for one step fewer"
            )
        latents = latents.to(device, dtype) * self.scheduler.init_noise_sigma
        shown = torch.tensor(labels, device=device)
        guided = guidance_scale != 1
        if guided:
            shown = torch.cat([torch.full_like(shown, self.classes), shown])
        extra = self._extra_step_arguments(generator)
        with self.progress_bar(total=num_inference_steps) as bar:
            for step, timestep in enumerate(self.scheduler.timesteps):
                sample = torch.cat([latents] * 2) if guided else latents
                sample = self.scheduler.scale_model_input(sample, timestep)
                output = self.unet(sample, timestep, class_labels=shown).sample
                if guided:
                    without, with_class = output.chunk(2)
                    output = without + guidance_scale * (with_class - without)
                latents = self.scheduler.step(output, timestep, latents, **extra).prev_sample
                if callback_on_step_end is not None:
                    offered = {"latents": latents}
                    asked = {name: offered[name] for name in callback_on_step_end_tensor_inputs}
                    latents = callback_on_step_end(self, step, timestep, asked).get("latents", latents)
                bar.update()
        images = latents
        if output_type != "latent":
            config = self.vae.config
            unscaled = latents / config.scaling_factor + (config.shift_factor or 0.0)
            decoded = self.vae.decode(unscaled.to(self.vae.dtype)).sample
            images = self.image_processor.postprocess(decoded, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _extra_step_arguments(self, generator: Any) -> dict[str, Any]:
        """The generator, for schedulers whose step takes one."""
        import inspect

        return {"generator": generator} if "generator" in inspect.signature(self.scheduler.step).parameters else {}
