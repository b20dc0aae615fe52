"""Wakes a thread that sleeps. It may be set from a finalizer, which may take no lock that its thread holds."""

from __future__ import annotations

import math
import os
import select
import threading


class WakeUp:
    """A descriptor that makes poll() return. Writing to it takes no lock, so a finalizer may."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __del__(self) -> None:
        # Not earlier: a thread that holds this object may be writing, and the number would be another file's.
        if hasattr(self, "fd"):  # else none could be had
            os.close(self.fd)

    def descriptors(self) -> list[int]:
        """What a forked child must close."""
        return [self.fd]

    def set(self) -> None:
        """Make the next poll() return at once."""
        try:
            os.eventfd_write(self.fd, 1)
        except BlockingIOError:
            return  # it is set as often as it can be

    def clear(self) -> None:
        """Take back what was set."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return

    def wait(self, seconds: float | None) -> None:
        """Sleep until it is set, which is taken back, or for so long (None: for ever)."""
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        if poller.poll(None if seconds is None else math.ceil(seconds * 1000)):
            self.clear()


class PortableWakeUp:
    """The same for a thread that sleeps on nothing else, where there is no eventfd.

    A lock that is free while it is set. Setting it never waits: giving a lock back is one step.
    """

    def __init__(self) -> None:
        self._asleep = threading.Lock()
        self._asleep.acquire()

    def descriptors(self) -> list[int]:
        """There are none."""
        return []

    def set(self) -> None:
        """End the next wait at once."""
        try:
            self._asleep.release()
        except RuntimeError:
            return  # it is set

    def wait(self, seconds: float | None) -> None:
        """Sleep until it is set, which is taken back, or for so long (None: for ever)."""
        longest = threading.TIMEOUT_MAX if seconds is None else min(seconds, threading.TIMEOUT_MAX)
        self._asleep.acquire(timeout=longest)


def any_wake_up() -> WakeUp | PortableWakeUp:
    """The one that there is here."""
    return WakeUp() if hasattr(os, "eventfd") else PortableWakeUp()
