"""Writing shards: rows go to a growing temporary file, a full shard is committed in a background thread.

The order of a commit is latents, metadata, rejects, manifest, each atomic. The manifest names the shards that count, so a
process killed anywhere leaves either the state before the commit or the state after it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from manifold.errors import FormatError, NonFiniteError
from manifold.files import TEMPORARY_PREFIX, atomic_path, sha256_file, storage_errors

from .latents import Shard, latents_file, metadata_file
from .workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "ShardWriter",
    "counted_rejects",
    "read_rejects",
    "remove_uncommitted",
    "shorter_rejects_path",
    "write_rejects",
]

_HALF = rf"({re.escape(TEMPORARY_PREFIX)}[0-9a-f]{{8}}-)?"
_SHARD_FILE = re.compile(rf"latents/{_HALF}latents_\d{{5,}}\.npy|metadata/{_HALF}metadata_\d{{5,}}\.parquet")
"""What shards are called below the root, finished or half-written."""


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


def counted_rejects(workspace: Workspace) -> list[dict[str, Any]]:
    """Those of `read_rejects` that the manifest counts: an addition that was stopped, or runs now, has listed more.

    Raises: FormatError if the file is damaged.
    """
    return [reject for reject in read_rejects(workspace) if reject["input"] < workspace.manifest.next_input]


def read_rejects(workspace: Workspace) -> list[dict[str, Any]]:
    """The inputs not used so far: input number, image_path, key and reason, in input order.

    Raises: FormatError if the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = workspace.rejects_path
    if not path.is_file():
        return []
    try:
        return pq.read_table(path, schema=_reject_schema()).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise FormatError(f"{path} is damaged; restore it from a backup or encode again into a new folder") from error


def write_rejects(workspace: Workspace, rejects: Sequence[Mapping[str, Any]], *, shorter: bool = False) -> None:
    """Write the list of inputs not used.

    A shorter list is put beside the one in use: which of the two counts is for the manifest to say, and
    `remove_uncommitted` makes it so.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic_path(shorter_rejects_path(workspace) if shorter else workspace.rejects_path) as path:
        pq.write_table(pa.Table.from_pylist(list(rejects), schema=_reject_schema()), path)


def shorter_rejects_path(workspace: Workspace) -> Path:
    """Where the list of rejects that a removal leaves waits for its commit."""
    return workspace.rejects_path.with_name("rejects.shorter.parquet")


def remove_uncommitted(workspace: Workspace) -> int:
    """Delete what the manifest does not name and killed runs leave: files of shards, a list of rejects; returns how many.

    Whatever else lies in their folders, as a file manager or a notebook leaves it, is not ours: it stays and does not count.

    Raises: FormatError if the list of rejects that a removal left is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = workspace.root
    committed = {
        file(root, shard.number) for shard in workspace.manifest.shards for file in (latents_file, metadata_file)
    }
    folders = [folder for folder in (root / "latents", root / "metadata") if folder.is_dir()]
    found = [path for folder in folders for path in folder.iterdir() if path not in committed]
    left = [path for path in found if _SHARD_FILE.fullmatch(path.relative_to(root).as_posix()) and path.is_file()]
    for path in left:
        path.unlink()
    shorter = shorter_rejects_path(workspace)
    if not shorter.is_file():
        return len(left)
    try:
        rows = pq.read_metadata(shorter).num_rows
    except (pa.ArrowException, OSError) as error:
        raise FormatError(f"{shorter} is damaged; delete it and run the same command again") from error
    if rows == workspace.manifest.rejects:
        shorter.replace(workspace.rejects_path)
    else:
        shorter.unlink()
    return len(left) + 1


class _GrowingShard:
    """A latents file under its temporary name, which rows are appended to until it is finished.

    Memory: none to speak of; rows go straight to the file.
    """

    def __init__(self, path: Path, d: int) -> None:
        self.path = path
        self.records: list[Mapping[str, Any]] = []
        self._d = d
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(path))
            self._file = stack.enter_context(temporary.open("wb"))
            self._file.write(self._header())
            self._stack = stack.pop_all()

    def append(self, rows: np.ndarray, records: Iterable[Mapping[str, Any]]) -> None:
        """Add rows (m, d) float16 with their metadata. Raises: StorageError."""
        with storage_errors(self.path):
            self._file.write(np.ascontiguousarray(rows).data)
        self.records.extend(map(_with_label_that_fits, records))

    def finish(self) -> None:
        """Write the final row count and rename the file into place. Raises: StorageError."""
        with self._stack:
            self._file.seek(0)
            self._file.write(self._header())

    def discard(self) -> None:
        """Remove the temporary file."""
        self._stack.__exit__(_Discarded, _Discarded(), None)

    def _header(self) -> bytes:
        """The .npy header; NumPy pads it so that its length does not depend on the number of rows."""
        header = io.BytesIO()
        facts = {"descr": "<f2", "fortran_order": False, "shape": (len(self.records), self._d)}
        np.lib.format.write_array_header_1_0(header, facts)
        return header.getvalue()


