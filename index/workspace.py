"""A workspace: one portable folder holding a collection's latents, metadata, statistics and index.

    WS/manifest.json                       what is here and how it was made; naming a shard in it is what commits the shard
    WS/latents/latents_00000.npy           (rows, d) float16, C order
    WS/metadata/metadata_00000.parquet     one row per latent: image_path, key, width, height, status, caption, label
    WS/stats/, WS/index/, WS/rejects.parquet

All paths inside are relative, so the folder may be moved, copied or mounted read-only. Nothing in the manifest depends on
the time or place of its making: the same images and options give the same bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from manifold.errors import FormatError, InputError, MismatchError
from manifold.files import file_stamp, read_json, storage_errors, write_json

from .encoders.spec import EncoderSpec
from .latents import LatentStore, Shard, numbered

if TYPE_CHECKING:
    from .encoders import Encoder
    from .images.decode import Crop

__all__ = ["SCHEMA", "Addition", "Manifest", "Recipe", "Workspace"]

SCHEMA = 1
"""Version of the layout on disk; a workspace of another version is refused."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the bytes of the latents: a resumed run must ask for the same."""

    source: str
    """Name of the collection, without the folder it lies in."""
    inputs: int
    """Images in the collection, usable or not."""
    fingerprint: str
    """Hash of the collection's listing."""
    encoder: EncoderSpec
    crop: str
    """How an image becomes square: `center` or `squash`; `none` for imported embeddings."""
    batch_size: int
    shard_rows: int
    image_column: str | None = None
    """Column with the images, if it was named."""

    @property
    def image_crop(self) -> Crop:
        """`crop` for one more image; beside imported embeddings, the middle square."""
        return "squash" if self.crop == "squash" else "center"


@dataclass(frozen=True)
class Addition:
    """A collection whose new images were added later."""

    source: str
    """Name of the collection, without the folder it lies in."""
    fingerprint: str
    """Hash of the collection's listing."""
    inputs: int
    """Images of it that were new, usable or not."""
    command: str
    """The command that added them, run beside the collection."""
    image_column: str | None = None
    """Column with the images, if it was named."""


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json."""

    recipe: Recipe
    command: str
    """The command that makes this workspace again, run beside the collection; additions have their own."""
    shards: tuple[Shard, ...] = ()
    next_input: int = 0
    """Inputs before this number, counted on through all additions, are in the shards, among the rejects, or removed."""
    rejects: int = 0
    complete: bool = False
    """Whether every input of the first collection has been looked at."""
    additions: tuple[Addition, ...] = ()
    removed: int = 0
    """Inputs that were taken out again."""

    @property
    def count(self) -> int:
        """Number of latents, in rows."""
        return sum(shard.rows for shard in self.shards)

    @property
    def inputs(self) -> int:
        """Number of images offered so far, by all collections together."""
        return self.recipe.inputs + sum(addition.inputs for addition in self.additions)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        recipe = {**asdict(self.recipe), "encoder": self.recipe.encoder.to_dict()}
        counts = {
            "rows": self.count, "rejects": self.rejects, "removed": self.removed, "next_input": self.next_input,
        }  # fmt: skip
        shards = [asdict(shard) for shard in self.shards]
        stored_as = {"dtype": "float16", "d": self.recipe.encoder.d}
        return {
            "schema": SCHEMA, "command": self.command, "complete": self.complete, "recipe": recipe, **stored_as,
            "counts": counts, "additions": [asdict(addition) for addition in self.additions], "shards": shards,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """From JSON values. Raises: KeyError, TypeError or ValueError if they are not a manifest's."""
        recipe = Recipe(**{**value["recipe"], "encoder": EncoderSpec.from_dict(value["recipe"]["encoder"])})
        shards = numbered(Shard(**shard) for shard in value["shards"])
        counts = value["counts"]
        manifest = cls(
            recipe=recipe,
            command=value["command"],
            shards=shards,
            next_input=counts["next_input"],
            rejects=counts["rejects"],
            complete=value["complete"],
            additions=tuple(Addition(**addition) for addition in value.get("additions", ())),
            removed=counts.get("removed", 0),
        )
        if manifest.count != counts["rows"]:
            raise ValueError(f"counts.rows is {counts['rows']}, the shards have {manifest.count}")
        return manifest


