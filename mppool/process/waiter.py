"""A thread that waits, and the one answer that it gets."""

from __future__ import annotations

import math
import threading
from collections import deque
from contextvars import Context, copy_context
from time import monotonic
from typing import Any

from mppool.ids import GrantNumber, Ticket

_LOOK_S = 5.0
"""So often a waiter looks for an answer whose giver was interrupted before it could wake it."""


class LocalWaiter:
    """Answered at most once; a giver learns whether the answer was taken.

    `_settled` decides between the giver and the timeout: its one entry is made by `setdefault`, which is
    atomic, so there is no instant in which an interrupt could leave it undecided. `_gate` is opened by the
    giver to wake the waiter, and by `poke` to have it look around.

    since: when it began to wait. asked: whether its ticket was sent to the books. bearer: for whom it waits.
    insists: it does not wait for anybody else, but only for what is opened for it (a timeout of 0).
    opens_here: it is given the grant, and opens the resource in its own thread.
    opening: the grant that is being opened on its behalf.
    calling: its thread is in a call to the books, which may last. Nobody hands it a resource then; it looks at the
        shelf by itself after each call.
    looks_at: when it looks around again by itself; infinity: it does not.
    lane: for which lane it waits; "": for the common one.
    context: the context variables of its thread, for the open hook.
    deadline: until when it waits; None: for ever. who: its thread, where slow waits are warned of.
    was_warned_of, has_holders: that it is slow was said; who holds the resources was asked for on its behalf.
    """

    __slots__ = (
        "_gate",
        "_settled",
        "asked",
        "bearer",
        "calling",
        "context",
        "deadline",
        "has_holders",
        "insists",
        "key",
        "lane",
        "looks_at",
        "opening",
        "opens_here",
        "since",
        "ticket",
        "was_warned_of",
        "who",
    )

    _sleeps = True
    """Whether a thread sleeps on it."""

    def __init__(
        self,
        ticket: Ticket,
        key: str,
        bearer: Any = None,
        *,
        insists: bool = False,
        opens_here: bool = False,
        lane: str = "",
    ) -> None:
        self.ticket = ticket
        self.key = key
        self.lane = lane
        self.bearer = bearer
        self.insists = insists
        self.opens_here = opens_here
        self.context = copy_context()
        self.since = monotonic()
        self.deadline: float | None = None
        self.was_warned_of = self.has_holders = False
        self.who = ""
        self.asked = False
        self.calling = False
        self.looks_at = math.inf
        self.opening: GrantNumber | None = None
        self._settled: dict[str, list[Any]] = {}
        if self._sleeps:
            self._gate = threading.Lock()
            self._gate.acquire()

    @property
    def is_open(self) -> bool:
        """Whether it still waits for an answer."""
        return not self._settled

    @property
    def is_ready(self) -> bool:
        """Whether its thread would take what it is given at once."""
        return not (self._settled or self.calling)

    def give(self, answer: Any) -> bool:
        """Answer the waiter. False: it waits no longer, and the giver keeps what it has."""
        mine = [answer]
        if self._settled.setdefault("answer", mine) is not mine:
            return False
        self.poke()
        return True

    def context_to_open_in(self) -> Context:
        """For one call of the open hook: two openings may be made for one thread, one after its time."""
        return self.context.copy()

    def poke(self) -> None:
        """Have the waiting thread look around."""
        try:
            self._gate.release()
        except RuntimeError:  # it was poked already, and has not looked yet
            return

    def withdraw(self) -> Any:
        """Wait no longer: None, and nobody can give any more; or the answer that came first.

        Called by the waiting thread alone, any number of times; the answer is returned once.
        """
        settled = self._settled.setdefault("answer", [])
        if not settled:
            return None
        try:
            return settled.pop()
        except IndexError:
            return None

    def wait(self, until: float | None) -> Any:
        """The answer; or None at that instant (None: never), and after a poke.

        None does not end the waiting: the waiter can still be given an answer.
        """
        while True:
            left = _LOOK_S if until is None else min(_LOOK_S, until - monotonic())
            poked = self._gate.acquire(timeout=max(0.0, left))
            if self._settled:
                return self.withdraw()
            if poked or (until is not None and monotonic() >= until):
                return None


class Retry:
    """Answer to a waiter whose session was lost, or whose pool was closed: ask again, with the time that is left."""


def give_to_oldest(queue: deque[LocalWaiter], answer: Any) -> bool:
    """Give to the first that is ready to take it; False if none is."""
    # Waiters leave the queue by themselves: one that was taken out before it is given anything could be
    # forgotten, if this thread is interrupted between the two.
    while (waiter := first_ready(queue)) is not None:
        if waiter.give(answer):
            return True
    return False


def first_ready(queue: deque[LocalWaiter]) -> LocalWaiter | None:
    """The one that has waited for longest of those that would take what they are given at once."""
    while True:
        try:
            for waiter in queue:  # not a copy: thousands of tasks may wait
                if waiter.is_ready:
                    return waiter
            return None
        except RuntimeError:  # somebody has come, or left, meanwhile
            continue


def wake_oldest(queue: deque[LocalWaiter]) -> None:
    """Have the first that is ready look around: there is something to take."""
    waiter = first_ready(queue)
    if waiter is not None:
        waiter.poke()
