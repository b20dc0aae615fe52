"""Lanes: so many resources are reserved for a kind of work; an idle reserve is lent, and comes back first."""

from __future__ import annotations

from typing import Any

import pytest

from mppool.core.decisions import Grant, Keep, Reclaim
from mppool.core.events import Abandoned, Checkout, Closed, Lent, Resize
from mppool.ids import GrantNumber, ProcessId, Ticket
from tests.core.desk import Desk, P, Q, R, held
from tests.core.model.parts import POOL


def laned(*processes: ProcessId, max_size: int = 4, **lanes: int) -> Desk:
    return Desk(*processes, max_size=max_size, lanes=lanes or {"web": 2})


def ask(desk: Desk, process: ProcessId, lane: str = "", timeout: float | None = None) -> Ticket:
    """Check out in a lane; the answer stays in `told`."""
    desk._tickets += 1
    ticket = Ticket(desk._tickets)
    desk.say(process, Checkout(POOL, "k", ticket, timeout, lane))
    return ticket


def opened(desk: Desk, process: ProcessId, lane: str = "") -> GrantNumber:
    """Check out in a lane, and open."""
    ask(desk, process, lane)
    (grant,) = (one for one in desk.told.pop(process) if isinstance(one, Grant))
    from mppool.core.events import Opened

    desk.say(process, Opened(grant.number, 0.1))
    return grant.number


def test_everybody_takes_what_is_free_whatever_is_reserved() -> None:
    desk = laned(P)
    for _ in range(4):
        opened(desk, P)
    assert desk.size() == 4


def test_a_reserve_comes_back_first_though_others_wait_for_longer() -> None:
    desk = laned(P)
    numbers = [opened(desk, P) for _ in range(4)]
    others = [ask(desk, P) for _ in range(3)]
    web = [ask(desk, P, "web") for _ in range(3)]
    given = [desk.brings_back(P, number).ticket for number in numbers[:2]]
    assert given == web[:2]
    # Its reserve is full: the common lane has less than its right now.
    assert desk.brings_back(P, numbers[2]).ticket == others[0]


def test_a_reserve_is_taken_from_another_process_whatever_it_has_earned() -> None:
    desk = laned(P, Q)
    numbers = [opened(desk, Q) for _ in range(4)]
    desk.forget()
    web = ask(desk, P, "web")
    assert {one.contended for one in desk.hears(Q, Reclaim)} == {True}
    answer = desk.brings_back(Q, numbers[0])
    assert answer.reason == "moved"
    desk.say(Q, Closed(numbers[0], "moved"))
    assert [grant.ticket for grant in desk.hears(P, Grant)] == [web]


def test_a_reserve_that_is_covered_takes_no_more() -> None:
    desk = laned(P, Q)
    numbers = [opened(desk, Q) for _ in range(4)]
    ask(desk, P, "web")
    assert desk.brings_back(Q, numbers[0]).reason == "moved"
    assert isinstance(desk.brings_back(Q, numbers[1]), Keep)


def test_what_is_taken_for_one_lane_does_not_have_it_take_more() -> None:
    """The lane that gives lacks it then, and waits too."""
    desk = laned(P, Q, max_size=8, web=2)
    numbers = [opened(desk, Q) for _ in range(8)]
    for _ in range(2):
        ask(desk, P, "web")
    others = [ask(desk, Q) for _ in range(4)]
    answers = [desk.brings_back(Q, number) for number in numbers[:4]]
    assert [one.reason for one in answers[:2]] == ["moved"] * 2
    assert [one.ticket for one in answers[2:]] == others[:2]


def test_a_lane_that_waits_alone_and_has_its_right_is_settled() -> None:
    desk = laned(P, Q)
    numbers = [opened(desk, Q) for _ in range(4)]
    desk.forget()
    waiting = ask(desk, Q)
    assert {one.settled for one in desk.hears(Q, Reclaim)} == {""}
    web = ask(desk, P, "web")
    assert {(one.contended, one.settled) for one in desk.hears(Q, Reclaim)} == {(True, None)}
    assert desk.brings_back(Q, numbers[0]).reason == "moved"
    desk.say(Q, Closed(numbers[0], "moved"))
    assert [grant.ticket for grant in desk.hears(P, Grant)] == [web]
    assert {one.settled for one in desk.hears(Q, Reclaim)} == {""}
    desk.say(Q, Abandoned(waiting))
    # Those who hope at home need not ask before another lane waits.
    assert [(one.contended, one.settled) for one in desk.hears(Q, Reclaim)] == [(False, "")]


def test_a_lane_that_lacks_its_right_is_not_settled() -> None:
    desk = laned(P, Q)
    for _ in range(4):
        opened(desk, Q, "web")
    desk.forget()
    ask(desk, Q)
    assert {one.settled for one in desk.hears(Q, Reclaim)} == {None}


def test_who_is_asked_for_a_slot_brings_back_whatever_is_released() -> None:
    desk = laned(P, Q)
    numbers = [opened(desk, Q) for _ in range(4)]
    desk.wait(60.0)  # they have earned their opening
    desk.forget()
    ask(desk, Q)
    ask(desk, P)
    assert [one.settled for one in desk.hears(Q, Reclaim)][-1] is None
    assert desk.brings_back(Q, numbers[0]).reason == "moved"
    assert [one.settled for one in desk.hears(Q, Reclaim)][-1] == "", (
        "it has brought what it was asked for"
    )


