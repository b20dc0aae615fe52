"""Asking processes to bring slots back, when somebody waits and there is no free slot.

The policy is in `sharing`; here it is applied to the books of one pool, and what was asked is remembered
until it is answered, is overdue, or nobody waits any more.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mppool.core import bounds, sharing
from mppool.core.decisions import Reclaim
from mppool.core.waiting import Waiter
from mppool.ids import ProcessId

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mppool.core.pool import PoolBooks


class Asked:
    """What one process was asked for: `wanted` slots, counted on until `until`."""

    __slots__ = ("until", "wanted")

    def __init__(self, until: float) -> None:
        self.wanted = 0
        self.until = until


class Reclaimer:
    """Who is contended, who is left in peace, and when to look for surplus again."""

    def __init__(self) -> None:
        self.asked: dict[ProcessId, Asked] = {}
        # Until when: processes that brought back what helped nobody. Asked again at once, they would
        # bring the same again, and so on for ever.
        self._in_peace: dict[ProcessId, float] = {}
        self._look_at = -math.inf
        self._pause = sharing.FIRST_LOOK_S

    def plan(self, books: PoolBooks, now: float) -> None:
        """Ask for as many slots as are short, where the policy finds somebody to ask."""
        if not books.waiting and not bounds.above_cap(books):
            self._calm(books)
            return
        short = self._short(books, now)
        while short > 0 and self._ask_one(books, now):
            short -= 1
        if short > 0:
            self._look_for_surplus(books, now, short)

    def next_deadline(self, books: PoolBooks, since: float) -> float:
        """When, after `since`, `plan` may come to another result although nothing happened."""
        if not books.waiting and not bounds.above_cap(books):
            return math.inf
        candidates = [
            self._look_at,
            books.slots.next_disappointment(since),
            books.waiting.next_loss_of_patience(since),
        ]
        candidates += [asked.until for asked in self.asked.values()]
        candidates += self._in_peace.values()
        return min((at for at in candidates if at > since), default=math.inf)

    def brought_back(
        self, books: PoolBooks, process: ProcessId, now: float, *, given: bool, kept: bool = False
    ) -> None:
        """A process brought a slot back.

        given: it was taken from it. One that was not ends the asking.
        kept: nobody at all had a use for it.
        """
        asked = self.asked.get(process)
        if asked is None:
            return
        asked.wanted -= 1
        if asked.wanted <= 0 or not given:
            self._let_go(books, process)
        if kept:
            self._in_peace[process] = now + sharing.ANSWER_S

    def forget(self, process: ProcessId) -> None:
        """The process is dead, or was attached anew and knows nothing of what it was asked."""
        self.asked.pop(process, None)
        self._in_peace.pop(process, None)

    def _let_go(self, books: PoolBooks, process: ProcessId) -> None:
        self.asked.pop(process, None)
        books.tell(process, Reclaim(books.name, contended=False, sweep=0, idle_for=0.0))

    def _calm(self, books: PoolBooks) -> None:
        for process in list(self.asked):
            self._let_go(books, process)
        self._in_peace.clear()
        self._pause = sharing.FIRST_LOOK_S

    def _short(self, books: PoolBooks, now: float) -> int:
        """Waiters, and slots above the cap, for whom nothing is on its way yet."""
        wanted = bounds.waiting_for_slots(books, now) + bounds.above_cap(books)
        return wanted - books.slots.on_the_way(now) - self._asked_for(now)

    def _asked_for(self, now: float) -> int:
        """Slots that are counted on although nobody has brought them yet."""
        return sum(asked.wanted for asked in self.asked.values() if now < asked.until)

    def _ask_one(self, books: PoolBooks, now: float) -> bool:
        """Ask somebody for one slot more; False if there is nobody to ask."""
        if bounds.excess(books, now) > self._asked_for(now):
            # More slots than the cap allows: everybody may be asked.
            donor = self._richest(books, now)
            if donor is not None:
                self._ask(books, donor, now, everything=False)
            return donor is not None
        asked_for = sum(asked.wanted for asked in self.asked.values())
        for taker in self._takers(books, now):
            donor = self._donor(books, taker, asked_for, now)
            if donor is not None:
                # A sweep knows nothing of keys: where only one key helps, all that is idle is looked at.
                self._ask(books, donor, now, everything=bounds.blocked_by_identity(books, taker))
                return True
        return False

    def _ask(self, books: PoolBooks, donor: ProcessId, now: float, *, everything: bool) -> None:
        asked = self.asked.setdefault(donor, Asked(now))
        asked.wanted += 1
        asked.until = now + sharing.ANSWER_S
        sweep = books.slots.levels[donor] if everything else asked.wanted
        books.tell(donor, Reclaim(books.name, contended=True, sweep=sweep, idle_for=0.0))

    def _spare(self, books: PoolBooks, process: ProcessId, now: float) -> int:
        """How many more slots a process can be asked for at all."""
        asked = self.asked.get(process)
        if not books.is_attached(process) or now < self._in_peace.get(process, now):
            return 0
        if asked is not None and now >= asked.until:
            return 0
        held = books.slots.levels[process] - books.slots.closing_of(process)
        return held - (asked.wanted if asked else 0)

    def _takers(self, books: PoolBooks, now: float) -> Iterator[Waiter]:
        """For whom slots may be asked for, the neediest first.

        What cannot be had for a waiter who may take from anybody cannot be had for the next one either,
        unless his own process has it, for the same key: so two such waiters are enough.
        """
        unblocked = 0
        for waiter in bounds.in_line(books, now):
            if bounds.blocked_by_identity(books, waiter) or bounds.blocked_by_process(
                books, waiter
            ):
                yield waiter
            elif unblocked < 2:
                unblocked += 1
                yield waiter
            elif not bounds.has_inner_bounds(books):
                return  # nobody further down can be blocked

    def _richest(self, books: PoolBooks, now: float) -> ProcessId | None:
        """Whoever can be asked for the most."""
        best, most = None, 0
        for process, level in books.slots.richest():
            if level <= most:
                break
            spare = self._spare(books, process, now)
            if spare > most:
                best, most = process, spare
        return best

    def _donor(
        self, books: PoolBooks, taker: Waiter, asked_for: int, now: float
    ) -> ProcessId | None:
        """The richest process that may fairly be asked for one more slot, or None.

        asked_for: slots that anybody was asked for; they will be there before this one.
        """
        slots = books.slots
        best, most = None, 0
        # Its own resources for other keys make room without taking from anybody.
        if not bounds.blocked_by_identity(books, taker):
            others = slots.levels[taker.process] - slots.level_of(taker.process, taker.key)
            most = max(0, min(others, self._spare(books, taker.process, now)))
            best = taker.process if most else None
            if bounds.blocked_by_process(books, taker):
                return best
        if not sharing.has_lost_patience(taker, now):
            level = slots.levels[taker.process] + slots.on_the_way(now) + asked_for
            most = max(most, sharing.least_fair_level(level) - 1)
        for process, level in slots.richest():
            if level <= most:
                break  # nor has anybody further down more
            if process == taker.process:
                continue
            spare = self._spare(books, process, now)
            if bounds.blocked_by_identity(books, taker):
                spare = min(spare, slots.level_of(process, taker.key))
            if spare > most:
                best, most = process, spare
        return best

    def _look_for_surplus(self, books: PoolBooks, now: float, short: int) -> None:
        """Ask everybody for what lies idle, at most once per interval."""
        if now < self._look_at:
            return
        self._look_at = now + self._pause
        self._pause = min(self._pause * 2, sharing.LONGEST_LOOK_S)
        for process in books.slots.levels:
            if books.is_attached(process):
                contended = process in self.asked
                books.tell(process, Reclaim(books.name, contended, short, sharing.SURPLUS_IDLE_S))
