"""A lease that goes on as the next one, for a caller that is known, without anybody getting the resource in between."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from mppool.logs import logged_afterwards
from mppool.stats.names import BRIEF_S
from mppool.worker.ending import close, close_soon

if TYPE_CHECKING:
    from mppool.worker.lease import Lease


@logged_afterwards
def renewed(lease: Lease[Any]) -> bool:
    """End one use and begin the next, with what a release and a checkout do: the reset, the hook, the count.

    False: the resource could not go on, and was closed; the lease is over. Not for pools whose leases are watched.
    Interrupted in a hook, the resource is closed too.
    """
    local, entry = lease._local, lease._held[0]
    now = monotonic()
    limit = local.options.max_uses
    if entry.killed or now >= entry.retire_at or (limit is not None and entry.uses >= limit):
        lease.release()
        return False
    if now - entry.lent_at >= BRIEF_S:
        local.durations.used(now - entry.lent_at)
    if local.hooks.reset is not None and not local.was_reset(entry):
        lease._held.clear()
        close(entry, "discarded")
        return False
    entry.released_at = monotonic()
    local.lend(entry, entry.released_at)
    return True


def put_back_unused(lease: Lease[Any]) -> None:
    """The use that has begun in advance is none: nobody wanted it. Nothing is reset, and no hook runs here."""
    entry = lease._held.pop()
    entry.uses -= 1
    if monotonic() >= entry.retire_at:
        close_soon(entry, entry.retire_reason)
    else:
        entry.idle.put_back(entry)
