"""`manifold train-demo`: from labelled images to a latent diffusion pipeline and a gallery of its pictures."""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from index.encoders.opening import choose_device
from index.progress import Progress, silent
from manifold.demo_model.pipeline import ClassConditionalPipeline
from manifold.demo_model.weights import load_demo_model, quiet_diffusers
from manifold.errors import InputError, MismatchError
from manifold.files import read_json, save_tensors, write_json

from . import autoencoder, decoder, denoiser
from .card import History, last_losses, read_history, write_card
from .images import TrainingImages, load_training_images
from .latents import Latents, encode_latents
from .loop import Settings, Trainer

__all__ = ["IMAGE_SIZE", "paint_gallery", "train_demo"]

IMAGE_SIZE = 32
GALLERY = 4_096
GUIDANCE = 3.0
STEPS = 25


def train_demo(
    data: str | Path,
    folder: str | Path,
    *,
    autoencoder_steps: int = 3_200,
    decoder_steps: int = 30_000,
    denoiser_steps: int = 60_000,
    minutes: float | None = None,
    batch_size: int = denoiser.SETTINGS.batch_size,
    gallery: int = GALLERY,
    start: str | Path | None = None,
    device: str | None = None,
    checkpoints: bool = False,
    progress: Progress = silent,
) -> Path:
    """Train the demo model, and write it as a diffusers pipeline with a model card and a gallery.

    Arguments
        data: labelled images; those the project ships were trained on the CIFAR-10 training set.
        folder: `training/` holds everything needed to continue, `painter/` the finished pipeline. Run again with more
            steps to train on.
        autoencoder_steps, decoder_steps, denoiser_steps: steps of 32, of 32 and of `batch_size` images. The decoder is
            trained on alone once the latents are settled.
        minutes: stop the denoiser after so long, whatever its steps.
        batch_size: latents in a step of the denoiser. A GPU has little to do with 128.
        gallery: images to paint.
        start: folder of a finished model to train on from: its encoder is kept, its decoder and its denoiser go on from
            where they were.
        device: such as cuda; a CUDA device if there is one, unless given.
        checkpoints: keep the denoiser as it was at the start, at every doubling of 25 steps and at the end, 11 MB each, in
            `checkpoints/`, for `manifold report --checkpoints`.
        progress: told of every stage.

    Returns: the pipeline's folder.

    Raises: InputError (no labels, no images, no steps, no time, no such device); MismatchError (the folder holds a run with
        other settings); NotFittedError (`start` holds no model that this program made).

    Cost: on one core of a server CPU with bfloat16 units 150 images a second for the autoencoder, 140 for the
        decoder and 260 for the denoiser. Without such units it multiplies in float32: 70 a second for the denoiser.
    """
    if start is None and (autoencoder_steps < 1 or denoiser_steps < 1):
        raise InputError(
            f"autoencoder and denoiser need at least 1 step each, they would get {autoencoder_steps:,} and "
            f"{denoiser_steps:,}; to train a finished model on name it with --start"
        )
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, it is {batch_size}")
    if gallery < 1:
        raise InputError(f"the gallery must have at least 1 image, it would have {gallery}")
    if minutes is not None and not minutes > 0:
        raise InputError(f"minutes must be above 0, they are {minutes:g}; leave them out for no limit")
    root = Path(folder)
    place = torch.device(choose_device(device))
    images = load_training_images(data, IMAGE_SIZE, progress=progress)
    training = root / "training"
    earlier = None if start is None else load_demo_model(start)
    settings = replace(denoiser.SETTINGS, batch_size=batch_size)
    before = History({}, {}, {}) if start is None else read_history(Path(start))
    if earlier is None:
        vae = _train_autoencoder(images, training / "autoencoder", autoencoder_steps, place, progress)
    else:
        vae = quick_attention(earlier.vae).to(place)
    latents = encode_latents(vae, images, training / "latents.safetensors")
    vae.decoder = _train_decoder(
        vae,
        images,
        latents,
        training / "decoder",
        decoder_steps,
        progress,
        steps_before=_steps(before.decoder, decoder.SETTINGS),
    )
    unet = _train_denoiser(
        latents,
        images,
        training / "denoiser",
        settings,
        denoiser_steps,
        minutes,
        place,
        progress,
        network=None if earlier is None else earlier.unet,
        steps_before=_steps(before.denoiser, settings),
        kept_in=root / "checkpoints" if checkpoints else None,
    )
    pipeline = ClassConditionalPipeline(vae=vae.cpu(), unet=unet.cpu(), scheduler=denoiser.build_scheduler())
    pipeline.set_progress_bar_config(disable=True)
    painter = root / "painter"
    with quiet_diffusers():
        pipeline.to(dtype=torch.float16).save_pretrained(painter)
        pipeline.to(dtype=torch.float32)
    _forget_places(painter)
    paint_gallery(pipeline.to(place), painter / "gallery.safetensors", gallery, progress=progress)
    history = History(
        autoencoder=before.autoencoder or last_losses(training / "autoencoder", {}),
        decoder=last_losses(training / "decoder", before.decoder),
        denoiser=last_losses(training / "denoiser", before.denoiser),
    )
    write_card(pipeline.to("cpu"), painter, history, _facts(data, images, place))
    return painter


