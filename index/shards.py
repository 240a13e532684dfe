"""Writing shards: rows are gathered in memory, a full shard is hashed, written and committed in a background thread.

The order of a commit is latents, metadata, rejects, manifest, each atomic. The manifest names the shards that count, so a
process killed anywhere leaves either the state before the commit or the state after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from manifold.errors import NonFiniteError
from manifold.files import TEMPORARY_PREFIX, atomic_path, sha256_file

from .latents import Shard, latents_file, metadata_file
from .workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ShardWriter", "read_rejects", "remove_uncommitted"]


def _metadata_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("image_path", pa.string()),
            ("key", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("status", pa.string()),
            ("caption", pa.string()),
            ("label", pa.int64()),
        ]
    )


def _reject_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [("input", pa.int64()), ("image_path", pa.string()), ("key", pa.string()), ("reason", pa.string())]
    )


def read_rejects(workspace: Workspace) -> list[dict[str, Any]]:
    """The inputs not used so far: input number, image_path, key and reason, in input order."""
    import pyarrow.parquet as pq

    if not workspace.rejects_path.is_file():
        return []
    return pq.read_table(workspace.rejects_path).to_pylist()


def remove_uncommitted(workspace: Workspace) -> None:
    """Delete what a killed run left behind: temporary files, and shards that the manifest does not name."""
    root, kept = workspace.root, len(workspace.manifest.shards)
    committed = {file(root, number) for number in range(kept) for file in (latents_file, metadata_file)}
    folders = [root, root / "latents", root / "metadata"]
    for path in [path for folder in folders if folder.is_dir() for path in folder.iterdir()]:
        if path.name.startswith(TEMPORARY_PREFIX) or (path.parent != root and path not in committed):
            path.unlink()


class ShardWriter:
    """Gathers rows and rejects, and commits a shard whenever `shard_rows` rows are complete.

    Use as a context manager. Leaving it after an error waits for the commit under way and drops the unfinished shard.
    Memory: two shards, one being filled while the other is written.
    """

    def __init__(self, workspace: Workspace) -> None:
        recipe = workspace.manifest.recipe
        self._workspace = workspace
        self._shard_rows = recipe.shard_rows
        self._d = recipe.encoder.d
        self._latents = np.empty((self._shard_rows, self._d), dtype=np.float16)
        self._records: list[Mapping[str, Any]] = []
        resumed = workspace.manifest.next_input
        self._rejects = [reject for reject in read_rejects(workspace) if reject["input"] < resumed]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shard-writer")
        self._commit: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._wait()
        finally:
            self._thread.shutdown(wait=True)

    @property
    def free_rows(self) -> int:
        """Rows until the shard under way is full: a batch for the encoder must not be larger."""
        return self._shard_rows - len(self._records)

    @property
    def rejects(self) -> list[dict[str, Any]]:
        """Inputs not used so far, committed or not."""
        return self._rejects

    def reject(self, record: dict[str, Any]) -> None:
        """Note an input that is not used: input, image_path, key, reason."""
        self._rejects.append(record)

    def append(self, latents: np.ndarray, records: Iterable[Mapping[str, Any]], next_input: int) -> None:
        """Add rows (m, d) with their metadata; `next_input` is the input at which a run continues after the last of them.

        Raises: NonFiniteError if a latent is not finite in float16; whatever an earlier commit raised.
        """
        begin = len(self._records)
        rows = self._latents[begin : begin + len(latents)]
        with np.errstate(over="ignore"):
            rows[:] = latents
        self._records.extend(records)
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            bad = int(np.argmin(finite))
            raise NonFiniteError(
                f"the latent of {self._records[begin + bad]['image_path']} has NaN or infinity in float16; "
                "encode with --dtype float32, or remove that image"
            )
        if not self.free_rows:
            self._start_commit(next_input, complete=False)

    def finish(self) -> None:
        """Commit the last, perhaps smaller, shard and mark the workspace complete."""
        self._start_commit(self._workspace.manifest.recipe.inputs, complete=True)
        self._wait()

    def save_rejects(self) -> None:
        """Write the list of rejects as it stands, also where a run stops because of them."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._wait()
        with atomic_path(self._workspace.rejects_path) as path:
            pq.write_table(pa.Table.from_pylist(self._rejects, schema=_reject_schema()), path)

    def _start_commit(self, next_input: int, *, complete: bool) -> None:
        self._wait()
        rejects = [reject for reject in self._rejects if reject["input"] < next_input]
        latents = self._latents[: len(self._records)]
        self._commit = self._thread.submit(self._write, latents, self._records, rejects, next_input, complete)
        self._latents, self._records = np.empty_like(self._latents), []

    def _wait(self) -> None:
        commit, self._commit = self._commit, None
        if commit is not None:
            commit.result()

    def _write(
        self,
        latents: np.ndarray,
        records: list[Mapping[str, Any]],
        rejects: list[dict[str, Any]],
        next_input: int,
        complete: bool,
    ) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        workspace = self._workspace
        shards = workspace.manifest.shards
        if records:
            number = len(shards)
            latents_path, metadata_path = latents_file(workspace.root, number), metadata_file(workspace.root, number)
            with atomic_path(latents_path) as path, path.open("wb") as file:
                np.save(file, latents, allow_pickle=False)
            with atomic_path(metadata_path) as path:
                pq.write_table(pa.Table.from_pylist(records, schema=_metadata_schema()), path)
            shards = (*shards, Shard(len(records), sha256_file(latents_path), sha256_file(metadata_path)))
        with atomic_path(workspace.rejects_path) as path:
            pq.write_table(pa.Table.from_pylist(rejects, schema=_reject_schema()), path)
        workspace.commit(shards=shards, next_input=next_input, rejects=len(rejects), complete=complete)
