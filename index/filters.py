"""Conditions on metadata columns: which rows a search may answer with.

    label=3    label!=3    width>=512    height<1000    caption~dog    caption!~dog    label in 1,2,3

`=` and `!=` compare whole values, `~` and `!~` look for a piece of text, whatever its case, `in` takes a list with commas.
All conditions must hold. A row without a value in a column meets no condition on it, not even `!=`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from manifold.errors import InputError
from manifold.files import is_utf8

from .latents import LatentStore

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Condition", "Where", "parse_where", "rows_where"]

Where = str | Sequence[str]
"""One condition or several, as text."""

_CONDITION = re.compile(r"\s*(\w+)\s*(!=|<=|>=|!~|=|<|>|~|\s+in(?=\s))\s*(.*?)\s*", re.DOTALL)
_COMPARISONS = {
    "=": "equal", "!=": "not_equal", "<": "less", "<=": "less_equal", ">": "greater", ">=": "greater_equal",
}  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """One condition on one column."""

    column: str
    operator: str
    """`=`, `!=`, `<`, `<=`, `>`, `>=`, `~`, `!~` or `in`."""
    values: tuple[str, ...]
    """As they were written; one, but for `in`."""

    def __str__(self) -> str:
        space = " " if self.operator == "in" else ""
        return f"{self.column}{space}{self.operator}{space}{','.join(self.values)}"


def parse_where(where: Where) -> tuple[Condition, ...]:
    """Read conditions. Raises: InputError for a text that is none.

    >>> [str(one) for one in parse_where(["label = 3", "caption~red fox"])]
    ['label=3', 'caption~red fox']
    """
    return tuple(_parse(text) for text in ([where] if isinstance(where, str) else where))


def _parse(text: str) -> Condition:
    found = _CONDITION.fullmatch(text)
    if found is None or not found[3]:
        raise InputError(
            f"a condition must be a column, a sign and a value, such as label=3, width>=512, caption~dog or "
            f"label in 1,2,3; {text!r} is not"
        )
    if not is_utf8(text):
        raise InputError(f"a condition must be UTF-8 text, {text!r} is not")
    column, sign, value = found[1], found[2].strip(), found[3]
    values = tuple(part.strip() for part in value.split(",")) if sign == "in" else (value,)
    return Condition(column, sign, values)


def rows_where(store: LatentStore, conditions: Sequence[Condition]) -> np.ndarray:
    """Numbers of the rows that meet all conditions, rising, int64.

    Raises: InputError for a column that is not there, a value of another type than the column's, or if no row is left;
        FormatError if metadata are damaged.

    Cost: one reading of the columns named.
    """
    import pyarrow.compute as pc

    columns = store.metadata_columns()
    for condition in conditions:
        if condition.column not in columns:
            raise InputError(
                f"{condition}: there is no column {condition.column}; the metadata have {', '.join(columns)}"
            )
    table = store.metadata(list(dict.fromkeys(condition.column for condition in conditions)))
    allowed = np.ones(len(store), dtype=bool)
    for condition in conditions:
        met = _met(condition, table.column(condition.column))
        allowed &= pc.fill_null(met, False).to_numpy()
    if not allowed.any():
        raise InputError(f"no row meets {' and '.join(map(str, conditions))}; ask for less")
    return np.flatnonzero(allowed)


def _met(condition: Condition, column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if condition.operator in ("~", "!~"):
        if not _is_text(kind):
            raise InputError(
                f"{condition}: ~ looks into text, and {condition.column} holds {kind}; compare it with =, < or >"
            )
        found = pc.match_substring(column, condition.values[0], ignore_case=True)
        return pc.invert(found) if condition.operator == "!~" else found
    read = _reader(condition, kind)
    values = [read(value) for value in condition.values]
    if pa.types.is_integer(kind):
        column = column.cast(pa.int64())
    if condition.operator == "in":
        met = pc.is_in(column, pa.array(values, column.type))
        return pc.if_else(pc.is_valid(column), met, False)
    return getattr(pc, _COMPARISONS[condition.operator])(column, pa.scalar(values[0]))


def _reader(condition: Condition, kind: pa.DataType) -> Callable[[str], Any]:
    """What turns a written value into one of the column's type."""
    import pyarrow as pa

    if _is_text(kind):
        return str
    readers: list[tuple[Callable[[pa.DataType], bool], Callable[[str], Any], str]] = [
        (pa.types.is_boolean, _truth, "true or false"),
        (pa.types.is_integer, _whole, "whole numbers"),
        (pa.types.is_floating, float, "numbers"),
    ]
    for is_kind, read, name in readers:
        if is_kind(kind):
            return _checked(condition, read, name)
    raise InputError(f"{condition}: the column {condition.column} holds {kind}, which has no conditions")


def _checked(condition: Condition, read: Callable[[str], Any], name: str) -> Callable[[str], Any]:
    def checked(value: str) -> Any:
        try:
            return read(value)
        except ValueError as error:
            raise InputError(f"{condition}: {condition.column} holds {name}, and {value!r} is none") from error

    return checked


def _whole(value: str) -> int:
    number = int(value)
    if not -(2**63) <= number < 2**63:
        raise ValueError(value)
    return number


def _truth(value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise ValueError(value)
    return value.lower() == "true"


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
