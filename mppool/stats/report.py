"""What a process reports of itself. It travels in the message Report."""

from __future__ import annotations

from typing import Any

import msgspec

from mppool.recipe import Survey


class ResourceReport(msgspec.Struct, array_like=True, gc=False):
    """One resource of one process. Durations are seconds.

    label, thread: of its checkout, where it is lent and that is known.
    """

    number: int
    key: str
    state: str
    uses: int
    age: float
    idle_for: float | None
    held_for: float | None
    description: str
    extra: dict[str, Any]
    label: str = ""
    thread: str = ""


class PoolReport(msgspec.Struct, array_like=True):
    """What one process knows of one pool. Counters and histogram counts only ever grow.

    database: what the database said when it was asked last; None: it was not, or does not tell.
    longest_wait: of those that wait now, in seconds.
    lanes: how many resources are in use, by lane, where the pool has lanes.
    pins: of a host: what ties leases to their sessions, how many, and for how many seconds.
    """

    pool: str
    in_use: int
    idle: int
    waiting: int
    counters: dict[str, int]
    histograms: dict[str, list[int]]
    resources: list[ResourceReport]
    database: Survey | None = None
    longest_wait: float = 0.0
    lanes: dict[str, int] = {}
    pins: dict[str, tuple[int, float]] = {}
