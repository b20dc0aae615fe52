"""A slot that a process brought back is closed, granted or kept: here is the verdict. `PoolBooks` carries it out."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Literal, NamedTuple

from mppool.core import sharing
from mppool.core.capacity import Capacity
from mppool.core.generations import Generations
from mppool.core.min_size import MinSize
from mppool.core.sharing import OpeningTimes
from mppool.core.slot import Slot, SlotState
from mppool.core.waiter import Waiter
from mppool.core.waiting import ByLane, Waiting
from mppool.ids import ProcessId


class Moved(NamedTuple):
    """The resource is closed for another process, or for another key of its own process."""

    to: ProcessId


Verdict = Literal["retired", "elsewhere"] | Moved | Waiter | None
"""retired: nobody may use it any more. elsewhere: it is closed for another pool of the budget. A waiter: it gets the
resource, kept open. None: it is kept for the shelf."""


class Returns:
    """The policy. It has no state: it reads that of others."""

    def __init__(
        self,
        waiting: Waiting,
        capacity: Capacity,
        generations: Generations,
        openings: OpeningTimes,
        min_size: MinSize,
    ) -> None:
        self._min_size = min_size
        self._waiting = waiting
        self._capacity = capacity
        self._slots = capacity.slots
        self._generations = generations
        self._openings = openings

    def verdict(self, slot: Slot, now: float, idle_s: float = 0.0) -> Verdict:
        """What becomes of an open slot. idle_s: for how long its resource has lain idle."""
        if self._generations.retires(slot, now):
            return "retired"
        if self._capacity.excess(now):
            if self._capacity.is_above_own(now):
                return "retired"
            if self._min_size.can_spare(slot):
                return "elsewhere"
        lanes = self._waiting.lanes
        if lanes is None:
            home = self._waiting.first(slot.process, slot.key)
        else:
            by_right = self._by_right(slot, lanes, now, idle_s)
            if by_right is not None:
                return by_right
            home = lanes.first(slot.process, slot.key)
        rival = self._rival(slot, home, now, idle_s, self._waiting)
        if rival is not None:
            return Moved(rival.process)
        if home is None and self._capacity.wanted_elsewhere and self._is_surplus(slot, idle_s):
            return "elsewhere" if self._min_size.can_spare(slot) else None
        return home

    def successor(self, slot: Slot, moved: Moved, now: float) -> Waiter | None:
        """For whom a slot that is to be closed for its own process goes on there; None: it has to be free first.

        It goes on where that is what would come of it if it were free now. Where more than the cap, the process and the
        identity of those who wait decides about that (lanes, bounds of identities, other pools), nobody guesses.
        """
        capacity, waiting = self._capacity, self._waiting
        budget = capacity.budget
        if moved.to != slot.process or waiting.lanes is not None or capacity.has_inner:
            return None
        if capacity.must_give() or (budget is not None and budget.total.size > budget.cap):
            return None
        if capacity.awaited or capacity.opens_enough():
            return None
        if waiting.first(slot.process, slot.key) is not None:
            return None
        first = waiting.first_if_freed(slot.process, lambda key: capacity.breakers.permit(key, now))
        return first if first is not None and first.process == slot.process else None

    def _by_right(
        self, slot: Slot, lanes: ByLane, now: float, idle_s: float
    ) -> Moved | Waiter | None:
        """Who gets the slot because its lane has less than its right, whatever the slot has earned.

        Between the processes of that lane the same counts as where there are no lanes.
        """
        wanted = 0
        for line, own in lanes.by_right():
            wanted += own  # what is on the way goes to the neediest first, too
            home = line.first(slot.process, slot.key)
            if home is not None:
                rival = self._rival(slot, home, now, idle_s, line)
                return home if rival is None else Moved(rival.process)
            if wanted <= self._slots.on_the_way(now):
                continue
            if self._capacity.opens_enough():
                return None
            for head in islice(line.in_line(), sharing.MOST_TRIED):
                if self._capacity.helps(slot, head, now) and not self._lies_at_home(head, lanes):
                    return Moved(head.process)
        return None

    def _lies_at_home(self, waiter: Waiter, lanes: ByLane) -> bool:
        """Whether its process has idle what its lane lacks, and is about to lend it. A move would cost a login for nothing."""
        wanted = min(lanes.lacks(waiter.lane), self._waiting.count_of_process(waiter.process))
        idle = sum(
            slot.state is SlotState.OPEN and slot.lane is None and slot.key == waiter.key
            for slot in self._slots.of(waiter.process)
        )
        return idle >= wanted

    def _is_surplus(self, slot: Slot, idle_s: float) -> bool:
        is_reserve = self._waiting.lanes is not None
        return idle_s >= sharing.surplus_after_s(self._openings.of(slot.key), is_reserve=is_reserve)

    def _rival(
        self, slot: Slot, home: Waiter | None, now: float, idle_s: float, line: Waiting
    ) -> Waiter | None:
        """The first in line that gets this slot, and is not served by what is closing already.

        While no opening may begin nobody could use it.
        """
        outside = line.count_outside(slot.process, slot.key)
        if outside <= self._slots.on_the_way(now) or self._capacity.opens_enough():
            return None
        is_surplus = home is None and self._is_surplus(slot, idle_s)
        for head in self._candidates(slot, line):
            if not self._capacity.helps(slot, head, now):
                continue
            promised = self._slots.promised_to(head.process)
            if line.count_of_process(head.process) <= promised:
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

    def _candidates(self, slot: Slot, line: Waiting) -> Iterator[Waiter]:
        """Those that may have a claim, in the order of service.

        At the end: the oldest of the slot's own process, whose keys compete with each other.
        """
        tried = 0
        for head in line.in_line():
            if head.process == slot.process and head.key == slot.key:
                continue
            yield head
            if head.process == slot.process or self._slots.promised_to(head.process):
                continue
            tried += 1
            if tried >= sharing.MOST_TRIED and not self._capacity.has_inner:
                break
        own = line.first_for_other_key(slot.process, slot.key)
        if own is not None:
            yield own
