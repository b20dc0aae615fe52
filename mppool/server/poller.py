"""Which descriptors can be read or written now, and which part is told: epoll, without the layers of `selectors`.

A server answers a question in a few microseconds, and every one of them counts sixteen times when sixteen
processes ask: a generic selector's bookkeeping took longer than the decision.
"""

from __future__ import annotations

import os
import select
from time import monotonic
from typing import Generic, TypeVar

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
EVENTS_AT_ONCE = 256

BRISK, BRISK_S = 8, 0.0002
"""Where the same peer has ended so many sleeps in a row so soon, the server waits for it awake the next time,"""
AWAKE_S = 0.00005
"""for so long. If it does not come, the server sleeps again, and the counting starts again."""

H = TypeVar("H")


class Poller(Generic[H]):
    """Descriptors, and for each the part that is concerned. It belongs to the loop's thread.

    A process that asks one question after the other would have us woken for each, on another CPU; that takes
    longer than the whole exchange. So such a one is waited for awake for a moment, while others may have our CPU.

    _last: the peer that ended the last sleep; brisk: how many in a row it has ended almost at once.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._concerned: dict[int, H] = {}
        self._last: H | None = None
        self.brisk = 0
        self._has_one_cpu = len(os.sched_getaffinity(0)) == 1  # nobody could ask while we are awake

    def register(self, descriptor: int, concerned: H) -> None:
        """Wait for something to read. OSError where the system has no room for it (fs.epoll.max_user_watches)."""
        self._epoll.register(descriptor, READ)
        self._concerned[descriptor] = concerned

    def modify(self, descriptor: int, events: int) -> None:
        """Wait for these events from now on: READ, or READ | WRITE."""
        self._epoll.modify(descriptor, events)

    def unregister(self, descriptor: int) -> None:
        """Wait no longer. The descriptor must still be open; where it was never registered, nothing is done."""
        if self._concerned.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def at_once(self) -> list[tuple[H, int]]:
        """The parts that are concerned, and the events, without sleeping.

        An event that is not asked for, an error or an end, concerns reading and writing.
        """
        ready = self._ready(0.0)
        if self.brisk:
            if not ready and self.brisk < BRISK:
                return ready
            ready = ready or self._awake()
            if not self._is_the_same_alone(ready):
                self.brisk = 0
        return ready

    def wait(self, timeout: float) -> list[tuple[H, int]]:
        """The same, empty after `timeout` seconds."""
        if self._has_one_cpu:
            return self._ready(timeout)
        brisk_until = monotonic() + BRISK_S
        ready = self._ready(timeout)
        is_brisk = self._is_the_same_alone(ready) and monotonic() < brisk_until
        self.brisk = self.brisk + 1 if is_brisk else 0
        self._last = ready[0][0] if ready else None
        return ready

    def close(self) -> None:
        """Let go of everything; the descriptors stay open."""
        self._epoll.close()
        self._concerned.clear()

    def _ready(self, timeout: float) -> list[tuple[H, int]]:
        concerned = self._concerned
        # All are looked up before any is told: a descriptor that is closed meanwhile may be another's by then.
        return [
            (concerned[descriptor], events)
            for descriptor, events in self._epoll.poll(timeout, EVENTS_AT_ONCE)
        ]

    def _awake(self) -> list[tuple[H, int]]:
        until = monotonic() + AWAKE_S
        while monotonic() < until:
            os.sched_yield()
            ready = self._ready(0.0)
            if ready:
                return ready
        return []

    def _is_the_same_alone(self, ready: list[tuple[H, int]]) -> bool:
        return len(ready) == 1 and ready[0][0] is self._last
