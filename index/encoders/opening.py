"""Finding an encoder by name: `pixels`, `demo-vae`, a local folder, or a model on the hub; and finding the same one again.

Weights are read from safetensors only. A hub model is looked for in the local cache first.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from manifold.demo_model import MODEL_FOLDER
from manifold.errors import FormatError, InputError, MismatchError, first_line
from manifold.files import read_json, sha256_file

from .pixels import PixelEncoder
from .spec import Encoder, EncoderSpec
from .vae import SUPPORTED, VaeEncoder

__all__ = ["DEFAULT_SIZES", "choose_device", "choose_dtype", "open_encoder", "reopen"]

DEFAULT_SIZES = {"pixels": 64, "demo-vae": 32}
"""Encoders that need no files of the user's, and the side of their images in pixels unless given."""

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_ALTERNATIVES = (
    "a local folder with a diffusers autoencoder, `pixels`, `demo-vae`, or a model that is already in the hub's cache"
)


def open_encoder(
    id: str,
    image_size: int,
    *,
    mode: str = "mode",
    dtype: str = "float32",
    device: str | None = None,
    seed: int = 0,
    tile: int | None = None,
) -> Encoder:
    """Open an encoder by name.

    Arguments
        id: `pixels`; `demo-vae`, the small model that ships with the project; the local folder of a diffusers
            autoencoder, or of a pipeline that has one in `vae/`; or the hub id of either.
        image_size: side of the square images, in pixels.
        mode: `mode` or `sample` of the posterior.
        dtype: `float32`, `float16` or `bfloat16`, what the model computes in.
        device: such as `cuda` or `cpu`; CUDA if there is one.
        seed: of posterior samples.
        tile: side of the tiles a large image is cut into, in pixels; None for no tiles.

    Raises: InputError if there is no such encoder, it is of a class that is not supported, an option is out of
        range, or the device is not there; FormatError if its files are damaged.
    """
    if mode not in ("mode", "sample"):
        raise InputError(f"mode must be `mode` or `sample`, it is {mode!r}")
    computed_in, place = choose_dtype(dtype), choose_device(device)
    if id == "pixels":
        if mode == "sample":
            raise InputError("pixels have no posterior to sample; use --mode mode")
        return PixelEncoder(image_size)
    folder, revision = (MODEL_FOLDER, None) if id == "demo-vae" else _locate(id)
    folder, config = _autoencoder_config(folder, id)
    vae = _load(folder, config, id, computed_in)
    return VaeEncoder(
        vae,
        id=id,
        image_size=image_size,
        revision=revision,
        config_hash=_hash(folder, config),
        mode=mode,
        dtype=dtype,
        tile=tile,
        seed=seed,
        device=place,
    )


def reopen(spec: EncoderSpec, *, base: Path | None = None, override: str | None = None) -> Encoder:
    """Open the encoder that a workspace remembers.

    Arguments
        spec: from its manifest.
        base: the workspace, which a local folder's path is relative to.
        override: where the encoder lies now, if not there.

    Raises: InputError if it is not to be found or cannot be opened again; MismatchError if what is found has other
        weights or another configuration.
    """
    if spec.kind == "embeddings":
        raise InputError(
            "these latents were imported as embeddings, so there is no encoder: no image can be encoded and no latent drawn"
        )
    name = override or spec.id
    if override is None and base is not None and spec.id not in DEFAULT_SIZES and (base / spec.id).is_dir():
        name = str(base / spec.id)
    try:
        opened = open_encoder(name, spec.image_size, mode=spec.mode, dtype=spec.dtype, seed=spec.seed, tile=spec.tile)
    except InputError as error:
        raise InputError(
            f"the workspace's encoder cannot be opened: {error}; say where it lies with --encoder"
        ) from error
    if opened.spec.config_hash != spec.config_hash or opened.spec.latent_shape != spec.latent_shape:
        raise MismatchError(
            f"{name} is not the encoder that made these latents (its configuration or weights differ); "
            "name the right one with --encoder, or encode the images again"
        )
    return opened


def choose_device(asked: str | None = None) -> str:
    """Where to compute: the device asked for, or a CUDA device if there is one.

    Raises: InputError if there is no device of that name, or torch cannot use it here.
    """
    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(asked)
    except RuntimeError as error:
        raise InputError(f"{asked!r} is no device; name one such as cpu, cuda or cuda:1") from error
    if place.type == "meta":
        raise InputError("on the device meta nothing is computed; name one such as cpu, cuda or cuda:1")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        what = f"only {found} CUDA device{'s' * (found > 1)}" if found else "no CUDA device"
        raise InputError(f"device {asked} was asked for, torch finds {what} here; use --device cpu")
    return asked


def choose_dtype(asked: str) -> torch.dtype:
    """The type that a model computes in, by its name. Raises: InputError if it is none of float32, float16, bfloat16."""
    if asked not in ("float32", "float16", "bfloat16"):
        raise InputError(f"dtype must be float32, float16 or bfloat16, it is {asked!r}")
    found: torch.dtype = getattr(torch, asked)
    return found


def _locate(id: str) -> tuple[Path, str | None]:
    """The folder of a model, and its revision if it came from the hub."""
    path = Path(id).expanduser()
    if path.is_dir():
        return path, None
    if path.is_absolute() or id.startswith(".") or id.count("/") != 1:
        raise InputError(f"there is no encoder {id!r}: it is neither a folder nor a hub id; use {_ALTERNATIVES}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["model_index.json", "config.json", _WEIGHTS, "vae/config.json", f"vae/{_WEIGHTS}"]
    try:
        folder = Path(snapshot_download(id, allow_patterns=wanted))
    except HFValidationError as error:
        raise InputError(
            f"there is no encoder {id!r}: it is neither a folder nor a hub id; use {_ALTERNATIVES}"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{id} could not be fetched from the hub; check the name and the network, or use {_ALTERNATIVES}"
        ) from error
    return folder, folder.name


def _autoencoder_config(folder: Path, id: str) -> tuple[Path, dict[str, Any]]:
    """The autoencoder's own folder and its configuration."""
    if (folder / "model_index.json").is_file():
        folder = folder / "vae"
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{id} holds no config.json of a diffusers autoencoder; use {_ALTERNATIVES}")
    config = read_json(path)
    kind = config.get("_class_name")
    if kind not in SUPPORTED:
        raise InputError(f"{id} is a {kind or 'model without a class name'}; supported are {', '.join(SUPPORTED)}")
    if not list(folder.glob("*.safetensors")):
        raise InputError(f"{id} has no weights in safetensors format; save the model with save_pretrained once more")
    return folder, config


def _load(folder: Path, config: dict[str, Any], id: str, dtype: torch.dtype) -> Any:
    import diffusers
    from safetensors import SafetensorError

    # The pipelines of models marked force_upcast (SDXL) run their autoencoder in float32 where the rest runs in float16.
    upcast = dtype == torch.float16 and config.get("force_upcast", False)
    kind = getattr(diffusers, config["_class_name"])
    verbosity = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity_error()
    try:
        return kind.from_pretrained(
            folder,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            torch_dtype=torch.float32 if upcast else dtype,
        )
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError) as error:
        raise FormatError(
            f"the autoencoder in {id} cannot be loaded ({first_line(error)}); save or download it again"
        ) from error
    finally:
        diffusers.logging.set_verbosity(verbosity)


def _hash(folder: Path, config: dict[str, Any]) -> str:
    """SHA-256 over configuration and weights."""
    decisive = {key: value for key, value in config.items() if key not in ("_diffusers_version", "_name_or_path")}
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode())
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(sha256_file(path).encode())
    return digest.hexdigest()
