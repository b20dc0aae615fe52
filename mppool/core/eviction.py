"""Identities that nobody uses any more are forgotten.

An identity has a sub-pool: its slots, its waiters, its breaker. A resource that is idle for too
long goes by itself (`PoolBooks`), unless its identity is being asked for. With the last one the sub-pool is empty,
and is evicted at once: nothing is checked out then, in flight or waited for. `min_size` keeps only the sub-pool
of the recipe's own identity from becoming empty.

A breaker outlives its empty sub-pool, or a refused login would be tried again at once. What has long been
permitted to try again, and has not tried, is forgotten by a sweep, at most once per idle window. The sweep
rides on the events of the pool; it wakes nobody up.
"""

from __future__ import annotations

from mppool.core.breaker import Breakers
from mppool.core.table import SlotTable
from mppool.core.waiting import Waiting

SHORTEST_WINDOW_S = 1.0
WINDOW_WITHOUT_MAX_IDLE_S = 600.0

MOST_AT_ONCE = 16
"""So many breakers are looked at by one event."""


class Eviction:
    """When the next sweep may run."""

    def __init__(self, slots: SlotTable, waiting: Waiting, breakers: Breakers) -> None:
        self._slots = slots
        self._waiting = waiting
        self._breakers = breakers
        self._window_s = WINDOW_WITHOUT_MAX_IDLE_S
        self._next: float | None = None  # None: at once

    def configure(self, max_idle: float | None) -> None:
        """The pool was configured: the next sweep need not wait."""
        idle = WINDOW_WITHOUT_MAX_IDLE_S if max_idle is None else max_idle
        self._window_s = max(SHORTEST_WINDOW_S, idle)
        self._next = None

    def start_again(self) -> None:
        """The pool was closed: the next sweep need not wait."""
        self._next = None

    def sweep(self, now: float) -> None:
        """Forget the breakers of empty sub-pools that have been left alone for an idle window."""
        breakers = self._breakers
        if not breakers or (self._next is not None and now < self._next):
            return
        window = self._window_s
        before = len(breakers)
        for _ in range(MOST_AT_ONCE):
            # In front is what was left alone for longest: behind what is too young everything is.
            key, breaker = next(iter(breakers.items()))
            if breaker.retry_at + window > now:
                break
            if self._slots.by_key[key] or self._waiting.count_of_key(key):
                breakers.move_to_end(key)
            else:
                breakers.forget(key)
            if not breakers:
                break
        else:
            # The next event goes on, unless all of these are still needed.
            if len(breakers) < before:
                return
            window = SHORTEST_WINDOW_S
        self._next = now + window
