"""Stands for PEP 249 connections and cursors in a host.

The answer to `execute` has the first rows, so a small result takes one round trip. Others follow in blocks. A cursor is made
in the host when it is first used.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from mppool.hosting import frames
from mppool.hosting.proxies import Facts, Hold, Hosted
from mppool.hosting.rows import unpacked
from mppool.hosting.shapes import maker_of
from mppool.hosting.streams import raise_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MAKES_A_CURSOR = frozenset({"execute", "executemany", "executescript"})

_UNKNOWN_CURSOR = Facts(("cursor", (), (), "cursor"))


def made_for(hold: Hold, handle: int, facts: Facts) -> Hosted:
    """The proxy of a connection or a cursor."""
    if facts.word == "cursor":
        return HostedCursor(hold, handle, facts, None)
    return HostedConnection(hold, handle, facts)


class HostedConnection(Hosted):
    """A connection in a host. What is not here is asked for there."""

    __slots__ = ("_closed", "_cursor_facts")

    _closed: bool
    _cursor_facts: Facts

    def __init__(self, hold: Hold, handle: int, facts: Facts) -> None:
        super().__init__(hold, handle, facts)
        object.__setattr__(self, "_closed", False)
        object.__setattr__(
            self, "_cursor_facts", hold.stream.facts.get("its cursors", _UNKNOWN_CURSOR)
        )

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """A cursor."""
        if args or kwargs or self._closed:
            made = self._called("cursor", *args, **kwargs)
            if isinstance(made, HostedCursor):
                object.__setattr__(made, "connection", self)
            return made
        self._hold.check()
        return self._new_cursor()

    def _new_cursor(self) -> HostedCursor:
        handle = self._hold.new_handle()
        cursor = HostedCursor(self._hold, handle, self._cursor_facts, self)
        self._hold.enter(handle, cursor)
        return cursor

    def commit(self) -> None:
        """Commit what is open."""
        self._called("commit")

    def rollback(self) -> None:
        """Roll back what is open."""
        self._called("rollback")

    def close(self) -> None:
        """Close the connection itself: the pool opens another in its place."""
        object.__setattr__(self, "_closed", True)
        self._called("close")

    def __getattr__(self, name: str) -> Any:
        if name in _MAKES_A_CURSOR and name in self._facts.methods:
            return lambda *args, **kwargs: self._new_cursor()._run(name, True, args, kwargs)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "autocommit":
            self._hold.commits = bool(value)

    def __enter__(self) -> Self:
        if "__enter__" not in self._facts.special:
            raise AttributeError(f"{self._facts.name} in a host: __enter__")
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> Any:
        return self._called("__exit__", None if kind is None else True, None, None)


class HostedCursor(Hosted):
    """A cursor in a host, and the rows of it that are here already.

    _rows, _at: the block that is here, and how far it was read. _is_done: nothing follows it in the host.
    """

    __slots__ = (
        "_arraysize", "_at", "_closed", "_is_done", "_lastrowid", "_rows", "_trouble", "connection", "description",
        "rowcount",
    )  # fmt: skip

    connection: Any
    description: Any
    rowcount: int
    _arraysize: int | None
    _at: int
    _closed: Any  # False, True (here alone) or "there"
    _is_done: bool
    _lastrowid: Any
    _rows: list[Any]
    _trouble: bytes | None

    def __init__(self, hold: Hold, handle: int, facts: Facts, connection: Any) -> None:
        super().__init__(hold, handle, facts)
        put = object.__setattr__
        put(self, "connection", connection)
        put(self, "description", None)
        put(self, "rowcount", -1)
        put(self, "_arraysize", None)
        put(self, "_closed", False)
        put(self, "_lastrowid", None)
        self._forget_rows()

    def _forget_rows(self) -> None:
        put = object.__setattr__
        put(self, "_rows", [])
        put(self, "_at", 0)
        put(self, "_is_done", False)
        put(self, "_trouble", None)

    # --- statements ---------------------------------------------------------------------------------------------

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Execute a statement; its first rows come along."""
        return self._run("execute", False, args, kwargs)

    def executemany(self, statement: Any, rows: Iterable[Any], *args: Any, **kwargs: Any) -> Any:
        """Execute a statement for each row of parameters."""
        given = rows if isinstance(rows, (list, tuple)) else list(rows)
        return self._run("executemany", False, (statement, given, *args), kwargs)

    def nextset(self) -> Any:
        """Go on to the next result."""
        return self._run("nextset", False, (), {})

    def _run(self, name: str, of_connection: bool, args: Any, kwargs: Any) -> Any:
        self._reopened()
        self._forget_rows()
        head = [self._handle, of_connection, name]
        _kind, body = self._hold.answered(name, frames.RUN, head, args, kwargs)
        state = pickle.loads(body)  # noqa: S301  # see values.py
        if len(state) == 2:  # no cursor was made
            return self._hold.loaded(state[1])
        returned, description, rowcount, lastrowid, shape, rows, is_done, trouble, facts = state
        put = object.__setattr__
        stream = self._hold.stream
        if facts is not None:
            stream.facts["its cursors"] = found = self._hold.told(facts)
            put(self, "_facts", found)
        elif self._facts is _UNKNOWN_CURSOR:
            put(self, "_facts", stream.facts.get("its cursors", _UNKNOWN_CURSOR))
        if description is True:
            description = stream.facts["the last description"]
        else:
            stream.facts["the last description"] = description
        put(self, "description", description)
        put(self, "rowcount", rowcount)
        put(self, "_lastrowid", lastrowid)
        put(self, "_is_done", is_done)
        put(self, "_trouble", trouble)
        if rows is not None:
            put(self, "_rows", maker_of(shape, description)(unpacked(rows)))
        return self if returned is None else self._hold.loaded(returned)

    def _reopened(self) -> None:
        """Where it was closed here alone, it is closed in the host too: the driver says what that means."""
        if self._closed and self._closed != "there":
            object.__setattr__(self, "_closed", "there")
            self._hold.call(self._handle, "close", (), {})

    # --- rows ---------------------------------------------------------------------------------------------------

    def fetchone(self) -> Any:
        """The next row, or None."""
        at = self._at
        if at < len(self._rows):
            object.__setattr__(self, "_at", at + 1)
            return self._rows[at]
        if not self._has_result():
            return self._called("fetchone")
        if not self._more(1):
            return None
        object.__setattr__(self, "_at", 1)
        return self._rows[0]

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """The next rows, as many or fewer."""
        if not self._has_result():
            found: list[Any] = self._called("fetchmany", *(() if size is None else (size,)))
            return found
        wanted = self.arraysize if size is None else size
        rows = self._rows[self._at : self._at + wanted]
        object.__setattr__(self, "_at", self._at + len(rows))
        while len(rows) < wanted and self._more(wanted - len(rows)):
            more = self._rows[: wanted - len(rows)]
            object.__setattr__(self, "_at", len(more))
            rows += more
        return rows

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        if not self._has_result():
            found: list[Any] = self._called("fetchall")
            return found
        rows = self._rows[self._at :] if self._at else self._rows
        object.__setattr__(self, "_rows", [])
        object.__setattr__(self, "_at", 0)
        if not self._is_done:
            rows = [*rows, *self._all_the_rest()]
        self._raise_trouble()
        return rows

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        row = self.fetchone()
        if row is None:
            raise StopIteration
        return row

    def _has_result(self) -> bool:
        """Else the driver says what it means to fetch."""
        return self.description is not None and not self._closed

    def _more(self, at_least: int) -> bool:
        """Have the next block here. False: there is nothing more."""
        self._raise_trouble()
        if self._is_done:
            self._hold.check()
            return False
        head = [self._handle, at_least]
        _, body = self._hold.answered("fetching rows", frames.FETCH, head)
        object.__setattr__(self, "_rows", self._block(body))
        object.__setattr__(self, "_at", 0)
        return bool(self._rows)

    def _block(self, body: Any) -> list[Any]:
        data, shape, is_last = pickle.loads(body)  # noqa: S301  # see values.py
        if is_last:
            object.__setattr__(self, "_is_done", True)
        return maker_of(shape, self.description)(unpacked(data))

    def _all_the_rest(self) -> list[Any]:
        rows: list[Any] = []

        def take(body: Any) -> None:
            rows.extend(self._block(body))

        _, body = self._hold.answered_in_parts(
            "fetching rows", frames.FETCH, [self._handle, None], take
        )
        take(body)
        return rows

    def _raise_trouble(self) -> None:
        trouble = self._trouble
        if trouble is not None:
            object.__setattr__(self, "_trouble", None)
            raise_error(trouble, self._hold.pool)

    # --- attributes ---------------------------------------------------------------------------------------------

    @property
    def arraysize(self) -> int:
        """How many rows fetchmany() gets."""
        size = self._arraysize
        if size is None:
            size = self._hold.get(self._handle, "arraysize")[1]
            object.__setattr__(self, "_arraysize", size)
        return size

    @property
    def lastrowid(self) -> Any:
        """As the last statement has left it."""
        return self._lastrowid

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "arraysize":
            object.__setattr__(self, "_arraysize", value)
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name == "fetchval" and self._facts.name.startswith("pyodbc."):
            return self._fetchval
        self._reopened()
        return super().__getattr__(name)

    def _fetchval(self) -> Any:
        row = self.fetchone()
        return None if row is None else row[0]

    def _called(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """A method that may leave the cursor with another result."""
        if name == "close":
            return self.close()
        if name in ("skip", "scroll") and not self._is_done and self._at < len(self._rows):
            args = self._from_where_the_host_is(name, args, kwargs)
        if name.startswith("fetch"):
            self._reopened()
            return self._hold.call(self._handle, name, args, kwargs)
        return self._run(name, False, args, kwargs)

    def _from_where_the_host_is(self, name: str, args: Any, kwargs: Any) -> Any:
        """The host has read further than our caller: a relative move begins there."""
        ahead = len(self._rows) - self._at
        if name == "scroll" and ("absolute" in args or kwargs.get("mode") == "absolute"):
            return args
        return (args[0] - ahead, *args[1:])

    def close(self) -> None:
        """Close it. In the host that happens with the next request, where nothing is left to be read."""
        self._hold.check()
        if self._closed:
            return
        is_done = self._is_done or self.description is None
        if is_done:
            self._hold.freed.append(self._handle)
            object.__setattr__(self, "_closed", True)
        else:
            object.__setattr__(self, "_closed", "there")
            self._hold.call(self._handle, "close", (), {})
        object.__setattr__(self, "_rows", [])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> Any:
        if "__exit__" in self._facts.special:
            return self._hold.call(
                self._handle, "__exit__", (None if kind is None else True, None, None), {}
            )
        self.close()
        return None

    def __del__(self) -> None:
        try:
            if not self._closed:
                self._hold.freed.append(self._handle)
        except AttributeError:
            pass  # it was never finished
