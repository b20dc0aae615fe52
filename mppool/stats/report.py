"""What a process reports of itself. It travels in the message Report."""

from __future__ import annotations

from typing import Any

import msgspec


class ResourceReport(msgspec.Struct, array_like=True, gc=False):
    """One resource of one process. Durations are seconds."""

    number: int
    key: str
    state: str
    uses: int
    age: float
    idle_for: float | None
    held_for: float | None
    description: str
    extra: dict[str, Any]


class PoolReport(msgspec.Struct, array_like=True):
    """What one process knows of one pool. Counters and histogram counts only ever grow."""

    pool: str
    in_use: int
    idle: int
    waiting: int
    counters: dict[str, int]
    histograms: dict[str, list[int]]
    resources: list[ResourceReport]
