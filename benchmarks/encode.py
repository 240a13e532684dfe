"""What reading, decoding and writing add to the bare forward pass of a VAE: at most a tenth.

Run: python benchmarks/encode.py [--images FOLDER] [--size 128] [--rounds 3]. Both sides see the same images in the same
batches. The yardstick runs the autoencoder over tensors that lie decoded in memory, in either layout; the quicker one, with
channels last, is the one our own pipeline uses. Ours is `encode_images` from files to a committed workspace, start of the
workers included. Without --images a few hundred synthetic photographs are used.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from report import show, write

from index.encode import encode_images
from index.encoders import open_encoder
from index.images import Decoded, decode_stream, open_images


def save_vae(folder: Path) -> None:
    """An AutoencoderKL of the Stable Diffusion form (factor 8, 4 channels) with a quarter of its width, random weights."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        sample_size=128,
    ).save_pretrained(folder)


def synthesise(folder: Path, count: int = 400) -> None:
    """JPEG files of 384 x 288 pixels with photograph-like detail."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (18, 24, 3), dtype=np.uint8)).resize((384, 288))
        grain = rng.normal(0, 6, (288, 384, 3))
        Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{number:04d}.jpg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        images = options.images or root / "images"
        if options.images is None:
            synthesise(images)
        save_vae(root / "vae")
        encoder = open_encoder(str(root / "vae"), options.size)
        source = open_images(images)
        pixels = [
            item.pixels
            for items in decode_stream(source, options.size, "center", workers=0, batch=options.batch_size)
            for item in items
            if isinstance(item, Decoded)
        ]
        channels_last = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        channels_first = channels_last.contiguous()
        first, bare, ours = [], [], []
        for round_number in range(options.rounds):
            for tensors, seconds in ((channels_first, first), (channels_last, bare)):
                started = time.perf_counter()
                for batch in tensors.split(options.batch_size):
                    encoder.encode(batch)
                seconds.append(time.perf_counter() - started)
            started = time.perf_counter()
            encode_images(images, root / f"ws-{round_number}", encoder=encoder, batch_size=options.batch_size)
            ours.append(time.perf_counter() - started)
    count = len(pixels)
    ratios = [mine / floor for mine, floor in zip(ours, bare, strict=True)]
    figures = {
        "images": count,
        "size_px": options.size,
        "bare_channels_first_s": statistics.median(first),
        "bare_s": statistics.median(bare),
        "encode_s": statistics.median(ours),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }
    show(
        f"{count} images at {options.size} px through an AutoencoderKL, medians of {options.rounds} rounds",
        ["what", "seconds", "images/s", "times the bare pass"],
        [
            [
                "bare VAE forward pass, channels first",
                statistics.median(first),
                count / statistics.median(first),
                statistics.median(first) / figures["bare_s"],
            ],
            ["bare VAE forward pass, channels last", figures["bare_s"], count / figures["bare_s"], 1.0],
            ["encode_images, files to workspace", figures["encode_s"], count / figures["encode_s"], figures["ratio"]],
        ],
    )
    write("encode", figures)


if __name__ == "__main__":
    main()
