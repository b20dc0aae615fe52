"""Giving free slots of one pool: to those who wait for one, and for the shelf, up to `min_size`."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice

from mppool.core.capacity import BUDGET, Capacity
from mppool.core.decisions import NOBODY
from mppool.core.generations import Generations
from mppool.core.min_size import MinSize
from mppool.core.waiter import Waiter
from mppool.core.waiting import Waiting
from mppool.ids import ProcessId, Ticket

MOST_COUNTED = 16
"""Where there are bounds within the cap, so many waiters are looked at to see for how many a slot would be of use."""


class Service:
    """Who is served next, and how many more slots would be of use. It has no state: it reads that of others.

    grant: gives a process the right to open for a key, for a ticket and its lane.
    """

    def __init__(
        self,
        waiting: Waiting,
        capacity: Capacity,
        min_size: MinSize,
        generations: Generations,
        grant: Callable[[ProcessId, str, Ticket, float, str], None],
    ) -> None:
        self._waiting = waiting
        self._capacity = capacity
        self._min_size = min_size
        self._generations = generations
        self._grant = grant

    def serve(self, now: float) -> None:
        """Give free slots to those who wait, as far as the bounds allow."""
        while (waiter := self._next(now)) is not None:
            self._serve(waiter, now)

    def fill(self, key: str, now: float) -> None:
        """Have resources of the recipe's own identity opened until there are `min_size`."""
        if self._generations.closed:
            return
        while (process := self._min_size.next_opener(now)) is not None:
            self._grant(process, key, NOBODY, now, "")

    def _next(self, now: float) -> Waiter | None:
        """The first in line that may open now."""
        capacity = self._capacity
        if not self._waiting.by_name or capacity.awaited:
            return None
        if not capacity.is_below_cap() or capacity.opens_enough():
            return None
        line = self._waiting.in_line()
        return next((w for w in line if capacity.may_open(w.process, w.key, now)), None)

    def _serve(self, waiter: Waiter, now: float) -> None:
        self._waiting.served(waiter.process, waiter.ticket)
        self._grant(waiter.process, waiter.key, waiter.ticket, now, waiter.lane)

    # --- for a budget, which serves one pool after the other ----------------------------------------------

    def waits_since(self, now: float) -> float | None:
        """Since when the first waits that could be granted a slot now; -inf: it is for `min_size`; None: there is nobody."""
        self._capacity.slots.give_up_openings(now)
        waiter = self._next(now)
        if waiter is not None:
            return waiter.since
        return None if self._opener(now) is None else -math.inf

    def serve_one(self, key: str, now: float) -> None:
        """Give one slot: to who waits, else for the shelf. key: of the recipe's own identity."""
        waiter = self._next(now)
        if waiter is not None:
            self._serve(waiter, now)
        elif (process := self._opener(now)) is not None:
            self._grant(process, key, NOBODY, now, "")

    def _opener(self, now: float) -> ProcessId | None:
        if not self._min_size.size or self._generations.closed:
            return None
        return self._min_size.next_opener(now)

    def oldest_since(self) -> float:
        """Since when the one waits that came first of all; infinity where nobody waits."""
        return next((one.since for one in self._waiting.by_name.values()), math.inf)

    def wanted(self, now: float) -> int:
        """How many more slots would be of use if the budget had them."""
        capacity = self._capacity
        if not (self._waiting.by_name or self._min_size.size):
            return 0
        if self._generations.closed or capacity.awaited or capacity.opens_enough():
            return 0
        wanted = max(self._useful(now), self._min_size.wants(now))
        room = capacity.without(BUDGET)
        return wanted if room is None else max(0, min(wanted, room - capacity.staying(now)))

    def _useful(self, now: float) -> int:
        """For how many that wait a slot would be of use."""
        capacity, waiting = self._capacity, self._waiting
        if not waiting.by_name:
            return 0
        if not capacity.has_inner:
            return capacity.could_use(len(waiting.by_name), now)
        return sum(
            capacity.breakers.permit(head.key, now)
            and not capacity.blocked_by_identity(head)
            and not capacity.blocked_by_process(head)
            for head in islice(waiting.in_line(), MOST_COUNTED)
        )
