"""Who waits for a slot: in order of arrival, by process and key, and in the order of service.

Nothing here looks at every waiter, or at every process, for one event: what is asked often is kept ready
in heaps. Their entries are never taken out of the middle; one that has been overtaken by events is passed
over, and all such are dropped when they are too many.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from mppool.core import sharing
from mppool.core.heap import ascending
from mppool.core.waiter import Waiter
from mppool.ids import ProcessId, Ticket

_Name = tuple[ProcessId, Ticket]
_Group = tuple[ProcessId, str]
_Queue = OrderedDict[_Name, Waiter]  # its front is found at once, however much was taken from there
_Deadline = tuple[float, int, ProcessId, Ticket]
_Entry = tuple[int, int, float, int, ProcessId]
_Head = tuple[int, int, str]


class ByLane(Protocol):
    """The same waiters lane by lane, where the pool has lanes: see `Lanes`."""

    def add(self, waiter: Waiter, levels: Waiting) -> None:
        """Somebody waits."""

    def remove(self, waiter: Waiter) -> None:
        """It waits no longer."""

    def starves(self, waiter: Waiter, now: float) -> None:
        """Its group starves."""

    def gave(self, process: ProcessId, now: float) -> None:
        """A process gave a slot to another one."""

    def level_changed(self, process: ProcessId, key: str) -> None:
        """A process has more or fewer slots than before."""

    def no_longer_starves(self, waiter: Waiter) -> None:
        """One of its group was served."""

    def by_right(self) -> list[tuple[Waiting, int]]:
        """The lines of those that have less than their right, the neediest first, and how many each has a right to."""

    def wanted_by_right(self) -> int:
        """How many are waited for by those that have a right to them."""

    def lacks(self, lane: str) -> int:
        """How many a lane has less than its right."""

    def settled(self) -> str | None:
        """The lane that waits alone, if it has its right."""

    def in_line(self) -> Iterator[Waiter]:
        """The oldest waiter of every group, by right first."""

    def first(self, process: ProcessId, key: str) -> Waiter | None:
        """Of those of a process who wait for a key the one whose turn it is."""


class Waiting:
    """The waiters of one pool. Time only ever goes on from one call to the next.

    levels, levels_of_keys: slots by process, and by process and key, kept by somebody else, who calls `level_changed`
        after every change.
    anywhere: the waiters of all pools, for those who look for the pool of one; a process gives a ticket once.
    by_name: all of them, in order of arrival. noted: is told of the key of each that has come (1) or gone (-1).
    lanes: the same waiters by lane, which decides about their order; None: the pool has no lanes.

    A group is what is interchangeable: the waiters of one process for one key, oldest first. A group starves
    when its process says so: nothing for this key has been given back there for long. It starves until one of
    its waiters is served. Until then it is served like a process without slots.
    """

    def __init__(
        self,
        levels: Mapping[ProcessId, int],
        levels_of_keys: Mapping[_Group, int],
        anywhere: dict[_Name, Waiter] | None = None,
    ) -> None:
        self._levels = levels
        self._levels_of_keys = levels_of_keys
        self._anywhere = {} if anywhere is None else anywhere
        self.noted: Callable[[str, int], None] = lambda key, change: None
        self.by_name: _Queue = OrderedDict()
        self.lanes: ByLane | None = None
        self._of_process: dict[ProcessId, _Queue] = {}
        self._of_key: dict[str, _Queue] = {}
        self._groups: dict[ProcessId, dict[str, _Queue]] = {}
        # The groups that starve, in the order in which they said so: when, and counted like an arrival.
        self._starving: OrderedDict[_Group, tuple[float, int]] = OrderedDict()
        # Of processes with waiters that gave a slot to another one: when. They wait from then on.
        self._gave_at: dict[ProcessId, float] = {}
        # Heaps. One entry per deadline; of every process with waiters one for its rank and its first
        # waiter, and, in a heap of its own, one for the level and the oldest waiter of each key.
        self._deadlines: list[_Deadline] = []
        self._poorest: list[_Entry] = []
        self._heads: dict[ProcessId, list[_Head]] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self.by_name)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(list(self.by_name.values()))

    def add(self, waiter: Waiter) -> None:
        """Enqueue a waiter whose ticket is not queued yet."""
        if not waiter.serial:  # else it stands in the line of its lane too
            self._serial += 1
            waiter.serial = self._serial
        name = (waiter.process, waiter.ticket)
        self.by_name[name] = self._anywhere[name] = waiter
        _put_into(self._of_process, waiter.process, name, waiter)
        _put_into(self._of_key, waiter.key, name, waiter)
        self.noted(waiter.key, 1)
        groups = self._groups.setdefault(waiter.process, {})
        _put_into(groups, waiter.key, name, waiter)
        if len(groups[waiter.key]) == 1:
            self._rank_group(waiter)
            self._rank_process(waiter.process)
        if waiter.deadline != math.inf:
            self._forget_outdated()
            heapq.heappush(
                self._deadlines, (waiter.deadline, waiter.serial, waiter.process, waiter.ticket)
            )
        if self.lanes is not None:
            self.lanes.add(waiter, self)

    def for_one_lane(self) -> Waiting:
        """An empty line with the same levels."""
        return Waiting(self._levels, self._levels_of_keys)

    def has_lanes(self, lanes: ByLane | None) -> None:
        """The order is that of these lanes from now on; None: there are none any more."""
        self.lanes = lanes
        if lanes is not None:
            for waiter in self.by_name.values():
                lanes.add(waiter, self)

    def remove(self, process: ProcessId, ticket: Ticket) -> Waiter | None:
        """Take a waiter out; None if it is not queued."""
        name = (process, ticket)
        waiter = self.by_name.pop(name, None)
        if waiter is None:
            return None
        if self.lanes is not None:
            self.lanes.remove(waiter)
        if self._anywhere.get(name) is waiter:
            del self._anywhere[name]
        groups = self._groups[process]
        _take_from(self._of_process, process, name)
        _take_from(self._of_key, waiter.key, name)
        self.noted(waiter.key, -1)
        was_head = self.first(process, waiter.key) is waiter
        _take_from(groups, waiter.key, name)
        if waiter.key not in groups:
            self._starving.pop((process, waiter.key), None)
        if not groups:
            del self._groups[process], self._heads[process]
            self._gave_at.pop(process, None)
            return waiter
        if was_head:
            head = self.first(process, waiter.key)
            if head is not None:
                self._rank_group(head)
            self._rank_process(process)
        return waiter

    def starves(self, process: ProcessId, ticket: Ticket, now: float) -> bool:
        """The group of this waiter starves from now on; False if that changes nothing.

        A process without slots cannot come any further forward.
        """
        waiter = self.by_name.get((process, ticket))
        if waiter is None or not self._levels.get(process, 0) or self.is_starving(waiter):
            return False
        self._serial += 1
        self._starving[process, waiter.key] = (now, self._serial)
        if self.lanes is not None:
            self.lanes.starves(waiter, now)
        return True

    def is_starving(self, waiter: Waiter) -> bool:
        """Whether the group of this waiter starves."""
        return (waiter.process, waiter.key) in self._starving

    def gave(self, process: ProcessId, now: float) -> None:
        """A process gives a slot to another one: it has had its turn, and its waiters wait from now on."""
        if process in self._groups:
            self._gave_at[process] = now
            self._rank_process(process)
            if self.lanes is not None:
                self.lanes.gave(process, now)

    def served(self, process: ProcessId, ticket: Ticket) -> Waiter | None:
        """Take a waiter out because it gets something; its group does not starve any longer."""
        waiter = self.remove(process, ticket)
        if waiter is not None:
            self.no_longer_starves(waiter)
        return waiter

    def no_longer_starves(self, waiter: Waiter) -> None:
        """One of its group was served."""
        self._starving.pop((waiter.process, waiter.key), None)
        if self.lanes is not None:
            self.lanes.no_longer_starves(waiter)

    def remove_process(self, process: ProcessId) -> None:
        """Forget all waiters of a process."""
        for waiter in list(self._of_process.get(process, {}).values()):
            self.remove(process, waiter.ticket)

    def of_key(self, key: str) -> list[Waiter]:
        """Those who wait for a key, oldest first."""
        return list(self._of_key.get(key, {}).values())

    def count_of_key(self, key: str) -> int:
        """How many wait for a key."""
        return len(self._of_key.get(key, ()))

    def first(self, process: ProcessId, key: str) -> Waiter | None:
        """The oldest waiter of a group."""
        group = self._groups.get(process, {}).get(key)
        return next(iter(group.values())) if group else None

    def count_of_process(self, process: ProcessId) -> int:
        """How many wait in a process."""
        return len(self._of_process.get(process, ()))

    def first_for_other_key(self, process: ProcessId, key: str) -> Waiter | None:
        """The oldest waiter of a process among those for other keys than this one."""
        if len(self._groups.get(process, ())) <= (self.first(process, key) is not None):
            return None
        heads = self._heads_in_line(process)
        return next((head for head in heads if head.key != key), None)

    def count_outside(self, process: ProcessId, key: str) -> int:
        """How many wait who are not of this group."""
        return len(self.by_name) - len(self._groups.get(process, {}).get(key, ()))

    # --- the order of service ----------------------------------------------------------------------------

    def in_line(self, *, of_processes: bool = False) -> Iterator[Waiter]:
        """The oldest waiter of every group, in the order of `place`; of_processes: one of each, and what starves.

        Only as far as it is asked; nothing may be changed meanwhile.
        """
        if self.lanes is not None:
            return self.lanes.in_line()
        line = self._poorest_in_line() if of_processes else self._in_order_of_rank()
        ranked = (w for w in line if not self.is_starving(w))
        if not self._starving:
            return ranked
        starving = (
            next(iter(self._groups[process][key].values())) for process, key in self._starving
        )
        return heapq.merge(starving, ranked, key=self.place)

    def first_if_freed(self, process: ProcessId, may_open: Callable[[str], bool]) -> Waiter | None:
        """Who comes first as soon as a process has one slot less, of a key for which nobody waits there."""
        first = next((head for head in self.in_line() if may_open(head.key)), None)
        if first is None or first.process == process or process not in self._groups:
            return first
        own = next((head for head in self._heads_in_line(process) if may_open(head.key)), None)
        if own is None or self.is_starving(own):  # it stands in line as if its process had nothing
            return first
        level, *others = self.place(own)
        return own if (level - 1, *others) < self.place(first) else first

    def place(self, waiter: Waiter) -> tuple[int, int, float, int]:
        """The lowest comes first."""
        starving = self._starving.get((waiter.process, waiter.key))
        if starving is not None:
            since, serial = starving
            return (*sharing.rank(0, 0, since), serial)
        return (*self._rank(waiter), waiter.serial)

    def _rank(self, waiter: Waiter) -> tuple[int, int, float]:
        """The rank of a waiter, if its group does not starve."""
        process = waiter.process
        since = max(waiter.since, self._gave_at.get(process, waiter.since))
        level_of_key = self._levels_of_keys.get((process, waiter.key), 0)
        return sharing.rank(self._levels.get(process, 0), level_of_key, since)

    def _in_order_of_rank(self) -> Iterator[Waiter]:
        # The first waiter of a process comes before those of its other groups: these join the line when
        # the line has passed the process.
        others: list[tuple[Any, Waiter, Iterator[Waiter]]] = []

        def place(waiter: Waiter) -> Any:
            return (self._rank(waiter), waiter.serial)

        def join(heads: Iterator[Waiter]) -> None:
            head = next(heads, None)
            if head is not None:
                heapq.heappush(others, (place(head), head, heads))

        for waiter in self._poorest_in_line():
            while others and others[0][0] < place(waiter):
                _, head, heads = heapq.heappop(others)
                yield head
                join(heads)
            yield waiter
            heads = self._heads_in_line(waiter.process)
            next(heads)  # that was the waiter itself
            join(heads)
        while others:
            _, head, heads = heapq.heappop(others)
            yield head
            join(heads)

    def _heads_in_line(self, process: ProcessId) -> Iterator[Waiter]:
        """The oldest waiter of every group of a process: the poorest key first, then in order of arrival."""
        self._first_of(process)
        seen: set[str] = set()
        for entry in ascending(self._heads[process]):
            key = entry[-1]
            if key not in seen and self._is_head(process, entry):
                seen.add(key)
                yield next(iter(self._groups[process][key].values()))

    def _first_of(self, process: ProcessId) -> Waiter | None:
        """The waiter of a process that comes first; what has been overtaken by events is dropped in front."""
        ranked = self._heads.get(process)
        if ranked is None:
            return None
        while not self._is_head(process, ranked[0]):
            heapq.heappop(ranked)
        return next(iter(self._groups[process][ranked[0][-1]].values()))

    def _is_head(self, process: ProcessId, entry: _Head) -> bool:
        """Whether an entry of `_heads` has not been overtaken by events."""
        level, serial, key = entry
        head = self.first(process, key)
        return (
            head is not None
            and head.serial == serial
            and self._levels_of_keys.get((process, key), 0) == level
        )

    def _poorest_in_line(self) -> Iterator[Waiter]:
        """The first waiter of every process, in the order of `sharing.rank`."""
        while self._poorest and not self._is_current(self._poorest[0]):
            heapq.heappop(self._poorest)  # else everybody would have to pass it
        seen: set[ProcessId] = set()
        for entry in ascending(self._poorest):
            process = entry[-1]
            if process not in seen and self._is_current(entry):
                seen.add(process)
                if (first := self._first_of(process)) is not None:
                    yield first
                if len(seen) == len(self._groups):
                    return  # what is left has been overtaken by events

    def _is_current(self, entry: _Entry) -> bool:
        """Whether an entry of `_poorest` has not been overtaken by events."""
        waiter = self._first_of(entry[-1])
        return waiter is not None and entry == self._entry_of(waiter)

    def _entry_of(self, first: Waiter) -> _Entry:
        return (*self._rank(first), first.serial, first.process)

    def level_changed(self, process: ProcessId, key: str) -> None:
        """A process has more or fewer slots than before, of this key."""
        if process in self._groups:
            head = self.first(process, key)
            if head is not None:
                self._rank_group(head)
            self._rank_process(process)
            if self.lanes is not None:
                self.lanes.level_changed(process, key)

    def _rank_process(self, process: ProcessId) -> None:
        """Enter a process into the order of service again: its first waiter or its rank is another."""
        first = self._first_of(process)
        assert first is not None
        heapq.heappush(self._poorest, self._entry_of(first))
        if len(self._poorest) > 4 * len(self._of_process) + 64:
            found = [self._first_of(each) for each in self._of_process]
            self._poorest = [self._entry_of(each) for each in found if each is not None]
            heapq.heapify(self._poorest)

    def _rank_group(self, head: Waiter) -> None:
        """Enter a group into the order of its process: its level or its oldest waiter is another."""
        process = head.process
        groups = self._groups[process]
        ranked = self._heads.setdefault(process, [])
        heapq.heappush(ranked, self._head_entry(head))
        if len(ranked) > 4 * len(groups) + 64:
            heads = (next(iter(group.values())) for group in groups.values())
            ranked[:] = [self._head_entry(waiter) for waiter in heads]
            heapq.heapify(ranked)

    def _head_entry(self, head: Waiter) -> _Head:
        level = self._levels_of_keys.get((head.process, head.key), 0)
        return (level, head.serial, head.key)

    # --- time --------------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """When the next waiter's time is over; infinity if none has a deadline."""
        while self._deadlines and self._is_outdated(self._deadlines[0]):
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else math.inf

    def expired(self, now: float) -> list[Waiter]:
        """Take out and return those whose deadline has come."""
        gone = []
        while self.next_deadline() <= now:
            _, _, process, ticket = heapq.heappop(self._deadlines)
            if (waiter := self.remove(process, ticket)) is not None:
                gone.append(waiter)
        return gone

    def _is_outdated(self, entry: _Deadline) -> bool:
        """Whether an entry is not of a waiter that is queued now."""
        _, serial, process, ticket = entry
        waiter = self.by_name.get((process, ticket))
        return waiter is None or waiter.serial != serial

    def _forget_outdated(self) -> None:
        """Most waiters are served long before their deadlines; their entries must not pile up."""
        if len(self._deadlines) > 2 * len(self.by_name) + 64:
            self._deadlines = [e for e in self._deadlines if not self._is_outdated(e)]
            heapq.heapify(self._deadlines)


def _put_into(queues: dict[Any, _Queue], by: Any, name: _Name, waiter: Waiter) -> None:
    """Put a waiter at the end of one of its queues."""
    queue = queues.get(by)
    if queue is None:
        queue = queues[by] = OrderedDict()
    queue[name] = waiter


def _take_from(queues: dict[Any, _Queue], by: Any, name: _Name) -> None:
    """Take a waiter out of one of its queues; an empty one is not kept."""
    queue = queues[by]
    del queue[name]
    if not queue:
        del queues[by]
