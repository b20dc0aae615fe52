"""What a process holds, all of which ends with a fork: a child must not use, or close, what its parent holds.

The inventory is the only writer of the table of resources, of the side table, of the outbox, and of an entry's state.
Each transition is one method here:

    register ---> opening --- opened ---> open <---- take_aside ---- returned
                     |                    |  |                          ^
                     |                    |  +------ bring_back --------+
                     |                    |  +-- detach ---> detached
                     |                    |                     |
                     |                    +-- begin_close ------+---> closing
                     v                                            |
              opening_ended                 closed, give_up, give_up_closing
                     |                                            |
                     +-----------------> gone <-------------------+

Pure: the time is an argument, and nothing here does I/O or calls a hook. A method says what the caller has to do.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterable
from typing import Any, Literal

from mppool.core.decisions import Grant
from mppool.core.events import (
    Closed,
    CloseReason,
    Declined,
    Event,
    Held,
    IdleTooLong,
    NotMine,
    Opened,
    OpeningFailed,
    Returned,
)
from mppool.ids import GrantNumber, Session
from mppool.process.fork import own_mark

EntryState = Literal["opening", "open", "returned", "detached", "closing"]

NEVER = math.inf
AT_ONCE = -math.inf

MOST_VOIDED = 10_000


class PoolEntry:
    """A resource and what is known of it.

    The thread that took it from a shelf owns it until it puts it back, so most fields need no lock: `uses`,
    `released_at`, `lent_at` belong to the owner. `state` and `killed` are guarded by the inventory's lock.
    `retire_at` may be lowered by anybody at any time (a single store): from then on the resource is
    closed instead of being handed out.

    lane: for which lane it was lent last; None: for none yet.
    local: the pool that it belongs to: a Home for the inventory, and a LocalPool for what is above.
    """

    __slots__ = (
        "ask_at", "checked_at", "closing_at", "doubtful", "generation", "grant", "handed_at",
        "idle", "inventory", "kept_until", "key", "killed", "label", "lane", "lent_at", "local",
        "mark", "noted_at", "number", "opened", "opened_at", "opened_before", "released_at",
        "resource", "retire_at", "retire_reason", "shelf", "stack", "state", "thread", "token",
        "uses", "warned", "why_ended",
    )  # fmt: skip

    def __init__(
        self,
        local: Any,
        inventory: Inventory,
        number: GrantNumber,
        key: str,
        generation: int,
        opened_before: int,
    ) -> None:
        self.local = local
        self.inventory = inventory
        self.mark = inventory.mark
        self.number = number
        self.key = key
        self.idle = local.idle
        self.shelf = local.shelf_of(key)
        self.generation = generation
        self.opened_before = opened_before
        self.resource: Any = None
        # While it is being opened: the grant, which its owner holds too, and the resource as soon as the
        # open hook has returned it. Both are for the audit, which cleans up after an interrupt.
        self.grant: Any = None
        self.opened: list[Any] = []
        self.state: EntryState = "opening"
        self.opened_at = 0.0
        self.lent_at = 0.0
        self.handed_at = 0.0
        self.released_at = 0.0
        self.retire_at = NEVER
        self.retire_reason: Any = "retired"
        # Digest of the token that it was opened with, "" without one, and when (seconds since 1970) the
        # next checkout has to look whether that is still the right one.
        self.token = ""
        self.ask_at = NEVER
        self.uses = 0
        self.checked_at = 0.0
        self.closing_at = 0.0
        # A resource as old does not answer at all: closing this one may hang too, and its slot does not wait.
        self.doubtful = False
        self.kept_until = 0.0
        self.killed = False
        # Where a lease was ended for another reason than its age, that reason.
        self.why_ended = ""
        self.lane: str | None = None
        self.warned = False
        # Of the lease that began at `noted_at`; see callers.py.
        self.noted_at = -1.0
        self.label = ""
        self.thread = ""
        self.stack = ""

    @property
    def counts_as_open(self) -> bool:
        """Whether it is open, and nobody is closing it: what was detached is so until its user says otherwise."""
        return self.state in {"open", "detached"}

    def used_in_lane(self) -> str | None:
        """For which lane it is lent; None: for none, it lies on its shelf."""
        lane = self.lane
        return None if lane is None or self in self.shelf else lane

    def take_from_shelf(self) -> bool:
        """Take it from its shelf; the caller owns it then. False: another thread was quicker."""
        try:
            self.shelf.remove(self)
        except ValueError:
            return False
        return True


class Inventory:
    """The table of resources and the session. A forked child buries its parent's and starts with a new one.

    lock: guards `table`, `side`, `session`, `voided`; of every entry `state` and `killed`; and of every pool
        `waiters`, `contended`, `attention`, `counters`, `past_uses`, `retired`, and the removal of a shelf
        from `shelves`. Taking the inventory and registering a grant both happen under it (rule 2). While it
        is held there is no I/O, no hook, no logging, and no other lock is taken.
        Reentrant, so that a thread that was interrupted can free what it still owns (see audit.py), and a
        finalizer of the application that releases a lease in the middle of a locked region gets through.
    table: every resource from before its opening until after its closing, so that nothing is ever
        finalized by accident, least of all in a child (rule 5).
    given_up: resources whose checks hang; they have no slot any more, and are closed should the checks return.
    side: resources that were brought back; only the server's Grant, Keep or Close takes them out (rule 6).
    successors: by the number of a resource that is closed for it, what is opened in the same slot then. Both count once:
        the successor is in the table as soon as the other one has left it. No inventory tells of it, so the next session
        begins without.
    outbox: events not sent yet. Appended to and popped from without the lock (atomic operations).
    leaked: entries whose lease was collected. Finalizers append; the errand thread empties.
    mark: of the process that holds all this; see fork.py. In a child it says no, from the first instruction on.
    forked: says the same, once the child has been renewed. Quicker to read, and enough where what is done in
        error stays within the child's own memory.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.table: dict[GrantNumber, PoolEntry] = {}
        self.given_up: dict[GrantNumber, Any] = {}
        self.side: dict[GrantNumber, PoolEntry] = {}
        self.successors: dict[GrantNumber, PoolEntry] = {}
        self.voided: dict[GrantNumber, None] = {}
        self.session: Session | None = None
        self.outbox: deque[Event] = deque()
        self.leaked: deque[PoolEntry] = deque()
        self.mark = own_mark()
        self.forked = False

    @property
    def inherited(self) -> bool:
        """Whether this belongs to another process: the one that this was forked from."""
        return not self.mark[0]

    def begin(self, session: Session) -> None:
        """This process is attached. Caller holds the lock."""
        self.session = session

    def end(self) -> None:
        """This process is attached no longer. Caller holds the lock."""
        self.session = None

    # --- what the books are told -----------------------------------------------------------------------------

    def tell(self, *events: Event) -> None:
        """Have these sent soon. Flush after every call of this; see Outgoing.flush."""
        self.outbox.extend(events)

    def held(self) -> list[Held]:
        """Everything that is held, or on its way in or out. Caller holds the lock."""
        return [
            Held(
                entry.local.name,
                entry.key,
                entry.number,
                "open" if entry.state == "detached" else entry.state,
                entry.generation,
                entry.opened_before,
                entry.used_in_lane(),
            )
            for entry in self.table.values()
        ]

    def told_as_a_whole(self, besides: tuple[type[Event], ...]) -> None:
        """A new session begins with all that is held, so nothing else is told any more. Caller holds the lock.

        besides: events that say what no inventory does.
        """
        for _ in range(len(self.outbox)):
            event = self.outbox.popleft()
            if isinstance(event, besides):
                self.outbox.append(event)
        self.voided.clear()
        for successor in self.successors.values():
            successor.local.gone(successor)
        self.successors.clear()

    # --- coming in -------------------------------------------------------------------------------------------

    def register(self, entry: PoolEntry, grant: Grant, session: Session, now: float) -> bool:
        """A resource is going to be opened; False if its grant is of another session, or was voided (rule 2)."""
        with self.lock:
            if self.session != session or grant.number in self.voided:
                return False
            entry.grant = grant
            if grant.instead_of in self.table:
                self.successors[grant.instead_of] = entry
            else:
                self._enters(entry)
            entry.local.granted(entry, grant, now)
        return True

    def disown(self, number: GrantNumber) -> bool:
        """The books ask about a grant. False: it is here. Else it will never be used, and the books are told."""
        with self.lock:
            if number in self.table or any(e.number == number for e in self.successors.values()):
                return False
            self.voided[number] = None
            if len(self.voided) > MOST_VOIDED:  # the oldest was overtaken long ago
                del self.voided[next(iter(self.voided))]
            self.tell(NotMine(number))
            return True

    def opened(self, entry: PoolEntry, seconds: float, now: float, ends_at: float) -> None:
        """The open hook has returned, after so many seconds.

        ends_at: the end of its life; sooner where somebody has said so meanwhile.
        """
        with self.lock:
            entry.state = "open"
            entry.grant = None
            entry.opened_at = entry.released_at = entry.checked_at = now
            if ends_at < entry.retire_at:
                entry.retire_at, entry.retire_reason = ends_at, "expired_lifetime"
            self.outbox.append(Opened(entry.number, seconds))
            entry.local.opened(entry, seconds, now)
            entry.opened = []

    def opening_ended(
        self, number: GrantNumber, error: str | None = None, *, counted: bool = False
    ) -> bool:
        """A grant is not used, or its opening has failed. False: it is not here any more.

        error: what the hook raised; None: nothing, the grant is declined. counted: the books count the failure.
        """
        with self.lock:
            entry = self.table.get(number)
            if entry is None:
                return False
            self._leaves(
                entry, Declined(number) if error is None else OpeningFailed(number, error, counted)
            )
            return True

    # --- to the books and back -------------------------------------------------------------------------------

    def bring_back(self, entry: PoolEntry, event: Returned | IdleTooLong) -> None:
        """Lay a resource that the caller owns aside, until the books say what becomes of it."""
        with self.lock:
            # Told first: should this thread be interrupted in here, the books' answer finds nothing in the
            # side table, and the entry is found by the audit.
            self.tell(event)
            entry.state = "returned"
            self.side[entry.number] = entry

    def take_aside(self, number: GrantNumber) -> PoolEntry | None:
        """A resource that was brought back is the caller's again. None: it was lost on the way."""
        with self.lock:
            entry = self.side.pop(number, None)
            if entry is not None:
                entry.state = "open"
            return entry

    # --- letting end -----------------------------------------------------------------------------------------

    def retire(self, entries: Iterable[PoolEntry], *, hung: bool = False) -> None:
        """Have their next owners close these. hung: see `PoolEntry.doubtful`."""
        with self.lock:
            for entry in entries:
                entry.doubtful = entry.doubtful or hung
                # The instant last: a thread that finds it finds the reason.
                entry.retire_reason = "retired"
                entry.retire_at = AT_ONCE

    def retire_by(self, instants: Iterable[tuple[PoolEntry, float]]) -> None:
        """Have their owners close these, each from its instant on."""
        with self.lock:
            for entry, instant in instants:
                if instant < entry.retire_at:
                    entry.retire_reason = "retired"
                    entry.retire_at = instant

    def end_lease(self, entry: PoolEntry) -> bool:
        """A lease is given back; False if it was killed before. Either this happens, or `kill`."""
        with self.lock:
            entry.lent_at = 0.0
            return not entry.killed

    def kill(self, entry: PoolEntry, lent_at: float) -> bool:
        """End the lease that began then; False if it was given back before. The caller owns the resource then."""
        with self.lock:
            if entry.lent_at != lent_at or entry.killed or entry.state != "open":
                return False
            entry.killed = True
            return True

    def end_early(self, entry: PoolEntry, why: str) -> bool:
        """Its user may use it no more, even where it was detached; False if it is being opened or closed.

        Unlike `kill` this needs no word of the release: from now on its next owner can only close it.
        """
        with self.lock:
            if not entry.counts_as_open or entry.killed:
                return False
            entry.why_ended, entry.killed, entry.retire_reason = why, True, "killed"
            entry.retire_at = AT_ONCE
            return True

    def detach(self, entry: PoolEntry) -> bool:
        """The resource is its user's, who closes it; False: it was killed before. Its slot stays taken."""
        with self.lock:
            if entry.state != "open" or entry.killed:
                return False
            entry.state = "detached"
            entry.lent_at = 0.0
            entry.local.closing(entry)  # nobody here hopes for its release
        return True

    # --- going out -------------------------------------------------------------------------------------------

    def begin_close(self, entry: PoolEntry, now: float) -> bool:
        """From now on nobody else closes it, or counts it as idle or in use. False if a hook or a thread does already."""
        if not self.mark[0]:
            return False  # not before the lock: its holder may not exist here
        with self.lock:
            if entry.state == "closing":
                return False
            entry.state = "closing"
            entry.local.closing(entry)
            entry.warned = False
            entry.closing_at = now
        return True

    def closed(self, entry: PoolEntry, reason: CloseReason) -> PoolEntry | None:
        """The close hook has returned, so the slot is free; it is already where the closing was given up.

        Returns what is to be opened in it now, if that is known. Nothing is told of the close then.
        """
        with self.lock:
            entry.resource = None
            if entry.number not in self.table:
                self.given_up.pop(entry.number, None)
                return None
            successor = self.successors.get(entry.number)
            if successor is None:
                self._leaves(entry, Closed(entry.number, reason))
                return None
            # In this order: an interrupt in between leaves one too many, and the audit closes once more.
            self._enters(successor)
            self._leaves(entry)
            del self.successors[entry.number]
            return successor

    def give_up(self, entry: PoolEntry, now: float) -> bool:
        """Free the slot of a resource whose check hangs: nobody can close what is in use there.

        False if it is being closed already, or belongs to another process.
        """
        if not self.begin_close(entry, now):
            return False
        self.give_up_closing(entry)
        return True

    def give_up_closing(self, entry: PoolEntry) -> None:
        """Free the slot of a resource whose close hangs: whatever it was connected to is out of reach."""
        with self.lock:
            if entry.number in self.table:
                self.given_up[entry.number] = entry.resource
                # The books know the slot by its new number where it has one. Nobody opens in it: a thread hangs here.
                successor = self.successors.get(entry.number)
                if successor is None:
                    self._leaves(entry, Closed(entry.number, "unhealthy"))
                else:
                    self._leaves(entry, Declined(successor.number))
                    del self.successors[entry.number]
                    successor.local.gone(successor)
                entry.resource = None

    def take_given_up(self, entry: PoolEntry) -> Any:
        """A resource that was given up, to be closed by the caller; None: another thread closes it."""
        return self.given_up.pop(entry.number, None)

    def reopen_lost(self, entry: PoolEntry) -> None:
        """Its close was interrupted: it is closed again. Caller holds the lock."""
        if entry.state == "closing":
            entry.state = "open"

    def _enters(self, entry: PoolEntry) -> None:
        """An entry is held from now on. Caller holds the lock."""
        self.table[entry.number] = entry

    def _leaves(self, entry: PoolEntry, event: Event | None = None) -> None:
        """An entry is gone. Caller holds the lock."""
        # Told first: an interrupt in between leaves it in the table, where the audit finds it.
        if event is not None:
            self.outbox.append(event)
        self.side.pop(entry.number, None)
        del self.table[entry.number]
        entry.local.gone(entry)
