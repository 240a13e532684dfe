"""Join the moments of several collections into those of their union, exactly."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import InputError, MismatchError
from .moments import Moments

__all__ = ["merge_moments"]


def merge_moments(paths: Sequence[str | Path], *, same: Sequence[str] = ("encoder",)) -> tuple[Moments, dict[str, str]]:
    """Load moments files and merge them.

    Arguments
        paths: two or more files that `Moments.save` wrote.
        same: metadata that must be equal in all files that have it, such as the encoder.

    Returns: the merged moments, of the coarsest precision among them, and the metadata that all files share, with the
        checksums of all shards that went in.

    Raises: InputError if fewer than two files are given, or files with rows in common; FileNotFoundError; FormatError;
        MismatchError if the rows differ in length or the files disagree on what must be the same.

    Cost: O(d^2) a file; two matrices in memory.
    """
    files = [Path(path) for path in paths]
    if len(files) < 2:
        raise InputError(f"merging needs at least two files of moments, {len(files)} came")
    if len({file.resolve() for file in files}) < len(files):
        raise InputError("a collection must not be merged with itself, its rows would count twice; name each file once")
    merged, shared = Moments.load(files[0])
    taken_in = _collections(shared)
    first = {key: (files[0], shared[key]) for key in same if key in shared}
    for file in files[1:]:
        other, metadata = Moments.load(file)
        again = taken_in & _collections(metadata)
        if again:
            raise InputError(
                f"{len(again)} of the shards that {file} is of are in the files before it, their rows would count twice; "
                "merge only collections that have none in common"
            )
        taken_in |= _collections(metadata)
        for key in set(same) & set(metadata):
            earlier, value = first.setdefault(key, (file, metadata[key]))
            if value != metadata[key]:
                raise MismatchError(
                    f"{earlier} and {file} must have the same {key}, they have {value!r} and "
                    f"{metadata[key]!r}; merge only statistics of one {key}"
                )
        if other.d != merged.d:
            raise MismatchError(
                f"{files[0]} is of rows of {merged.d} values, {file} of {other.d}; merge only one kind of latent"
            )
        merged.merge(other)
        if other.precision == "fast":
            merged.precision = "fast"
        shared = {key: value for key, value in shared.items() if metadata.get(key) == value}
    if taken_in:
        shared["shards"] = json.dumps(sorted(taken_in))
    return merged, shared


def _collections(metadata: Mapping[str, str]) -> set[str]:
    """Checksums of the shards that moments are of, where they say so."""
    return set(json.loads(metadata.get("shards", "[]")))
