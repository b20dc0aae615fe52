"""What the pools of one server share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mppool.core.outbox import Outbox
from mppool.core.slot import Slot
from mppool.core.waiter import Waiter
from mppool.ids import GrantNumber, GrantNumbers, ProcessId, Ticket


class Shared(NamedTuple):
    """Owned by `Books`.

    slots, granted, waiters: the slots and waiters of all pools, by number and by ticket, so that no event need look
        for its pool.
    awaited: see `Capacity`. jitter: gives floats within [0, 1), for back-offs.
    """

    outbox: Outbox
    numbers: GrantNumbers
    jitter: Callable[[], float]
    slots: dict[GrantNumber, Slot]
    granted: dict[tuple[ProcessId, Ticket], Slot]
    waiters: dict[tuple[ProcessId, Ticket], Waiter]
    awaited: set[ProcessId]
