"""Proof that a workspace is whole: every file is read, and every claim of the manifest and the cards is checked."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from manifold.errors import FormatError, ManifoldError, ManifoldWarning
from manifold.files import TEMPORARY_PREFIX, load_tensors, sha256_file
from manifold.gaussian import GaussianManifold

from .latents import latents_file, metadata_file
from .progress import Progress, silent
from .shards import read_rejects, shorter_rejects_path
from .statistics import class_means_path, class_moments_path, covers_other_latents
from .workspace import Workspace

__all__ = ["Verification", "verify_workspace"]

_KINDS = {
    "moments.safetensors": "moments", "class_means.safetensors": "class_means", "class_moments.safetensors": "class_moments",
}  # fmt: skip
"""What files of sums say they are."""


@dataclass(frozen=True)
class Verification:
    """What `verify_workspace` read and what it found wrong; the workspace is whole if `problems` is empty."""

    checked: tuple[str, ...]
    """Parts that were read, relative to the workspace."""
    problems: tuple[str, ...]
    """One sentence for each fault, naming the file."""

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify_workspace(workspace: str | Path, *, progress: Progress = silent) -> Verification:
    """Check a workspace: checksums, shapes, finite latents, row counts, statistics and index against the latents.

    Arguments
        workspace: its folder.
        progress: told of ("verify", shards done, shards in all).

    Returns: what was checked and every problem found; faults do not stop the check.

    Raises: InputError or FormatError if the folder is no workspace at all.

    Cost: reads every byte once; one shard in memory.
    """
    opened = Workspace.open(workspace)
    checked, problems = ["manifest.json"], []
    manifest = opened.manifest
    if not manifest.complete:
        problems.append(
            f"manifest.json: encoding stopped at input {manifest.next_input:,} of {manifest.recipe.inputs:,}; "
            f"resume it with: {manifest.command}"
        )
    for number in range(len(manifest.shards)):
        problems += _shard_problems(opened, number)
        checked += [str(file(Path(), manifest.shards[number].number)) for file in (latents_file, metadata_file)]
        progress("verify", number + 1, len(manifest.shards))
    problems += _stray_files(opened)
    checked.append("rejects.parquet")
    try:
        rejects = sum(reject["input"] < manifest.next_input for reject in read_rejects(opened))
    except FormatError as error:
        rejects = manifest.rejects
        problems.append(str(error))
    if shorter_rejects_path(opened).is_file():
        problems.append(f"a removal was stopped; finish it with: manifold remove {opened.root}")
    elif rejects != manifest.rejects:
        problems.append(f"rejects.parquet has {rejects:,} rows, the manifest counts {manifest.rejects:,}")
    if manifest.complete and manifest.count + manifest.rejects + manifest.removed != manifest.inputs:
        problems.append(
            f"manifest.json: {manifest.count:,} rows, {manifest.rejects:,} rejects and {manifest.removed:,} removed do not "
            f"add up to {manifest.inputs:,} inputs"
        )
    for path in (opened.moments_path, opened.stats_path, class_means_path(opened), class_moments_path(opened)):
        if path.is_file():
            checked.append(str(path.relative_to(opened.root)))
            problems += _statistics_problems(opened, path)
    if opened.index_path.exists() or opened.index_card_path.exists():
        checked += [str(path.relative_to(opened.root)) for path in (opened.index_path, opened.index_card_path)]
        problems += _index_problems(opened)
    if (opened.root / "clip").is_dir():
        checked.append("clip")
        problems += _clip_problems(opened)
    return Verification(tuple(checked), tuple(problems))


def _shard_problems(workspace: Workspace, number: int) -> list[str]:
    shard, found = workspace.manifest.shards[number], []
    pairs = [
        (latents_file(workspace.root, shard.number), shard.latents_sha256),
        (metadata_file(workspace.root, shard.number), shard.metadata_sha256),
    ]
    for path, expected in pairs:
        name = path.relative_to(workspace.root)
        if not path.is_file():
            found.append(f"{name} is missing")
        elif sha256_file(path) != expected:
            found.append(f"{name} differs from its checksum")
    if found:
        return found
    first = sum(earlier.rows for earlier in workspace.manifest.shards[:number])
    store = workspace.latents
    try:
        for batch in store.batches(4096, first, first + shard.rows):
            finite = np.isfinite(batch).all(axis=1)
            if not finite.all():
                found.append(f"row {first + int(np.argmin(finite))} is not finite")
                break
            first += len(batch)
    except FormatError as error:
        found.append(str(error))
    return found


def _stray_files(workspace: Workspace) -> list[str]:
    shards, found = workspace.manifest.shards, []
    for file in (latents_file, metadata_file):
        folder = file(workspace.root, 0).parent
        expected = {file(workspace.root, shard.number).name for shard in shards}
        present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        for name in sorted(present - expected):
            if not name.startswith(TEMPORARY_PREFIX):
                found.append(f"{folder.name}/{name} does not belong to the workspace; delete it or move it away")
    return found


def _statistics_problems(workspace: Workspace, path: Path) -> list[str]:
    name = path.relative_to(workspace.root)
    try:
        tensors, metadata = load_tensors(path)
    except FormatError as error:
        return [str(error)]
    kind = _KINDS.get(path.name)
    if kind is not None and not metadata.get("format", "").startswith(f"manifold.{kind}."):
        return [f"{name} holds something else than {kind.replace('_', ' ')}; delete it and fit again"]
    found = [f"{name}: {key} is not finite" for key, tensor in tensors.items() if not tensor.isfinite().all()]
    try:
        d = GaussianManifold.load(path).d if path == workspace.stats_path else _width(tensors)
    except FormatError as error:
        return [*found, str(error)]
    if d != workspace.latents.d:
        found.append(f"{name} has {d} dimensions, the latents have {workspace.latents.d}")
    count = _rows_behind(tensors)
    if count != len(workspace.latents):
        found.append(f"{name} was made from {count:,} rows, the workspace has {len(workspace.latents):,}; fit again")
    elif covers_other_latents(
        workspace, json.loads(metadata["manifold"])["about"] if "manifold" in metadata else metadata
    ):
        found.append(f"{name} was made from other latents than the workspace has; fit again")
    return found


def _width(tensors: dict[str, Tensor]) -> int:
    """Values of a row, by any of the means or sums in a file."""
    return next(tensor.shape[-1] for key, tensor in tensors.items() if key.split(".")[-1] in ("mean", "sums"))


def _rows_behind(tensors: dict[str, Tensor]) -> int:
    """Rows that statistics were made from: counts, of all or of each class, and rows that wait."""
    counts = sum(int(t.sum()) for key, t in tensors.items() if key.split(".")[-1] in ("count", "counts"))
    return counts + sum(len(t) for key, t in tensors.items() if key.split(".")[-1] == "waiting")


def _index_problems(workspace: Workspace) -> list[str]:
    from .search import Searcher

    try:
        with warnings.catch_warnings(action="ignore", category=ManifoldWarning):
            remark = Searcher.open(workspace.root).remark
    except ManifoldError as error:
        return [str(error)]
    return [] if remark is None else [remark]


def _clip_problems(workspace: Workspace) -> list[str]:
    from .clip.store import ClipStore

    try:
        store = ClipStore.open(workspace)
        store.embeddings()
        store.index()
    except ManifoldError as error:
        return [str(error)]
    return []
