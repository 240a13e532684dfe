"""Files that exist whole or not at all.

A write goes to a temporary name in the same folder, its own even where several processes write one file, is flushed to the
disk, and is renamed into place; the folder is flushed after the rename. A killed process leaves at most a file whose name
starts with `.tmp-`, which no reader looks at.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import FormatError, InputError, StorageError

__all__ = [
    "TEMPORARY_PREFIX",
    "atomic_path",
    "file_stamp",
    "is_utf8",
    "load_tensors",
    "read_json",
    "save_tensors",
    "sha256_file",
    "storage_errors",
    "write_errors_of",
    "write_json",
]

TEMPORARY_PREFIX = ".tmp-"


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write `path` into a StorageError that says what to do."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "the disk is full; free some space and run the same command again, it resumes where it stopped"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = "no permission to write there; choose another folder or change its permissions"
        elif error.errno in (errno.ENOTDIR, errno.EEXIST):
            reason = "a file stands where a folder is needed; choose another folder"
        else:
            reason = error.strerror or str(error)
        raise StorageError(error.errno, f"cannot write {path}: {reason}") from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write; on success flush it and rename it to `path`, on failure remove it.

    Raises: InputError for a path without a name; StorageError if the disk is full or the folder cannot be written.
    """
    if not path.name:
        raise InputError(f"{str(path)!r} names no file to write; give a name")
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}-{path.name}")
    with storage_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _flush(temporary)
            temporary.replace(path)
            _flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def write_errors_of(library: type[Exception]) -> Iterator[None]:
    """Turn what a library raises instead of an OSError, when a write of its own fails, into one; other errors stay."""
    try:
        yield
    except library as error:
        named = re.search(r"os error (\d+)", str(error))
        told = (code for code in errno.errorcode if os.strerror(code) in str(error))
        code = int(named[1]) if named else next(told, None)
        if code is None:
            raise
        raise OSError(code, os.strerror(code)) from error


def is_utf8(text: str) -> bool:
    """Whether a text can be stored: names of files that are not UTF-8 come with half signs, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written anew by `atomic_path`; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, indented, keys in the order given."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises: FormatError if the file is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(f"{path} is not valid JSON ({error}); restore it from a backup or make it again") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} must hold a JSON object, it holds a {type(value).__name__}; make it again")
    return value


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and text metadata to a safetensors file, atomically.

    Metadata is stored as one JSON text under the key `manifold`: safetensors keeps several keys in no fixed order, and
    equal contents must give equal bytes.
    """
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        ours = tensor.detach().cpu().contiguous()
        # safetensors refuses tensors that share memory, as the classes of a pooled mixture do.
        known = {other.untyped_storage().data_ptr() for other in stored.values()}
        stored[name] = ours.clone() if ours.untyped_storage().data_ptr() in known else ours
    with atomic_path(path) as temporary:
        temporary.touch()
        usual = temporary.stat().st_mode
        with write_errors_of(SafetensorError):
            save_file(stored, temporary, metadata={"manifold": json.dumps(dict(metadata), sort_keys=True)})
        temporary.chmod(usual)  # safetensors leaves a file that only its owner can read


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read what `save_tensors` wrote.

    Raises: FileNotFoundError; FormatError if the file is cut off, damaged or not ours.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["manifold"])
            if not isinstance(metadata, dict):
                raise FormatError(
                    f"{path} was not written by this project: its metadata are no JSON object; make it again"
                )
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (not a dict)
    except (SafetensorError, KeyError, RuntimeError, json.JSONDecodeError) as error:
        raise FormatError(f"{path} is damaged or was not written by this project ({error}); make it again") from error
