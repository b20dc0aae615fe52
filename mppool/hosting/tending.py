"""A host of a pool with `min_size` that has ended is started again, although nobody asks for anything."""

from __future__ import annotations

import os
import select
import threading
import weakref
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from mppool.logs import Log

if TYPE_CHECKING:
    from collections.abc import Callable

log = Log("mppool.hosting")

LOOK_S = 1.0
"""So often is looked whether the hosts that this process knows are alive."""
SHORT_LIFE_S = 10.0
"""A host that has lived for less is started again after a pause, which doubles each time."""
LONGEST_PAUSE_S = 60.0


class _Host:
    """A host that this process knows. ended_at: None: it lives. is_started: a new one is under way."""

    def __init__(self, pid: int, pause_s: float) -> None:
        self.pid = pid
        self.since = monotonic()
        self.pause_s = pause_s
        self.due: float | None = None
        self.is_started = False
        try:
            self.pidfd = os.pidfd_open(pid)
        except OSError:
            self.pidfd = -1  # it has ended meanwhile

    def has_ended(self) -> bool:
        if self.pidfd < 0:
            return True
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        descriptor, self.pidfd = self.pidfd, -1
        if descriptor >= 0:
            os.close(descriptor)

    __del__ = close


class Tended(Protocol):
    """What a Tender needs of the pool."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def is_closed(self) -> bool:
        """Whether this process has closed it."""

    def start_host(self, number: int) -> None:
        """Find or start the host of this number, and have the pool filled."""

    def do_soon(self, function: Callable[[], None]) -> None:
        """Call it in another thread."""


class Tender:
    """A Keeper: looks after the hosts of one pool for one process.

    _pool: by which face of the pool the hosts were reached last. _lock guards both; nothing is waited for under it.
    """

    def __init__(self) -> None:
        self._pool: Callable[[], Tended | None] = _nobody
        self._lock = threading.Lock()
        self._hosts: dict[int, _Host] = {}

    def note(self, pool: Tended, number: int, pid: int) -> None:
        """This process is connected to that host."""
        with self._lock:
            self._pool = weakref.ref(pool)
            known = self._hosts.get(number)
            if known is None or known.pid != pid:
                self._hosts[number] = _Host(pid, 0.0 if known is None else known.pause_s)

    def forget(self) -> None:
        """This process wants nothing of its hosts any more, or is a forked child, which knows none."""
        self._lock = threading.Lock()
        self._hosts = {}

    def is_over(self) -> bool:
        """See Keeper."""
        pool = self._pool()
        return not self._hosts or pool is None or pool.is_closed

    def look(self, now: float) -> float:
        """See Keeper."""
        pool = self._pool()
        if pool is None:
            return now + LOOK_S
        ended: list[Callable[[], None]] = []
        with self._lock:
            for number, host in self._hosts.items():
                if host.due is None and host.has_ended():
                    host.pause_s = _pause_after(host.pause_s, now - host.since)
                    host.due = now + host.pause_s
                if host.due is not None and host.due <= now and not host.is_started:
                    host.is_started = True
                    ended.append(partial(self._start, number, host))
        for start in ended:
            pool.do_soon(start)
        return now + LOOK_S

    def _start(self, number: int, host: _Host) -> None:
        """In place of a host that has ended. What fails is tried again, after a longer pause."""
        pool = self._pool()
        if pool is None or self.is_over():
            return
        try:
            pool.start_host(number)  # which notes the new one
        except Exception as error:  # noqa: BLE001  # whatever it is: it is tried again
            log.warning(
                "pool %r: host %d has ended and cannot be started again yet: %s: %s",
                pool.name,
                number + 1,
                type(error).__name__,
                error,
            )
            with self._lock:
                host.pause_s = _pause_after(host.pause_s, 0.0)
                host.due = monotonic() + host.pause_s
                host.is_started = False


def _nobody() -> None:
    return None


def _pause_after(pause_s: float, lived_s: float) -> float:
    if lived_s >= SHORT_LIFE_S:
        return 0.0
    return min(LONGEST_PAUSE_S, max(LOOK_S, 2 * pause_s))
