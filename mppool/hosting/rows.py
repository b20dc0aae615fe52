"""Rows leave a host in blocks: the first with the answer to `execute`, further ones by bytes.

How rows are encoded was measured: benchmarks/hosting.py, and decision 0069.
"""

from __future__ import annotations

import marshal
import pickle
from collections.abc import Iterator
from typing import Any

from mppool.hosting import columns

FIRST_ROWS = 64
"""So many leave with the answer to `execute`: what a small result has needs no second round trip."""
FEW = 8
"""So many are looked at first: where they are wide, no more leave."""
_WIDE = 8192
NEXT_ROWS = 256
"""The second block; then it is known how many bytes a row has."""
BLOCK_BYTES = 262_144
MOST_ROWS = 20_000
_ENOUGH = 8
"""Fewer rows are not worth the trouble of columns."""

MOST_DESCRIPTIONS = 256
"""So many descriptions of results a host remembers for a stream: one that is sent again is a number."""

Shape = tuple[Any, ...] | None
"""How rows look: None: tuples, or whatever pickles as it is; else a word and what goes with it."""


def shape_of(row: Any) -> Shape:
    """How rows like this one look, so that the worker can make the like of them."""
    kind = type(row)
    if kind is tuple:
        return None
    if hasattr(row, "cursor_description"):  # pyodbc's, mssql-python's: by index and by attribute
        return ("attributes", tuple(column[0] for column in row.cursor_description))
    fields = getattr(kind, "_fields", None)
    if isinstance(row, tuple) and fields is not None:
        return ("named", kind.__name__, tuple(fields))
    keys = getattr(row, "keys", None)
    if callable(keys) and not isinstance(row, dict):  # sqlite3.Row: by index and by key
        return ("keys", tuple(keys()))
    return None


def packed(rows: list[Any], shape: Shape) -> bytes:
    """Rows as bytes. marshal knows Python's own simple types, and is the fastest; for the rest see columns.py."""
    if shape is not None:
        rows = list(map(tuple, rows))
    try:
        return b"m" + marshal.dumps(rows)
    except ValueError:  # Decimal, dates, UUID
        if len(rows) >= _ENOUGH and all(type(row) is tuple and row for row in rows):
            return b"c" + columns.packed(rows)
        return b"p" + pickle.dumps(rows, 5)


def unpacked(data: Any) -> list[Any]:
    """The rows that `packed` was given."""
    view = memoryview(data)
    rows: list[Any] = _LOADS[view[0]](view[1:])
    return rows


_LOADS: dict[int, Any] = {
    ord("m"): marshal.loads,
    ord("c"): columns.unpacked,
    ord("p"): pickle.loads,
}


def _are_wide(rows: list[Any]) -> bool:
    """Whether a row may have a text or a blob of many kilobytes: dozens of such rows would be megabytes."""
    return any(
        type(value) in (bytes, str, bytearray) and len(value) > _WIDE
        for row in rows
        for value in row
    )


class Reader:
    """Reads the rows of one cursor. `rows`: how many the next block has."""

    def __init__(self, cursor: Any) -> None:
        self.cursor = cursor
        self._rows = NEXT_ROWS

    def first(self, few: Any = None) -> tuple[list[Any], bool]:
        """The rows that leave with the answer to `execute`, and whether these are all. few: the first ones, read already."""
        self._rows = NEXT_ROWS
        rows = self.cursor.fetchmany(FEW) if few is None else few
        if type(rows) is not list:
            rows = list(rows)
        if len(rows) < FEW:
            return rows, True
        if _are_wide(rows):
            self._rows = FEW
            return rows, False
        rows += self.cursor.fetchmany(FIRST_ROWS - FEW)
        return rows, len(rows) < FIRST_ROWS

    def block(self, at_least: int) -> tuple[bytes, Shape, bool]:
        """The next rows: packed, how they look, and whether these are the last."""
        count = max(at_least, self._rows)
        rows = list(self.cursor.fetchmany(count))
        shape = shape_of(rows[0]) if rows else None
        data = packed(rows, shape)
        if rows:
            self._rows = min(MOST_ROWS, max(1, BLOCK_BYTES * len(rows) // len(data)))
        return data, shape, len(rows) < count

    def blocks(self) -> Iterator[tuple[bytes, Shape, bool]]:
        """All that is left."""
        is_last = False
        while not is_last:
            data, shape, is_last = self.block(1)
            yield data, shape, is_last
