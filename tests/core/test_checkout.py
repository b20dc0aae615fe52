"""Checking out: granted, queued or refused, always answered at once."""

from __future__ import annotations

import pytest

from mppool.core.decisions import Ask, AskAgain, Erase, Grant, Queued, Record, Refuse
from mppool.core.events import (
    Abandoned,
    CallEnded,
    Checkout,
    Closed,
    ClosePool,
    Declined,
    Detached,
    JournalFailed,
    NotMine,
    Opened,
    OpeningFailed,
    Resize,
    Returned,
)
from mppool.core.slot import SlotState
from mppool.ids import GrantNumber, Ticket
from tests.core.desk import Desk, P, Q, R
from tests.core.model.parts import POOL


def test_a_checkout_within_the_cap_is_granted_and_written_down_first() -> None:
    desk = Desk(P, max_size=1)
    answer = desk.ask(P)
    assert isinstance(answer, Grant)
    assert answer.fresh
    assert [type(d) for d in desk.last] == [Record, Grant]
    assert desk.journal[-1] == Record(POOL, "k", answer.number, P, 0)


def test_a_checkout_beyond_the_cap_is_queued_and_served_when_a_slot_is_free() -> None:
    desk = Desk(P, Q, max_size=1)
    number = desk.opened(P)
    ticket = desk.queue(Q)
    decisions = desk.say(P, Closed(number, "discarded"))
    assert [type(d) for d in decisions[:3]] == [Erase, Record, Grant]
    (grant,) = desk.hears(Q, Grant)
    assert grant.ticket == ticket
    assert grant.number != number


def test_timeout_0_opens_within_the_cap_but_does_not_wait() -> None:
    desk = Desk(P, Q, max_size=1)
    assert isinstance(desk.ask(P, timeout=0.0), Grant)
    refused = desk.ask(Q, timeout=0.0)
    assert isinstance(refused, Refuse)
    assert refused.reason == "timeout"
    assert "max_size=1" in refused.text
    assert len(desk.pool.waiting) == 0


def test_a_waiter_is_refused_at_its_deadline_and_not_before() -> None:
    desk = Desk(P, Q, max_size=1)
    desk.opened(P)
    ticket = desk.queue(Q, timeout=2.0)
    desk.wait(1.999)
    assert not desk.hears(Q, Refuse)
    desk.wait(0.001)
    (refused,) = desk.hears(Q, Refuse)
    assert (refused.ticket, refused.reason) == (ticket, "timeout")
    desk.wait(60.0)
    assert not desk.hears(Q, Refuse)


def test_a_waiter_for_ever_is_never_refused_for_time() -> None:
    desk = Desk(P, Q, max_size=1)
    desk.opened(P)
    desk.queue(Q)
    desk.wait(20.0)
    assert not desk.hears(Q, Refuse)


def test_deadlines_come_in_their_own_order() -> None:
    desk = Desk(P, Q, max_size=1)
    desk.opened(P)
    late, early = desk.queue(Q, timeout=3.0), desk.queue(Q, timeout=1.0)
    desk.wait(1.0)
    assert [r.ticket for r in desk.hears(Q, Refuse)] == [early]
    desk.wait(2.0)
    assert [r.ticket for r in desk.hears(Q, Refuse)] == [late]


def test_the_deadline_of_an_abandoned_waiter_does_not_hit_another_one() -> None:
    desk = Desk(P, Q, max_size=1)
    desk.opened(P)
    desk.say(Q, Checkout(POOL, "k", Ticket(90), 1.0))
    desk.say(Q, Abandoned(Ticket(90)))
    desk.say(Q, Checkout(POOL, "k", Ticket(90), 5.0))
    desk.wait(2.0)
    assert not desk.hears(Q, Refuse)
    desk.wait(3.0)
    assert len(desk.hears(Q, Refuse)) == 1


def test_deadlines_of_those_who_were_served_do_not_pile_up() -> None:
    desk = Desk(P, Q, max_size=1)
    desk.opened(P)
    for _ in range(2000):
        desk.say(Q, Abandoned(desk.queue(Q, timeout=3600.0)))
    assert len(desk.pool.waiting._deadlines) < 200


def test_max_waiting_refuses_the_one_too_many_at_once() -> None:
    desk = Desk(P, Q, max_size=1, max_waiting=2)
    desk.opened(P)
    desk.queue(Q)
    desk.queue(Q)
    refused = desk.ask(Q)
    assert isinstance(refused, Refuse)
    assert refused.reason == "too_many_waiting"
    assert "max_waiting" in refused.text
    assert len(desk.pool.waiting) == 2
    assert desk.pool.counters["refused"] == 1


def test_max_waiting_0_lets_nobody_wait_but_grants_what_is_free() -> None:
    desk = Desk(P, max_size=1, max_waiting=0)
    desk.opened(P)
    assert desk.ask(P).reason == "too_many_waiting"


