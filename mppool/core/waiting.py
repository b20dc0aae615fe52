"""Who waits for a slot, in order of arrival, by process and key."""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator

from mppool.ids import ProcessId, Ticket


class Waiter:
    """One queued checkout. `since` and `deadline` are instants of the server's monotonic clock."""

    __slots__ = ("deadline", "key", "process", "since", "ticket")

    def __init__(
        self, process: ProcessId, ticket: Ticket, key: str, since: float, deadline: float
    ) -> None:
        self.process = process
        self.ticket = ticket
        self.key = key
        self.since = since
        self.deadline = deadline


Group = tuple[ProcessId, str]
_Deadline = tuple[float, int, ProcessId, Ticket]
Predicate = Callable[[Waiter], bool]


class Waiting:
    """The waiters of one pool.

    A group is what is interchangeable: the waiters of one process for one key, oldest first.
    """

    def __init__(self) -> None:
        self._by_ticket: dict[tuple[ProcessId, Ticket], Waiter] = {}
        self._groups: dict[Group, OrderedDict[Ticket, Waiter]] = {}
        # A heap; an entry whose waiter has gone is dropped when it comes up, or when there are too many.
        self._deadlines: list[_Deadline] = []
        self._serial = 0

    def __len__(self) -> int:
        return len(self._by_ticket)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(list(self._by_ticket.values()))

    def add(self, waiter: Waiter) -> None:
        """Enqueue a waiter whose ticket is not queued yet."""
        self._by_ticket[waiter.process, waiter.ticket] = waiter
        group = self._groups.setdefault((waiter.process, waiter.key), OrderedDict())
        group[waiter.ticket] = waiter
        if waiter.deadline != math.inf:
            self._forget_outdated()
            self._serial += 1
            heapq.heappush(
                self._deadlines, (waiter.deadline, self._serial, waiter.process, waiter.ticket)
            )

    def remove(self, process: ProcessId, ticket: Ticket) -> Waiter | None:
        """Take a waiter out; None if it is not queued."""
        waiter = self._by_ticket.pop((process, ticket), None)
        if waiter is not None:
            group = self._groups[process, waiter.key]
            del group[ticket]
            if not group:
                del self._groups[process, waiter.key]
        return waiter

    def remove_process(self, process: ProcessId) -> None:
        """Forget all waiters of a process."""
        for waiter in self.of(lambda w: w.process == process):
            self.remove(waiter.process, waiter.ticket)

    def of(self, wanted: Predicate) -> list[Waiter]:
        """The waiters that the predicate accepts, oldest first."""
        return [waiter for waiter in self._by_ticket.values() if wanted(waiter)]

    def has(self, process: ProcessId, ticket: Ticket) -> bool:
        """Whether this ticket is queued."""
        return (process, ticket) in self._by_ticket

    def first(self, process: ProcessId, key: str) -> Waiter | None:
        """The oldest waiter of a group."""
        group = self._groups.get((process, key))
        return next(iter(group.values())) if group else None

    def heads(self) -> Iterator[Waiter]:
        """The oldest waiter of every group."""
        for group in self._groups.values():
            yield next(iter(group.values()))

    def count_outside(self, process: ProcessId, key: str) -> int:
        """How many wait who are not of this group."""
        return len(self._by_ticket) - len(self._groups.get((process, key), ()))

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
            waiter = self.remove(process, ticket)
            if waiter is not None:
                gone.append(waiter)
        return gone

    def _is_outdated(self, entry: _Deadline) -> bool:
        """Whether an entry is not of a waiter that is queued now."""
        deadline, _, process, ticket = entry
        waiter = self._by_ticket.get((process, ticket))
        return waiter is None or waiter.deadline != deadline

    def _forget_outdated(self) -> None:
        """Most waiters are served long before their deadlines; their entries must not pile up."""
        if len(self._deadlines) > 2 * len(self._by_ticket) + 64:
            self._deadlines = [e for e in self._deadlines if not self._is_outdated(e)]
            heapq.heapify(self._deadlines)
