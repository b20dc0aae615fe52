"""A slot goes on in its process for another identity: one answer ends one resource and begins the next (decision 0097)."""

from __future__ import annotations

from typing import Any

from mppool.core.decisions import Close, Erase, Grant, Keep, Record, Refuse
from mppool.core.events import (
    Closed,
    Declined,
    Held,
    JournalFailed,
    Opened,
    Remembered,
    Resize,
    Returned,
)
from mppool.ids import GrantNumber, ProcessId
from tests.core.desk import Desk, P, Q
from tests.core.model.parts import POOL


def exchanged(desk: Desk, process: ProcessId, number: GrantNumber, idle_s: float = 0.0) -> Any:
    """A process that can exchange brings a slot back; what it is told of it."""
    decisions = desk.say(process, Returned(number, idle_s, exchanges=True))
    (answer,) = (
        d
        for d in decisions
        if number in (getattr(d, "number", None), getattr(d, "instead_of", None))
        and not isinstance(d, (Record, Erase))
    )
    return answer


def test_one_answer_ends_a_resource_and_begins_the_next() -> None:
    desk = Desk(P, max_size=1)
    first = desk.opened(P, "alice", seconds=0.01)
    ticket = desk.queue(P, "bob")
    desk.forget()
    answer = exchanged(desk, P, first)
    assert isinstance(answer, Grant)
    assert (answer.key, answer.ticket, answer.instead_of) == ("bob", ticket, first)
    assert answer.fresh
    assert desk.size() == 1
    desk.say(P, Opened(answer.number, 0.01))
    counters = desk.pool.counters
    assert (counters["opened"], counters["closed"], counters["moved"]) == (2, 1, 1)
    assert counters["evicted_identities"] == 1


def test_the_journal_has_one_record_of_it_all_the_time() -> None:
    desk = Desk(P, max_size=1)
    first = desk.opened(P, "alice")
    desk.queue(P, "bob")
    desk.forget()
    answer = exchanged(desk, P, first)
    assert [type(one) for one in desk.journal] == [Record]
    assert desk.journal == [Record(POOL, "bob", answer.number, P, 0, "", first)]


def test_a_process_that_does_not_say_that_it_can_is_told_to_close() -> None:
    desk = Desk(P, max_size=1)
    first = desk.opened(P, "alice")
    desk.queue(P, "bob")
    assert isinstance(desk.brings_back(P, first), Close)


def test_where_another_process_comes_first_the_slot_must_be_free_first() -> None:
    desk = Desk(P, Q, max_size=2)
    first = desk.opened(P, "alice", seconds=1.0)
    desk.opened(P, "carol", seconds=1.0)
    desk.queue(Q, "dave")
    desk.queue(P, "bob")
    # It has not been open for long, so that Q has no claim to it; once it is closed it is Q's turn.
    assert isinstance(exchanged(desk, P, first), Close)
    desk.say(P, Closed(first, "moved"))
    assert [grant.key for grant in desk.hears(Q, Grant)] == ["dave"]


def test_the_process_counts_as_if_it_had_one_slot_less() -> None:
    desk = Desk(P, Q, max_size=2)
    first = desk.opened(P, "alice", seconds=1.0)
    desk.opened(Q, "dave", seconds=1.0)
    desk.queue(Q, "erin")
    desk.queue(P, "bob")
    # Q's waiter came first, and both have one slot. Without its own P has none.
    answer = exchanged(desk, P, first)
    assert isinstance(answer, Grant)
    assert answer.key == "bob"


def test_between_the_identities_of_a_process_the_poorest_comes_first() -> None:
    desk = Desk(P, max_size=2)
    first, _ = desk.opened(P, "alice"), desk.opened(P, "bob")
    desk.queue(P, "bob")
    desk.queue(P, "carol")
    answer = exchanged(desk, P, first)
    assert isinstance(answer, Grant)
    assert answer.key == "carol"


def test_who_waits_at_home_for_the_same_identity_keeps_it() -> None:
    desk = Desk(P, max_size=1)
    first = desk.opened(P, "alice", seconds=1.0)
    ticket = desk.queue(P, "alice")
    desk.queue(P, "bob")
    answer = exchanged(desk, P, first)
    assert isinstance(answer, Grant)
    assert not answer.fresh
    assert (answer.ticket, answer.instead_of) == (ticket, 0)


