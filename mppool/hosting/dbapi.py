"""Stands for PEP 249 connections and cursors in a host.

The answer to `execute` has the first rows, so a small result takes one round trip. Others follow in blocks. A cursor is made
in the host when it is first used.
"""

from __future__ import annotations

import marshal
import pickle
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from mppool.hosting import frames
from mppool.hosting.answers import raise_error
from mppool.hosting.proxies import Facts, Hold, Hosted
from mppool.hosting.rows import MOST_DESCRIPTIONS, unpacked
from mppool.hosting.shapes import maker_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MAKES_A_CURSOR = frozenset({"execute", "executemany", "executescript"})

_loads, _STATE = marshal.loads, frames.STATE

_UNKNOWN_CURSOR = Facts(("cursor", (), (), "cursor", ""))


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
        if not self._hold.is_lost:
            self._called("close")

    def __getattr__(self, name: str) -> Any:
        if name in _MAKES_A_CURSOR and name in self._facts.methods:
            if name == "execute":
                return self._execute
            return lambda *args, **kwargs: self._new_cursor()._run(name, True, args, kwargs)
        return super().__getattr__(name)

    def _execute(self, *args: Any, **kwargs: Any) -> Any:
        cursor = self._new_cursor()
        if kwargs:
            return cursor._run("execute", True, args, kwargs)
        return cursor._took(*self._hold.execute(cursor._handle, True, args))

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "autocommit":
            self._hold.commits = bool(value)
        elif name == "isolation_level" and self._facts.driver == "sqlite3":
            self._hold.commits = value is None

    def __enter__(self) -> Self:
        if "__enter__" not in self._facts.special:
            raise AttributeError(f"{self._facts.name} in a host: __enter__")
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> Any:
        return self._called("__exit__", None if kind is None else True, None, None)


class _Result:
    """What a cursor has come to: what its last statement has said, and the rows that are here already.

    rows, at: the block that is here, and how far it was read. is_done: nothing follows it in the host. trouble: what
    reading the first rows has raised, for the caller that wants them.
    """

    __slots__ = ("at", "description", "is_done", "lastrowid", "rowcount", "rows", "trouble")

    description: Any
    rowcount: int
    lastrowid: Any
    rows: list[Any]
    at: int
    is_done: bool
    trouble: bytes | None

    def __init__(self) -> None:
        self.description = None
        self.rowcount = -1
        self.lastrowid = None
        self.forget_rows()

    def forget_rows(self) -> None:
        """Another statement begins."""
        self.rows = []
        self.at = 0
        self.is_done = False
        self.trouble = None


