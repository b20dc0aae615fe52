"""No more resources are opened at a time than `max_opening` says, over all processes."""

from __future__ import annotations

from mppool.core.decisions import Grant
from mppool.core.events import Closed, Opened, OpeningFailed
from mppool.core.table import HEARD_WITHIN_S, OPENING_PATIENCE_S
from tests.core.desk import Desk, P, Q, R, held
from tests.core.test_restart import next_server, remembered
from tests.core.test_returns import asked
from tests.core.test_sharing import LOGIN_S, moves


def test_no_more_resources_are_opened_at_a_time_than_max_opening_says() -> None:
    desk = Desk(P, Q, max_size=4, max_opening=2)
    first, second = desk.granted(P), desk.granted(Q)
    tickets = [desk.queue(P), desk.queue(Q)]
    desk.say(P, Opened(first, LOGIN_S))
    assert [grant.ticket for grant in desk.hears(P, Grant)] == tickets[:1]
    assert not desk.hears(Q, Grant)
    desk.say(Q, OpeningFailed(second, "no", counted=False))
    assert [grant.ticket for grant in desk.hears(Q, Grant)] == tickets[1:]


def test_who_waits_for_an_opening_to_begin_is_refused_at_once_without_a_timeout_and_told_why() -> (
    None
):
    desk = Desk(P, max_size=4, max_opening=1)
    desk.granted(P)
    refusal = desk.ask(P, timeout=0)
    assert "1 of them are being opened (max_opening)" in refusal.text


def test_who_waits_for_an_opening_to_begin_is_served_by_a_release() -> None:
    desk = Desk(P, Q, max_size=4, max_opening=1)
    mine = desk.opened(P)
    desk.granted(Q)
    ticket = desk.queue(P)
    answer = desk.brings_back(P, mine)
    assert isinstance(answer, Grant)
    assert (answer.ticket, answer.fresh) == (ticket, False)


def test_nobody_is_asked_for_slots_while_no_opening_may_begin() -> None:
    desk = Desk(P, Q, R, max_size=3, max_opening=1)
    desk.opened(P)
    desk.opened(P)
    opening = desk.granted(Q)
    desk.forget()
    desk.queue(R)
    desk.wait(1.0)
    assert not asked(desk, P)
    desk.say(Q, Opened(opening, 0.0))
    assert asked(desk, P)


def test_openings_that_an_inventory_brings_count_for_max_opening_under_the_next_server() -> None:
    desk = Desk(P, Q, max_size=4, max_opening=2)
    numbers = [desk.granted(P), desk.granted(P)]
    after = Desk(epoch=2, max_size=4, max_opening=1)
    after.attach(P, [held(number, "opening") for number in numbers])
    after.attach(Q)
    ticket = after.queue(Q)
    after.say(P, Opened(numbers[0], LOGIN_S))
    assert not after.hears(Q, Grant)
    after.say(P, Opened(numbers[1], LOGIN_S))
    assert [grant.ticket for grant in after.hears(Q, Grant)] == [ticket]


def test_openings_of_processes_that_the_next_server_has_not_heard_of_yet_count_too() -> None:
    before = Desk(P, Q, max_size=4, max_opening=2)
    numbers = [before.granted(P), before.granted(Q)]
    after = next_server(
        [remembered(numbers[0], P), remembered(numbers[1], Q)], max_size=4, max_opening=2
    )
    after.attach(R)
    ticket = after.queue(R)
    assert not after.hears(R, Grant)
    after.attach(P, [held(numbers[0], "opening")])
    assert not after.hears(R, Grant)
    after.attach(Q, [held(numbers[1], "open")])
    assert [grant.ticket for grant in after.hears(R, Grant)] == [ticket]


def test_a_stopped_process_does_not_keep_others_from_opening_for_long() -> None:
    number = Desk(P, max_size=4).opened(P)
    after = next_server([remembered(number, P)], max_size=4, max_opening=1)
    after.attach(R)
    ticket = after.queue(R)
    after.wait(HEARD_WITHIN_S / 2)
    assert not after.hears(R, Grant)
    after.wait(HEARD_WITHIN_S)
    assert [grant.ticket for grant in after.hears(R, Grant)] == [ticket]


