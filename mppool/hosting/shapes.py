"""Rows as the driver would have given them: by index, and by name where it does that."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mppool.hosting.rows import Shape

Maker = Callable[[list[Any]], list[Any]]


class Row(tuple[Any, ...]):
    """A row by index and by attribute, as pyodbc's; it does not change."""

    __slots__ = ()

    cursor_description: Any = None
    _places: dict[str, int] = {}  # noqa: RUF012  # each class has its own

    def __getattr__(self, name: str) -> Any:
        try:
            return self[self._places[name]]
        except KeyError:
            raise AttributeError(f"the row has no column {name!r}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return made_again, (tuple(self._places), type(self) in _by_key, tuple(self))


class KeyRow(Row):
    """A row by index and by key, as sqlite3.Row."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a row has no attribute {name!r}; use row[{name!r}]")

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return tuple.__getitem__(self, key)
        place = self._places.get(key)
        if place is None:
            place = next(
                (at for name, at in self._places.items() if name.lower() == key.lower()), None
            )
        if place is None:
            raise IndexError("No item with that key")
        return tuple.__getitem__(self, place)

    def keys(self) -> list[str]:
        """The names of the columns."""
        return list(self._places)


_by_key: set[type] = set()


def _unchanged(rows: list[Any]) -> list[Any]:
    return rows


def maker_of(shape: Shape, description: Any) -> Maker:
    """What makes rows of this shape out of tuples."""
    if shape is None:
        return _unchanged
    if shape[0] == "named":
        return _named(shape[1], shape[2])
    try:
        return _of(shape, description)
    except TypeError:  # the description cannot be hashed
        return _of(shape, None)


@lru_cache(maxsize=256)
def _named(name: str, fields: tuple[str, ...]) -> Maker:
    make_class: Any = namedtuple  # noqa: PYI024
    kind = make_class(name, fields, rename=True)
    make = kind._make
    return lambda rows: list(map(make, rows))


@lru_cache(maxsize=256)
def _of(shape: tuple[Any, ...], description: Any) -> Maker:
    kind: Any = _class_of(shape[1], by_key=shape[0] == "keys")
    kind.cursor_description = description
    return lambda rows: list(map(kind, rows))


def _class_of(names: tuple[str, ...], *, by_key: bool) -> type[Row]:
    places: dict[str, int] = {}
    for place, name in enumerate(names):
        if not by_key or name not in places:  # sqlite3 takes the first of two, pyodbc the last
            places[name] = place
    base = KeyRow if by_key else Row
    made = type("Row", (base,), {"__slots__": (), "_places": places})
    if by_key:
        _by_key.add(made)
    return made


def made_again(names: tuple[str, ...], by_key: bool, values: tuple[Any, ...]) -> Row:
    """A row that was pickled."""
    return _class_of(names, by_key=by_key)(values)
