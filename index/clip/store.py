"""CLIP embeddings at rest, in the layout that clip-retrieval writes and reads.

    WS/clip/img_emb/img_emb_0.npy          (rows, d) float16 of unit length; one file for each shard of latents
    WS/clip/metadata/metadata_0.parquet    image_path, key, caption, label; the same row order
    WS/clip/image.index                    FAISS, inner product
    WS/clip/clip.json                      which model, which latents, how far: naming a file here commits it

Numbers in names are padded as clip-retrieval pads them: to the width of the number of files. Rows are those of the workspace,
in its order, so a row number means the same image in both spaces.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import numpy as np

from index.workspace import Workspace
from manifold.errors import FormatError, MismatchError, NotFittedError
from manifold.files import read_json, sha256_file, write_json

__all__ = [
    "CLIP_SCHEMA",
    "ClipCard",
    "ClipSpec",
    "ClipStore",
    "card_path",
    "embeddings_file",
    "index_file",
    "metadata_file",
]

CLIP_SCHEMA = 1


@dataclass(frozen=True)
class ClipSpec:
    """Everything that decides an embedding, but for the image."""

    id: str
    """As open_clip names it, `ViT-B-32/laion2b_s34b_b79k`; or a local folder or file, relative to the workspace."""
    weights_sha256: str
    """Over the model's configuration, preprocessing and weights."""
    d: int
    image_size: int
    """Side of the square that the model sees, in pixels."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of the channels, on pixels from 0 to 1."""


@dataclass(frozen=True)
class ClipCard:
    """The content of clip.json."""

    spec: ClipSpec
    crop: str
    latents_sha256: str
    files: tuple[str, ...] = ()
    """SHA-256 of each embeddings file committed, in order."""
    rows: tuple[int, ...] = ()
    index_sha256: str | None = None
    """Of the index, once all is embedded."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"schema": CLIP_SCHEMA, **asdict(self)}

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises: FormatError if the file is damaged or of another schema."""
        value = read_json(path)
        if value.pop("schema", None) != CLIP_SCHEMA:
            raise FormatError(
                f"{path} is not of schema {CLIP_SCHEMA}; delete {path.parent} and run manifold clip again"
            )
        try:
            spec = value.pop("spec")
            spec = ClipSpec(**{**spec, "mean": tuple(spec["mean"]), "std": tuple(spec["std"])})
            return cls(spec=spec, **{**value, "files": tuple(value["files"]), "rows": tuple(value["rows"])})
        except (KeyError, TypeError) as error:
            raise FormatError(
                f"{path} is damaged ({error}); delete {path.parent} and run manifold clip again"
            ) from error

    def write(self, path: Path) -> None:
        """Raises: StorageError."""
        write_json(path, self.to_dict())

    def with_file(self, sha256: str, rows: int) -> ClipCard:
        """The card with one more embeddings file."""
        return replace(self, files=(*self.files, sha256), rows=(*self.rows, rows))


def card_path(root: Path) -> Path:
    """The card of the workspace in folder `root`."""
    return root / "clip" / "clip.json"


def index_file(root: Path) -> Path:
    """The FAISS index over the embeddings."""
    return root / "clip" / "image.index"


def embeddings_file(root: Path, number: int, count: int) -> Path:
    """Embeddings of shard `number` of `count`."""
    return root / "clip" / "img_emb" / f"img_emb_{number:0{len(str(count))}d}.npy"


def metadata_file(root: Path, number: int, count: int) -> Path:
    """Metadata of shard `number` of `count`."""
    return root / "clip" / "metadata" / f"metadata_{number:0{len(str(count))}d}.parquet"


class ClipStore:
    """Read access to a workspace's CLIP embeddings. Open it with `ClipStore.open`."""

    def __init__(self, workspace: Workspace, card: ClipCard) -> None:
        self.workspace = workspace
        self.card = card
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return sum(self.card.rows)

    @classmethod
    def open(cls, workspace: str | Path | Workspace) -> Self:
        """Open the embeddings of a workspace, checking that they are of its images.

        Raises: InputError if there is no workspace; NotFittedError if nothing is embedded, or only a part; MismatchError
            if the latents are others; FormatError.
        """
        opened = workspace if isinstance(workspace, Workspace) else Workspace.open(workspace)
        path = card_path(opened.root)
        remedy = f"run: manifold clip {opened.root} --clip MODEL"
        if not path.is_file():
            raise NotFittedError(f"{opened.root} has no CLIP embeddings yet; {remedy}")
        card = ClipCard.read(path)
        if card.latents_sha256 != opened.latents_checksum:
            raise MismatchError(f"{path.parent} was made for other latents; delete it and {remedy}")
        if card.index_sha256 is None:
            raise NotFittedError(
                f"{path.parent} is incomplete: {sum(card.rows):,} of {opened.manifest.count:,} images are embedded; "
                f"{remedy}, it continues"
            )
        return cls(opened, card)

    def embeddings(self) -> np.ndarray:
        """All embeddings, (n, d) float32, scaled to unit length again after float16.

        Raises: FormatError if a file is missing or damaged.
        """
        rows = np.concatenate([self._read(number) for number in range(len(self.card.files))]).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def read(self, ids: np.ndarray) -> np.ndarray:
        """Rows by number, in the order asked: (m, d) float32 of unit length. Raises: FormatError."""
        starts = np.array([0, *accumulate(self.card.rows)])
        owners = np.searchsorted(starts, ids, side="right") - 1
        rows = np.empty((len(ids), self.card.spec.d), dtype=np.float32)
        for number in np.unique(owners).tolist():
            chosen = owners == number
            if number not in self._maps:
                self._maps[number] = self._read(number)
            rows[chosen] = self._maps[number][ids[chosen] - starts[number]]
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def index(self) -> Any:
        """The FAISS index, opened. Raises: FormatError if it is damaged or missing."""
        from index.faiss_io import read_index

        path = index_file(self.workspace.root)
        if not path.is_file() or sha256_file(path) != self.card.index_sha256:
            raise FormatError(f"{path} is missing or damaged; delete {path.parent} and run manifold clip again")
        return read_index(path)

    def _read(self, number: int) -> np.ndarray:
        path = embeddings_file(self.workspace.root, number, len(self.card.files))
        remedy = f"delete {path.parent.parent} and run manifold clip again"
        if not path.is_file() or sha256_file(path) != self.card.files[number]:
            raise FormatError(f"{path} is missing or differs from its checksum; {remedy}")
        return np.load(path, mmap_mode="r", allow_pickle=False)
