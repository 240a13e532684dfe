"""From a collection of images to latents at rest.

Worker processes read and decode, this process encodes, a thread writes: on a machine where the encoder is the slow part,
the rest hides behind it. Batches are counted from the start of their shard and never span two, so the bytes written depend
on the images and the options alone, not on where an earlier run was killed.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from manifold.errors import InputError, TooManyRejectsError

from .health import reason_counts
from .images import Decoded, EmbeddingSource, ImageSource, decode_image, decode_stream, open_collection
from .images.decode import MAX_PIXELS
from .progress import Progress, silent
from .shards import ShardWriter, remove_uncommitted
from .workspace import Manifest, Recipe, Workspace, writing

if TYPE_CHECKING:
    from .encoders import Encoder, EncoderSpec

__all__ = [
    "begin_workspace", "encode_images", "encode_into", "encode_one", "import_into", "portable_spec", "worker_count",
]  # fmt: skip

SHARD_BYTES, SHARD_ROWS = 64 * 2**20, 2048
"""Size of a shard unless `shard_rows` says otherwise: what a killed run may have to encode again, and how much metadata
waits in memory."""
_MAX_REJECTS = 0.05
_LARGEST_SIZE = 8192
"""Pixels: an image of this side takes 200 MB decoded, and several are at a time."""


def encode_images(
    images: str | Path,
    workspace: str | Path,
    *,
    image_column: str | None = None,
    encoder: str | Encoder = "pixels",
    size: int | None = None,
    crop: Literal["center", "squash"] = "center",
    mode: Literal["mode", "sample"] = "mode",
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    tile: int | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    seed: int = 0,
    max_rejects: float = _MAX_REJECTS,
    shard_rows: int | None = None,
    check: Callable[[Recipe], None] = lambda recipe: None,
    progress: Progress = silent,
) -> Workspace:
    """Encode a collection of images into a workspace; continue where an earlier run of the same command was stopped.

    Arguments
        images: a folder, webdataset shards (braces allowed), parquet with image bytes, a Hugging Face dataset saved to
            disk; or a folder of embeddings (.npy), which is imported as it is.
        workspace: the folder to make or to continue.
        image_column: column with the images, for tables that have several.
        encoder: `pixels`, `demo-vae` (the small model that ships with the project), a diffusers VAE by hub id or local
            folder, or an opened encoder.
        size: side of the square image the encoder sees, in pixels; 64 for `pixels`, 32 for `demo-vae`, 512 for others unless
            given.
        crop: `center` cuts the middle square, `squash` distorts the whole image into one.
        mode: the posterior's mode, or a sample of it drawn with `seed`.
        dtype: what the encoder computes in.
        tile: encode in tiles of this side, in pixels; for images too large for memory.
        device: where the encoder runs; CUDA if there is one.
        batch_size: images per forward pass; about a million pixels unless given.
        workers: decoding processes; one less than the cores unless given, 0 decodes in this process.
        seed: of posterior samples.
        max_rejects: stop when more than this share of the collection, 0 to 1, cannot be used.
        shard_rows: rows per shard; as many as fill 64 MiB, at most 2,048, unless given.
        check: shown what is to be encoded before anything is written; what it raises ends the run.
        progress: told of ("encode", inputs done, inputs in all).

    Returns: the complete workspace, opened.

    Raises: InputError (no such collection, encoder or option); MismatchError (the folder was begun with other options);
        TooManyRejectsError; NonFiniteError; StorageError.

    Cost: two shards and a bounded queue of decoded images in memory, whatever the size of the collection.
    """
    if not 0 <= max_rejects <= 1:
        raise InputError(f"max_rejects is a share from 0 to 1, got {max_rejects}")
    for name, value in (("size", size), ("batch_size", batch_size), ("shard_rows", shard_rows), ("tile", tile)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if size is not None and size > _LARGEST_SIZE:
        raise InputError(f"size must be at most {_LARGEST_SIZE:,} pixels, got {size:,}")
    collection = open_collection(images, image_column=image_column)
    opened: Encoder | None = None
    if isinstance(collection, EmbeddingSource):
        from .encoders import embedding_spec

        given = {
            "encoder": encoder != "pixels", "size": size is not None, "crop": crop != "center", "mode": mode != "mode",
            "dtype": dtype != "float32", "tile": tile is not None,
        }  # fmt: skip
        if any(given.values()):
            unused = ", ".join(name for name, named in given.items() if named)
            raise InputError(f"{collection.name} holds embeddings, which are imported as they are; leave out {unused}")
        spec, crop_used, batch = embedding_spec(collection.d), "none", batch_size or 1024
    else:
        drawn = seed if mode == "sample" else 0  # of the mode nothing is drawn
        opened = _open_encoder(encoder, size, mode=mode, dtype=dtype, device=device, seed=drawn, tile=tile)
        spec, crop_used = portable_spec(opened.spec, Path(workspace)), crop
        batch = batch_size or max(1, min(256, 2**20 // spec.image_size**2))
    recipe = Recipe(
        source=collection.name,
        inputs=len(collection),
        fingerprint=collection.fingerprint(),
        encoder=spec,
        crop=crop_used,
        batch_size=batch,
        shard_rows=shard_rows or max(1, min(SHARD_ROWS, SHARD_BYTES // (2 * spec.d))),
        image_column=None if opened is None else image_column,
    )
    check(recipe)
    root = Path(workspace)
    with writing(root):
        made = begin_workspace(root, recipe, max_rejects)
        if made.manifest.complete:
            progress("encode", recipe.inputs, recipe.inputs)
            return made
        with ShardWriter(made) as writer:
            if isinstance(collection, EmbeddingSource):
                done = made.manifest.next_input
                import_into(writer, collection.batches(done), done, recipe.inputs, progress)
            else:
                assert opened is not None
                encode_into(
                    made, writer, collection, opened, workers=workers, max_rejects=max_rejects, progress=progress
                )
            writer.finish()
    if not made.manifest.count:
        raise InputError(
            f"no image in {images}, of {recipe.inputs:,}, could be used; {made.rejects_path} says why, one by one"
        )
    return Workspace.open(root)


def _open_encoder(encoder: str | Encoder, size: int | None, **options: Any) -> Encoder:
    if not isinstance(encoder, str):
        return encoder
    from .encoders import DEFAULT_SIZES, open_encoder

    return open_encoder(encoder, size or DEFAULT_SIZES.get(encoder, 512), **options)


def portable_spec(spec: EncoderSpec, root: Path) -> EncoderSpec:
    """The spec with a local folder named relative to the workspace, so that both may move together."""
    from .encoders import DEFAULT_SIZES

    folder = Path(spec.id).expanduser()
    if spec.id in DEFAULT_SIZES or not folder.is_dir():
        return spec
    return replace(spec, id=Path(os.path.relpath(folder.resolve(), root.resolve())).as_posix())


def worker_count(asked: int | None) -> int:
    """Decoding processes to start: one less than the cores unless asked for a number. Raises: InputError."""
    if asked is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores - 1)
    if asked < 0:
        raise InputError(f"workers must be 0 or more, got {asked}")
    return asked


def begin_workspace(root: Path, recipe: Recipe, max_rejects: float = _MAX_REJECTS) -> Workspace:
    """The workspace of this recipe in `root`: an earlier one to continue, or a new one, whose command is remembered."""
    if (root / "manifest.json").exists():
        workspace = Workspace.open(root)
        workspace.require_recipe(recipe)
        remove_uncommitted(workspace)
        return workspace
    foreign = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    if foreign:
        raise InputError(
            f"{root} is neither empty nor a workspace (it holds {foreign[0]}); choose an empty or new folder"
        )
    workspace = Workspace(root, Manifest(recipe, _command(root, recipe, max_rejects)))
    workspace.commit()
    return workspace


def _command(root: Path, recipe: Recipe, max_rejects: float) -> str:
    spec = recipe.encoder
    encoder = f"WS/{spec.id}" if spec.id.startswith("..") and (root / spec.id).is_dir() else spec.id
    words = ["manifold", "encode", recipe.source, "-w", "WS"]
    words += ["--image-column", recipe.image_column] if recipe.image_column else []
    if recipe.crop != "none":
        words += ["--encoder", encoder, "--size", str(spec.image_size), "--crop", recipe.crop]
        words += ["--mode", spec.mode, "--dtype", spec.dtype]
        words += ["--seed", str(spec.seed)] if spec.mode == "sample" else []
        words += ["--tile", str(spec.tile)] if spec.tile else []
    words += ["--batch-size", str(recipe.batch_size), "--shard-rows", str(recipe.shard_rows)]
    words += ["--max-rejects", f"{max_rejects:g}"] if max_rejects != _MAX_REJECTS else []
    return shlex.join(words)


def encode_into(
    workspace: Workspace,
    writer: ShardWriter,
    source: ImageSource,
    encoder: Encoder,
    *,
    offset: int = 0,
    workers: int | None = None,
    max_rejects: float = _MAX_REJECTS,
    share_of: int | None = None,
    progress: Progress = silent,
) -> int:
    """Decode and encode the images of a collection, from the first that has not been looked at, into a writer's shards.

    Arguments
        offset: number of the collection's first image among all inputs of the workspace.
        share_of: number of images that `max_rejects` is a share of; the length of the collection unless given.

    Returns: the number of the input after the last. Call `writer.finish` with it.

    Raises: as `encode_images`.
    """
    recipe = workspace.manifest.recipe
    inputs = len(source)
    share_of = inputs if share_of is None else share_of
    allowed = int(max_rejects * share_of)
    row = workspace.manifest.count
    start = done = workspace.manifest.next_input - offset
    earlier = sum(reject["input"] < offset for reject in writer.rejects)
    pending: list[Decoded] = []

    def flush() -> None:
        nonlocal row
        if not pending:
            return
        pixels = torch.from_numpy(np.stack([item.pixels for item in pending])).permute(0, 3, 1, 2)
        latents = encoder.encode(pixels, first_row=row).flatten(1).cpu().numpy()
        writer.append(latents, [_record(item) for item in pending], next_input=offset + pending[-1].position + 1)
        row += len(pending)
        pending.clear()

    progress("encode", start, inputs)
    stream = decode_stream(
        source,
        recipe.encoder.image_size,
        recipe.crop,
        start=start,
        workers=worker_count(workers),
        batch=recipe.batch_size,
    )
    for items in stream:
        for item in items:
            if isinstance(item, Decoded):
                pending.append(item)
                if len(pending) == min(recipe.batch_size, writer.free_rows):
                    flush()
            else:
                number = offset + item.position
                writer.reject({"input": number, "image_path": item.image_path, "key": item.key, "reason": item.reason})
        if len(writer.rejects) - earlier > allowed:
            writer.save_rejects()
            raise _too_many(writer.rejects[earlier:], inputs, max_rejects, share_of, workspace)
        done += len(items)
        progress("encode", done, inputs)
    flush()
    return offset + done


def encode_one(data: bytes, recipe: Recipe, encoder: Encoder, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """The latent of one more image, from the bytes of its file, cut and encoded as the workspace's images were.

    Arguments
        recipe: of the workspace. encoder: the workspace's. max_pixels: largest image decoded.

    Returns: (1, C, h, w) float32 on the CPU.

    Raises: RejectedImage.
    """
    pixels = decode_image(data, recipe.encoder.image_size, recipe.image_crop, max_pixels=max_pixels).pixels
    return encoder.encode(torch.tensor(pixels).permute(2, 0, 1)[None]).float().cpu()


def _record(item: Decoded) -> dict[str, Any]:
    return {
        "image_path": item.image_path,
        "key": item.key,
        "width": item.width,
        "height": item.height,
        "status": "success",
        "caption": item.caption,
        "label": item.label,
    }


def _too_many(
    rejects: list[dict[str, Any]], inputs: int, max_rejects: float, share_of: int, workspace: Workspace
) -> TooManyRejectsError:
    listed = ", ".join(f"{reason} ({count:,})" for reason, count in reason_counts(rejects).items())
    share = f"{max_rejects:g}" if share_of == inputs else f"{max_rejects:g} of {share_of:,}"
    return TooManyRejectsError(
        f"{len(rejects):,} of {inputs:,} images cannot be used, more than the share of {share} allowed: "
        f"{listed}; see {workspace.rejects_path}, or allow more with --max-rejects"
    )


def import_into(
    writer: ShardWriter,
    batches: Iterable[tuple[np.ndarray, dict[str, list[Any]]]],
    done: int,
    total: int,
    progress: Progress = silent,
) -> None:
    """Store embeddings made elsewhere as they are, the first being input number `done` of `total`."""
    progress("encode", done, total)
    for array, columns in batches:
        records = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        for low, high in _pieces(len(array), writer):
            writer.append(array[low:high], records[low:high], next_input=done + high)
        done += len(array)
        progress("encode", done, total)


def _pieces(rows: int, writer: ShardWriter) -> Iterator[tuple[int, int]]:
    """Cut `rows` rows where a shard becomes full."""
    low = 0
    while low < rows:
        high = min(rows, low + writer.free_rows)
        yield low, high
        low = high
