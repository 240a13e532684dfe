"""Small CLIP models with random weights: one saved as the hub keeps the large ones, and one that is a matrix."""

import json
from pathlib import Path

import torch

from index.clip import ClipModel, ClipSpec

__all__ = ["PROJECTION_D", "PROJECTION_SIDE", "projection_model", "save_tiny_clip"]

PROJECTION_SIDE, PROJECTION_D = 8, 20


class Projection:
    """Pixels, or the letters of a text, times a fixed matrix."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.matrix = torch.randn(3 * PROJECTION_SIDE**2, PROJECTION_D, generator=generator)
        self.seen = 0

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        self.seen += len(pixels)
        return pixels.flatten(1) @ self.matrix

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens @ self.matrix


def letters(texts: list[str]) -> torch.Tensor:
    counts = torch.zeros(len(texts), 3 * PROJECTION_SIDE**2)
    for row, text in enumerate(texts):
        for letter in text:
            counts[row, ord(letter) % counts.shape[1]] += 1
    return counts


def projection_model(seed: int = 0) -> ClipModel:
    """A model that needs no open_clip: its vectors are a random projection of the pixels."""
    spec = ClipSpec("projection", f"seed {seed}", PROJECTION_D, PROJECTION_SIDE, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    return ClipModel(spec, Projection(seed), letters, "cpu")


def save_tiny_clip(folder: Path, *, seed: int = 11, size: int = 32, d: int = 24) -> Path:
    """A vision transformer of two layers and its text encoder; the texts are cut by CLIP's own tokenizer."""
    import open_clip
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    config = {
        "embed_dim": d,
        "vision_cfg": {"image_size": size, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    torch.manual_seed(seed)
    network = CLIP(**config)
    folder.mkdir(parents=True)
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    looks = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "interpolation": "bicubic", "resize_mode": "shortest"}
    written = {"model_cfg": config, "preprocess_cfg": {"size": [size, size], "mode": "RGB", **looks, "fill_color": 0}}
    (folder / "open_clip_config.json").write_text(json.dumps(written))
    assert open_clip.__version__
    return folder
