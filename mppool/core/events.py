"""What can happen: everything that the books are ever told.

The same structs travel on the wire, so a recorded stream of messages is a unit test of the books.
Durations are seconds and travel as durations; instants never leave the process that took them.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from mppool.ids import GrantNumber, ProcessId, Ticket
from mppool.options import PoolOptions


class Event(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Something that a process, or the server's watch over it, reports to the books."""


class BudgetDeclaration(msgspec.Struct, frozen=True, array_like=True):
    """A cap over several pools as a process declares it. age: as in Declaration."""

    budget: str
    max_size: int
    age: float


Kind = Literal["", "threads", "loops"]


class Declaration(msgspec.Struct, frozen=True, array_like=True):
    """A pool as a process declares it.

    age: seconds since the declaration was made; between processes the newest declaration wins.
    key: of the recipe's own identity; `min_size` resources are kept open for it.
    closed: this process has closed the pool for itself, and opens nothing for it any more; with a kind it uses the pool, but
        can open nothing for which nobody waits, as before an event loop of it does.
    budget: the one that the options name. So it is known before the pool opens anything.
    kind: for whom its resources are. All processes that use a pool must say the same; "": the process does not say it,
        for it has closed the pool for itself, or is of an older release.
    """

    pool: str
    options: PoolOptions
    age: float
    key: str = ""
    closed: bool = False
    budget: BudgetDeclaration | None = None
    kind: Kind = ""


HeldState = Literal["opening", "open", "returned", "closing"]


class Held(msgspec.Struct, frozen=True, array_like=True):
    """One entry of an inventory: a slot that the process holds, by the number of its grant.

    opened_before: what its grant said, so that creation numbers go on under the next server.
    lane: for which one it is lent; None: for none.
    """

    pool: str
    key: str
    number: GrantNumber
    state: HeldState
    generation: int
    opened_before: int
    lane: str | None = None


# --- what a process says ---------------------------------------------------------------------------------


class Attach(Event, frozen=True, tag=True):
    """First word on a new session: what is declared here, and everything that is held here.

    The inventory overrules everything that the books believed about this process.

    seen: what the statistics of an earlier server said, for the next one to go on counting from (see
        stats/carried.py).
    """

    label: str
    declarations: list[Declaration]
    held: list[Held]
    seen: bytes = b""


class Declare(Event, frozen=True, tag=True):
    """A pool was declared in a process that is attached already."""

    declaration: Declaration


class Checkout(Event, frozen=True, tag=True):
    """A thread found nothing on its shelf. Answered at once: Grant, Queued or Refuse.

    timeout: seconds that it will wait; None: for ever; 0: not at all.
    lane: what it says of itself; "": nothing. Where the pool has lanes, what is granted to a ticket is for that alone.
    """

    pool: str
    key: str
    ticket: Ticket
    timeout: float | None
    lane: str = ""


class Abandoned(Event, frozen=True, tag=True):
    """A queued checkout waits no longer: served locally, timed out or interrupted."""

    ticket: Ticket


class Starves(Event, frozen=True, tag=True):
    """Nothing has been given back in this process for long to those who wait with this ticket's key.

    From now on, until one of them is served, equally rich processes give way too.
    """

    ticket: Ticket


class Lent(Event, frozen=True, tag=True):
    """For which lanes a process has lent resources, in a pool that has lanes and is contended there.

    lanes: None for what is not lent. What is not named is as the books know it.
    """

    lanes: list[tuple[GrantNumber, str | None]]


class Opened(Event, frozen=True, tag=True):
    """The grant was used: the resource is open. `seconds`: what opening it took."""

    number: GrantNumber
    seconds: float


class OpeningFailed(Event, frozen=True, tag=True):
    """The grant was used and opening failed; nothing is open, the slot is given back.

    counted=False: the failure says nothing about the database (the caller was interrupted).
    """

    number: GrantNumber
    error: str
    counted: bool = True


class Declined(Event, frozen=True, tag=True):
    """The grant came too late and was not used."""

    number: GrantNumber


class Returned(Event, frozen=True, tag=True):
    """A contended process brings a slot back. Answered by Grant (kept open, or one instead of it), Keep or Close.

    idle_s: for how long its resource has lain idle.
    exchanges: the process can close it and open another one in the same slot, see `Grant.instead_of`.
    """

    number: GrantNumber
    idle_s: float = 0.0
    exchanges: bool = False


