"""Which descriptors can be read or written now, and which part is told: epoll, without the layers of `selectors`.

A server answers a question in a few microseconds, and every one of them counts sixteen times when sixteen
processes ask: a generic selector's bookkeeping took longer than the decision.
"""

from __future__ import annotations

import os
import select
from collections import deque
from time import monotonic
from typing import Generic, TypeVar

from mppool.process.alertness import Alertness

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
NOT_READ, NOT_WRITE = ~READ, ~WRITE
"""Whatever else there is, errors and ends among it."""
EVENTS_AT_ONCE = 256

BRISK_S = 0.001
"""Where the same peers end one sleep after the other so soon, the server waits for them awake the next time (see Alertness),"""
AWAKE_S = 0.0002
"""for so long: a process that is woken on an idle CPU has asked again by then."""
FEW = 2
"""More peers than this are not waited for awake: where three or more ask again and again, one of them mostly has asked
before the server is ready for the next."""

H = TypeVar("H")


class Poller(Generic[H]):
    """Descriptors, and for each the part that is concerned. It belongs to the loop's thread.

    A process that asks one question after the other would have us woken for each, on another CPU; that takes
    longer than the whole exchange. So such a one, or two, are waited for awake for a moment, while others may have our CPU.

    _few: the peers that ended the last sleeps. alertness: counts those that these have ended almost at once, and says
        whether the next wait begins awake. has_one_cpu: it never does.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._concerned: dict[int, H] = {}
        self._few: deque[H] = deque(maxlen=FEW)
        self.alertness = Alertness()
        self.has_one_cpu = len(os.sched_getaffinity(0)) == 1  # nobody could ask while we are awake

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
        return self._awake() if self.alertness.is_awake else self._ready(0.0)

    def wait(self, timeout: float) -> list[tuple[H, int]]:
        """The same, empty after `timeout` seconds."""
        if self.has_one_cpu:
            return self._ready(timeout)
        if self.alertness.is_awake and (ready := self._awake()):
            return ready
        brisk_until = monotonic() + BRISK_S
        ready = self._ready(timeout)
        self.alertness.has_slept(briefly=self._are_known(ready) and monotonic() < brisk_until)
        return ready

    def close(self) -> None:
        """Let go of everything; the descriptors stay open."""
        self._epoll.close()
        self._concerned.clear()

    def _ready(self, timeout: float) -> list[tuple[H, int]]:
        concerned = self._concerned
        found = self._epoll.poll(timeout, EVENTS_AT_ONCE)
        if len(found) == 1:  # as most of the time
            descriptor, events = found[0]
            return [(concerned[descriptor], events)]
        # All are looked up before any is told: a descriptor that is closed meanwhile may be another's by then.
        return [(concerned[descriptor], events) for descriptor, events in found]

    def _awake(self) -> list[tuple[H, int]]:
        """Wait for the same peers awake. If none comes, or others do, the next sleeps begin the counting again."""
        ready, until, is_soon = self._ready(0.0), monotonic() + AWAKE_S, True
        while not ready and is_soon:
            os.sched_yield()
            ready, is_soon = self._ready(0.0), monotonic() < until
        # What came later found our CPU with others: on a busy machine one that sleeps gets it back earlier.
        if not (ready and is_soon):
            self.alertness.was_in_vain()
        elif self._are_known(ready):
            self.alertness.has_paid()
        else:
            self.alertness.begin_again()
        return ready

    def _are_known(self, ready: list[tuple[H, int]]) -> bool:
        """Whether somebody is ready, and only those that were last. Others count as such from now on."""
        known = bool(ready)
        for concerned, _ in ready:
            if concerned not in self._few:
                self._few.append(concerned)
                known = False
        return known