class HostedCursor(Hosted):
    """A cursor in a host."""

    __slots__ = ("_arraysize", "_closed", "_result", "connection")

    connection: Any
    _arraysize: int | None
    _closed: Any  # False, True (here alone) or "there"
    _result: _Result

    def __init__(self, hold: Hold, handle: int, facts: Facts, connection: Any) -> None:
        super().__init__(hold, handle, facts)
        put = object.__setattr__
        put(self, "connection", connection)
        put(self, "_arraysize", None)
        put(self, "_closed", False)
        put(self, "_result", _Result())

    # --- statements ---------------------------------------------------------------------------------------------

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Execute a statement; its first rows come along."""
        if kwargs or self._closed:
            return self._run("execute", False, args, kwargs)
        try:
            return self._took(*self._hold.execute(self._handle, False, args))
        except BaseException:
            self._result.forget_rows()  # wherever it struck: no row of another statement is fetched
            raise

    def executemany(self, statement: Any, rows: Iterable[Any], *args: Any, **kwargs: Any) -> Any:
        """Execute a statement for each row of parameters."""
        given = rows if isinstance(rows, (list, tuple)) else list(rows)
        return self._run("executemany", False, (statement, given, *args), kwargs)

    def nextset(self) -> Any:
        """Go on to the next result."""
        return self._run("nextset", False, (), {})

    def _run(self, name: str, of_connection: bool, args: Any, kwargs: Any) -> Any:
        self._reopened()
        self._result.forget_rows()
        head = [self._handle, of_connection, name]
        return self._took(*self._hold.answered(name, frames.RUN, head, args, kwargs))

    def _took(self, kind: int, body: Any) -> Any:
        """What a statement has come to; see Use.run."""
        state = _loads(body) if kind == _STATE else pickle.loads(body)  # noqa: S301  # see values.py
        if len(state) == 2:  # no cursor was made
            return self._hold.loaded(state[1])
        returned, said, rowcount, lastrowid, shape, rows, is_done, trouble, facts = state
        stream = self._hold.stream
        if facts is not None:
            stream.facts["its cursors"] = found = self._hold.told(facts)
            object.__setattr__(self, "_facts", found)
        elif self._facts is _UNKNOWN_CURSOR:
            object.__setattr__(self, "_facts", stream.facts.get("its cursors", _UNKNOWN_CURSOR))
        result = self._result
        description = None
        if said is not None:
            description = stream.descriptions.get(said) if type(said) is int else None
            if description is None:
                description = self._described(said)
        result.description = description
        result.rowcount = rowcount
        result.lastrowid = lastrowid
        result.is_done = is_done
        result.trouble = trouble
        result.at = 0
        if rows is None:
            result.rows = []
        else:
            if type(rows) is bytes:
                rows = unpacked(rows)
            result.rows = rows if shape is None else maker_of(shape, description)(rows)
        return self if returned is None else self._hold.loaded(returned)

    def _described(self, said: Any) -> Any:
        """A description: what it is, with its number, or the number of one that came before."""
        known = self._hold.stream.descriptions
        if type(said) is int:
            # It came with an answer that nobody has read to its end.
            return self._hold.get(self._handle, "description")[1]
        if len(known) >= 2 * MOST_DESCRIPTIONS:
            known.clear()
        number, description = said
        if number:
            known[number] = description
        return description

    def _reopened(self) -> None:
        """Where it was closed here alone, it is closed in the host too: the driver says what that means."""
        if self._closed and self._closed != "there":
            object.__setattr__(self, "_closed", "there")
            self._hold.call(self._handle, "close", (), {})

    # --- rows ---------------------------------------------------------------------------------------------------

    def fetchone(self) -> Any:
        """The next row, or None."""
        result = self._result
        at, rows = result.at, result.rows
        if at < len(rows):
            result.at = at + 1
            return rows[at]
        if not self._has_result():
            return self._called("fetchone")
        if not self._more(1):
            return None
        self._result.at = 1
        return self._result.rows[0]

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """The next rows, as many or fewer."""
        if not self._has_result():
            found: list[Any] = self._called("fetchmany", *(() if size is None else (size,)))
            return found
        wanted = self.arraysize if size is None else size
        rows = self._result.rows[self._result.at : self._result.at + wanted]
        self._result.at = self._result.at + len(rows)
        while len(rows) < wanted and self._more(wanted - len(rows)):
            more = self._result.rows[: wanted - len(rows)]
            self._result.at = len(more)
            rows += more
        return rows

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        if not self._has_result():
            found: list[Any] = self._called("fetchall")
            return found
        rows = self._result.rows[self._result.at :] if self._result.at else self._result.rows
        self._result.rows = []
        self._result.at = 0
        if not self._result.is_done:
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
        return self._result.description is not None and not self._closed

    def _more(self, at_least: int) -> bool:
        """Have the next block here. False: there is nothing more."""
        self._raise_trouble()
        if self._result.is_done:
            self._hold.check()
            return False
        head = [self._handle, at_least]
        _, body = self._hold.answered("fetching rows", frames.FETCH, head)
        self._result.rows = self._block(body)
        self._result.at = 0
        return bool(self._result.rows)

    def _block(self, body: Any) -> list[Any]:
        data, shape, is_last = pickle.loads(body)  # noqa: S301  # see values.py
        if is_last:
            self._result.is_done = True
        return maker_of(shape, self._result.description)(unpacked(data))

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
        trouble = self._result.trouble
        if trouble is not None:
            self._result.trouble = None
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
        return self._result.lastrowid

    @property
    def description(self) -> Any:
        """Of the columns of the result; None: there is none."""
        return self._result.description

    @property
    def rowcount(self) -> int:
        """How many rows the last statement has changed, or gives, where the driver knows that."""
        return self._result.rowcount

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
        if (
            name in ("skip", "scroll")
            and not self._result.is_done
            and self._result.at < len(self._result.rows)
        ):
            args = self._from_where_the_host_is(name, args, kwargs)
        if name.startswith("fetch"):
            self._reopened()
            return self._hold.call(self._handle, name, args, kwargs)
        return self._run(name, False, args, kwargs)

    def _from_where_the_host_is(self, name: str, args: Any, kwargs: Any) -> Any:
        """The host has read further than our caller: a relative move begins there."""
        ahead = len(self._result.rows) - self._result.at
        if name == "scroll" and ("absolute" in args or kwargs.get("mode") == "absolute"):
            return args
        return (args[0] - ahead, *args[1:])

    def close(self) -> None:
        """Close it. In the host that happens with the next request, where nothing is left to be read."""
        if self._closed or self._hold.is_lost:
            return
        self._hold.check()
        is_done = self._result.is_done or self._result.description is None
        if is_done:
            self._hold.freed.append(self._handle)
            object.__setattr__(self, "_closed", True)
        else:
            object.__setattr__(self, "_closed", "there")
            self._hold.call(self._handle, "close", (), {})
        self._result.rows = []

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