def test_max_per_identity_keeps_room_for_others() -> None:
    desk = Desk(P, Q, max_size=3, max_per_identity=1)
    desk.opened(P, "alice")
    desk.queue(Q, "alice")
    assert desk.opened(Q, "bob")


def test_max_per_process_counts_all_identities_of_a_process() -> None:
    desk = Desk(P, Q, max_size=3, max_per_process=1)
    desk.opened(P, "alice")
    desk.queue(P, "bob")
    assert desk.opened(Q, "bob")


def test_no_cap_at_all() -> None:
    desk = Desk(P, max_size=None)
    assert len({desk.opened(P) for _ in range(50)}) == 50


def test_a_slot_counts_while_it_is_opening_and_while_it_is_closing() -> None:
    desk = Desk(P, Q, max_size=1)
    number = desk.granted(P)
    ticket = desk.queue(Q)
    desk.say(P, Opened(number, 0.1))
    desk.brings_back(P, number)
    assert desk.size() == 1
    assert not desk.hears(Q, Grant)
    desk.say(P, Closed(number, "moved"))
    assert [g.ticket for g in desk.hears(Q, Grant)] == [ticket]


@pytest.mark.parametrize(
    "end",
    [
        lambda n: OpeningFailed(n, "interrupted", counted=False),
        Declined,
        NotMine,
        lambda n: Closed(n, "discarded"),
    ],
)
def test_every_end_of_an_opening_frees_its_slot(end: object) -> None:
    desk = Desk(P, Q, max_size=1)
    number = desk.granted(P)
    desk.queue(Q)
    desk.say(P, end(number))  # type: ignore[operator]
    assert len(desk.hears(Q, Grant)) == 1
    assert Erase(number) in desk.journal


def test_the_death_of_a_process_frees_everything_it_had_and_its_place_in_the_queue() -> None:
    desk = Desk(P, Q, R, max_size=2)
    desk.opened(P)
    desk.granted(P)
    desk.queue(P)
    tickets = [desk.queue(Q), desk.queue(R)]
    desk.dies(P)
    assert [g.ticket for g in desk.hears(Q, Grant) + desk.hears(R, Grant)] == tickets
    assert desk.books.slots_held(P) == 0
    assert len(desk.pool.waiting) == 0
    assert desk.pool.counters["died_with_process"] == 2


def test_the_end_of_the_errand_channel_cancels_waiters_and_keeps_slots() -> None:
    desk = Desk(P, Q, max_size=2)
    desk.opened(P)
    desk.granted(P)
    desk.queue(P)
    desk.say(P, Detached())
    desk.queue(Q)
    assert desk.books.slots_held(P) == 2
    assert len(desk.pool.waiting) == 1


def test_an_abandoned_waiter_gets_nothing() -> None:
    desk = Desk(P, Q, max_size=1)
    number = desk.opened(P)
    desk.say(Q, Abandoned(desk.queue(Q)))
    desk.say(P, Closed(number, "discarded"))
    assert not desk.hears(Q, Grant)
    assert desk.size() == 0


def test_the_end_of_a_call_cancels_its_waiter() -> None:
    desk = Desk(P, Q, max_size=1)
    number = desk.opened(P)
    desk.say(Q, CallEnded(desk.queue(Q)))
    desk.say(P, Closed(number, "discarded"))
    assert not desk.hears(Q, Grant)


def test_a_process_whose_waiter_is_cancelled_is_told_to_ask_again() -> None:
    """If the server had dropped the connection, a thread used to wait for ever that knew nothing of it."""
    desk = Desk(P, Q, max_size=1)
    desk.opened(P)
    ticket = desk.queue(Q)
    desk.say(Q, CallEnded(ticket))
    assert desk.hears(Q, AskAgain) == [AskAgain(ticket)]
    desk.say(Q, CallEnded(ticket))
    desk.say(Q, Abandoned(ticket))
    assert not desk.told.get(Q), "once"


def test_nobody_asks_again_for_what_was_granted_refused_or_abandoned() -> None:
    desk = Desk(P, Q, max_size=1)
    number = desk.opened(P)
    tickets = [desk.queue(Q), desk.queue(Q, timeout=1.0), desk.queue(Q)]
    desk.say(Q, Abandoned(tickets[2]))
    desk.wait(1.0)
    desk.say(P, Closed(number, "discarded"))
    assert [g.ticket for g in desk.hears(Q, Grant)] == tickets[:1]
    for ticket in tickets:
        desk.say(Q, CallEnded(ticket))
    assert not desk.hears(Q, AskAgain)


def test_the_end_of_a_call_frees_no_grant_but_asks_about_its_number() -> None:
    desk = Desk(P, Q, max_size=1)
    grant = desk.ask(P)
    ticket = desk.queue(Q)
    desk.say(P, CallEnded(grant.ticket))
    assert desk.hears(P, Ask) == [Ask(grant.number)]
    assert desk.books.slots_held(P) == 1
    desk.say(P, NotMine(grant.number))
    assert [g.ticket for g in desk.hears(Q, Grant)] == [ticket]


