"""What is asked of a resource in a host, on behalf of one lease, and how the answer leaves."""

from __future__ import annotations

import io
import marshal
import pickle
from collections.abc import Iterator
from typing import Any

from mppool.errors import PoolError
from mppool.hosting import frames
from mppool.hosting.lost import driver_of
from mppool.hosting.rows import FEW, MOST_DESCRIPTIONS, Reader, packed, shape_of
from mppool.hosting.values import ToWorker
from mppool.logs import Log

log = Log("mppool.hosting")

ROOT = 0
"""The handle of the resource itself."""

_SCALARS = frozenset({type(None), bool, int, float, str, bytes})

# Special methods that a proxy has where its object has them.
_SPECIAL = (
    "__call__", "__len__", "__bool__", "__iter__", "__next__", "__contains__", "__getitem__", "__setitem__",
    "__delitem__", "__enter__", "__exit__", "__int__", "__float__", "__index__",
)  # fmt: skip

_PREFETCHED = frozenset({"execute", "callproc", "nextset", "executemany", "executescript"})

Answer = tuple[int, bytes]


class Facts:
    """What a worker is told of a type, once: its name, methods and special methods, what kind of thing it is, and its driver."""

    def __init__(self, kind: type) -> None:
        public = [name for name in dir(kind) if not name.startswith("_")]
        methods = [name for name in public if callable(getattr(kind, name, None))]
        special = [
            name
            for name in _SPECIAL
            if getattr(kind, name, None) is not getattr(object, name, None)
        ]
        is_cursor = {"execute", "fetchone", "fetchmany", "close"} <= set(methods)
        is_connection = {"cursor", "commit", "rollback", "close"} <= set(methods)
        word = "cursor" if is_cursor else "connection" if is_connection else "object"
        name = f"{kind.__module__}.{kind.__qualname__}"
        driver = driver_of(kind) if is_connection else ""
        self.told = (name, tuple(methods), tuple(special), word, driver)
        self.word = word


_facts: dict[type, Facts] = {}


def facts_of(kind: type) -> Facts:
    """What is told of a type."""
    found = _facts.get(kind)
    if found is None:
        found = _facts.setdefault(kind, Facts(kind))
    return found


class Told:
    """What the worker at the other end of a stream has been told, and need not be told again. It outlives leases.

    types: whose facts it has. _numbers: of descriptions, each of which has another one: an answer that nobody has read
    to its end leaves a number unknown there, never one that means something else. number: of a description that was told.
    """

    def __init__(self) -> None:
        self.types: set[type] = set()
        self._numbers: dict[Any, int] = {}
        self._next = 1
        self.number = self._numbers.get

    def of(self, description: Any) -> Any:
        """What says this description: its number, or both. The number 0 is never repeated."""
        try:
            number = self._numbers.get(description)
        except TypeError:  # it cannot be hashed: a list, as some drivers have it
            return 0, _travelling(description)
        if number is not None:
            return number
        if len(self._numbers) >= MOST_DESCRIPTIONS:
            self._numbers.clear()
        number, self._next = self._next, self._next + 1
        self._numbers[description] = number
        return number, _travelling(description)


