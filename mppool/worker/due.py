"""When a resource that lies idle has to be looked after. The time is an argument."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mppool.worker.inventory import AT_ONCE, NEVER, Entry

if TYPE_CHECKING:
    from mppool.worker.own_pool import OwnPool


def recycling_due(face: OwnPool, entry: Entry) -> float:
    """When a resource that lies idle is retired or given up."""
    due = entry.retire_at
    if face.closed:
        due = AT_ONCE
    max_idle = face.options.max_idle
    if max_idle is not None:
        due = min(due, max(entry.kept_until, entry.released_at + max_idle))
    return due


def check_due(face: OwnPool, entry: Entry) -> float:
    """When a resource that lies idle has to be checked in the background."""
    interval = face.options.check_interval
    return NEVER if interval is None or face.check is None else entry.checked_at + interval


def due_when_idle(face: OwnPool, entry: Entry) -> float:
    """When a resource that lies idle has to be looked after: retired, given up, or checked."""
    return min(recycling_due(face, entry), check_due(face, entry))
