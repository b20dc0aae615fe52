"""What model workers and model servers share."""

from __future__ import annotations

from typing import Any

from mppool.core.decisions import Grant, Refuse
from mppool.core.events import Declaration, HeldState
from mppool.ids import GrantNumber, ProcessId, Session, Ticket
from mppool.options import PoolOptions

POOL = "pool"


def declaration(options: PoolOptions, age: float = 0.0, pool: str = POOL) -> Declaration:
    """A declaration of the pool."""
    return Declaration(pool, options, age, "k")


class Rules:
    """The rules of the protocol that the model keeps. A test switches one off and expects a violation."""

    def __init__(self, **switched_off: bool) -> None:
        # Rule 1: the end of a call connection frees nothing; the process is asked.
        self.end_of_call_asks = True
        # Rule 1: "not mine" voids that grant for ever, also if it is read later.
        self.not_mine_voids = True
        # Rule 1: the process answers about the grant that was asked for, not about having any.
        self.asks_by_number = True
        # Rule 1: a process whose waiter is cancelled by the end of a connection is told so.
        self.cancelled_ask_again = True
        # Rule 2: a grant of another session than the attached one is discarded unopened.
        self.old_grants_are_discarded = True
        # Rule 2: inventories include what is opening.
        self.inventory_has_opening = True
        # Rule 3: a new server continues the journal.
        self.journal_is_continued = True
        # Rule 3: a grant is written down before it is sent.
        self.journal_is_written_first = True
        # Rule 3: after a torn journal everybody is heard before anything is granted.
        self.torn_journal_awaits = True
        # Rule 6: a release looks at the contended flag after it has put the resource on the shelf.
        self.release_looks_after_append = True
        # Rule 6: the flag is set before the shelf is swept.
        self.flag_before_sweep = True
        # Rule 6: a local waiter looks at the shelf again after it has enqueued itself.
        self.waiter_looks_again = True
        # Rule 6: contended is state of a session; a lost session loses it.
        self.contended_ends_with_session = True
        # Rule 6: what was brought back is out of everybody's reach until the server has answered.
        self.returned_lies_aside = True
        # Rule 6: a grant that comes too late is declined.
        self.late_grants_are_declined = True
        # Rule 3: a process that lost a session attaches again although it has nothing, for the journal may count more.
        self.unheard_attach = True
        # Two numbers of one slot: the second resource is opened when the first is closed.
        self.successors_open_late = True
        # What waits for that close is void with its session.
        self.successors_end_with_session = True
        # It is not disowned meanwhile.
        self.successors_are_held = True
        # Hazard 7: the end of an errand channel is not the death of its process.
        self.end_of_errands_is_no_death = True
        # Hazard 1: a forked child has nothing of its parent's.
        self.children_start_empty = True
        # Hazard 6: a forked child closes its copies of its parent's connections, so that their end is seen.
        self.children_close_copies = True
        for name, keeps in switched_off.items():
            assert hasattr(self, name), name
            setattr(self, name, keeps)


class Entry:
    """One resource of a process. `state` is what an inventory says."""

    def __init__(self, number: GrantNumber, key: str, generation: int, opened_before: int) -> None:
        self.number = number
        self.key = key
        self.generation = generation
        self.opened_before = opened_before
        self.state: HeldState = "opening"
        self.idle_since = 0.0
        self.reason: Any = "discarded"
        # While it is closed for it: what is opened in the same slot then.
        self.successor: Grant | None = None
        # The server knows that this one is idle: it answered Keep, or wanted fewer than there were.
        self.spared = False


class Channel:
    """A socket: two queues. Severed: nothing is sent any more, what is in the queues can still be read."""

    def __init__(self, process: ProcessId, session: Session, thread: int | None) -> None:
        self.process = process
        self.session = session
        self.thread = thread
        self.to_server: list[Any] = []
        self.to_process: list[Any] = []
        self.severed = False
        # The server remembers the last checkout that came on a call connection.
        self.ticket: Ticket | None = None
        # The server has said that this session is over.
        self.rejected = False
        # How many forked children have a copy of the process's end, and whether only they still have one.
        self.copies = 0
        self.ended = False

    def end(self) -> None:
        """The process closes its end. The server sees that only when the last copy is closed too."""
        self.ended = True
        self.severed = self.severed or not self.copies

    def close_copy(self) -> None:
        """A forked child closes its copy, or dies."""
        self.copies -= 1
        self.severed = self.severed or (self.ended and not self.copies)

    def send_to_server(self, message: Any) -> None:
        if not self.severed:
            self.to_server.append(message)

    def send_to_process(self, message: Any) -> None:
        if not self.severed:
            self.to_process.append(message)


class Thread:
    """One thread of a process. `phase` says what it does next.

    idle -> missed -> enqueued -> asked -> have -> opening -> using -> appended -> idle
                                       \\-> queued ----^
    """

    def __init__(self, name: int) -> None:
        self.name = name
        self.phase = "idle"
        self.key = ""
        self.timeout: float | None = None
        self.ticket = Ticket(0)
        self.call: Channel | None = None
        self.grant: Grant | None = None
        self.entry: GrantNumber | None = None
        # What somebody gave while the call was still out.
        self.given: GrantNumber | None = None
        self.refused: Refuse | None = None
        # Its place in the queue was gone before it had read that it has one.
        self.cancelled = False
        self.last: Any = None
        # The session under which there is no use in asking again.
        self.rejected_under: Session | None = None
        self.checkouts_left = 1_000_000
        self.flag_seen = False


class Violation(AssertionError):
    """Something happened that must never happen."""
