"""What runs in one event loop on behalf of a pool: tasks that outlive the callers for whom they were made."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from mppool.logs import Log
from mppool.worker.ending import close_soon

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from mppool.worker.inventory import PoolEntry

log = Log("mppool")


class LoopTasks:
    """The tasks of one loop. `running` is kept because the loop itself refers to its tasks weakly.

    unbegun: releases whose tasks were cancelled before they began, and their resources; appended to in finalizers, emptied
        by the background thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.running: set[asyncio.Task[Any]] = set()
        self.unbegun: deque[tuple[Release, PoolEntry]] = deque()

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run it as a task that outlives its caller. Called in the loop."""
        task = self.loop.create_task(coroutine)
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        return task

    def end_unbegun(self) -> None:
        """Close what was never given back, and have its callers go on. Called by any thread."""
        while self.unbegun:
            try:
                release, entry = self.unbegun.popleft()
            except IndexError:  # another thread was quicker
                return
            close_soon(entry, "discarded")
            try:
                self.loop.call_soon_threadsafe(release.ends)
            except RuntimeError:
                log.debug("an event loop was closed with a release in it that had not begun")


class Release:
    """The end of a lease for which something has to be awaited: it goes on to its end, whatever becomes of its caller.

    It happens in a task of the loop that owns the resource. Until that has begun, its coroutine alone refers to this. A task
    that is cancelled before it begins drops the coroutine, and `__del__` sees what has not begun. (A callback of the task
    would see it too, and cost each release a turn of the loop.)

    _entry: None from `begins` on. _task: set from `begins` to `ends`. _done: what the caller awaits; None: it does not.
    """

    __slots__ = ("_done", "_entry", "_task", "_tasks")

    def __init__(self, tasks: LoopTasks, entry: PoolEntry) -> None:
        self._tasks = tasks
        self._entry: PoolEntry | None = entry
        self._done: asyncio.Future[None] | None = None
        self._task: asyncio.Task[Any] | None = None

    def start(
        self, work: Callable[[Release], Coroutine[Any, Any, None]], *, is_awaited: bool
    ) -> asyncio.Future[None] | None:
        """Run it in a task that a cancelled caller does not end; return what the caller awaits. Called in the loop."""
        loop = self._tasks.loop
        done = self._done = loop.create_future() if is_awaited else None
        loop.create_task(work(self))  # the loop keeps it until it begins, and then we do
        return done

    def begins(self) -> PoolEntry:
        """The resource. From now on the coroutine sees to it."""
        task = self._task = asyncio.current_task(self._tasks.loop)
        assert task is not None
        self._tasks.running.add(task)
        entry, self._entry = self._entry, None
        assert entry is not None
        return entry

    def ends(self) -> None:
        """The resource is on its shelf, or being closed: the caller goes on."""
        task, self._task = self._task, None
        if task is not None:
            self._tasks.running.discard(task)
        done = self._done
        if done is not None and not done.done():
            done.set_result(None)

    def __del__(self) -> None:
        # Runs at any instruction, whatever locks are held, also in the middle of `__init__`: only note it.
        entry = getattr(self, "_entry", None)
        if entry is not None:
            self._tasks.unbegun.append((self, entry))
            entry.local.member.wake()
