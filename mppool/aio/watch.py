"""What ends hooks that take too long: one timer of the loop for all of them, because hardly one ever does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from time import monotonic
from typing import Any


class Watch:
    """Bounds hooks that run in tasks of the pool's own. All of it happens in one loop.

    State: `_due`, when the hook of each task is late, and `_late`, whose hooks have been cancelled for it. `_timer` is set
    while `_due` is not empty, for the instant `_at`: its earliest or an earlier one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0

    async def bounded(self, awaitable: Awaitable[Any], seconds: float | None) -> Any:
        """Await it in a task that nobody else cancels; TimeoutError after so many seconds (None: no bound)."""
        task = asyncio.current_task()
        if seconds is None or task is None:
            return await awaitable
        self._due[task] = due = monotonic() + seconds
        if self._timer is None or due < self._at:
            self._look_at(due)
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

    def _look_at(self, instant: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._at = instant
        self._timer = self._loop.call_later(max(0.0, instant - monotonic()), self._look)

    def _look(self) -> None:
        self._timer = None
        now = monotonic()
        for task, due in list(self._due.items()):
            if due <= now:
                del self._due[task]
                self._late.add(task)
                task.cancel()
        if self._due:
            self._look_at(min(self._due.values()))
