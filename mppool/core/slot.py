"""One slot in use, from its grant to its end, and the transitions that are legal.

             Opened        Returned or IdleTooLong, answered by Close
    OPENING --------> OPEN ------------------------------> CLOSING
       |               |  \\__ Returned or IdleTooLong,          |
       |               |      answered by Keep or Grant:       |
       |               |      stays OPEN                       |
       | OpeningFailed    | Closed                                | Closed
       | Declined      |                                       |
       | NotMine       |                                       |
       | Closed        v                                       v
       +-----------> FREE <------------------------------------+

What is brought back may also go on under a new number, in OPENING: see `Ledger.exchange`.

The death of the process, or an inventory without the number, frees a slot from any state. An event
that the table does not name is stale or a duplicate: it is refused and changes nothing.
"""

from __future__ import annotations

from enum import Enum

from mppool.core.events import (
    Closed,
    Declined,
    Event,
    IdleTooLong,
    NotMine,
    Opened,
    OpeningFailed,
    Returned,
)
from mppool.ids import GrantNumber, ProcessId, Ticket


class SlotState(Enum):
    """Where a slot is between its grant and its end; FREE slots are not kept."""

    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"
    FREE = "free"

    # Each is one object. Enum's own, a function of Python, is called at each of the look-ups of every event.
    __hash__ = object.__hash__


TRANSITIONS: dict[tuple[SlotState, type[Event]], SlotState] = {
    (SlotState.OPENING, Opened): SlotState.OPEN,
    (SlotState.OPENING, OpeningFailed): SlotState.FREE,
    (SlotState.OPENING, Declined): SlotState.FREE,
    (SlotState.OPENING, NotMine): SlotState.FREE,
    (SlotState.OPENING, Closed): SlotState.FREE,
    (SlotState.OPEN, Returned): SlotState.OPEN,
    (SlotState.OPEN, IdleTooLong): SlotState.OPEN,
    (SlotState.OPEN, Closed): SlotState.FREE,
    (SlotState.CLOSING, Closed): SlotState.FREE,
}


class Slot:
    """The right of one process to have one resource open.

    opened_at: when it became OPEN, as far as this server knows.
    expected_until: while CLOSING, how long its end is counted on; a close that hangs keeps the slot.
    promised_to: while CLOSING, the process for which it is closed, if for any.
    pool: the name of its pool.
    lane: for which lane its resource is in use, as far as is known; None: for none. See `Lanes`.
    instead_of: while OPENING, the slot that it was under another number, whose resource is closed first; None: there is
        none.
    """

    __slots__ = (
        "expected_until",
        "generation",
        "granted_at",
        "instead_of",
        "key",
        "lane",
        "number",
        "opened_at",
        "opened_before",
        "pool",
        "process",
        "promised_to",
        "state",
        "ticket",
    )

    def __init__(
        self,
        number: GrantNumber,
        process: ProcessId,
        key: str,
        generation: int,
        state: SlotState,
        granted_at: float,
        ticket: Ticket | None = None,
        opened_before: int = 0,
        pool: str = "",
    ) -> None:
        self.number = number
        self.process = process
        self.key = key
        self.generation = generation
        self.state = state
        self.granted_at = granted_at
        self.ticket = ticket
        self.opened_before = opened_before
        self.pool = pool
        self.lane: str | None = None
        self.opened_at = granted_at
        self.expected_until = granted_at
        self.promised_to: ProcessId | None = None
        self.instead_of: Slot | None = None

    def after(self, event: Event) -> SlotState | None:
        """The state that the event leads to, or None if it is not legal now."""
        return TRANSITIONS.get((self.state, type(event)))
