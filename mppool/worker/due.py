"""When a resource that lies idle has to be looked after. The time is an argument."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mppool.worker.inventory import AT_ONCE, NEVER, PoolEntry

if TYPE_CHECKING:
    from mppool.worker.own_pool import OwnPool


def recycling_due(local: OwnPool, entry: PoolEntry) -> float:
    """When a resource that lies idle is retired or given up."""
    due = entry.retire_at
    if local.closed:
        due = AT_ONCE
    max_idle = local.options.max_idle
    if max_idle is not None:
        due = min(due, max(entry.kept_until, entry.released_at + max_idle))
    return due


def check_due(local: OwnPool, entry: PoolEntry) -> float:
    """When a resource that lies idle has to be checked in the background."""
    interval = local.options.check_interval
    return NEVER if interval is None or local.hooks.check is None else entry.checked_at + interval


def due_when_idle(local: OwnPool, entry: PoolEntry) -> float:
    """When a resource that lies idle has to be looked after: retired, given up, or checked."""
    return min(recycling_due(local, entry), check_due(local, entry))