def test_a_reserve_is_lent_to_another_process_only_when_it_has_lain_idle_for_two_openings() -> None:
    """Its lane takes it back as soon as it wants it, and then both openings were for nothing."""
    desk = laned(P, Q)
    (web,) = [opened(desk, Q, "web")]
    for _ in range(3):
        opened(desk, P)
    desk.forget()
    ask(desk, P)
    assert isinstance(desk.brings_back(Q, web, idle_s=0.19), Keep)
    desk.wait(1.0)
    assert max(one.idle_for for one in desk.hears(Q, Reclaim)) == pytest.approx(0.2)
    assert desk.brings_back(Q, web, idle_s=0.21).reason == "moved"


def test_the_common_lane_has_what_the_others_leave() -> None:
    desk = laned(P)
    numbers = [opened(desk, P, "web") for _ in range(4)]
    web = ask(desk, P, "web")
    others = [ask(desk, P) for _ in range(3)]
    given = [desk.brings_back(P, number).ticket for number in numbers[:3]]
    assert given == [*others[:2], web]


def test_beyond_its_right_a_lane_waits_like_everybody() -> None:
    desk = laned(P, max_size=3, web=1, batch=1)
    numbers = [opened(desk, P, "web"), opened(desk, P, "batch"), opened(desk, P)]
    first, second = ask(desk, P, "web"), ask(desk, P, "batch")
    desk.wait(0.01)
    # What each lane gives back is its own right again.
    assert desk.brings_back(P, numbers[1]).ticket == second
    assert desk.brings_back(P, numbers[0]).ticket == first


def test_what_is_lent_without_asking_is_told_when_somebody_waits() -> None:
    desk = laned(P, Q)
    numbers = [opened(desk, Q, "web") for _ in range(4)]
    web = ask(desk, P, "web")
    # As far as the books know, all are used by `web`. In truth the common lane has taken them from the shelf.
    assert {one.contended for one in desk.hears(Q, Reclaim)} == {True}
    desk.say(Q, Lent([(number, "") for number in numbers]))
    assert desk.brings_back(Q, numbers[0]).reason == "moved"
    desk.say(Q, Closed(numbers[0], "moved"))
    assert [grant.ticket for grant in desk.hears(P, Grant)] == [web]


def test_what_lies_idle_is_nobodys() -> None:
    desk = laned(P, Q)
    numbers = [opened(desk, Q, "web") for _ in range(4)]
    ask(desk, P, "web")
    desk.hears(Q, Reclaim)
    desk.say(Q, Lent([(number, None) for number in numbers]))
    assert [one.sweep for one in desk.hears(Q, Reclaim)] == [1]


def test_what_lies_idle_at_home_is_lent_before_anything_moves() -> None:
    desk = laned(P, Q)
    own = [opened(desk, P) for _ in range(2)]
    web = [opened(desk, Q, "web") for _ in range(2)]
    desk.say(Q, Lent([(web[0], None)]))
    ask(desk, P)  # so everybody tells, and brings back
    desk.say(P, Abandoned(Ticket(desk._tickets)))
    assert isinstance(desk.brings_back(P, own[0]), Keep)
    ask(desk, P)  # by somebody who did not find it on the shelf yet, and will
    assert isinstance(desk.brings_back(Q, web[0]), Keep)
    # Were it in use for another lane there, the common one would lack it.
    desk.say(P, Lent([(own[0], "web")]))
    assert desk.brings_back(Q, web[0]).reason == "moved"


def test_nobody_is_told_to_bring_back_anything_once_nobody_waits() -> None:
    desk = laned(P, Q)
    numbers = [opened(desk, Q) for _ in range(4)]
    desk.forget()
    ask(desk, P, "web")
    desk.brings_back(Q, numbers[0])
    desk.say(Q, Closed(numbers[0], "moved"))
    assert [one.contended for one in desk.hears(Q, Reclaim)][-1] is False


def test_an_inventory_says_for_which_lanes_resources_are_lent() -> None:
    desk = laned(P, Q)
    numbers = [opened(desk, P) for _ in range(4)]
    again = [held(number) for number in numbers]
    import msgspec

    desk.attach(P, [msgspec.structs.replace(one, lane="web") for one in again])
    assert desk.pool.lanes.used["web"] == 4
    desk.dies(P)
    assert not desk.pool.lanes.used["web"]


def test_between_processes_of_a_lane_slots_earn_their_move_as_always() -> None:
    desk = laned(P, Q, R, web=4)
    numbers = [opened(desk, Q, "web") for _ in range(4)]
    theirs = ask(desk, P, "web")
    mine = ask(desk, Q, "web")
    answer: Any = desk.brings_back(Q, numbers[0])
    assert (answer.ticket, theirs != mine) == (mine, True)


def test_a_lowered_cap_is_shared_in_proportion_to_the_rights() -> None:
    desk = laned(P, max_size=4, web=2)
    numbers = [opened(desk, P, lane) for lane in ("web", "web", "", "")]
    desk.command(Resize(POOL, 2, True, None))
    web, other = ask(desk, P, "web"), ask(desk, P)
    for number in numbers[:2]:
        desk.brings_back(P, number)
        desk.say(P, Closed(number, "retired"))
    # Of the two that are left both are common: the first that comes back goes to `web`.
    assert desk.brings_back(P, numbers[2]).ticket == web
    assert other != web
