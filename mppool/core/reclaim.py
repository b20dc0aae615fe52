"""Asking processes to bring slots back, when somebody waits and there is no free slot.

The policy is in `sharing`; here it is applied to the books of one pool, and what was asked is remembered
until it is answered, is overdue, or nobody waits any more.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mppool.core import sharing
from mppool.core.decisions import Reclaim
from mppool.core.waiting import Waiter
from mppool.ids import ProcessId

if TYPE_CHECKING:
    from mppool.core.pool import PoolBooks


class Asked:
    """What one process was asked for: `wanted` slots, counted on until `until`."""

    __slots__ = ("until", "wanted")

    def __init__(self, until: float) -> None:
        self.wanted = 1
        self.until = until


class Reclaimer:
    """Who is contended, and when to look for surplus again."""

    def __init__(self) -> None:
        self.asked: dict[ProcessId, Asked] = {}
        self._look_at = -math.inf
        self._pause = sharing.FIRST_LOOK_S

    def plan(self, books: PoolBooks, now: float) -> None:
        """Ask for as many slots as are short, where the policy finds somebody to ask."""
        short = self._short(books, now)
        if short <= 0:
            if not books.waiting and not books.excess():
                self._calm(books)
            return
        while short > 0 and self._ask_one(books, now):
            short -= 1
        if short > 0:
            self._look_for_surplus(books, now, short)

    def next_deadline(self, books: PoolBooks, now: float) -> float:
        """When `plan` may come to another result although nothing happened; infinity if never."""
        if not books.waiting:
            return math.inf
        candidates = [self._look_at]
        candidates += [asked.until for asked in self.asked.values()]
        candidates += [head.since + sharing.PATIENCE_S for head in books.waiting.heads()]
        return min((at for at in candidates if at > now), default=math.inf)

    def brought_back(self, books: PoolBooks, process: ProcessId, *, given: bool) -> None:
        """A process brought a slot back; `given`: it was taken from it. One that was not ends the asking."""
        asked = self.asked.get(process)
        if asked is None:
            return
        asked.wanted -= 1
        if asked.wanted <= 0 or not given:
            self.forget(process)
            books.tell(process, Reclaim(books.name, contended=False, sweep=0, idle_for=0.0))

    def forget(self, process: ProcessId) -> None:
        """The process is dead, or was attached anew and knows nothing of what it was asked."""
        self.asked.pop(process, None)

    def _calm(self, books: PoolBooks) -> None:
        for process in list(self.asked):
            self.forget(process)
            books.tell(process, Reclaim(books.name, contended=False, sweep=0, idle_for=0.0))
        self._pause = sharing.FIRST_LOOK_S

    def _short(self, books: PoolBooks, now: float) -> int:
        """Waiters for whom nothing is on its way yet."""
        asked = sum(asked.wanted for asked in self.asked.values() if now < asked.until)
        return books.waiting_for_slots(now) - books.slots.closing - asked

    def _ask_one(self, books: PoolBooks, now: float) -> bool:
        taker = books.neediest(now)
        donor = self._donor(books, taker, now)
        if donor is None:
            return False
        asked = self.asked.get(donor)
        if asked is None:
            self.asked[donor] = Asked(now + sharing.ANSWER_S)
        else:
            asked.wanted += 1
            asked.until = now + sharing.ANSWER_S
        books.tell(
            donor, Reclaim(books.name, contended=True, sweep=self.asked[donor].wanted, idle_for=0.0)
        )
        return True

    def _donor(self, books: PoolBooks, taker: Waiter | None, now: float) -> ProcessId | None:
        """The richest process that may fairly be asked for one more slot, or None.

        Without a taker there are more slots than the cap allows, and everybody may be asked.
        """
        best: ProcessId | None = None
        best_spare = 0
        for process, held in books.slots.levels.items():
            asked = self.asked.get(process)
            if not books.is_attached(process) or (asked is not None and now >= asked.until):
                continue
            spare = held - books.slots.closing_of(process) - (asked.wanted if asked else 0)
            if taker is not None:
                spare = self._fair_part(books, taker, process, spare, now)
            if spare > best_spare:
                best, best_spare = process, spare
        return best

    def _fair_part(
        self, books: PoolBooks, taker: Waiter, process: ProcessId, spare: int, now: float
    ) -> int:
        """How many of the `spare` slots of a process may be taken for this waiter; 0 if none."""
        if process == taker.process:
            # Its own resources for other keys make room without taking from anybody.
            return min(
                spare, books.slots.levels[process] - books.slots.level_of(process, taker.key)
            )
        if books.blocked_by_identity(taker):
            spare = min(spare, books.slots.level_of(process, taker.key))
        on_the_way = books.slots.closing + sum(asked.wanted for asked in self.asked.values())
        level = books.slots.levels.get(taker.process, 0) + on_the_way
        fair = sharing.has_lost_patience(taker, now) or sharing.moving_is_fair(spare, level)
        return spare if fair else 0

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