def test_an_opening_that_hangs_does_not_keep_others_from_opening_for_ever() -> None:
    desk = Desk(P, Q, max_size=4, max_opening=1)
    hung = desk.granted(P)
    ticket = desk.queue(Q)
    desk.wait(OPENING_PATIENCE_S / 2)
    assert not desk.hears(Q, Grant)
    desk.wait(OPENING_PATIENCE_S / 2)
    (grant,) = desk.hears(Q, Grant)
    assert (grant.ticket, desk.size()) == (ticket, 2)
    # Its end gives nobody a second right to open: that was given already.
    second = desk.queue(Q)
    desk.say(P, Opened(hung, OPENING_PATIENCE_S))
    assert not desk.hears(Q, Grant)
    desk.say(Q, Opened(grant.number, LOGIN_S))
    assert [grant.ticket for grant in desk.hears(Q, Grant)] == [second]


def test_an_opening_that_hangs_counts_against_the_cap_for_as_long_as_it_hangs() -> None:
    desk = Desk(P, Q, max_size=1, max_opening=1)
    hung = desk.granted(P)
    ticket = desk.queue(Q)
    desk.wait(3 * OPENING_PATIENCE_S)
    assert not desk.hears(Q, Grant)
    desk.say(P, OpeningFailed(hung, "no", counted=False))
    assert [grant.ticket for grant in desk.hears(Q, Grant)] == [ticket]


def test_an_opening_that_hangs_does_not_keep_min_size_from_being_opened() -> None:
    desk = Desk(P, Q, max_size=4, min_size=2, max_opening=1)
    desk.granted(P)
    desk.forget()
    desk.wait(OPENING_PATIENCE_S)
    assert len(desk.hears(P, Grant) + desk.hears(Q, Grant)) == 1


def test_who_is_refused_after_an_opening_has_hung_for_long_is_not_told_of_max_opening() -> None:
    desk = Desk(P, Q, max_size=2, max_opening=1)
    desk.granted(P)
    desk.wait(OPENING_PATIENCE_S)
    number = desk.opened(Q)
    refusal = desk.ask(Q, timeout=0)
    assert "max_opening" not in refusal.text
    desk.say(Q, Closed(number, "discarded"))
    assert isinstance(desk.ask(Q, timeout=0), Grant)


def test_max_opening_holds_for_what_min_size_has_opened_too() -> None:
    desk = Desk(P, Q, max_size=4, min_size=3, max_opening=1)
    desk.say(P, Closed(desk.opened(P), "discarded"))
    for _ in range(3):
        grants = [(p, grant) for p in (P, Q) for grant in desk.hears(p, Grant)]
        assert len(grants) == 1
        desk.say(grants[0][0], Opened(grants[0][1].number, LOGIN_S))
    assert desk.size() == 3
    assert not desk.hears(P, Grant) + desk.hears(Q, Grant)


def test_those_who_wait_come_before_min_size_where_only_one_opening_may_begin() -> None:
    desk = Desk(P, Q, max_size=4, min_size=3, max_opening=1)
    first = desk.granted(P)
    ticket = desk.queue(Q)
    desk.forget()
    desk.say(P, Opened(first, LOGIN_S))
    assert [grant.ticket for grant in desk.hears(Q, Grant)] == [ticket]


def test_nothing_is_closed_for_those_who_may_not_open_now() -> None:
    desk = Desk(P, Q, R, max_size=3, max_opening=1)
    number = desk.opened(P)
    opening = desk.granted(Q)
    desk.queue(R)
    assert not moves(desk, P, number, 10.0)
    desk.say(Q, Opened(opening, 0.0))
    (grant,) = desk.hears(R, Grant)
    assert grant.fresh
    desk.queue(R)
    assert not moves(desk, P, number, 10.0)
    desk.say(R, Opened(grant.number, 0.0))
    assert moves(desk, P, number, 10.0)