def _with_label_that_fits(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record, without its label if that does not fit into 64 bits with a sign, as those of a table without signs may."""
    label = record.get("label")
    return {**record, "label": None} if isinstance(label, int) and not -(2**63) <= label < 2**63 else record


class _Discarded(Exception):
    """Tells the atomic write to drop its file."""


class ShardWriter:
    """Writes rows and rejects, and commits a shard whenever `shard_rows` rows are complete.

    Use as a context manager. Leaving it after an error waits for the commit under way and drops the unfinished shard.
    Memory: the metadata of two shards, one growing while the other is committed.

    Arguments
        workspace: what to write to.
        account: what a commit changes in the manifest beside shards and rejects, from the number of the next input and
            whether the commit is the last; `next_input` and `complete` unless given.
    """

    def __init__(self, workspace: Workspace, account: Callable[[int, bool], dict[str, Any]] | None = None) -> None:
        manifest = workspace.manifest
        self._workspace = workspace
        self._account = account or (lambda next_input, last: {"next_input": next_input, "complete": last})
        self._shard_rows = manifest.recipe.shard_rows
        self._number = manifest.shards[-1].number + 1 if manifest.shards else 0
        self._growing: _GrowingShard | None = None
        self._rejects = [reject for reject in read_rejects(workspace) if reject["input"] < manifest.next_input]
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
            if self._growing is not None:
                self._growing.discard()

    @property
    def free_rows(self) -> int:
        """Rows until the shard under way is full: a batch for the encoder must not be larger."""
        return self._shard_rows - (len(self._growing.records) if self._growing else 0)

    @property
    def rejects(self) -> list[dict[str, Any]]:
        """Inputs not used so far, committed or not."""
        return self._rejects

    def reject(self, record: dict[str, Any]) -> None:
        """Note an input that is not used: input, image_path, key, reason."""
        self._rejects.append(record)

    def append(self, latents: np.ndarray, records: Sequence[Mapping[str, Any]], next_input: int) -> None:
        """Add rows (m, d) with their metadata; a run continues at input `next_input` after the last of them.

        Raises: NonFiniteError if a latent is not finite in float16; StorageError; whatever an earlier commit raised.
        """
        with np.errstate(over="ignore"):
            rows = latents.astype(np.float16, copy=False)
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            bad = int(np.argmin(finite))
            name = records[bad]["image_path"]
            if np.isfinite(latents[bad]).all():
                raise NonFiniteError(
                    f"the latent of {name} has values up to {float(np.abs(latents[bad]).max()):.3g}, and latents are stored "
                    "in float16, which ends at 65,504; divide them all by a constant"
                )
            raise NonFiniteError(
                f"the latent of {name} has NaN or infinity; encode with --dtype float32, or remove that image"
            )
        if self._growing is None:
            path = latents_file(self._workspace.root, self._number)
            self._growing = _GrowingShard(path, self._workspace.manifest.recipe.encoder.d)
        self._growing.append(rows, records)
        if not self.free_rows:
            self._start_commit(next_input, complete=False)

    def finish(self, next_input: int | None = None) -> None:
        """Commit the last, perhaps smaller, shard; `next_input` is the number of inputs in all unless given."""
        last = self._workspace.manifest.recipe.inputs if next_input is None else next_input
        self._start_commit(last, complete=True)
        self._wait()

    def save_rejects(self) -> None:
        """Write the list of rejects as it stands, also where a run stops because of them."""
        self._wait()
        write_rejects(self._workspace, self._rejects)

    def _start_commit(self, next_input: int, *, complete: bool) -> None:
        self._wait()
        shard, self._growing = self._growing, None
        rejects = [reject for reject in self._rejects if reject["input"] < next_input]
        self._commit = self._thread.submit(self._write, self._number, shard, rejects, next_input, complete)
        self._number += 1

    def _wait(self) -> None:
        commit, self._commit = self._commit, None
        if commit is not None:
            commit.result()

    def _write(
        self,
        number: int,
        shard: _GrowingShard | None,
        rejects: list[dict[str, Any]],
        next_input: int,
        complete: bool,
    ) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        workspace = self._workspace
        shards = workspace.manifest.shards
        if shard is not None:
            shard.finish()
            metadata_path = metadata_file(workspace.root, number)
            with atomic_path(metadata_path) as path:
                pq.write_table(pa.Table.from_pylist(shard.records, schema=_metadata_schema()), path)
            entry = Shard(len(shard.records), sha256_file(shard.path), sha256_file(metadata_path), number)
            shards = (*shards, entry)
        write_rejects(workspace, rejects)
        workspace.commit(shards=shards, rejects=len(rejects), **self._account(next_input, complete))
