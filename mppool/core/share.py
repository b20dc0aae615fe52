"""What other machines leave to this one of a pool's cap, and what this one could use.

Where machines share a cap, somebody outside the books leases it (see mppool.machines), and says from time to time how
much of it is this machine's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from mppool.core.capacity import Capacity
from mppool.core.decisions import EndLeases
from mppool.core.events import Share
from mppool.core.outbox import Outbox
from mppool.ids import ProcessId


class Demand(NamedTuple):
    """What a pool has and could use.

    cap: as it was declared or set. has: slots. waiting: checkouts in line. may_have: the bound in force.
    keeps: of what is wanted, that which is kept open although nobody uses it (`min_size`). known: False: only the journal
    tells of the pool, and not of its cap. pools: of a budget, those under it.
    """

    cap: int | None
    has: int
    waiting: int
    may_have: int | None
    keeps: int
    known: bool = True
    pools: tuple[str, ...] = ()


def of_budget(name: str) -> str:
    """How a budget is called where pools and budgets share a table: no pool has such a name."""
    return f"budget:{name}"


class Shares:
    """What was said last of each pool and budget, also of those that nobody has declared yet.

    of_new: of one of which nothing was said; None: there are no other machines.
    """

    def __init__(self) -> None:
        self.of_new: Share | None = None
        self._by_name: dict[str, Share] = {}

    def take(self, shares: Iterable[Share], of_new: Share | None) -> None:
        """This is so from now on."""
        self.of_new = of_new
        self._by_name.update((share.pool, share) for share in shares)

    def of(self, name: str) -> Share | None:
        """Of a pool or budget that is declared now."""
        return self._by_name.get(name, self.of_new)


class ShareOfMachine:
    """The share of one pool. It has no state of its own: `Capacity` has."""

    def __init__(self, pool: str, capacity: Capacity, outbox: Outbox) -> None:
        self._pool = pool
        self._capacity = capacity
        self._outbox = outbox

    def take(self, share: Share) -> None:
        """It is so much from now on."""
        before = self._capacity.share
        self._capacity.take_share(share)
        is_told = before is not None and before.ends and before.size == share.size
        if share.ends and not is_told:
            self._end_leases(share, self._capacity.above_cap())

    def opened(self, process: ProcessId) -> None:
        """Something is open that was being opened, perhaps while leases were ended."""
        share = self._capacity.share
        if share is not None and share.ends and self._capacity.above_cap():
            self._outbox.tell(process, EndLeases(self._pool, 1, share.why))

    def size(self) -> int | None:
        """How many slots this machine may have at present; None: there are no other machines, or there is no cap."""
        return None if self._capacity.share is None else self._capacity.max_size

    def why(self) -> str:
        """Why this machine may have no more, where the share is the reason; else ""."""
        capacity, share = self._capacity, self._capacity.share
        if share is None or (share.opens and capacity.max_size == capacity.declared):
            return ""
        size = "" if share.size is None else f" is {share.size} at present"
        return f"the share of this machine{size}{f' ({share.why})' if share.why else ''}"

    def demand(self, waiting: int, keeps: int) -> Demand:
        """For those who share the cap."""
        capacity = self._capacity
        has = len(capacity.slots)
        return Demand(capacity.declared, has, waiting, capacity.max_size, keeps)

    def _end_leases(self, share: Share, left: int) -> None:
        """What is beyond the share goes although it is lent: another machine may open as much in a moment."""
        slots = self._capacity.slots
        for process, level in slots.levels.items():
            count = min(left, level - slots.closing_of(process))
            if count > 0:
                left -= count
                self._outbox.tell(process, EndLeases(self._pool, count, share.why))
