"""A thread that waits, and the one answer that it gets."""

from __future__ import annotations

import threading
from collections import deque
from time import monotonic
from typing import Any

from mppool.ids import Ticket

_LOOK_S = 5.0
"""So often a waiter looks for an answer whose giver was interrupted before he could wake it."""


class LocalWaiter:
    """Answered at most once; whoever gives learns whether the answer was taken.

    `_settled` decides between the giver and the timeout: its one entry is made by `setdefault`, which is
    atomic, so there is no instant in which an interrupt could leave it undecided. `_gate` is opened by the
    giver to wake the waiter.
    """

    __slots__ = ("_gate", "_settled", "key", "ticket")

    def __init__(self, ticket: Ticket, key: str) -> None:
        self.ticket = ticket
        self.key = key
        self._settled: dict[str, list[Any]] = {}
        self._gate = threading.Lock()
        self._gate.acquire()

    @property
    def is_open(self) -> bool:
        """Whether it still waits for an answer."""
        return not self._settled

    def give(self, answer: Any) -> bool:
        """Answer the waiter. False: it waits no longer, and the giver keeps what he has."""
        mine = [answer]
        if self._settled.setdefault("answer", mine) is not mine:
            return False
        self._gate.release()
        return True

    def withdraw(self) -> Any:
        """Wait no longer: None, and nobody can give any more; or the answer that came first.

        Called by the waiting thread alone, any number of times; the answer is returned once.
        """
        settled = self._settled.setdefault("answer", [])
        try:
            return settled.pop()
        except IndexError:
            return None

    def wait(self, seconds: float | None) -> Any:
        """The answer, or None after so many seconds (None: for ever)."""
        until = None if seconds is None else monotonic() + seconds
        while True:
            left = _LOOK_S if until is None else min(_LOOK_S, until - monotonic())
            given = self._gate.acquire(timeout=max(0.0, left))
            if given or self._settled or (until is not None and monotonic() >= until):
                return self.withdraw()


def give_to_oldest(queue: deque[LocalWaiter], answer: Any) -> bool:
    """Give to the first who still waits; False if nobody does."""
    # Waiters leave the queue by themselves: one that was taken out before it is given anything could be
    # forgotten, if this thread is interrupted between the two.
    return any(waiter.give(answer) for waiter in list(queue))
