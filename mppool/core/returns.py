"""A slot that a process brought back is closed, granted or kept: here is the verdict. `PoolBooks` carries it out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from mppool.core import sharing
from mppool.core.capacity import Capacity
from mppool.core.generations import Generations
from mppool.core.sharing import OpeningTimes
from mppool.core.slot import Slot
from mppool.core.waiting import Waiter, Waiting
from mppool.ids import ProcessId


class Moved(NamedTuple):
    """The resource is closed for another process, or for another key of its own process."""

    to: ProcessId


Verdict = Literal["retired"] | Moved | Waiter | None
"""retired: nobody may use it any more. A waiter: it gets the resource, kept open. None: it is kept for the shelf."""


class Returns:
    """The policy. It has no state: it reads that of others."""

    def __init__(
        self,
        waiting: Waiting,
        capacity: Capacity,
        generations: Generations,
        openings: OpeningTimes,
    ) -> None:
        self._waiting = waiting
        self._capacity = capacity
        self._slots = capacity.slots
        self._generations = generations
        self._openings = openings

    def verdict(self, slot: Slot, now: float, idle_s: float = 0.0) -> Verdict:
        """What becomes of an open slot. idle_s: for how long its resource has lain idle."""
        if self._generations.retires(slot, now) or self._capacity.excess(now):
            return "retired"
        home = self._waiting.first(slot.process, slot.key)
        rival = self._rival(slot, home, now, idle_s)
        return home if rival is None else Moved(rival.process)

    def _rival(self, slot: Slot, home: Waiter | None, now: float, idle_s: float) -> Waiter | None:
        """The first in line that gets this slot, and is not served by what is closing already.

        While no opening may begin nobody could use it.
        """
        outside = self._waiting.count_outside(slot.process, slot.key)
        if outside <= self._slots.on_the_way(now) or self._capacity.opens_enough():
            return None
        is_surplus = home is None and idle_s >= sharing.surplus_after_s(self._openings.of(slot.key))
        for head in self._candidates(slot):
            if not self._capacity.helps(slot, head, now):
                continue
            promised = self._slots.promised_to(head.process)
            if self._waiting.count_of_process(head.process) <= promised:
                continue
            # A process may always make room for another of its own keys, where nobody wants this one.
            if is_surplus or (home is None and head.process == slot.process):
                return head
            if self._has_claim(slot, head, promised, now):
                return head
        return None

    def _has_claim(self, slot: Slot, waiter: Waiter, promised: int, now: float) -> bool:
        """Whether the slot has earned its opening, and the waiter has a claim to it.

        promised: slots that are on their way to its process already.
        """
        giver, taker = self._capacity.levels_of(slot, waiter)
        taker += promised
        starves = self._waiting.is_starving(waiter)
        if giver < sharing.least_giving_level(taker, starves=starves):
            return False
        evens_out = sharing.evens_out(giver, taker)
        return now >= self._openings.earned_at(slot, evens_out=evens_out)

    def _candidates(self, slot: Slot) -> Iterator[Waiter]:
        """Those that may have a claim, in the order of service.

        At the end: the oldest of the slot's own process, whose keys compete with each other.
        """
        tried = 0
        for head in self._waiting.in_line():
            if head.process == slot.process and head.key == slot.key:
                continue
            yield head
            if head.process == slot.process or self._slots.promised_to(head.process):
                continue
            tried += 1
            if tried >= sharing.MOST_TRIED and not self._capacity.has_inner:
                break
        own = self._waiting.first_for_other_key(slot.process, slot.key)
        if own is not None:
            yield own