def _train_autoencoder(
    images: TrainingImages, folder: Path, steps: int, device: torch.device, progress: Progress
) -> Any:
    torch.manual_seed(0)
    network = quick_attention(autoencoder.build_autoencoder()).to(device)
    settings = autoencoder.SETTINGS
    losses = autoencoder.autoencoder_losses(images, settings.batch_size)
    trainer = Trainer(network, losses, folder, settings, "autoencoder")
    trainer.run(steps, progress=progress)
    vae = trainer.average.eval()
    autoencoder.set_scaling(vae, images)
    return vae


def _steps(seen: dict[str, Any], settings: Settings) -> int:
    return seen.get("images", 0) // settings.batch_size


def _train_decoder(
    vae: Any,
    images: TrainingImages,
    latents: Latents,
    folder: Path,
    steps: int,
    progress: Progress,
    *,
    steps_before: int,
) -> Any:
    torch.manual_seed(0)
    network = decoder.DecoderAndCritic(vae.decoder).requires_grad_(True).to(vae.device)
    losses = decoder.decoder_losses(vae, images, latents, decoder.SETTINGS.batch_size)
    trainer = Trainer(network, losses, folder, decoder.SETTINGS, "decoder", steps_before=steps_before)
    trainer.run(steps, progress=progress)
    return cast(decoder.DecoderAndCritic, trainer.average).decoder.eval()


def _train_denoiser(
    latents: Latents,
    images: TrainingImages,
    folder: Path,
    settings: Settings,
    steps: int,
    minutes: float | None,
    device: torch.device,
    progress: Progress,
    *,
    network: Any | None,
    steps_before: int,
    kept_in: Path | None,
) -> Any:
    torch.manual_seed(0)
    if network is None:
        network = denoiser.build_denoiser(images.classes)
    elif network.config.num_class_embeds != images.classes + 1:
        raise MismatchError(
            f"the model to train on from paints {network.config.num_class_embeds - 1} classes, the images have "
            f"{images.classes}; give images of the same classes"
        )
    network = quick_attention(network).requires_grad_(True).to(device)
    losses = denoiser.denoiser_losses(latents, images.labels.repeat(2), images.classes, settings.batch_size)
    trainer = Trainer(network, losses, folder, settings, "denoiser", steps_before=steps_before)
    trainer.run(steps, minutes=minutes, progress=progress, kept_in=kept_in)
    return trainer.average.eval()


def quick_attention(network: Any) -> Any:
    """`network` with attention as plain matrix products, several times faster on a CPU for a few dozen tokens."""
    from diffusers.models.attention_processor import Attention, AttnProcessor

    for module in network.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())
    return network


def paint_gallery(
    pipeline: ClassConditionalPipeline,
    path: Path,
    count: int = GALLERY,
    *,
    batch: int = 256,
    progress: Progress = silent,
) -> None:
    """Paint `count` images, classes in turn, and write their latents with how they were made.

    Image i starts from the noise of a generator seeded with i, so that it can be painted again alone.
    """
    from diffusers import DPMSolverMultistepScheduler

    own = pipeline.scheduler
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(own.config)
    labels = torch.arange(count) % pipeline.classes
    made = []
    try:
        for start in range(0, count, batch):
            some = labels[start : start + batch]
            seeds = [torch.Generator().manual_seed(start + row) for row in range(len(some))]
            painted = pipeline(
                some.tolist(),
                generator=seeds,
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                output_type="latent",
            )
            made.append(painted.images.half().cpu())
            progress("gallery", start + len(some), count)
    finally:
        pipeline.scheduler = own
    recipe = {
        "steps": str(STEPS),
        "scheduler": "DPMSolverMultistepScheduler",
        "guidance_scale": str(GUIDANCE),
        "seeds": f"0 to {count - 1}, one an image",
    }
    save_tensors(path, {"latents": torch.cat(made), "labels": labels.to(torch.uint8)}, recipe)


def _forget_places(painter: Path) -> None:
    """Take out of the configurations where on this machine the weights trained on came from."""
    for path in (painter / "unet" / "config.json", painter / "vae" / "config.json"):
        config = {key: value for key, value in read_json(path).items() if key != "_name_or_path"}
        write_json(path, config)


def _facts(data: str | Path, images: TrainingImages, device: torch.device) -> dict[str, Any]:
    """What the card says about data and machine."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    return {
        "data": Path(data).name,
        "images": len(images.labels),
        "classes": images.classes,
        "hardware": where if device.type == "cuda" else f"{where}, {torch.get_num_threads()} of {os.cpu_count()} cores",
        "torch": torch.__version__,
    }