class IdleTooLong(Event, frozen=True, tag=True):
    """A resource was brought back because it was idle for `max_idle`. Answered by Keep, Grant or Close."""

    number: GrantNumber


CloseReason = Literal[
    "moved",
    "retired",
    "discarded",
    "expired_idle",
    "expired_lifetime",
    "worn_out",
    "unhealthy",
    "killed",
    "leaked",
    "drained",
]


class Closed(Event, frozen=True, tag=True):
    """A resource was closed; its slot is free."""

    number: GrantNumber
    reason: CloseReason


class NotMine(Event, frozen=True, tag=True):
    """Answer to Ask: this process does not hold the grant and will never use it."""

    number: GrantNumber


class BackendFailed(Event, frozen=True, tag=True):
    """A check found that the far end of this resource has gone.

    Everything for the same key that is of the same generation or older is stale: one detection invalidates
    it in all processes.

    hung: a check got no answer at all, so that closing what is as old may hang too.
    """

    pool: str
    key: str
    generation: int
    hung: bool = False


class TokenReplaced(Event, frozen=True, tag=True):
    """The identity of this key has another token now: what was opened with the old one goes when it is idle.

    token: digest of the old one.
    """

    pool: str
    key: str
    token: str


class WantReady(Event, frozen=True, tag=True):
    """Open `min_size` resources if that has not begun yet. Answered by Readiness."""

    pool: str


class Resize(Event, frozen=True, tag=True):
    """New bounds for a pool, from any process. `max_size_given` tells None (no cap) from not given."""

    pool: str
    max_size: int | None
    max_size_given: bool
    min_size: int | None


class ResizeBudget(Event, frozen=True, tag=True):
    """Another cap for a budget, from any process."""

    budget: str
    max_size: int


class Reset(Event, frozen=True, tag=True):
    """A new generation: everything that was opened before now is closed when idle or released.

    over: seconds over which that is spread. because: what was seen, where several processes may see it; only the first
        of them begins a generation.
    """

    pool: str
    over: float = 0.0
    because: str = ""


class Drain(Event, frozen=True, tag=True):
    """Reset (generation None), or ask how much of an earlier drain is left. Answered by Draining."""

    pool: str
    generation: int | None


class ClosePool(Event, frozen=True, tag=True):
    """The pool hands out nothing any more; `reopened`: it hands out again."""

    pool: str
    reopened: bool = False


# --- what the server sees --------------------------------------------------------------------------------


class Detached(Event, frozen=True, tag=True):
    """The errand channel of a session ended. The process may live on: only its waiters are cancelled."""


class CallEnded(Event, frozen=True, tag=True):
    """A call connection ended, so its last call may have been interrupted: its waiter is cancelled.

    The process is told to ask again, for it may not have noticed. About a grant that was already sent in answer to the
    call, the process is asked.
    """

    ticket: Ticket


class Died(Event, frozen=True, tag=True):
    """The process is dead: proved by its pidfd, or by a birth that differs."""


class JournalFailed(Event, frozen=True, tag=True):
    """A grant could not be written down, so it must not be given."""

    number: GrantNumber
    error: str


class Share(Event, frozen=True, tag=True):
    """What other machines leave to this one of a pool's cap. It says what is so now, and is not journalled.

    size: so many slots at most; None: all that the cap allows. opens: whether anything may be opened at present.
    ends: what is lent beyond `size` is not waited for: its leases end now.
    why: why there is no more, for people, without secrets.
    """

    pool: str
    size: int | None
    opens: bool = True
    ends: bool = False
    why: str = ""


ProcessEvent = (
    Attach
    | Declare
    | Checkout
    | Abandoned
    | Starves
    | Lent
    | Opened
    | OpeningFailed
    | Declined
    | Returned
    | Closed
    | NotMine
    | IdleTooLong
    | BackendFailed
    | TokenReplaced
    | WantReady
    | Resize
    | ResizeBudget
    | Reset
    | Drain
    | ClosePool
)


class Remembered(msgspec.Struct, frozen=True, array_like=True):
    """A slot as the journal of the previous server remembers it."""

    pool: str
    key: str
    number: GrantNumber
    process: ProcessId
    generation: int
    budget: str = ""
