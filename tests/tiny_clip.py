"""A small random CLIP model, saved to disk as the hub keeps the large ones."""

import json
from pathlib import Path

import torch

__all__ = ["save_tiny_clip"]


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
