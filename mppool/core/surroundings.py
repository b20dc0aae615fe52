"""What the books of all pools, and those of tokens, share within one server.

`Books` owns it, and takes the decisions out; where there are no pools, whoever owns the `TokenBooks` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mppool.core.breaker import Jitter
from mppool.core.decisions import Addressed
from mppool.ids import GrantNumber, ProcessId, Ticket

if TYPE_CHECKING:
    from mppool.core.pool import PoolBooks
    from mppool.core.slot import Slot


class Surroundings:
    """What a pool's books share with those of the other pools of the same server.

    pool_of: in which pool's books a slot is. slot_of: the slot that was granted to a ticket. waits_in: in
        which pool's books a ticket is queued. So no event need look for its pool.
    labels: of the attached processes.
    """

    def __init__(
        self, next_number: Callable[[], GrantNumber], jitter: Jitter, epoch: int = 0
    ) -> None:
        self.next_number = next_number
        self.jitter = jitter
        self.epoch = epoch
        self.out: list[Addressed] = []
        self.attached: set[ProcessId] = set()
        self.labels: dict[ProcessId, str] = {}
        self.pool_of: dict[GrantNumber, PoolBooks] = {}
        self.slot_of: dict[tuple[ProcessId, Ticket], Slot] = {}
        self.waits_in: dict[tuple[ProcessId, Ticket], PoolBooks] = {}
        # After a torn journal: living processes whose inventories are still missing. While there are
        # any, nobody knows what they hold, so nothing new may be opened.
        self.awaited: set[ProcessId] = set()
