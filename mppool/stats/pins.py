"""What ties leases to their sessions in a host, by name: how many leases, and for how many seconds. Pure."""

from __future__ import annotations

import threading

TRANSACTION, CURSOR, TABLE, SETTING = (
    "transaction",
    "cursor",
    "temporary table",
    "session setting",
)
REASONS = (TRANSACTION, CURSOR, TABLE, SETTING)
"""An open transaction, rows that are not read yet, and what stays in the session until the lease ends."""


class Pins:
    """Counts since the process began. Any thread may call; `_lock` guards all of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._leases = dict.fromkeys(REASONS, 0)
        self._seconds = dict.fromkeys(REASONS, 0.0)
        self._since: dict[tuple[int, str], float] = {}
        self._had: dict[int, set[str]] = {}

    def begins(self, lease: int, reason: str, now: float) -> None:
        """From now on this ties the lease, if it does not already. lease: tells it from all others that are out."""
        with self._lock:
            self._since.setdefault((lease, reason), now)
            had = self._had.setdefault(lease, set())
            if reason not in had:
                had.add(reason)
                self._leases[reason] += 1

    def ends(self, lease: int, reason: str, now: float) -> None:
        """It does not any more."""
        with self._lock:
            since = self._since.pop((lease, reason), None)
            if since is not None:
                self._seconds[reason] += now - since

    def lease_ends(self, lease: int, now: float) -> None:
        """Whatever tied it is over."""
        with self._lock:
            for reason in self._had.pop(lease, ()):
                since = self._since.pop((lease, reason), None)
                if since is not None:
                    self._seconds[reason] += now - since

    def figures(self, now: float) -> dict[str, tuple[int, float]]:
        """By reason: how many leases had it, and for how many seconds together, up to now."""
        with self._lock:
            seconds = dict(self._seconds)
            for (_, reason), since in self._since.items():
                seconds[reason] += now - since
            return {reason: (self._leases[reason], seconds[reason]) for reason in REASONS}