def test_about_a_grant_that_was_acknowledged_nobody_is_asked() -> None:
    desk = Desk(P, max_size=1)
    grant = desk.ask(P)
    desk.say(P, Opened(grant.number, 0.1))
    desk.say(P, CallEnded(grant.ticket))
    assert not desk.hears(P, Ask)


def test_an_unknown_pool_is_refused() -> None:
    desk = Desk(P)
    decisions = desk.say(P, Checkout("nowhere", "k", Ticket(1), None))
    assert isinstance(decisions[0], Refuse)
    assert decisions[0].reason == "unknown_pool"


def test_a_closed_pool_refuses_those_who_wait_and_those_who_come() -> None:
    desk = Desk(P, Q, max_size=1)
    desk.opened(P)
    ticket = desk.queue(Q)
    desk.command(ClosePool(POOL))
    assert [(r.ticket, r.reason) for r in desk.hears(Q, Refuse)] == [(ticket, "closed")]
    assert desk.ask(P).reason == "closed"


def test_a_grant_that_cannot_be_written_down_is_refused_and_its_slot_is_free() -> None:
    desk = Desk(P, max_size=1)
    grant = desk.ask(P)
    decisions = desk.say(P, JournalFailed(grant.number, "disk full"))
    (refused,) = (d for d in decisions if isinstance(d, Refuse))
    assert (refused.ticket, refused.reason) == (grant.ticket, "journal")
    assert "disk full" in refused.text
    assert desk.size() == 0


def test_a_journal_that_fails_frees_nothing_that_is_open() -> None:
    desk = Desk(P, max_size=1)
    number = desk.opened(P)
    assert desk.say(P, JournalFailed(number, "disk full")) == []
    assert desk.size() == 1


def test_a_repeated_checkout_is_not_answered_twice() -> None:
    desk = Desk(P, Q, max_size=2)
    grant = desk.ask(P)
    desk.opened(P)
    waiting = desk.queue(Q)
    before = desk.state()
    assert desk.say(P, Checkout(POOL, "k", grant.ticket, None)) == []
    assert desk.say(Q, Checkout(POOL, "k", waiting, None)) == []
    assert desk.state() == before


def test_the_creation_number_counts_what_was_opened_before() -> None:
    desk = Desk(P, Q, max_size=None)
    assert desk.ask(P).opened_before == 0
    second = desk.ask(Q)
    assert second.opened_before == 1
    desk.say(Q, Opened(second.number, 0.1))
    assert desk.ask(P).opened_before == 2


def test_stale_and_foreign_events_change_nothing() -> None:
    desk = Desk(P, Q, max_size=3)
    opening, open_, closing = desk.granted(P), desk.opened(P), desk.opened(P)
    desk.queue(Q)
    desk.brings_back(P, closing)
    assert desk.pool.slots.in_state(SlotState.CLOSING) == 1
    gone = GrantNumber(12345)
    illegal = [
        (P, Returned(opening)),
        (P, Opened(open_, 0.1)),
        (P, OpeningFailed(open_, "x")),
        (P, Declined(open_)),
        (P, NotMine(open_)),
        (P, Returned(closing)),
        (P, Opened(closing, 0.1)),
        (P, Opened(gone, 0.1)),
        (P, Closed(gone, "discarded")),
        (P, Abandoned(Ticket(999))),
        (Q, Opened(opening, 0.1)),
        (Q, Closed(open_, "discarded")),
        (Q, NotMine(opening)),
        (R, Closed(open_, "discarded")),
        (R, Checkout(POOL, "k", Ticket(1), None)),
    ]
    before = desk.state()
    for process, event in illegal:
        assert desk.say(process, event) == [], event
    assert desk.say(P, Closed(open_, "discarded"), session=0) == []
    assert desk.state() == before


def test_the_pool_is_open_to_more_after_a_resize_up() -> None:
    desk = Desk(P, Q, max_size=1)
    desk.opened(P)
    ticket = desk.queue(Q)
    desk.command(Resize(POOL, 2, True, None))
    assert [g.ticket for g in desk.hears(Q, Grant)] == [ticket]


def test_a_queued_answer_says_which_ticket_waits() -> None:
    desk = Desk(P, max_size=1)
    desk.opened(P)
    decisions = desk.say(P, Checkout(POOL, "k", Ticket(77), None))
    assert decisions[0] == Queued(Ticket(77))


def test_a_plain_refusal_is_for_open_pools_and_sessions_that_go_on() -> None:
    """Decision 0100: the server asks for one before it applies the event, and the desk compares the two."""
    desk = Desk(P, Q, max_size=1)
    desk.opened(P)
    assert desk.ask(Q, timeout=0.0).reason == "timeout"
    assert desk.say(Q, Checkout(POOL, "k", Ticket(90), 0.0), session=0) == []
    desk.command(ClosePool(POOL))
    assert desk.ask(Q, timeout=0.0).reason == "closed"
