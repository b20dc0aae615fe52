"""Lanes of one pool: how many resources each may have by right, who uses how many, and whose turn it is.

A lane is what a checkout says of itself (`lane="web"`). Resources belong to no lane: any may be lent to any. But each lane
has a right to so many (`lanes={"web": 4}`), and the lane of those that name none, the common one, to the rest. As long as
nobody waits everybody takes what there is. Where somebody waits, the lanes that have less than their right come first, the
one that lacks most of it before the others; what is left is anybody's.

What lies idle is used by nobody. A process lends what lies on its shelf without asking, so the books learn for which lane a
resource is in use only where it passes them, and where they ask: as soon as somebody waits they tell all processes so
(`Reclaim`), and these answer with what is lent to whom (`Lent`).
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping

from mppool.core.capacity import Capacity
from mppool.core.slot import Slot
from mppool.core.waiter import Waiter
from mppool.core.waiting import Waiting
from mppool.ids import ProcessId

COMMON = ""
"""The lane of a checkout that names none."""


class Lanes:
    """The only writer of a slot's `lane`, and of the lines of each lane.

    rights: how many each lane may have. used: how many it has, as far as is known.
    lines: the waiters of each lane. All of them together are in `Waiting`, which tells what changes.
    """

    def __init__(self, capacity: Capacity, rights: Mapping[str, int]) -> None:
        self._capacity = capacity
        self.rights: dict[str, int] = {}
        self.used: Counter[str] = Counter()
        self.lines: dict[str, Waiting] = {}
        for slot in capacity.slots:
            slot.lane = None  # what was said of lanes of before
        self.configure(rights)

    def configure(self, rights: Mapping[str, int]) -> None:
        """These rights are in force from now on. The common lane has the rest of the cap."""
        cap = self._capacity.declared or 0
        self.rights = {**rights, COMMON: max(0, cap - sum(rights.values()))}

    # --- who uses what -----------------------------------------------------------------------------------

    def lent(self, slot: Slot, lane: str | None) -> None:
        """The resource of a slot is in use for this lane from now on; None: for none."""
        if slot.lane is not None:
            self.used[slot.lane] -= 1
        slot.lane = lane if lane is None or lane in self.rights else COMMON
        if slot.lane is not None:
            self.used[slot.lane] += 1

    def lacks(self, lane: str) -> int:
        """How many a lane has less than its right."""
        return max(0, self.rights.get(lane, 0) - self.used[lane])

    def wanted_by_right(self) -> int:
        """How many are waited for by those that have a right to them."""
        return sum(self._wanted_in(lane) for lane in self.lines)

    def _wanted_in(self, lane: str) -> int:
        return min(len(self.lines[lane]), self.lacks(lane))

    def settled(self) -> str | None:
        """The lane that waits alone, if it has its right: among its own waiters there is no question whose turn it is."""
        waiting = [lane for lane, line in self.lines.items() if line.by_name]
        return waiting[0] if len(waiting) == 1 and not self.lacks(waiting[0]) else None

    def figures(self) -> dict[str, dict[str, int]]:
        """By name, for the statistics. in_use: as far as is known."""
        lines = {lane: len(line) for lane, line in self.lines.items()}
        return {
            lane: {"reserved": right, "in_use": self.used[lane], "waiting": lines.get(lane, 0)}
            for lane, right in self.rights.items()
        }

    # --- who waits: Waiting tells ------------------------------------------------------------------------

    def add(self, waiter: Waiter, levels: Waiting) -> None:
        """Somebody waits. levels: all that wait, with the levels of processes and keys."""
        if waiter.lane not in self.rights:
            waiter.lane = COMMON
        line = self.lines.get(waiter.lane)
        if line is None:
            line = self.lines[waiter.lane] = levels.for_one_lane()
        line.add(waiter)

    def remove(self, waiter: Waiter) -> None:
        """It waits no longer."""
        self.lines[waiter.lane].remove(waiter.process, waiter.ticket)

    def starves(self, waiter: Waiter, now: float) -> None:
        """Nothing has been given back for long to those of its process."""
        self.lines[waiter.lane].starves(waiter.process, waiter.ticket, now)

    def no_longer_starves(self, waiter: Waiter) -> None:
        """One of its group was served."""
        line = self.lines.get(waiter.lane)
        if line is not None:
            line.no_longer_starves(waiter)

    def gave(self, process: ProcessId, now: float) -> None:
        """A process gives a slot to another one."""
        for line in self.lines.values():
            line.gave(process, now)

    def level_changed(self, process: ProcessId, key: str) -> None:
        """A process has more or fewer slots than before."""
        for line in self.lines.values():
            line.level_changed(process, key)

    # --- whose turn it is --------------------------------------------------------------------------------

    def by_right(self) -> list[tuple[Waiting, int]]:
        """The lines of those that wait and have less than their right, the neediest first, and how many each wants of it."""
        needy = [
            (self.used[lane] / self.rights[lane], lane)
            for lane, line in self.lines.items()
            if line.by_name and self.lacks(lane)
        ]
        return [(self.lines[lane], self._wanted_in(lane)) for _, lane in sorted(needy)]

    def in_line(self) -> Iterator[Waiter]:
        """The oldest waiter of every group: by right, then as if there were no lanes."""
        first = [line for line, _ in self.by_right()]
        for line in first:
            yield from line.in_line()
        others = [line for line in self.lines.values() if line.by_name and line not in first]
        if len(others) == 1:
            yield from others[0].in_line()
        elif others:
            ranked = [((line.place(one), one) for one in line.in_line()) for line in others]
            for _, waiter in heapq.merge(*ranked, key=lambda pair: pair[0]):
                yield waiter

    def first(self, process: ProcessId, key: str) -> Waiter | None:
        """Of those of a process who wait for a key the one whose turn it is."""
        for line, _ in self.by_right():
            waiter = line.first(process, key)
            if waiter is not None:
                return waiter
        found = [line.first(process, key) for line in self.lines.values()]
        return min((one for one in found if one is not None), key=_arrival, default=None)


def _arrival(waiter: Waiter) -> tuple[float, int]:
    return waiter.since, waiter.serial
