"""Any open_clip model as two functions: images to vectors, texts to vectors, both of unit length.

A model is named as open_clip names it, `ARCHITECTURE/WEIGHTS` (`ViT-B-32/laion2b_s34b_b79k`) or `hf-hub:owner/name`; or by
where it lies: a folder with `open_clip_config.json` and a checkpoint, a checkpoint file beside that configuration, or
`ARCHITECTURE/path/to/checkpoint`. A model without weights is refused: open_clip would go on with random ones.

The square that a model sees is cut by this project's own decoder, so that CLIP sees what the workspace's encoder saw; mean
and standard deviation of the channels are the model's own. Against open_clip's own preprocessing only the filter differs
(Lanczos, not bicubic).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from index.encoders.opening import choose_device
from manifold.errors import FormatError, InputError, MissingExtraError, NonFiniteError, ShapeError, first_line

from .store import ClipSpec

__all__ = ["ClipModel", "open_clip_model"]

_CONFIG = "open_clip_config.json"


class ClipModel:
    """An opened model. Make one with `open_clip_model`."""

    def __init__(self, spec: ClipSpec, network: Any, tokenizer: Any, device: str) -> None:
        self.spec = spec
        self._network = network
        self._tokenizer = tokenizer
        self._device = device
        self._mean = torch.tensor(spec.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(spec.std, device=device).view(1, 3, 1, 1)

    @torch.inference_mode()
    def encode_images(self, images: Tensor) -> Tensor:
        """Embeddings of uint8 images (n, 3, S, S), S = spec.image_size: (n, d) float32 of unit length, on the CPU.

        Raises: ShapeError; NonFiniteError.
        """
        side = self.spec.image_size
        if images.ndim != 4 or images.shape[1:] != (3, side, side) or images.dtype != torch.uint8:
            raise ShapeError(
                f"images must be uint8 (n, 3, {side}, {side}), they are {images.dtype} {tuple(images.shape)}"
            )
        pixels = (images.to(self._device).float() / 255 - self._mean) / self._std
        return self._unit(self._network.encode_image(pixels), "image")

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of texts: (n, d) float32 of unit length, on the CPU. Raises: InputError without a text."""
        if not texts or not all(text.strip() for text in texts):
            raise InputError("a text to search with must have at least one word")
        tokens = self._tokenizer(list(texts)).to(self._device)
        return self._unit(self._network.encode_text(tokens), "text")

    def _unit(self, vectors: Tensor, what: str) -> Tensor:
        unit = torch.nn.functional.normalize(vectors.float(), dim=1).cpu()
        finite = unit.isfinite().all(1)
        if not bool(finite.all()):
            raise NonFiniteError(
                f"{self.spec.id} gave NaN or infinity for {what} {int(finite.int().argmin())} of the batch"
            )
        return unit


def open_clip_model(name: str, *, device: str | None = None) -> ClipModel:
    """Open a model.

    Arguments
        name: see the module's text. device: where it runs; CUDA if there is one.

    Raises: MissingExtraError if open_clip cannot be imported; InputError if the model cannot be found or has no weights, or
        the device is not there; FormatError if the model lies there but cannot be read.
    """
    where = choose_device(device)
    open_clip = _open_clip()
    model, pretrained, checkpoint = _parse(name)
    options: dict[str, Any] = {
        "device": where,
        "require_pretrained": checkpoint is None,
        "load_weights": checkpoint is None,
    }
    try:
        with _quiet():
            network = open_clip.create_model(model, pretrained=pretrained, **options)
            if checkpoint is not None:
                open_clip.load_checkpoint(network, str(checkpoint), device=where)
            tokenizer = open_clip.get_tokenizer(model)
    except (
        Exception
    ) as error:  # open_clip and what it loads with raise nearly anything for a wrong name or a damaged file
        sentence = first_line(error)
        if Path(name).expanduser().exists():
            raise FormatError(f"{name} holds no open_clip model that can be read ({sentence[:200]})") from error
        raise InputError(
            f"there is no CLIP model {name!r} ({sentence[:200]}); give ARCHITECTURE/WEIGHTS as open_clip lists them, "
            "hf-hub:OWNER/NAME, or a local folder"
        ) from error
    network.eval().requires_grad_(False)
    return ClipModel(_spec(name, network, open_clip.get_model_preprocess_cfg(network)), network, tokenizer, where)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep open_clip's log off the screen: what it finds wrong it also raises."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise MissingExtraError("CLIP needs open_clip; install it with: pip install 'latent-manifold[clip]'") from error
    except RuntimeError as error:  # torchvision of another build than torch fails so
        raise MissingExtraError(
            "open_clip needs a torchvision built for the torch installed here, and it cannot be imported; install both "
            "from one index: pip install --force-reinstall torch torchvision open_clip_torch"
        ) from error
    return open_clip


def _parse(name: str) -> tuple[str, str | None, Path | None]:
    """open_clip's name of the model, its `pretrained`, and a checkpoint to load afterwards."""
    place = Path(name).expanduser()
    if place.is_dir() or place.is_file():
        folder = place if place.is_dir() else place.parent
        if not (folder / _CONFIG).is_file():
            raise InputError(
                f"{folder} holds no {_CONFIG}, which says what the checkpoint is of; put it there, or name the "
                "architecture: ARCHITECTURE/path/to/checkpoint"
            )
        return f"local-dir:{folder.resolve()}", None, place if place.is_file() else None
    if name.startswith("hf-hub:"):
        return name, None, None
    model, slash, weights = name.partition("/")
    if not slash or not weights:
        raise InputError(
            f"{name!r} names no weights; give ARCHITECTURE/WEIGHTS such as ViT-B-32/laion2b_s34b_b79k, or a local folder"
        )
    return model, str(Path(weights).expanduser()) if Path(weights).expanduser().is_file() else weights, None


def _spec(name: str, network: Any, preprocessing: dict[str, Any]) -> ClipSpec:
    size = preprocessing["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise InputError(f"{name} sees {height} x {width} images; only models with square input are supported")
    mean, std = tuple(map(float, preprocessing["mean"])), tuple(map(float, preprocessing["std"]))
    digest = hashlib.sha256(json.dumps([height, mean, std]).encode())
    for key, tensor in sorted(network.state_dict().items()):
        stored = tensor.detach().cpu().contiguous()
        digest.update(f"{key} {stored.dtype} {tuple(stored.shape)}".encode())
        digest.update(stored.reshape(-1).view(torch.uint8).numpy().data)
    with torch.inference_mode():
        blank = torch.zeros(1, 3, height, width, dtype=torch.float32, device=next(network.parameters()).device)
        d = network.encode_image(blank).shape[1]
    return ClipSpec(name, digest.hexdigest(), d, height, mean, std)
