"""Rows that marshal does not know, column by column: exact numbers, times and UUIDs as what it knows.

pickle takes several times as long for them, because it calls back into Python for each value: see benchmarks/hosting.py.
"""

from __future__ import annotations

import datetime as dt
import marshal
import pickle
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import UUID

_NONE = type(None)
_KNOWN = frozenset({_NONE, bool, int, float, str, bytes, complex})
"""What marshal knows."""

Way = tuple[Callable[[Any], Any], Callable[[Any], Any]]

_WAYS: dict[type, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    Decimal: ("d", str, Decimal),
    dt.datetime: ("t", dt.datetime.isoformat, dt.datetime.fromisoformat),
    dt.date: ("y", dt.date.toordinal, dt.date.fromordinal),
    dt.time: ("h", dt.time.isoformat, dt.time.fromisoformat),
    UUID: ("u", lambda one: one.int, lambda number: UUID(int=number)),
    dt.timedelta: (
        "s",
        lambda one: (one.days, one.seconds, one.microseconds),
        lambda parts: dt.timedelta(*parts),
    ),
}
_BACK = {code: back for code, _, back in _WAYS.values()}


def packed(rows: list[tuple[Any, ...]]) -> bytes:
    """Rows of one length as bytes."""
    codes, columns = "", []
    for column in zip(*rows, strict=True):
        code, values = _column(column)
        codes += code
        columns.append(values)
    return marshal.dumps((codes, columns))


def unpacked(data: Any) -> list[tuple[Any, ...]]:
    """The rows that `packed` was given."""
    codes, columns = marshal.loads(data)  # noqa: S302  # of our host
    return list(zip(*map(_back, codes, columns), strict=True))


def _column(column: tuple[Any, ...]) -> tuple[str, Any]:
    kinds = set(map(type, column))
    if kinds <= _KNOWN:
        return "=", column
    kinds.discard(_NONE)
    way = _WAYS.get(kinds.pop()) if len(kinds) == 1 else None
    if way is None or not _is_plain(column, way[0]):
        return "p", pickle.dumps(column, 5)
    code, there, _ = way
    if None in column:
        return code.upper(), [None if one is None else there(one) for one in column]
    return code, list(map(there, column))


def _is_plain(column: tuple[Any, ...], code: str) -> bool:
    """Whether a text says all: it does not name a time zone, nor which of two equal times is meant."""
    if code not in "th":
        return True
    return not any(one.fold for one in column if one is not None) and {
        type(one.tzinfo) for one in column if one is not None
    } <= {_NONE, dt.timezone}


def _back(code: str, values: Any) -> Any:
    if code == "=":
        return values
    if code == "p":
        return pickle.loads(values)  # noqa: S301  # see values.py
    back = _BACK[code.lower()]
    if code.isupper():
        return [None if one is None else back(one) for one in values]
    return map(back, values)
