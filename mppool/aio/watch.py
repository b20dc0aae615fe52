"""What ends hooks that take too long: one timer of the loop for all of them, because hardly one ever does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from time import monotonic
from typing import Any

from mppool.worker.one_timer import OneTimer


class Watch:
    """Bounds hooks that run in tasks of the pool's own. All of it happens in one loop.

    State: `_due`, when the hook of each task is late, and `_late`, whose hooks have been cancelled for it. `_timer` is set
    while `_due` is not empty, for its earliest or an earlier one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._loop = loop
        self._timer = OneTimer(loop, self._look)

    async def bounded(self, awaitable: Awaitable[Any], seconds: float | None) -> Any:
        """Await it in a task that nobody else cancels; TimeoutError after so many seconds (None: no bound)."""
        task = asyncio.current_task(self._loop)
        if seconds is None or task is None:
            return await awaitable
        self._due[task] = due = monotonic() + seconds
        if due < self._timer.at:
            self._timer.ring_at(due)
        try:
            return await awaitable
        except asyncio.CancelledError:
            if task not in self._late:
                raise  # the loop is being ended
            if hasattr(task, "uncancel"):  # Python 3.11
                task.uncancel()
        finally:
            self._due.pop(task, None)
            if self._late:
                self._late.discard(task)
        raise TimeoutError

    def _look(self) -> None:
        now = monotonic()
        for task, due in list(self._due.items()):
            if due <= now:
                del self._due[task]
                self._late.add(task)
                task.cancel()
        if self._due:
            self._timer.ring_at(min(self._due.values()))