def test_nothing_is_exchanged_where_nobody_waits() -> None:
    desk = Desk(P, max_size=1)
    first = desk.opened(P, "alice")
    assert isinstance(exchanged(desk, P, first), Keep)


def test_bounds_of_identities_count_what_is_being_closed() -> None:
    desk = Desk(P, max_size=2, max_per_identity=1)
    first, _ = desk.opened(P, "alice"), desk.opened(P, "bob")
    desk.queue(P, "carol")
    assert isinstance(exchanged(desk, P, first), Close)


def test_while_nothing_may_be_opened_nothing_is_exchanged() -> None:
    desk = Desk(P, Q, max_size=2, max_opening=1)
    first = desk.opened(P, "alice")
    desk.granted(Q, "dave")
    desk.queue(P, "bob")
    assert isinstance(exchanged(desk, P, first), Keep)


def test_above_a_lowered_cap_the_slot_goes() -> None:
    desk = Desk(P, max_size=2)
    first, _ = desk.opened(P, "alice"), desk.opened(P, "carol")
    desk.queue(P, "bob")
    desk.command(Resize(POOL, 1, True, None))
    answer = exchanged(desk, P, first)
    assert isinstance(answer, Close)
    assert answer.reason == "retired"


def test_other_pools_of_the_budget_come_first() -> None:
    desk = Desk(P, max_size=1)
    first = desk.opened(P, "alice")
    desk.queue(P, "bob")
    desk.pool.capacity.wanted_elsewhere = 1
    assert isinstance(exchanged(desk, P, first), Close)


def test_after_a_torn_journal_nothing_is_exchanged_before_everybody_was_heard() -> None:
    desk = Desk(P, max_size=1)
    first = desk.opened(P, "alice")
    desk.queue(P, "bob")
    desk.pool.capacity.awaited.add(Q)
    assert isinstance(exchanged(desk, P, first), Close)


def test_a_grant_that_cannot_be_written_down_ends_the_resource_all_the_same() -> None:
    desk = Desk(P, max_size=1)
    first = desk.opened(P, "alice")
    ticket = desk.queue(P, "bob")
    grant = exchanged(desk, P, first)
    desk.forget()
    desk.say(P, JournalFailed(grant.number, "disk full"))
    refused, closed = desk.told[P]
    if isinstance(refused, Close):
        refused, closed = closed, refused
    assert isinstance(refused, Refuse)
    assert refused.ticket == ticket
    assert closed == Close(first, "moved")
    assert desk.size() == 1
    desk.say(P, Closed(first, "moved"))
    assert desk.size() == 0
    counters = desk.pool.counters
    assert (counters["opened"], counters["closed"], counters["moved"]) == (1, 1, 1)


def test_what_is_not_needed_any_more_is_free_when_it_is_declined() -> None:
    desk = Desk(P, max_size=1)
    first = desk.opened(P, "alice")
    desk.queue(P, "bob")
    grant = exchanged(desk, P, first)
    desk.say(P, Declined(grant.number))
    assert desk.size() == 0


def test_an_inventory_that_names_the_old_number_is_believed() -> None:
    """The grant was lost with the session: the process closes, or holds, what it brought back."""
    desk = Desk(P, max_size=1)
    first = desk.opened(P, "alice")
    desk.queue(P, "bob")
    exchanged(desk, P, first)
    desk.attach(P, [Held(POOL, "alice", first, "closing", 0, 0)])
    assert [slot.number for slot in desk.pool.slots] == [first]
    desk.say(P, Closed(first, "moved"))
    assert desk.size() == 0


def test_the_next_server_counts_one_slot_whichever_number_it_hears() -> None:
    desk = Desk(P, max_size=1)
    first = desk.opened(P, "alice")
    desk.queue(P, "bob")
    grant = exchanged(desk, P, first)
    for state, key, number in (("closing", "alice", first), ("opening", "bob", grant.number)):
        after = Desk(Q, epoch=2, max_size=1)
        after.books.restore([], [Remembered(POOL, "bob", grant.number, P, 0)], set(), after.clock())
        after.attach(P, [Held(POOL, key, number, state, 0, 0)])  # type: ignore[arg-type]
        assert [slot.number for slot in after.pool.slots] == [number]
