"""A thread that waits, and the one answer that it gets."""

from __future__ import annotations

import threading
from typing import Any

from mppool.ids import Ticket


class LocalWaiter:
    """Answered at most once; whoever gives learns whether the answer was taken.

    `_claim` decides between the giver and the timeout: its first holder has won, and it is never released.
    `_gate` is opened by the giver to wake the waiter, and stays open.
    """

    __slots__ = ("_answer", "_claim", "_gate", "_withdrawn", "key", "ticket")

    def __init__(self, ticket: Ticket, key: str) -> None:
        self.ticket = ticket
        self.key = key
        self._answer: Any = None
        self._withdrawn = False
        self._claim = threading.Lock()
        self._gate = threading.Lock()
        self._gate.acquire()

    def give(self, answer: Any) -> bool:
        """Answer the waiter. False: it waits no longer, and the giver keeps what he has."""
        if not self._claim.acquire(blocking=False):
            return False
        self._answer = answer
        self._gate.release()
        return True

    def withdraw(self) -> Any:
        """Wait no longer: None, and nobody can give any more; or the answer that came first.

        Called by the waiting thread alone, any number of times.
        """
        if self._withdrawn or self._claim.acquire(blocking=False):
            self._withdrawn = True
            return None
        with self._gate:  # the giver is between its claim and its answer
            return self._answer

    def wait(self, seconds: float | None) -> Any:
        """The answer, or None after so many seconds (None: for ever)."""
        timeout = -1 if seconds is None else min(max(0.0, seconds), threading.TIMEOUT_MAX)
        if not self._gate.acquire(timeout=timeout):
            return self.withdraw()
        self._gate.release()
        return self._answer
