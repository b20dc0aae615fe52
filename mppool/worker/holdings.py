"""Everything of a member that dies with a fork: what the parent holds, a child must neither use nor close."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from mppool.core.events import Event
from mppool.ids import GrantNumber, Session
from mppool.process.fork import own_mark
from mppool.worker.entry import Entry

MOST_VOIDED = 10_000


class Holdings:
    """The table of resources and the session. A forked child buries its parent's and starts with new ones.

    lock: guards `table`, `side`, `session`, `voided`; of every entry `state` and `killed`; and of every face
        `waiters`, `contended`, `attention`, `counters`, `past_uses`, `retired`, and the removal of a shelf
        from `shelves`. Taking the inventory and registering a grant both happen under it (rule 2). While it
        is held there is no I/O, no hook, no logging, and no other lock is taken.
        Reentrant, so that a thread that was interrupted can free what it still owns (see audit.py), and a
        finalizer of the application that releases a lease in the middle of a locked region gets through.
    table: every resource from before its opening until after its closing, so that nothing is ever
        finalized by accident, least of all in a child (rule 5).
    given_up: resources whose checks hang; they have no slot any more, and are closed should the checks return.
    side: resources that were brought back; only the server's Grant, Keep or Close takes them out (rule 6).
    outbox: events not sent yet. Appended to and popped from without the lock (atomic operations).
    leaked: entries whose lease was collected. Finalizers append; the errand thread empties.
    mark: of the process that holds all this; see fork.py. In a child it says no, from the first instruction on.
    forked: says the same, once the child has been renewed. Quicker to read, and enough where what is done in
        error stays within the child's own memory.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.table: dict[GrantNumber, Entry] = {}
        self.given_up: dict[GrantNumber, Any] = {}
        self.side: dict[GrantNumber, Entry] = {}
        self.voided: dict[GrantNumber, None] = {}
        self.session: Session | None = None
        self.outbox: deque[Event] = deque()
        self.leaked: deque[Entry] = deque()
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

    def void(self, number: GrantNumber) -> None:
        """A grant that this process will never use. Caller holds the lock.

        Where there are many, the oldest are forgotten: they were overtaken long ago.
        """
        self.voided[number] = None
        if len(self.voided) > MOST_VOIDED:
            del self.voided[next(iter(self.voided))]
