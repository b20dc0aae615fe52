"""What happens when a process attaches: its inventory overrules whatever was believed about it.

It names everything that the process holds, or is opening or closing. A slot that it does not name is free: the
process has given its word never to use an older grant (see `Attach`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mppool.core import returns, sharing
from mppool.core.decisions import Close, PoolChanged, Record
from mppool.core.events import Held
from mppool.core.slot import Slot, SlotState
from mppool.ids import ProcessId, epoch_of

if TYPE_CHECKING:
    from mppool.core.pool import PoolBooks

_STATE_OF_HELD = {
    "opening": SlotState.OPENING,
    "open": SlotState.OPEN,
    "returned": SlotState.OPEN,
    "closing": SlotState.CLOSING,
}


def take_over(books: PoolBooks, process: ProcessId, held: list[Held], now: float) -> None:
    """Free what the process does not hold, enter what it holds, and answer what it had brought back."""
    books.waiting.remove_process(process)
    books.reclaimer.forget(process)
    books.upkeep.wanted = books.upkeep.wanted or bool(held)
    books.slots.heard(process)
    numbers = {item.number for item in held}
    for slot in books.slots.of(process):
        if slot.number not in numbers:
            books.free(slot)
    for item in held:
        _adopt(books, process, item, now)
    books.tell(process, PoolChanged(books.name, books.generation, books.closed))
    books.upkeep.learn(books, process, held)
    for item in held:
        returned = books.slots.get(item.number) if item.state == "returned" else None
        if returned is not None and returned.process == process:
            returns.answer(books, returned, now)


def _adopt(books: PoolBooks, process: ProcessId, item: Held, now: float) -> None:
    slot = books.slots.get(item.number)
    state = _STATE_OF_HELD[item.state]
    if slot is None:
        slot = Slot(item.number, process, item.key, item.generation, state, now)
        books.slots.add(slot)
        books.write_down(Record(books.name, item.key, item.number, process, item.generation))
    elif slot.process != process:
        # The number was granted to somebody else, so this resource is in no books.
        books.tell(process, Close(item.number, "retired"))
        return
    else:
        if slot.state is SlotState.OPENING and state is not SlotState.OPENING:
            books.opened(slot, now)  # what said so was lost
        books.slots.move(slot, state)
        books.slots.rename(slot, item.key)  # the journal has no room for a long key
    if state is SlotState.CLOSING:
        books.slots.expect_end(slot, now + sharing.ANSWER_S)
    slot.opened_before = item.opened_before
    # What earlier servers saw opened; this one's own count is exact.
    if epoch_of(item.number) < books.epoch:
        opened = item.opened_before + (state is not SlotState.OPENING)
        books.counted_earlier({"opened": opened})
