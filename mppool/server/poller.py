"""What can be read or written now, and who is to be told: epoll, without the layers of `selectors`.

A server answers a question in a few microseconds, and every one of them counts sixteen times when sixteen
processes ask: a generic selector's bookkeeping took longer than the decision.
"""

from __future__ import annotations

import select
from typing import Generic, TypeVar

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
EVENTS_AT_ONCE = 256

H = TypeVar("H")


class Poller(Generic[H]):
    """Descriptors, and for each the one who is concerned. It belongs to the loop's thread."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._concerned: dict[int, H] = {}

    def register(self, descriptor: int, concerned: H) -> None:
        """Wait for something to read."""
        self._epoll.register(descriptor, READ)
        self._concerned[descriptor] = concerned

    def modify(self, descriptor: int, events: int) -> None:
        """Wait for these events from now on: READ, or READ | WRITE."""
        self._epoll.modify(descriptor, events)

    def unregister(self, descriptor: int) -> None:
        """Wait no longer. The descriptor must still be open."""
        self._epoll.unregister(descriptor)
        del self._concerned[descriptor]

    def wait(self, timeout: float) -> list[tuple[H, int]]:
        """Who is concerned, and the events; empty after `timeout` seconds.

        An event that is not asked for, an error or an end, concerns reading and writing.
        """
        concerned = self._concerned
        # All are looked up before any is told: a descriptor that is closed meanwhile may be another's by then.
        return [
            (concerned[descriptor], events)
            for descriptor, events in self._epoll.poll(timeout, EVENTS_AT_ONCE)
        ]

    def close(self) -> None:
        """Let go of everything; the descriptors stay open."""
        self._epoll.close()
        self._concerned.clear()
