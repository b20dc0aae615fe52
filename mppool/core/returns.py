"""What becomes of a slot that a process brought back: closed, granted to a waiter at home, or kept.

The policy is in `sharing`; here it is applied to the books of one pool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mppool.core import bounds, sharing
from mppool.core.decisions import Keep
from mppool.core.slot import Slot
from mppool.core.waiting import Waiter

if TYPE_CHECKING:
    from mppool.core.pool import PoolBooks


def answer(books: PoolBooks, slot: Slot, now: float) -> None:
    """Decide about an open slot. Exactly one of Close, Grant and Keep goes to its process."""
    process = slot.process
    if books.closed or books.upkeep.is_stale(books, slot) or bounds.excess(books, now):
        books.close_slot(slot, "retired", now)
        books.reclaimer.brought_back(books, process, now, given=True)
        return
    home = books.waiting.first(process, slot.key)
    rival = _rival(books, slot, now)
    if rival is not None and (home is None or _prevails(books, rival, home, slot, now)):
        books.counters["moved"] += 1
        books.close_slot(slot, "moved", now)
        books.reclaimer.brought_back(books, process, now, given=True)
        return
    # A process that is not contended any more must know it before the resource lies on its shelf.
    books.reclaimer.brought_back(books, process, now, given=False, kept=home is None)
    if home is not None:
        books.grant_kept(slot, home)
    else:
        books.tell(process, Keep(slot.number))


def _rival(books: PoolBooks, slot: Slot, now: float) -> Waiter | None:
    """Who would be served if this slot were closed, and is not served by what is closing already."""
    outside = books.waiting.count_outside(slot.process, slot.key)
    if outside <= books.slots.on_the_way(now):
        return None
    return next(
        (
            head
            for head in books.waiting.in_line(now)
            if (head.process, head.key) != (slot.process, slot.key)
            and bounds.helps(books, slot, head, now)
        ),
        None,
    )


def _prevails(books: PoolBooks, rival: Waiter, home: Waiter, slot: Slot, now: float) -> bool:
    giver = books.slots.levels[slot.process] - books.slots.closing_of(slot.process)
    taker = books.slots.levels[rival.process] + books.slots.on_the_way(now)
    return sharing.rival_prevails(rival, home, giver, taker)
