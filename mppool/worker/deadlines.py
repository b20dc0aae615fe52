"""When the waiting tasks of an event loop have waited for long enough: one timer of the loop for all of them.

Most are answered long before. A timer for each takes longer to make, and to throw away, than all else of its wait.
"""

from __future__ import annotations

import itertools
from heapq import heapify, heappop, heappush
from time import monotonic
from typing import TYPE_CHECKING

from mppool.worker.one_timer import OneTimer

if TYPE_CHECKING:
    import asyncio

_SPARE = 64


class Deadlines:
    """Of one desk. All of it happens in its loop.

    _heap: when, a number that tells equals apart, and the future of each that waits, the earliest first. Those that are
        done leave it when there are many of them: `_tidy_at` is so many that it is worth while to look.
    _timer: set for the earliest of the heap, or an instant before that.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._heap: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._tidy_at = _SPARE
        self._timer = OneTimer(loop, self._look)

    def begins(self, future: asyncio.Future[None], until: float) -> None:
        """A task is going to wait for this future, which is set at that instant at the latest."""
        heap = self._heap
        heappush(heap, (until, next(self._numbers), future))
        if until < self._timer.at:
            self._timer.ring_at(until)
        if len(heap) > self._tidy_at:
            self.tidy_up()

    def tidy_up(self) -> None:
        """Keep only those that wait, and no timer where nobody does."""
        self._heap = [entry for entry in self._heap if not entry[2].done()]
        heapify(self._heap)
        self._tidy_at = 2 * len(self._heap) + _SPARE
        if not self._heap:
            self._timer.cancel()

    def _look(self) -> None:
        heap, now = self._heap, monotonic()
        while heap:
            until, _, future = heap[0]
            if not future.done():
                if until > now:
                    self._timer.ring_at(until)
                    return
                future.set_result(None)
            heappop(heap)
