"""Resources that a caller has taken out of its pool. Each keeps its slot until the caller has closed it, or its process ends."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mppool.worker.inventory import PoolEntry


def detach(entry: PoolEntry) -> bool:
    """The resource is the caller's from now on; False: it was closed by force meanwhile. The caller owns the lease."""
    used = monotonic() - entry.lent_at
    if not entry.inventory.detach(entry):
        return False
    entry.local.durations.used(used)
    return True


def say_closed(entry: PoolEntry) -> None:
    """The caller has closed what it had detached: its slot is free. Any number of times; in a forked child it does nothing."""
    if not entry.mark[0]:
        return
    entry.inventory.begin_close(entry, monotonic())
    entry.inventory.closed(entry, "discarded")
    entry.local.member.is_gone()