class Workspace:
    """An opened workspace. Make one with `index.encode_images`, open one with `Workspace.open`."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest
        self._listed: tuple[tuple[int, int, int] | None, frozenset[Shard]] | None = None

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open the workspace in folder `path`.

        Raises: InputError if there is none; FormatError if its manifest is damaged or of another schema.
        """
        root = Path(path)
        if not root.is_dir():
            raise InputError(f"{root} is not a folder; make a workspace with: manifold encode IMAGES -w {root}")
        manifest_path = root / "manifest.json"
        if not manifest_path.is_file():
            raise InputError(
                f"{root} holds no manifest.json, so it is not a workspace; make one with: manifold encode IMAGES -w {root}"
            )
        value = read_json(manifest_path)
        schema = value.get("schema")
        if schema != SCHEMA:
            raise FormatError(
                f"{manifest_path} has schema {schema}, this version reads schema {SCHEMA}; "
                "use the version that made it, or encode the images again into a new folder"
            )
        try:
            return cls(root, Manifest.from_dict(value))
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(
                f"{manifest_path} is damaged ({error}); restore it from a backup or encode again into a new folder"
            ) from error

    @cached_property
    def latents(self) -> LatentStore:
        """The latents and metadata committed when the workspace was opened.

        Reading raises MismatchError where images were removed since then, and rows are other images.
        """
        return LatentStore(
            self.root, self.manifest.shards, self.manifest.recipe.encoder.latent_shape, self._listed_shards
        )

    @property
    def latents_checksum(self) -> str:
        """One SHA-256 for all latents, from those of the shards."""
        return hashlib.sha256("".join(shard.latents_sha256 for shard in self.manifest.shards).encode()).hexdigest()

    def before_growth(self, checksum: str) -> Workspace | None:
        """The workspace as it was when its latents had this checksum, if since then shards were added and no more."""
        for kept in range(len(self.manifest.shards), -1, -1):
            earlier = Workspace(self.root, replace(self.manifest, shards=self.manifest.shards[:kept]))
            if earlier.latents_checksum == checksum:
                return earlier
        return None

    @property
    def stamp(self) -> tuple[int, int, int] | None:
        """What changes when the manifest on disk is written anew; None without one."""
        return file_stamp(self.root / "manifest.json")

    def _listed_shards(self) -> Collection[Shard]:
        """The shards that the manifest on disk names now."""
        stamp = self.stamp
        if self._listed is None or self._listed[0] != stamp:
            self._listed = stamp, frozenset(Workspace.open(self.root).manifest.shards)
        return self._listed[1]

    @property
    def stats_path(self) -> Path:
        """Mean, eigenpairs and tail variance."""
        return self.root / "stats" / "stats.safetensors"

    @property
    def moments_path(self) -> Path:
        """Count, mean and sum of squares: exact, mergeable, resumable."""
        return self.root / "stats" / "moments.safetensors"

    @property
    def index_path(self) -> Path:
        """The FAISS index."""
        return self.root / "index" / "image.index"

    @property
    def index_card_path(self) -> Path:
        """What the index is, what it was built from, and its recall."""
        return self.root / "index" / "image.json"

    @property
    def next_card_path(self) -> Path:
        """The card of an index that is about to take the place of this one."""
        return self.root / "index" / "next.json"

    @property
    def rejects_path(self) -> Path:
        """Every input that was not used, with the reason."""
        return self.root / "rejects.parquet"

    def encoder(self, override: str | None = None) -> Encoder:
        """The encoder that made the latents, opened again; `override` names where its folder lies now.

        Raises: InputError if it cannot be found; MismatchError if it is not the same one.
        """
        from .encoders import reopen

        return reopen(self.manifest.recipe.encoder, base=self.root, override=override)

    def commit(self, **changes: Any) -> None:
        """Replace fields of the manifest, on disk first."""
        manifest = replace(self.manifest, **changes)
        write_json(self.root / "manifest.json", manifest.to_dict())
        self.manifest = manifest
        self.__dict__.pop("latents", None)

    def require_complete(self) -> None:
        """Raise InputError unless every input of the collection was encoded and at least one could be used."""
        manifest = self.manifest
        if manifest.complete and not manifest.count:
            raise InputError(f"{self.root} has no latents; {self.rejects_path} says why each image was rejected")
        if not manifest.complete:
            raise InputError(
                f"{self.root} is incomplete: {manifest.next_input:,} of {manifest.recipe.inputs:,} inputs are encoded; "
                f"run the same encode command again and it resumes: {manifest.command}"
            )

    def require_recipe(self, recipe: Recipe) -> None:
        """Raise MismatchError, naming each difference, unless the workspace was begun with `recipe`."""
        mine, asked = _flat(self.manifest.recipe), _flat(recipe)
        differences = [f"{name} {mine[name]} there, {asked[name]} now" for name in mine if mine[name] != asked[name]]
        if differences:
            other_options = [
                name for name in mine if mine[name] != asked[name] and name not in ("inputs", "fingerprint")
            ]
            grown = self.manifest.complete and not other_options
            remedy = f"; to encode only what is new: manifold add {self.root} IMAGES" if grown else ""
            if grown and not self.manifest.count:
                remedy = "; no image of it could be used, so delete the folder and encode again"
            raise MismatchError(
                f"{self.root} was begun from another collection or with other options ({'; '.join(differences)}); "
                f"choose another folder, or repeat the options of its manifest.json{remedy}"
            )


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Fields by name, the encoder's image_size as the option that decides it. Not the encoder's id: its kind and hash tell
    encoders apart, and a local folder may have moved.
    """
    fields = {f"encoder {name}": value for name, value in recipe.encoder.to_dict().items() if name != "id"}
    fields["encoder size"] = fields.pop("encoder image_size")
    return {**fields, **{name: value for name, value in vars(recipe).items() if name != "encoder"}}


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Hold the folder's writer lock, making the folder if need be; the lock ends with the process, however it ends.

    What earlier writers left half-written is deleted first.

    Raises: InputError if another process holds it; StorageError if the folder cannot be made or written.
    """
    with storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another process is writing to {root}; wait until it is done") from error
        if (root / "manifest.json").is_file():
            _remove_temporary_files(root)
        yield
    finally:
        os.close(descriptor)


def _remove_temporary_files(root: Path) -> None:
    """Delete what killed runs left half-written: our own temporary files, and those that safetensors makes itself."""
    for name in ("", "latents", "metadata", "stats", "index", "map", "clip", "clip/img_emb", "clip/metadata"):
        for path in (root / name).glob(".tmp*"):
            if not path.is_dir():
                path.unlink()
