"""What the books of one pool know, for statistics. A function only; the state is that of `PoolBooks`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mppool.core.slot import SlotState

if TYPE_CHECKING:
    from mppool.core.pool import PoolBooks

SLOT_FIELDS = ("number", "key", "state", "process")


def of_pool(books: PoolBooks) -> dict[str, Any]:
    """JSON-compatible but for the processes of slots; `stats.merge` adds what the processes know."""
    return {
        "name": books.name,
        "placement": books.options.placement,
        "max_size": books.max_size,
        "min_size": books.min_size,
        "size": len(books.slots),
        "opening": books.slots.in_state(SlotState.OPENING),
        "waiting": len(books.waiting),
        "breaker": books.breakers.worst_state(),
        "identities": len(books.slots.by_key),
        "generation": books.generation,
        "closed": books.closed,
        "counters": dict(books.counters),
        "born": books.born,
        # Rows of SLOT_FIELDS, for there may be many thousands of them.
        "slots": [
            (slot.number, slot.key, slot.state._value_, slot.process) for slot in books.slots
        ],
    }
