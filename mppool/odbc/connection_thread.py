"""ConnectionThread: the one thread in which all calls of one aioodbc connection run.

A statement whose task is cancelled goes on in its thread. With an executor of many threads, the rollback or the close that
follows runs in another one meanwhile, and drivers crash where two threads use one connection.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from mppool.odbc import driver_manager


class ConnectionThread(ThreadPoolExecutor):
    """Runs one call at a time, in the order of `submit`. Its thread ends when it is collected.

    _cursors: those that calls have returned, by id; used in its thread only. pyodbc closes a cursor with its last reference.
    So the last one is ours: in the event loop's thread it would be dropped beside a running call.
    """

    def __init__(self) -> None:
        super().__init__(1, "mppool-odbc")
        self._cursors: dict[int, Any] = {}
        self._cursor_type = driver_manager.load().Cursor

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See Executor.submit."""
        return super().submit(self._call, fn, args, kwargs)

    def _call(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._cursors = _used_elsewhere(self._cursors)
        result = fn(*args, **kwargs)
        if isinstance(result, self._cursor_type):
            self._cursors[id(result)] = result
        return result


def _used_elsewhere(things: dict[int, Any]) -> dict[int, Any]:
    """Those that somebody else also refers to."""
    return {
        key: things[key] for key, count in _references(things).items() if count > _OWN_REFERENCES
    }


def _references(things: dict[int, Any]) -> dict[int, int]:
    """How many references each has, with those that this dictionary and this function need."""
    return {key: sys.getrefcount(thing) for key, thing in things.items()}


_OWN_REFERENCES = _references({0: object()})[0]


def call_in_turn(connection: Any) -> None:
    """From now on, the calls of this connection run one after the other. The application's own executor stays."""
    if connection._executor is None:
        connection._executor = ConnectionThread()


def close_without_loop(connection: Any) -> None:
    """Close the connection below. Raises what the driver raises.

    In a ConnectionThread it is closed after the call that runs there, however long that takes. An executor of the
    application's with several threads closes it beside that call.
    """
    below, connection._conn = connection._conn, None
    if below is None:
        return
    try:
        closing = connection._executor.submit(below.close)
    except RuntimeError:  # the executor takes no more calls
        below.close()
    else:
        closing.result()


def leave_to_executor(connection: Any) -> None:
    """After a close that was interrupted: aioodbc's finalizer must not close a second time.

    The close may be running in the executor, and pyodbc crashes where two threads close one connection. If it never
    began, pyodbc closes its connection when the last reference is gone.
    """
    connection._conn = None
