"""An event loop of a simulated process: asyncio's own, over the simulated clock, and asleep as any simulated thread is.

What asyncio keeps for the thread of the system (which loop runs, the hooks of asynchronous generators) is exchanged
when another simulated thread runs, see `Scheduler.exchange`.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.base_events import BaseEventLoop
from typing import TYPE_CHECKING, Any

from tests.simulation.scheduler import current_thread, here, monotonic, point
from tests.simulation.threads import has_not_slept

if TYPE_CHECKING:
    from collections.abc import Coroutine

LONGEST_STEP_S = 0.1
"""So long a loop may be busy between two looks at the clock, in a world in which nothing but waiting takes time."""


class SimTask(asyncio.Task[Any]):
    """Hashed by its number, so that sets of tasks have one order for each seed."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], **more: Any) -> None:
        scheduler = here.scheduler
        scheduler.tasks = self.number = scheduler.tasks + 1
        super().__init__(coroutine, **more)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class _InOrder(dict[Any, None]):
    """Asynchronous generators: in the order in which they began."""

    def add(self, generator: Any) -> None:
        self[generator] = None

    def discard(self, generator: Any) -> None:
        self.pop(generator, None)


class SimLoop(BaseEventLoop):
    """Made in the thread that runs it.

    _sleeper: the thread, while it sleeps. _is_woken: what is to be done has come meanwhile. _awake_since: when it last
    came back from sleep, in seconds for which its process could run. uses: tasks that check out; the oldest one comes first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.set_debug(False)
        self.set_task_factory(_task)
        self._process = current_thread().process
        self._selector: Any = self
        self._asyncgens: Any = _InOrder()
        self._sleeper: Any = None
        self._is_woken = False
        self._awake_since = 0.0
        self.tasks: dict[SimTask, None] = {}
        self.uses: dict[SimTask, None] = {}
        self.current: Any = None  # the task, while another thread runs: Python 3.14

    def __del__(self, _warn: Any = None) -> None:
        """A process that is killed closes nothing."""

    def time(self) -> float:
        return monotonic()

    def run_forever(self) -> None:
        thread, scheduler = current_thread(), here.scheduler
        thread.loop = scheduler.running = self
        self._awake_since = self._clock()
        try:
            super().run_forever()
        finally:
            thread.loop = scheduler.running = None

    def finish(self) -> None:
        """What asyncio.run does in the end."""
        left = list(self.tasks)
        for task in left:
            task.cancel()
        if left:
            self.run_until_complete(_all_ended(left))
        self.run_until_complete(self.shutdown_asyncgens())
        self.close()

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Nothing fails unseen."""
        if self.is_closed():
            return
        error = context.get("exception")
        self._process.kernel.trouble(
            f"a loop of {self._process} says: {context['message']}"
            + ("" if error is None else f": {error!r}")
        )

    # --- what it sleeps on ---------------------------------------------------------------------------------

    def _clock(self) -> float:
        return float(here.scheduler.now) - self._process.stopped_so_far()

    def select(self, timeout: float | None) -> list[Any]:
        busy = self._clock() - self._awake_since
        if busy > LONGEST_STEP_S:
            self._process.kernel.trouble(f"a loop of {self._process} was blocked for {busy:.3f} s")
        if timeout is not None and timeout <= 0:
            has_not_slept()
            point()
        elif not self._is_woken:
            self._sleeper = current_thread()
            here.scheduler.block(None if timeout is None else here.scheduler.now + timeout)
            self._sleeper = None
        self._is_woken = False
        self._awake_since = self._clock()
        return []

    def _process_events(self, events: list[Any]) -> None:
        """Nothing is read or written in a loop."""

    def _write_to_self(self) -> None:
        self._is_woken = True
        if self._sleeper is not None:
            here.scheduler.wake(self._sleeper)


def _task(loop: SimLoop, coroutine: Any, **more: Any) -> SimTask:
    task = SimTask(coroutine, loop=loop, **more)
    loop.tasks[task] = None
    task.add_done_callback(lambda _: loop.tasks.pop(task, None))
    return task


async def _all_ended(tasks: list[SimTask]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


_OF_THE_THREAD = sys.version_info >= (3, 14)


def exchange(old: SimLoop | None, new: SimLoop | None) -> None:
    """The thread of the system runs another simulated thread, and so another loop, or none."""
    if _OF_THE_THREAD and old is not None:
        old.current = asyncio.tasks._swap_current_task(old, None)  # type: ignore[attr-defined]
    asyncio._set_running_loop(new)
    if new is None:
        sys.set_asyncgen_hooks(None, None)
        return
    sys.set_asyncgen_hooks(new._asyncgen_firstiter_hook, new._asyncgen_finalizer_hook)
    if _OF_THE_THREAD:
        asyncio.tasks._swap_current_task(new, new.current)  # type: ignore[attr-defined]
