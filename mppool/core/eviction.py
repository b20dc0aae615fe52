"""Identities that nobody uses any more are forgotten.

What is kept of an identity is a sub-pool: its slots, its waiters, its breaker. A resource that is idle for too
long goes by itself (`upkeep`), unless its identity is being asked for; with the last one the sub-pool is empty,
and is evicted at once: nothing is checked out then, in flight or waited for. `min_size` keeps only the sub-pool
of the recipe's own identity from becoming empty.

A breaker outlives its empty sub-pool, or a refused login would be tried again at once. What has long been
permitted to try again, and has not tried, is forgotten by a sweep, at most once per idle window. The sweep
rides on whatever happens in the pool; it wakes nobody up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mppool.core.pool import PoolBooks

SHORTEST_WINDOW_S = 1.0
WINDOW_WITHOUT_MAX_IDLE_S = 600.0

MOST_AT_ONCE = 16
"""So many breakers are looked at by one event."""


class Eviction:
    """State beside that of `PoolBooks`. _next: when the next sweep may run; None: at once."""

    def __init__(self) -> None:
        self._next: float | None = None

    def afresh(self) -> None:
        """The pool was reconfigured or closed: the next sweep need not wait."""
        self._next = None

    def emptied(self, books: PoolBooks, key: str) -> None:
        """A resource of this key is gone: if it was the last of another identity, that is evicted."""
        if key != books.upkeep.key and not books.slots.by_key[key]:
            books.counters["evicted_identities"] += 1

    def is_asked_for(self, books: PoolBooks, key: str) -> bool:
        """Whether anybody waits for a resource of this key."""
        return books.waiting.count_of_key(key) > 0

    def sweep(self, books: PoolBooks, now: float) -> None:
        """Forget the breakers of empty sub-pools that have been left alone for an idle window."""
        if not books.breakers or (self._next is not None and now < self._next):
            return
        window = self._window(books)
        before = len(books.breakers)
        for _ in range(MOST_AT_ONCE):
            # In front is what was left alone for longest: behind what is too young everything is.
            key, breaker = next(iter(books.breakers.items()))
            if breaker.retry_at + window > now:
                break
            if books.slots.by_key[key] or self.is_asked_for(books, key):
                books.breakers.move_to_end(key)
            else:
                books.breakers.forget(key)
            if not books.breakers:
                break
        else:
            # The next event goes on, unless all of these are still needed.
            if len(books.breakers) < before:
                return
            window = SHORTEST_WINDOW_S
        self._next = now + window

    def _window(self, books: PoolBooks) -> float:
        idle = books.options.max_idle
        return max(SHORTEST_WINDOW_S, WINDOW_WITHOUT_MAX_IDLE_S if idle is None else idle)
