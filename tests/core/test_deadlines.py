"""A deadline that passes while nobody looks is not forgotten: the next look finds it due."""

from __future__ import annotations

from mppool.core.books import Books
from mppool.core.decisions import Grant, Reclaim
from mppool.core.events import Attach, Checkout, Declaration, Opened
from mppool.ids import ProcessId, Session, Ticket
from mppool.options import PoolOptions

RICH, POOR = ProcessId(1, 1), ProcessId(2, 2)


def test_a_waiter_is_looked_after_although_the_server_wakes_up_late() -> None:
    """The loop asks for the next deadline after the deadline: a select always returns a little late."""
    books = Books(1)
    declaration = Declaration("p", PoolOptions(max_size=2), 0.0, "key")
    for process in (RICH, POOR):
        books.apply(process, Session(process.pid), Attach("", [declaration], []), 0.0)
    for ticket in (1, 2):
        checkout = Checkout("p", "key", Ticket(ticket), 9.0)
        for _, decision in books.apply(RICH, Session(1), checkout, 0.0):
            if isinstance(decision, Grant):
                books.apply(RICH, Session(1), Opened(decision.number, 0.001), 0.0)
    books.apply(POOR, Session(2), Checkout("p", "key", Ticket(1), 9.0), 1.0)
    asked, now = 0, 1.0
    while now < 2.0:
        due = books.next_deadline(now)
        assert due is not None
        assert due < 10.0, "nothing is planned although somebody waits"
        now = max(now, due) + 0.015
        late = books.next_deadline(now)
        assert late is not None
        assert late <= now, "what has just become due is forgotten"
        decisions = books.tick(now)
        asked += sum(to == RICH and isinstance(what, Reclaim) for to, what in decisions)
        after = books.next_deadline(now)
        assert after is None or after > now, "the server would spin"
    assert asked >= 3
