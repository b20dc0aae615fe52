"""How many slots there may be, and for whom: the cap, what others leave of it (ceilings), the bounds of one identity
and of one process, the number of openings at a time, an open breaker.

Nothing here changes a slot. `Capacity` says what stands in whose way.
"""

from __future__ import annotations

from collections.abc import Collection

from mppool.core.breaker import Breakers
from mppool.core.events import Share
from mppool.core.slot import Slot
from mppool.core.table import SlotTable
from mppool.core.waiting import Waiter
from mppool.ids import ProcessId
from mppool.options import PoolOptions


class Capacity:
    """The bounds in force, beside the slots that they bound.

    awaited: after a torn journal, the living processes whose inventories are missing still. While there are any,
        nobody knows what they hold, so nothing new may be opened.
    declared: the cap of the pool, as it was declared or set. max_size: what is in force of it, the least of it and of
        all ceilings. ceilings: what others leave to this pool, by who says so.
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
        """Somebody leaves so many slots to this pool, whatever the cap says; None: all of them."""
        self.ceilings.pop(by, None)
        if ceiling is not None:
            self.ceilings[by] = ceiling
        self._combine()

    def take_share(self, share: Share) -> None:
        """Other machines leave so much to this one."""
        self.share = share
        self.limit("machines", share.size)

    def _combine(self) -> None:
        declared = () if self.declared is None else (self.declared,)
        self.max_size = min((*declared, *self.ceilings.values()), default=None)

    # --- room --------------------------------------------------------------------------------------------

    def is_below_cap(self) -> bool:
        """Whether the cap leaves room for one more slot."""
        return self.max_size is None or len(self.slots.by_number) < self.max_size

    def above_cap(self) -> int:
        """Slots above the cap, after it was lowered."""
        size, cap = len(self.slots.by_number), self.max_size
        return size - cap if cap is not None and size > cap else 0

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
        slots = self.slots
        if self.max_size is not None and len(slots.by_number) >= self.max_size:
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
