"""Checkouts that get nothing are told why: how many resources there are, who has them, and why there are no more."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

from mppool.core.capacity import Capacity
from mppool.core.decisions import Refuse, RefuseReason
from mppool.core.events import Checkout
from mppool.core.outbox import Outbox
from mppool.core.slot import Slot
from mppool.core.waiting import Waiting
from mppool.ids import ProcessId, Ticket
from mppool.stats import words

MOST_NAMED = 3

FRESH_S = 0.05
"""Many time out together: what was said to one of them is said to the others."""


class Refusals:
    """Refuses checkouts, and takes those that wait out of the line. Texts are for people, without secrets.

    State: who holds what, as it was said last; and what those are told who wait for nobody, and ask again and again.
    """

    def __init__(
        self,
        waiting: Waiting,
        capacity: Capacity,
        outbox: Outbox,
        why_of_share: Callable[[], str] = lambda: "",
    ) -> None:
        """why_of_share: what other machines have to do with it; see ShareOfMachine."""
        self._waiting = waiting
        self._capacity = capacity
        self._outbox = outbox
        self._why_of_share = why_of_share
        self._said, self._said_until = "", -math.inf
        self._nothing, self._nothing_for, self._nothing_until = "", ("", 0), -math.inf

    def refuse(self, process: ProcessId, ticket: Ticket, reason: RefuseReason, text: str) -> None:
        """A checkout gets nothing."""
        self._outbox.tell(process, Refuse(ticket, reason, text))

    def nothing_at_once(self, event: Checkout, now: float) -> Refuse:
        """What a checkout is told that waits for nobody and gets nothing."""
        asked_for = (event.key, len(self._capacity.slots.by_number))
        if asked_for != self._nothing_for or now >= self._nothing_until:
            self._nothing = self.how_full(event.key, now)
            self._nothing_for, self._nothing_until = asked_for, now + FRESH_S
        return Refuse(event.ticket, "timeout", self._nothing)

    def line_is_full(self, process: ProcessId, event: Checkout, limit: int, now: float) -> None:
        """A checkout is refused because `max_waiting` others wait already."""
        if limit == 0:
            text = "no resource is available at once, and max_waiting=0 lets nobody wait"
        else:
            others = "one checkout waits" if limit == 1 else f"{limit} checkouts wait"
            text = f"{others} already, and max_waiting={limit} allows no more"
        text = f"{text}; {self.how_full(event.key, now)}"
        self.refuse(process, event.ticket, "too_many_waiting", text)

    def refuse_expired(self, now: float) -> None:
        """Those whose time is over wait no longer."""
        for waiter in self._waiting.expired(now):
            text = self.how_full(waiter.key, now)
            self.refuse(waiter.process, waiter.ticket, "timeout", text)

    def refuse_key(self, key: str, error: str) -> None:
        """Opening for this key failed, and those who wait for it are told so."""
        for waiter in self._waiting.of_key(key):
            self._waiting.remove(waiter.process, waiter.ticket)
            self.refuse(waiter.process, waiter.ticket, "open_failed", error)

    def refuse_all(self, text: str) -> None:
        """The pool is closed: nobody waits any longer."""
        for waiter in self._waiting:
            self._waiting.remove(waiter.process, waiter.ticket)
            self.refuse(waiter.process, waiter.ticket, "closed", text)

    def how_full(self, key: str, now: float) -> str:
        """How many resources there are, and why there are no more for this key."""
        capacity, slots = self._capacity, self._capacity.slots
        cap = "no cap" if capacity.declared is None else f"max_size={capacity.declared}"
        if capacity.budget is not None:
            cap = f"{cap}; {capacity.budget.said()}"
        exist = words.counted(len(slots.by_number), "resource exists", "resources exist")
        text = f"{exist} ({cap}) in {words.processes(len(slots.levels))}"
        share = self._why_of_share()
        if share:
            # What stands in the way of one more comes first: it is no use to release leases sooner.
            text = f"{text}; {share}"
        elif capacity.opens_enough():
            text = f"{text}, {slots.may_be_opening()} of them are being opened (max_opening)"
        if slots.by_number:
            text = f"{text}: {self._who_holds(now)}"
        breaker = capacity.breakers.get(key)
        return f"{text}; opening failed last with: {breaker.error}" if breaker else text

    def _who_holds(self, now: float) -> str:
        """The processes that have the most, with their labels, and since when. As of a moment ago, at most."""
        if now >= self._said_until:
            slots = self._capacity.slots
            levels = slots.levels
            most = heapq.nlargest(MOST_NAMED, levels.items(), key=lambda item: item[1])
            named = [self._named(slots.oldest_of(process), process, n, now) for process, n in most]
            if len(levels) > len(named):
                others = len(levels) - len(named)
                named.append(
                    words.counted(
                        others, "more process has the rest", "more processes have the rest"
                    )
                )
            self._said, self._said_until = ", ".join(named), now + FRESH_S
        return self._said

    def _named(self, oldest: Slot | None, process: ProcessId, count: int, now: float) -> str:
        label = self._outbox.labels.get(process, "")
        who = f"{label} (pid {process.pid})" if label else f"pid {process.pid}"
        since = 0.0 if oldest is None else max(0.0, now - oldest.granted_at)
        return f"{who} has {count} (the oldest for {since:.1f} s)"
