"""Resources that are kept open although nobody waits."""

from __future__ import annotations

import math

from mppool.core.capacity import Capacity
from mppool.core.decisions import Readiness
from mppool.core.declarations import Declarations
from mppool.core.slot import Slot
from mppool.ids import ProcessId


class MinSize:
    """How many resources are kept open for the recipe's own identity. They hold no other identity alive.

    wanted: whether anybody has ever wanted a resource; nothing is opened before.
    """

    def __init__(self, pool: str, capacity: Capacity, declarations: Declarations) -> None:
        self.size = 0
        self.wanted = False
        self._pool = pool
        self._capacity = capacity
        self._slots = capacity.slots
        self._breakers = capacity.breakers
        self._declarations = declarations

    def configure(self, size: int) -> None:
        """So many are kept from now on."""
        self.size = size

    def want(self) -> None:
        """Somebody wants a resource."""
        self.wanted = True

    def next_opener(self, now: float) -> ProcessId | None:
        """Which process is to open one more; None: none is missing, or none may.

        They are spread over the processes that have declared what is opened here: another declaration opens
        something else under the same name (rule 11).
        """
        if not self.wanted or self.lacking() <= 0:
            return None
        key, levels = self._declarations.key, self._slots.levels
        able = [
            process
            for process in self._declarations.declarers_of(key)
            if self._capacity.may_open(process, key, now)
        ]
        return min(able, key=lambda process: (levels[process], process), default=None)

    def wants(self, now: float) -> int:
        """How many resources are missing that somebody could open if there were room for them."""
        lacking = self.lacking() if self.wanted else 0
        if lacking <= 0 or not self._breakers.permit(self._declarations.key, now):
            return 0
        limit, levels = self._capacity.max_per_process, self._slots.levels
        able = self._declarations.declarers_of(self._declarations.key)
        return lacking if any(limit is None or levels[one] < limit for one in able) else 0

    def next_deadline(self, since: float) -> float:
        """When, after `since`, opening may be tried again; infinity if nothing is lacking."""
        breaker = self._breakers.get(self._declarations.key)
        if breaker is None or breaker.retry_at <= since or not self.wanted or self.lacking() <= 0:
            return math.inf
        return breaker.retry_at

    def can_spare(self, slot: Slot) -> bool:
        """Whether enough stay open without this one."""
        return slot.key != self._declarations.key or self.lacking() < 0

    def readiness(self, *, closed: bool) -> Readiness:
        """How much of it is open. closed: the pool is."""
        key, cap = self._declarations.key, self._capacity.most()
        breaker = self._breakers.get(key)
        wanted = self.size if cap is None else min(self.size, cap)
        error = breaker.error if breaker else ""
        return Readiness(self._pool, self._slots.open_for(key), wanted, error, closed)

    def target(self) -> int:
        """How many are kept open, once anybody has wanted one."""
        return self.size if self.wanted else 0

    def lacking(self) -> int:
        """How many resources are missing; below 0: how many more there are."""
        return self.size - self._slots.staying_for(self._declarations.key)
