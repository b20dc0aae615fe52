"""Mistakes that are easily made, and said clearly."""

from __future__ import annotations

import sys
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any

from mppool.errors import ConfigurationError
from mppool.logs import Log

if TYPE_CHECKING:
    from mppool.worker.local_pool import LocalPool

log = Log("mppool")

_MOST_LOOKED_AT = 1000
FRESH_S = 0.05
"""A thread that asks again and again hears what was said a moment ago."""


def refuse_none(pool: str, opened: list[Any]) -> None:
    """An open hook that forgets its `return` gives None, which nobody could use, or close.

    opened: what it gave; emptied where that is nothing.
    """
    if opened[0] is None:
        opened.clear()
        raise ConfigurationError(
            f"the open hook of pool {pool!r} returned None; return the resource that it opens"
        )


def warn_of_event_loop(local: LocalPool) -> None:
    """A checkout that has to wait inside a running event loop stops everything else there. Warned of once."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or local.warned_of_event_loop or asyncio._get_running_loop() is None:
        return
    local.warned_of_event_loop = True
    log.warning(
        "pool %r: a checkout has to wait inside a running event loop, and everything else in that loop waits "
        "with it, perhaps also what would give a resource back; use `async with pool.acheckout()` there",
        local.name,
    )


def own_leases(local: LocalPool) -> str:
    """What this process itself holds, for a checkout that waited in vain: "" for nothing."""
    now = monotonic()
    until, text = local.said_of_own_leases
    if now >= until:
        text = _own_leases(local, now)
        local.said_of_own_leases = (now + FRESH_S, text)
    return text


def _own_leases(local: LocalPool, now: float) -> str:
    with local.inventory.lock:
        some = list(islice(local.inventory.table.values(), _MOST_LOOKED_AT))
    since = [
        entry.lent_at
        for entry in some
        if entry.local is local and entry.state == "open" and entry.lent_at > entry.released_at
    ]
    if not since:
        return ""
    return (
        f"; {len(since)} of them are lent in this process, the longest for {now - min(since):.1f} s"
    )
