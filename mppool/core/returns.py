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
    from collections.abc import Iterator

    from mppool.core.pool import PoolBooks

MOST_TRIED = 2
"""So many unrestricted waiters are tried: if they have no claim, nobody further down the line has one."""


def answer(books: PoolBooks, slot: Slot, now: float, idle_s: float = 0.0) -> None:
    """Decide about an open slot. Exactly one of Close, Grant and Keep goes to its process.

    idle_s: for how long its resource has lain idle.
    """
    process = slot.process
    if books.closed or books.upkeep.is_stale(books, slot) or bounds.excess(books, now):
        books.close_slot(slot, "retired", now)
        books.reclaimer.brought_back(books, process, now, given=True)
        return
    home = books.waiting.first(process, slot.key)
    rival = _rival(books, slot, home, now, idle_s)
    if rival is not None:
        books.counters["moved"] += 1
        books.close_slot(slot, "moved", now, promised_to=rival.process)
        books.reclaimer.brought_back(books, process, now, given=True)
        return
    # A process that is not contended any more must know it before the resource lies on its shelf.
    books.reclaimer.brought_back(books, process, now, given=False)
    if home is not None:
        books.grant_kept(slot, home)
    else:
        books.tell(process, Keep(slot.number))


def _rival(
    books: PoolBooks, slot: Slot, home: Waiter | None, now: float, idle_s: float
) -> Waiter | None:
    """The first in line that gets this slot, and is not served by what is closing already.

    While no opening may begin nobody could use it.
    """
    outside = books.waiting.count_outside(slot.process, slot.key)
    if outside <= books.slots.on_the_way(now) or bounds.opens_enough(books):
        return None
    is_surplus = home is None and idle_s >= sharing.surplus_after_s(books.openings.of(slot.key))
    for head in _candidates(books, slot, now):
        if not bounds.helps(books, slot, head, now):
            continue
        promised = books.slots.promised_to(head.process)
        if books.waiting.count_of_process(head.process) <= promised:
            continue
        # A process may always make room for another of its own keys, where nobody wants this one.
        if is_surplus or (home is None and head.process == slot.process):
            return head
        if has_claim(books, slot, head, promised, now):
            return head
    return None


def has_claim(books: PoolBooks, slot: Slot, waiter: Waiter, promised: int, now: float) -> bool:
    """Whether the slot has earned its opening, and the waiter has a claim to it.

    promised: slots that are on their way to its process already.
    """
    giver, taker = bounds.levels_of(books, slot, waiter)
    taker += promised
    starves = books.waiting.is_starving(waiter)
    if giver < sharing.least_giving_level(taker, starves=starves):
        return False
    return now >= books.earned_at(slot, evens_out=sharing.evens_out(giver, taker))


def _candidates(books: PoolBooks, slot: Slot, now: float) -> Iterator[Waiter]:
    """Those that may have a claim, in the order of service.

    At the end: the oldest of the slot's own process, whose keys compete with each other.
    """
    tried = 0
    for head in books.waiting.in_line():
        if head.process == slot.process and head.key == slot.key:
            continue
        yield head
        if head.process == slot.process or books.slots.promised_to(head.process):
            continue
        tried += 1
        if tried >= MOST_TRIED and not bounds.has_inner_bounds(books):
            break
    own = books.waiting.first_for_other_key(slot.process, slot.key)
    if own is not None:
        yield own