class Use:
    """One lease on a resource. Its handles end with it.

    _handles: what the worker has been given, by handle; even numbers are ours, odd ones the worker's.
    _of: the handle of each of these, by id, which is theirs as long as they are here.
    running: the cursor whose method runs. unread: handles of cursors whose rows have not all left yet.
    """

    def __init__(self, resource: Any, told: Told, handles: dict[int, Any]) -> None:
        """handles: empty; what decodes the requests of the stream looks into it."""
        self.resource = resource
        handles[ROOT] = resource
        self._handles = handles
        self._of: dict[int, int] = {id(resource): ROOT}
        self._readers: dict[int, Reader] = {}
        self._next = 2
        self._told = told
        self.running: Any = None
        self.unread: set[int] = set()

    def end(self) -> None:
        """Forget everything, cursors first: what is open on a connection keeps it from being reset."""
        self._readers.clear()
        self.unread.clear()
        self.running = None
        self._handles.clear()
        self._of.clear()
        self.resource = None

    def forget(self, handles: list[int]) -> None:
        """Proxies of these are gone."""
        for handle in handles:
            self._readers.pop(handle, None)
            self.unread.discard(handle)
            found = self._handles.pop(handle, None)
            if found is not None:
                self._of.pop(id(found), None)

    def introduced(self) -> bytes:
        """What the worker is told of the resource at its checkout."""
        return pickle.dumps(self._keep(self.resource), 5)

    # --- any object ---------------------------------------------------------------------------------------

    def call(self, handle: int, name: str, args: Any, kwargs: Any) -> Answer:
        """Call a method, or with "" the object itself."""
        thing = self._found(handle)
        if name.startswith("__"):
            # Special methods belong to the type. A `with` block tells whether an exception ended it.
            if name == "__exit__" and args[0] is not None:
                error = RuntimeError("an exception ended the block in the worker")
                args = (RuntimeError, error, None)
            result = getattr(type(thing), name)(thing, *args, **kwargs)
        else:
            result = getattr(thing, name)(*args, **kwargs)
        return frames.VALUE, self._body(result)

    def get(self, handle: int, name: str) -> Answer:
        """An attribute; what can be called stays here."""
        value = getattr(self._found(handle), name)
        if callable(value) and not isinstance(value, type):
            return frames.IS_CALLABLE, b""
        return frames.VALUE, self._body(value)

    def set(self, handle: int, name: str, value: Any) -> Answer:
        """Set an attribute."""
        setattr(self._found(handle), name, value)
        return frames.VALUE, self._body(None)

    # --- cursors ------------------------------------------------------------------------------------------

    def run(self, handle: int, of_connection: bool, name: str, args: Any, kwargs: Any) -> Answer:
        """Call a method of a cursor, which is made where it is not there yet, or one that makes it.

        The answer says how the cursor is then, and has the first rows.
        """
        if of_connection:
            result = cursor = self._run_on_connection(name, args, kwargs)
            if facts_of(type(cursor)).word != "cursor":
                return frames.VALUE, pickle.dumps((False, self._body(result)), 5)
            self._put(handle, cursor)
        else:
            cursor = self._cursor(handle)
            result = getattr(cursor, name)(*args, **kwargs)
        self.running = cursor  # until the next: rows may be fetched from it
        wants_rows = result is cursor or name in _PREFETCHED
        returned = None if result is cursor else self._body(result)
        return self._state(handle, cursor, returned, wants_rows)

    def execute(self, handle: int, of_connection: bool, statement: str, parameters: Any) -> Answer:
        """What `run` does, for a statement. parameters: a tuple, a dictionary, or None."""
        if of_connection:
            arguments = (statement,) if parameters is None else (statement, parameters)
            return self.run(handle, True, "execute", arguments, {})
        cursor = self.running
        if cursor is None or self._handles.get(handle) is not cursor:
            cursor = self._cursor(handle)
        if parameters is None:
            result = cursor.execute(statement)
        else:
            result = cursor.execute(statement, parameters)
        if result is not cursor:
            return self._state(handle, cursor, self._body(result), True)
        # The usual case is not told by other functions: each takes half a microsecond, because what runs between two
        # requests is another process, which leaves nothing in the caches.
        number, rows, told = None, None, self._told
        description = cursor.description
        if description is not None:
            try:
                number = told.number(description)
            except TypeError:  # it cannot be hashed: a list, as some drivers have it
                number = None
            if number is None:
                return self._state(handle, cursor, None, True)
            try:
                rows = cursor.fetchmany(FEW)
            except Exception as error:  # noqa: BLE001  # it is raised where rows are fetched
                return self._state(handle, cursor, None, True, trouble=error_body(error))
        is_usual = type(cursor) in told.types and (
            not rows or (len(rows) < FEW and type(rows) is list and type(rows[0]) is tuple)
        )
        if is_usual:
            if self.unread:
                self.unread.discard(handle)
            last = getattr(cursor, "lastrowid", None)
            state = (None, number, cursor.rowcount, last, None, rows or None, True, None, None)
            try:
                return frames.STATE, marshal.dumps(state)
            except ValueError:
                pass  # rows that marshal does not know
        return self._state(handle, cursor, None, True, rows)

    def _cursor(self, handle: int) -> Any:
        """Whose method runs now."""
        cursor = self._handles.get(handle)
        if cursor is None:
            cursor = self.resource.cursor()
            self._put(handle, cursor)
        self.running = cursor
        return cursor

    def _run_on_connection(self, name: str, args: Any, kwargs: Any) -> Any:
        """Where a cursor does the same, it is one that can be cancelled."""
        if name == "execute" and type(self.resource).__module__ == "pyodbc":
            self.running = self.resource.cursor()
            return self.running.execute(*args, **kwargs)
        return getattr(self.resource, name)(*args, **kwargs)

    def cancel(self) -> bool:
        """End what a cursor does, where its driver can do that from another thread. False: it cannot."""
        tell = getattr(self.running, "cancel", None)
        if not callable(tell):
            return False
        tell()
        return True

    def _state(
        self,
        handle: int,
        cursor: Any,
        returned: bytes | None,
        wants_rows: bool,
        few: Any = None,
        trouble: bytes | None = None,
    ) -> Answer:
        """What a cursor has come to. few: rows that were read already. trouble: what reading them has raised."""
        description = cursor.description
        reader = self._readers.get(handle)
        if reader is None or reader.cursor is not cursor:
            reader = self._readers[handle] = Reader(cursor)
        rows: Any = None
        is_done = description is None
        shape = None
        if wants_rows and not is_done and trouble is None:
            try:
                rows, is_done = reader.first(few)
            except Exception as error:  # noqa: BLE001  # it is raised where rows are fetched
                trouble = error_body(error)
            if rows and type(rows[0]) is not tuple:
                shape = shape_of(rows[0])
                if shape is not None:
                    rows = list(map(tuple, rows))
        if not is_done:
            self.unread.add(handle)
        elif self.unread:
            self.unread.discard(handle)
        facts = None
        told = self._told
        if type(cursor) not in told.types:
            facts = facts_of(type(cursor)).told
            told.types.add(type(cursor))
        said = None if description is None else told.of(description)
        state = (
            returned, said, cursor.rowcount, getattr(cursor, "lastrowid", None), shape, rows or None, is_done, trouble,
            facts,
        )  # fmt: skip
        try:
            return frames.STATE, marshal.dumps(state)
        except (
            ValueError
        ):  # a new description, rows that marshal does not know, a lastrowid of a driver's own kind
            return frames.VALUE, self._pickled(state)

    def _pickled(self, state: tuple[Any, ...]) -> bytes:
        rows = state[5]
        state = (*state[:5], None if rows is None else packed(rows, None), *state[6:])
        try:
            return pickle.dumps(state, 5)
        except Exception:  # noqa: BLE001  # the lastrowid
            return pickle.dumps((*state[:3], None, *state[4:]), 5)

    def fetch(self, handle: int, count: int | None) -> Iterator[Answer]:
        """Rows of a cursor: so many or more, in one frame; or all, in as many as it takes."""
        reader = self._readers.get(handle)
        if reader is None:
            reader = self._readers[handle] = Reader(self._found(handle))
        blocks = reader.blocks() if count is None else iter([reader.block(count)])
        for data, shape, is_last in blocks:
            if is_last:
                self.unread.discard(handle)
            kind = frames.MORE if count is None and not is_last else frames.VALUE
            yield kind, pickle.dumps((data, shape, is_last), 5)

    # --- handles ------------------------------------------------------------------------------------------

    def _found(self, handle: int) -> Any:
        try:
            return self._handles[handle]
        except KeyError:
            if handle % 2:  # a cursor that the worker has made, and not used before
                cursor = self.resource.cursor()
                self._put(handle, cursor)
                return cursor
            raise PoolError("what this proxy stands for is gone from the host") from None

    def _put(self, handle: int, thing: Any) -> None:
        self.unread.discard(handle)
        self._readers.pop(handle, None)
        self._handles[handle] = thing
        self._of[id(thing)] = handle

    def _keep(self, thing: Any) -> tuple[int, Any]:
        """Keep an object here; what stands for it in an answer."""
        handle = self._of.get(id(thing))
        if handle is None:
            handle, self._next = self._next, self._next + 2
            self._put(handle, thing)
        facts = facts_of(type(thing))
        if type(thing) in self._told.types:
            return handle, facts.told[0]
        self._told.types.add(type(thing))
        return handle, facts.told

    def _body(self, value: Any) -> bytes:
        if type(value) in _SCALARS:
            return pickle.dumps(value, 5)
        file = io.BytesIO()
        ToWorker(file, self._keep).dump(value)
        return file.getvalue()


