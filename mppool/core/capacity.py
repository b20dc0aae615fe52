"""How many slots there may be, and for whom: the cap, what others leave of it (ceilings), the bounds of one identity
and of one process, the number of openings at a time, an open breaker.

Nothing here changes a slot. `Capacity` says what stands in whose way.

What a pool may have now is its `max_size`: the lowest of the cap that was declared and of the ceilings that others set for
the moment, for example the budget of the pool while it owes slots to its neighbours. What is above it goes when it is idle
or released. Beside it a pool with a budget takes no slot that the budget does not have.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from mppool.core.breaker import Breakers
from mppool.core.events import Share
from mppool.core.slot import Slot
from mppool.core.table import SlotTable, Total
from mppool.core.waiter import Waiter
from mppool.ids import ProcessId
from mppool.options import PoolOptions

BUDGET = "budget"
"""Who sets the limit of a pool that owes slots to its neighbours."""


class SharedCap(Protocol):
    """The cap over several pools, as one of them sees it: see `BudgetBooks`."""

    name: str
    cap: int
    total: Total

    def said(self) -> str:
        """Who has how much of it, for people."""


class Capacity:
    """The bounds in force, beside the slots that they bound.

    declared: the cap of the pool, as it was declared or set. max_size: what it may have now, see above. ceilings: what
        others leave to this pool, by who says so.
    budget: the cap over several pools, of which this is one; None: there is none.
    wanted_elsewhere: how many slots the other pools of the budget want, and get from nobody yet: what lies idle here is
        closed for them. coming: how many are closing in them for this pool. Both are kept by the budget.

    awaited: after a torn journal, the living processes whose inventories are missing still. While there are any,
        nobody knows what they hold, so nothing new may be opened.
    share: what other machines leave to this one; None where there are none.
    has_inner: whether there are bounds beside the cap.
    """

    def __init__(
        self, slots: SlotTable, breakers: Breakers, awaited: Collection[ProcessId]
    ) -> None:
        self.slots = slots
        self.breakers = breakers
        self.awaited = awaited
        self.declared: int | None = None
        self.max_size: int | None = None
        self.budget: SharedCap | None = None
        self.wanted_elsewhere = self.coming = 0
        self.ceilings: dict[str, int] = {}
        self.share: Share | None = None
        self.max_per_identity: int | None = None
        self.max_per_process: int | None = None
        self.max_opening: int | None = None
        self.has_inner = False

    def configure(self, max_size: int | None, options: PoolOptions) -> None:
        """These bounds are in force from now on."""
        self.declared = max_size
        self._combine()
        self.max_per_identity = options.max_per_identity
        self.max_per_process = options.max_per_process
        self.max_opening = options.max_opening
        self.has_inner = options.max_per_identity is not None or options.max_per_process is not None

    def limit(self, by: str, ceiling: int | None) -> None:
        """Somebody leaves so many slots to this pool, whatever the cap says; None: all of them. It is not journalled."""
        self.ceilings.pop(by, None)
        if ceiling is not None:
            self.ceilings[by] = ceiling
        self._combine()

    def take_share(self, share: Share) -> None:
        """Other machines leave so much to this one."""
        self.share = share
        self.limit("machines", share.size)

    def without(self, by: str) -> int | None:
        """What the pool might have now if this one left it all."""
        others = [most for name, most in self.ceilings.items() if name != by]
        return min(others if self.declared is None else [self.declared, *others], default=None)

    def _combine(self) -> None:
        self.max_size = self.without("")

    # --- room --------------------------------------------------------------------------------------------

    def is_below_cap(self) -> bool:
        """Whether the cap leaves room for one more slot, and that of the budget too."""
        if self.max_size is not None and len(self.slots.by_number) >= self.max_size:
            return False
        return self.budget is None or self.budget.total.size < self.budget.cap

    def above_cap(self) -> int:
        """Slots above what the pool may have now, for example after its cap was lowered."""
        size, cap = len(self.slots.by_number), self.max_size
        return size - cap if cap is not None and size > cap else 0

    def must_give(self) -> bool:
        """Whether slots are above what the pool may have, or the others of its budget would take what lies idle."""
        return self.wanted_elsewhere > 0 or self.above_cap() > 0

    def is_above_own(self, now: float) -> bool:
        """Whether more slots stay than this pool may have, whatever its budget says."""
        most = self.without(BUDGET)
        return most is not None and self.staying(now) > most

    def staying(self, now: float) -> int:
        """How many slots are not on their way out."""
        return len(self.slots.by_number) - self.slots.on_the_way(now)

    def most(self) -> int | None:
        """How many slots there can be at all."""
        if self.budget is None:
            return self.max_size
        return self.budget.cap if self.max_size is None else min(self.max_size, self.budget.cap)

    def excess(self, now: float) -> int:
        """Slots above the cap for which none is on its way back yet."""
        return max(0, self.above_cap() - self.slots.on_the_way(now))

    def opens_enough(self) -> bool:
        """Whether as many resources are being opened as may be at a time (`max_opening`), or none may be at present."""
        if self.share is not None and not self.share.opens:
            return True
        return self.max_opening is not None and self.slots.may_be_opening() >= self.max_opening

    def has_room(self, process: ProcessId, key: str) -> bool:
        """Whether all bounds leave room for one more slot of this process for this key."""
        slots, budget = self.slots, self.budget
        if self.max_size is not None and len(slots.by_number) >= self.max_size:
            return False
        if budget is not None and budget.total.size >= budget.cap:
            return False
        if self.opens_enough():
            return False
        per_identity, per_process = self.max_per_identity, self.max_per_process
        return (per_identity is None or slots.by_key[key] < per_identity) and (
            per_process is None or slots.levels[process] < per_process
        )

    def may_open(self, process: ProcessId, key: str, now: float) -> bool:
        """Whether bounds and breaker allow this process one more resource of this key."""
        has_room = not self.awaited and self.has_room(process, key)
        return has_room and self.breakers.permit(key, now)

    # --- what stands in whose way ------------------------------------------------------------------------

    def could_use(self, waiting: int, now: float) -> int:
        """How many of those who wait could open a resource if they had a slot."""
        return waiting - self.breakers.kept_out(now) if waiting and self.breakers else waiting

    def blocked_by_identity(self, waiter: Waiter) -> bool:
        """Whether only a slot of the same key can help this waiter."""
        limit = self.max_per_identity
        return limit is not None and self.slots.by_key[waiter.key] >= limit

    def blocked_by_process(self, waiter: Waiter) -> bool:
        """Whether only a slot of the same process can help this waiter."""
        limit = self.max_per_process
        return limit is not None and self.slots.levels[waiter.process] >= limit

    def helps(self, slot: Slot, waiter: Waiter, now: float) -> bool:
        """Whether the waiter would be nearer to a resource if this slot were free.

        Where both bounds stand in its way, that of its identity is cleared first.
        """
        if not self.breakers.permit(waiter.key, now):
            return False
        if self.blocked_by_identity(waiter):
            return slot.key == waiter.key
        return not self.blocked_by_process(waiter) or slot.process == waiter.process

    def levels_of(self, slot: Slot, waiter: Waiter) -> tuple[int, int]:
        """How rich the giver of a slot and the one that waits are, of that in which they compete.

        Within one process the keys compete. Where the bound of an identity stands in the way, the processes compete
        for slots of this identity.
        """
        slots = self.slots
        if slot.process == waiter.process:
            giver = slots.level_of(slot.process, slot.key)
            return giver, slots.level_of(waiter.process, waiter.key)
        if self.blocked_by_identity(waiter):
            giver = slots.level_of(slot.process, waiter.key)
            return giver, slots.level_of(waiter.process, waiter.key)
        giver = slots.levels[slot.process] - slots.closing_of(slot.process)
        return giver, slots.levels[waiter.process]
