"""Who has the resources of a pool: for whoever waited for one in vain. Functions only."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from mppool.core.slot import Slot
from mppool.ids import ProcessId

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mppool.core.pool import PoolBooks

MOST_NAMED = 3

FRESH_S = 0.05
"""Many time out together: what was said to one of them is said to the others."""


def text(books: PoolBooks, labels: Mapping[ProcessId, str], now: float) -> str:
    """The processes that have the most, with their labels, and since when."""
    levels = books.slots.levels
    most = heapq.nlargest(MOST_NAMED, levels.items(), key=lambda item: item[1])
    named = [
        _named(books.slots.oldest_of(process), process, count, labels, now)
        for process, count in most
    ]
    if len(levels) > len(named):
        named.append(f"{len(levels) - len(named)} more processes the rest")
    return ", ".join(named)


def _named(
    oldest: Slot | None, process: ProcessId, count: int, labels: Mapping[ProcessId, str], now: float
) -> str:
    label = labels.get(process, "")
    who = f"{label} (pid {process.pid})" if label else f"pid {process.pid}"
    since = 0.0 if oldest is None else max(0.0, now - oldest.granted_at)
    return f"{who} has {count} (the oldest for {since:.1f} s)"