def _travelling(description: Any) -> Any:
    """A description that pickles: drivers have columns of their own kinds."""
    if description is None:
        return None
    try:
        pickle.dumps(description, 5)
    except Exception:  # noqa: BLE001  # what it is made of stays, as texts where need be
        return tuple(
            tuple(one if type(one) in _SCALARS else str(one) for one in column)
            for column in description
        )
    return description


def error_body(error: BaseException) -> bytes:
    """An exception of the same class with the same arguments, and its cause."""
    return pickle.dumps(
        (_travels(error), None if error.__cause__ is None else _travels(error.__cause__)), 5
    )


def _travels(error: BaseException) -> BaseException:
    """The error itself where it can be pickled and read again, else the most like it that can."""
    if _can_travel(error):
        return error
    arguments = [one if type(one) in _SCALARS else str(one) for one in error.args]
    for kind in type(error).__mro__:
        if kind in (Exception, BaseException, object):
            break
        try:
            made = kind(*arguments)
        except Exception:
            log.debug(
                "%s takes other arguments than it keeps: its base is tried", kind, exc_info=True
            )
            continue
        if isinstance(made, BaseException) and _can_travel(made):
            return made
    return PoolError(f"{type(error).__module__}.{type(error).__qualname__}: {error}")


def _can_travel(error: BaseException) -> bool:
    try:
        again = pickle.loads(pickle.dumps(error, 5))  # noqa: S301  # what was pickled here a moment ago
    except Exception:
        log.debug("%s cannot be pickled and read again", type(error), exc_info=True)
        return False
    return type(again) is type(error)
