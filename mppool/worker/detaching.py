"""Resources that a caller has taken out of its pool. Each keeps its slot until the caller has closed it, or its process ends."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mppool.worker.inventory import PoolEntry


class Detached:
    """What a lease has in hand after `detach`. The entry is in a list so that exactly one thread takes it out."""

    __slots__ = ("_entries",)

    def __init__(self, entry: PoolEntry) -> None:
        self._entries = [entry]

    def closed(self) -> None:
        """The caller has closed it: its slot is free. Again, and in a forked child, it does nothing."""
        try:
            entry = self._entries.pop()
        except IndexError:
            return
        if entry.inventory.begin_close(entry, monotonic()):
            entry.inventory.closed(entry, "discarded")
            entry.local.member.is_gone()


def take_out(entry: PoolEntry) -> tuple[Any, Detached] | None:
    """The resource is the caller's from now on; None: it was closed by force meanwhile. The caller owns the lease."""
    used = monotonic() - entry.lent_at
    detached = Detached(entry)  # first: an entry that nobody holds is closed by the audit
    # A machine that loses its lease closes everything.
    resource = entry.inventory.detach(entry, keep=bool(entry.local.member.link.machine))
    if resource is None:
        return None
    entry.local.durations.used(used)
    return resource, detached
