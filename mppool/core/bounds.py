"""What stands in whose way: the cap, the bounds of one identity and of one process, an open breaker.

Only functions here; the state is that of `PoolBooks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mppool.core.slot import Slot
from mppool.core.waiting import Waiter
from mppool.ids import ProcessId

if TYPE_CHECKING:
    from mppool.core.pool import PoolBooks


def is_below_cap(books: PoolBooks) -> bool:
    """Whether the cap leaves room for one more slot."""
    return books.max_size is None or len(books.slots.by_number) < books.max_size


def above_cap(books: PoolBooks) -> int:
    """Slots above the cap, after it was lowered."""
    size, cap = len(books.slots.by_number), books.max_size
    return size - cap if cap is not None and size > cap else 0


def excess(books: PoolBooks, now: float) -> int:
    """Slots above the cap for which none is on its way back yet."""
    return max(0, above_cap(books) - books.slots.on_the_way(now))


def has_inner_bounds(books: PoolBooks) -> bool:
    """Whether there are bounds beside the cap."""
    options = books.options
    return options.max_per_identity is not None or options.max_per_process is not None


def opens_enough(books: PoolBooks) -> bool:
    """Whether as many resources are being opened as may be at a time (`max_opening`)."""
    limit = books.options.max_opening
    return limit is not None and books.slots.may_be_opening() >= limit


def has_room(books: PoolBooks, process: ProcessId, key: str) -> bool:
    """Whether all bounds leave room for one more slot of this process for this key."""
    if books.max_size is not None and len(books.slots.by_number) >= books.max_size:
        return False
    if opens_enough(books):
        return False
    per_identity, per_process = books.options.max_per_identity, books.options.max_per_process
    return (per_identity is None or books.slots.by_key[key] < per_identity) and (
        per_process is None or books.slots.levels[process] < per_process
    )


def blocked_by_identity(books: PoolBooks, waiter: Waiter) -> bool:
    """Whether only a slot of the same key can help this waiter."""
    limit = books.options.max_per_identity
    return limit is not None and books.slots.by_key[waiter.key] >= limit


def blocked_by_process(books: PoolBooks, waiter: Waiter) -> bool:
    """Whether only a slot of the same process can help this waiter."""
    limit = books.options.max_per_process
    return limit is not None and books.slots.levels[waiter.process] >= limit


def helps(books: PoolBooks, slot: Slot, waiter: Waiter, now: float) -> bool:
    """Whether the waiter would be nearer to a resource if this slot were free.

    Where both bounds stand in his way, that of his identity is cleared first.
    """
    if not books.breakers.permit(waiter.key, now):
        return False
    if blocked_by_identity(books, waiter):
        return slot.key == waiter.key
    return not blocked_by_process(books, waiter) or slot.process == waiter.process


def levels_of(books: PoolBooks, slot: Slot, waiter: Waiter) -> tuple[int, int]:
    """How rich the giver of a slot and the one that waits are, of that in which they compete.

    Within one process the keys compete; where the bound of an identity stands in the way, the processes compete
    for slots of this identity.
    """
    slots = books.slots
    if slot.process == waiter.process:
        giver = slots.level_of(slot.process, slot.key)
        return giver, slots.level_of(waiter.process, waiter.key)
    if blocked_by_identity(books, waiter):
        giver = slots.level_of(slot.process, waiter.key)
        return giver, slots.level_of(waiter.process, waiter.key)
    giver = slots.levels[slot.process] - slots.closing_of(slot.process)
    return giver, slots.levels[waiter.process]


def how_full(books: PoolBooks, key: str) -> str:
    """For whoever gets nothing: what there is, and why there is no more."""
    slots = books.slots
    cap = "no cap" if books.max_size is None else f"max_size={books.max_size}"
    text = f"{len(slots.by_number)} resources exist ({cap}) in {len(slots.levels)} processes"
    if books.options.max_opening is not None and opens_enough(books):
        text = f"{text}, {slots.may_be_opening()} of them are being opened (max_opening)"
    if slots.by_number:
        text = f"{text}: {books.who_holds()}"
    breaker = books.breakers.get(key)
    return f"{text}; opening failed last with: {breaker.error}" if breaker else text


def line_is_full(limit: int) -> str:
    """For whoever is refused because `max_waiting` others wait already."""
    if limit == 0:
        return "there is nothing to be had at once, and max_waiting=0 lets nobody wait"
    others = "one checkout waits" if limit == 1 else f"{limit} checkouts wait"
    return f"{others} already, and max_waiting={limit} lets no more of them wait"


def waiting_for_slots(books: PoolBooks, now: float) -> int:
    """Waiters who could open a resource if they had a slot."""
    waiting = len(books.waiting)
    return waiting - books.breakers.kept_out(now) if waiting and books.breakers else waiting


def in_line(books: PoolBooks, now: float) -> Iterator[Waiter]:
    """The oldest waiter of every group that may open, the neediest first."""
    for head in books.waiting.in_line():
        if books.breakers.permit(head.key, now):
            yield head
