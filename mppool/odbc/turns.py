"""Turns: the thread in which all calls of one ODBC connection run, for connections of event loops.

A statement whose task is cancelled goes on in its thread. With an executor of many threads, the rollback or the close that
follows runs in another one meanwhile, and drivers crash where two threads use one connection.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from mppool.odbc import driver_manager


class Turns(ThreadPoolExecutor):
    """Runs one call at a time, in the order of `submit`. Its thread ends when it is collected.

    _cursors: those that calls have returned, by id; used in its thread only. pyodbc closes a cursor with its last reference.
    So the last one is ours: in the event loop's thread it would be dropped beside a running call.
    """

    def __init__(self) -> None:
        super().__init__(1, "mppool-odbc")
        self._cursors: dict[int, Any] = {}
        self._cursor_type = driver_manager.load().Cursor

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As an executor's."""
        return super().submit(self._call, fn, args, kwargs)

    def _call(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._cursors = _used_elsewhere(self._cursors)
        result = fn(*args, **kwargs)
        if isinstance(result, self._cursor_type):
            self._cursors[id(result)] = result
        return result


def _used_elsewhere(things: dict[int, Any]) -> dict[int, Any]:
    """Those of which somebody else has a reference, too."""
    return {key: things[key] for key, count in _references(things).items() if count > _OURS}


def _references(things: dict[int, Any]) -> dict[int, int]:
    """How many references each has, with those that this dictionary and this function need."""
    return {key: sys.getrefcount(thing) for key, thing in things.items()}


_OURS = _references({0: object()})[0]
