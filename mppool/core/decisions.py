"""What must then be done: everything that the books ever answer.

Each decision is addressed to one process, except for `Record`, `Erase`, `RecordPool` and `RecordBudget`, which the server
carries out itself, in the journal, before it sends the decisions that follow them.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from mppool.core.events import CloseReason
from mppool.ids import GrantNumber, ProcessId, Ticket


class Decision(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Something that a process, or the server itself, must do."""


NOBODY = Ticket(0)
"""The ticket of a grant for which nobody waits."""

NO_GRANT = GrantNumber(0)
"""The number of no grant."""


class Grant(Decision, frozen=True, tag=True):
    """The right to have one resource open.

    fresh: the process opens a resource under this number. Otherwise it brought this resource back
        itself and may hand it to the waiter, kept open.
    ticket: the waiter's; or NOBODY: the resource is opened for the shelf, to keep `min_size` open.
    opened_before: resources that the pool had opened before (what the open hook is told).
    opening_s: what opening a resource lately takes; 0 where nobody knows.
    instead_of: the resource with this number, which the process has brought back, is closed first; both are one slot, so
        nothing is said of its end. 0: there is none.
    """

    pool: str
    key: str
    number: GrantNumber
    ticket: Ticket
    generation: int
    fresh: bool
    opened_before: int
    opening_s: float = 0.0
    instead_of: GrantNumber = NO_GRANT


class Queued(Decision, frozen=True, tag=True):
    """Nothing can be had now; a Grant or Refuse will follow on the errand channel.

    why: where another machine is the reason, for people; a caller whose time passes may not hear the Refuse.
    """

    ticket: Ticket
    why: str = ""


RefuseReason = Literal[
    "timeout", "too_many_waiting", "open_failed", "closed", "unknown_pool", "journal", "mismatch"
]


class Refuse(Decision, frozen=True, tag=True):
    """The checkout gets nothing. `text` says why, without secrets."""

    ticket: Ticket
    reason: RefuseReason
    text: str


class AskAgain(Decision, frozen=True, tag=True):
    """This ticket is in no queue any more: the connection on which it was asked has ended, which nobody there may know.

    Nothing is granted for it later.
    """

    ticket: Ticket


class Keep(Decision, frozen=True, tag=True):
    """Answer to Returned: nobody else needs it, put it on the shelf."""

    number: GrantNumber


class Close(Decision, frozen=True, tag=True):
    """Close the resource and say Closed, with this reason.

    Answer to Returned and IdleTooLong; also sent for what a process holds although it is in no books.
    """

    number: GrantNumber
    reason: CloseReason


class Reclaim(Decision, frozen=True, tag=True):
    """Bring slots back.

    contended: from now on, until told otherwise, bring back every slot that is released. This is a state,
        not a count.
    sweep: bring back at once up to so many idle ones, those idle for longest first,
    idle_for: but only such as have been idle for at least so many seconds.
    settled: where the pool has lanes, one that has its right and waits alone: what was used in this lane need not be
        brought back while somebody of the same lane waits at home, who may hope for it before asking. None: there is none.
    """

    pool: str
    contended: bool
    sweep: int
    idle_for: float
    settled: str | None = None


class EndLeases(Decision, frozen=True, tag=True):
    """Close so many resources now: what is idle first, then what has been lent for longest, as overdue leases are ended.

    why: for the errors of those who still use them.
    """

    pool: str
    count: int
    why: str


class Ask(Decision, frozen=True, tag=True):
    """Does the process hold this grant? Answered by NotMine, or not at all."""

    number: GrantNumber


class PoolChanged(Decision, frozen=True, tag=True):
    """State of a pool that all its processes follow.

    Everything that was opened in an older generation is retired; a closed pool retires everything. With a key,
    only resources of this key are meant.

    hung: see BackendFailed. over: seconds over which the process spreads the end of what it has; of all keys only.
    """

    pool: str
    generation: int
    closed: bool
    key: str | None = None
    hung: bool = False
    over: float = 0.0


class DropToken(Decision, frozen=True, tag=True):
    """Close what lies idle for this key and was opened with the token of this digest."""

    pool: str
    key: str
    token: str


class Draining(Decision, frozen=True, tag=True):
    """Answer to Drain: resources older than `generation` that are still open somewhere."""

    pool: str
    generation: int
    left: int


class Readiness(Decision, frozen=True, tag=True):
    """Answer to WantReady: resources that are open, of those that `min_size` wants; the last error.

    closed: the pool is. The process may just have heard that it is open, from before.
    """

    pool: str
    open: int
    wanted: int
    error: str
    closed: bool = False


class Notice(Decision, frozen=True, tag=True):
    """Something the process should log as a warning."""

    pool: str
    text: str


class Record(Decision, frozen=True, tag=True):
    """Write down that the process holds the slot, before it is told so.

    budget: the name of that against which it counts too; "": none.
    instead_of: the number that the slot had so far, of which nothing is left; 0: it is a new one.
    """

    pool: str
    key: str
    number: GrantNumber
    process: ProcessId
    generation: int
    budget: str = ""
    instead_of: GrantNumber = NO_GRANT


class Erase(Decision, frozen=True, tag=True):
    """Write down that the slot is free."""

    number: GrantNumber


class RecordPool(Decision, frozen=True, tag=True):
    """Write down what a pool's next server must know although nobody attached has told it.

    declared: what the newest declaration, made at `declared_at`, said of both bounds; None: an older release
        did not write it. set_at, closed_at: since when the bounds are in force, and the pool is closed.
        Instants are of the machine's monotonic clock: a journal counts in one boot only.
    """

    pool: str
    max_size: int | None
    min_size: int
    generation: int
    closed: bool
    declared: tuple[int | None, int] | None = None
    declared_at: float = 0.0
    set_at: tuple[float, float] = (0.0, 0.0)
    closed_at: float = 0.0


class RecordBudget(Decision, frozen=True, tag=True):
    """Write down what a budget's next server must know: the cap in force, since `set_at`, and what was declared of it."""

    budget: str
    max_size: int
    declared: int
    declared_at: float
    set_at: float


ProcessDecision = (
    Grant
    | Queued
    | Refuse
    | AskAgain
    | Keep
    | Close
    | Reclaim
    | EndLeases
    | Ask
    | PoolChanged
    | DropToken
    | Draining
    | Readiness
    | Notice
)
JournalDecision = Record | Erase | RecordPool | RecordBudget

# To whom, and what. None addresses the server itself.
Addressed = tuple["ProcessId | None", Decision]
