"""What blocks, run in a thread of the pool's own for a task of an event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from mppool.process.executor import BackgroundExecutor

T = TypeVar("T")


async def in_thread(
    chores: BackgroundExecutor,
    function: Callable[[], T],
    unwanted: Callable[[T], object] | None = None,
) -> T:
    """Run a function that blocks in a thread of the pool's own; return what it returns, raise what it raises.

    unwanted: called with the result, in a thread, where the task was cancelled meanwhile.
    """
    work: _Work[T] = _Work(function, unwanted)
    chores.add(work.run)
    try:
        await work.done
    except GeneratorExit:  # perhaps by the garbage collector, in which no lock may be taken
        work.is_wanted = False
        if unwanted is not None:
            # Its thread may have come and gone, and the loop was closed before it heard of that.
            chores.add_in_finalizer(work.take_back)
        raise
    except BaseException:
        work.is_wanted = False
        chores.add(work.take_back)
        raise
    return work.result()


class _Work(Generic[T]):
    """Something that a thread does for a task.

    _outcome: the one that pops it owns the result. The thread appends first and reads `is_wanted` then; a task that leaves
        clears that first, and has a thread look for an outcome then.
    """

    def __init__(self, function: Callable[[], T], unwanted: Callable[[T], object] | None) -> None:
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self._loop.create_future()
        self.is_wanted = True
        self._function = function
        self._unwanted = unwanted
        self._outcome: deque[tuple[T | None, BaseException | None]] = deque()

    def run(self) -> None:
        """The thread's part."""
        try:
            self._outcome.append((self._function(), None))
        except BaseException as error:  # noqa: BLE001  # it is raised where it is awaited
            self._outcome.append((None, error))
        try:
            self._loop.call_soon_threadsafe(self._settle)
        except RuntimeError:  # the loop was closed: nobody awaits it
            self.is_wanted = False
        if not self.is_wanted:
            self.take_back()

    def _settle(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def take_back(self) -> None:
        """The task has left."""
        try:
            value, error = self._outcome.pop()
        except IndexError:
            return  # it is not there yet: its thread comes here then
        if error is None and self._unwanted is not None:
            self._unwanted(value)  # type: ignore[arg-type]

    def result(self) -> T:
        """The task's part."""
        value, error = self._outcome.pop()
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback refers to this frame
        return value  # type: ignore[return-value]
