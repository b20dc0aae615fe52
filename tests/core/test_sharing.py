"""When a slot moves, and when it stays: the policy of decision 0012, rule by rule."""

from __future__ import annotations

import pytest

from mppool.core.decisions import Close, Grant, Keep, Reclaim
from mppool.core.events import Abandoned, Closed, Declined, Opened, OpeningFailed, Starves
from mppool.core.sharing import (
    ANSWER_S,
    EARNED_BY_THE_RICH,
    EARNED_OPENINGS,
    LONGEST_LOOK_S,
    SHORTEST_SURPLUS_S,
    SURPLUS_OPENINGS,
    UNKNOWN_OPENING_S,
)
from mppool.ids import GrantNumber, ProcessId
from tests.core.desk import Desk, P, Q, R, S, held
from tests.core.test_returns import asked

LOGIN_S = 0.3
EARNED_S = EARNED_OPENINGS * LOGIN_S


def moves(desk: Desk, process: ProcessId, number: GrantNumber, idle_s: float = 0.0) -> bool:
    """Whether a resource that is brought back is closed for somebody else."""
    return bool(desk.brings_back(process, number, idle_s) == Close(number, "moved"))


# --- slots earn their move ---------------------------------------------------------------------------------------


def test_a_slot_that_has_not_earned_its_opening_stays_though_another_process_has_none() -> None:
    desk = Desk(P, Q, max_size=1)
    number = desk.opened(P, seconds=LOGIN_S)
    desk.wait(EARNED_S - 0.01)
    desk.forget()
    desk.queue(Q)
    assert not asked(desk, P)
    assert desk.brings_back(P, number) == Keep(number)


def test_a_process_with_several_slots_gives_one_sooner_to_a_process_that_has_none() -> None:
    desk = Desk(P, Q, max_size=2)
    number = desk.opened(P, seconds=LOGIN_S)
    desk.opened(P, seconds=LOGIN_S)
    desk.wait(EARNED_BY_THE_RICH * LOGIN_S - 0.01)
    desk.forget()
    desk.queue(Q)
    assert not asked(desk, P)
    desk.wait(0.01)
    assert asked(desk, P)
    assert moves(desk, P, number)


def test_a_process_that_has_one_slot_gets_none_sooner_from_one_with_several() -> None:
    desk = Desk(P, Q, max_size=4)
    desk.opened(Q, seconds=LOGIN_S)
    number = desk.opened(P, seconds=LOGIN_S)
    for _ in range(2):
        desk.opened(P, seconds=LOGIN_S)
    desk.wait(EARNED_S - 0.01)
    desk.forget()
    desk.queue(Q)
    assert not asked(desk, P)
    assert desk.brings_back(P, number) == Keep(number)


def test_a_slot_that_has_earned_its_opening_goes_to_a_process_that_has_none() -> None:
    desk = Desk(P, Q, max_size=1)
    number = desk.opened(P, seconds=LOGIN_S)
    desk.wait(EARNED_S)
    desk.forget()
    ticket = desk.queue(Q)
    desk.queue(P)
    assert asked(desk, P)
    assert moves(desk, P, number)
    desk.say(P, Closed(number, "moved"))
    assert [grant.ticket for grant in desk.hears(Q, Grant)] == [ticket]


def test_a_slot_earns_its_opening_from_when_it_is_open() -> None:
    desk = Desk(P, Q, max_size=1)
    number = desk.granted(P)
    desk.wait(10 * EARNED_S)
    desk.say(P, Opened(number, LOGIN_S))
    desk.queue(Q)
    desk.wait(EARNED_S - 0.01)
    assert not moves(desk, P, number)
    desk.wait(0.02)
    assert moves(desk, P, number)


def test_what_is_needed_to_earn_an_opening_is_that_of_its_own_key() -> None:
    desk = Desk(P, Q, max_size=2)
    cheap = desk.opened(P, "alice", seconds=0.01)
    slow = desk.opened(P, "bob", seconds=LOGIN_S)
    desk.wait(0.1)
    desk.queue(Q, "carol")
    assert not moves(desk, P, slow)
    assert moves(desk, P, cheap)


def test_the_next_deadline_is_when_a_slot_will_have_earned_its_opening() -> None:
    desk = Desk(P, Q, max_size=1)
    desk.opened(P, seconds=LOGIN_S)
    earned_at = desk.clock() + EARNED_S
    desk.queue(Q)
    desk.forget()
    desk.wait(EARNED_S - 0.01)
    assert not asked(desk, P)
    due = desk.books.next_deadline(desk.clock())
    assert due is not None
    assert due <= earned_at
    desk.wait(0.01)
    assert len(asked(desk, P)) == 1


def test_among_many_rich_processes_the_one_is_found_that_has_a_slot_to_give() -> None:
    many = [ProcessId(pid, 7) for pid in range(201, 211)]
    desk = Desk(P, Q, R, *many, max_size=22)
    desk.opened(R, "slow", seconds=3.0)
    number = desk.opened(P, seconds=LOGIN_S)
    desk.wait(EARNED_S - LOGIN_S)
    for process in [*many, *many]:
        desk.opened(process, seconds=LOGIN_S)
    desk.wait(LOGIN_S)
    desk.forget()
    desk.queue(Q)
    assert not [process for process in (R, *many) if asked(desk, process)]
    assert asked(desk, P)
    assert moves(desk, P, number)


def test_what_a_process_was_asked_for_too_early_is_not_asked_for_at_every_release() -> None:
    # P has one slot that has earned its opening, and brings back the one that has not.
    desk = Desk(P, Q, max_size=2)
    desk.opened(P, seconds=LOGIN_S)
    desk.wait(EARNED_S)
    young = desk.opened(P, seconds=LOGIN_S)
    desk.forget()
    desk.queue(Q)
    assert asked(desk, P)
    assert desk.brings_back(P, young) == Keep(young)
    assert not asked(desk, P)
    desk.wait(ANSWER_S)
    assert asked(desk, P)


def test_slots_that_a_new_server_only_knows_from_an_inventory_are_taken_to_cost_something() -> None:
    desk = Desk(P, Q, max_size=1)
    number = desk.opened(P)
    after = Desk(epoch=2, max_size=1)
    after.clock.now = desk.clock()
    after.attach(P, [held(number)])
    after.attach(Q)
    after.queue(Q)
    assert not moves(after, P, number)
    after.wait(EARNED_OPENINGS * UNKNOWN_OPENING_S)
    assert moves(after, P, number)


# --- who has a claim ---------------------------------------------------------------------------------------------


def test_equals_do_not_exchange() -> None:
    desk = Desk(P, Q, max_size=2)
    number = desk.opened(P)
    desk.opened(Q)
    desk.forget()
    desk.queue(Q)
    desk.wait(60.0)
    assert not asked(desk, P)
    assert desk.brings_back(P, number) == Keep(number)


@pytest.mark.parametrize(("more", "has_claim"), [(1, False), (2, True)])
def test_a_process_with_two_slots_fewer_has_a_claim_and_one_with_one_fewer_has_none(
    more: int, has_claim: bool
) -> None:
    desk = Desk(P, Q, max_size=2 * 2 + more)
    for _ in range(2):
        desk.opened(Q)
    numbers = [desk.opened(P) for _ in range(2 + more)]
    desk.forget()
    desk.queue(Q)
    assert bool(asked(desk, P)) == has_claim
    assert moves(desk, P, numbers[0]) == has_claim
    assert not moves(desk, P, numbers[1])


@pytest.mark.parametrize("login_s", [0.001, 0.3, 3.0])
def test_a_uniform_load_moves_nothing_whatever_an_opening_costs(login_s: float) -> None:
    desk = Desk(P, Q, max_size=4)
    held_by: dict[ProcessId, list[GrantNumber]] = {}
    for process in (P, Q):
        held_by[process] = [desk.opened(process, seconds=login_s) for _ in range(2)]
    for process in (P, Q, P, Q):
        desk.queue(process)
    for _ in range(300):
        desk.wait(0.05)
        for process in (P, Q):
            number = held_by[process].pop(0)
            assert isinstance(desk.brings_back(process, number), Grant)
            held_by[process].append(number)
            desk.queue(process)
        for process in (P, Q):
            assert not asked(desk, process)
    assert desk.pool.counters["moved"] == 0


def test_two_processes_without_slots_are_both_served() -> None:
    desk = Desk(P, Q, R, S, max_size=2)
    first, second = desk.opened(P), desk.opened(Q)
    desk.queue(R)
    desk.queue(R)
    desk.queue(S)
    assert asked(desk, P)
    assert asked(desk, Q)
    assert moves(desk, P, first)
    assert moves(desk, Q, second)
    desk.say(P, Closed(first, "moved"))
    desk.say(Q, Closed(second, "moved"))
    assert len(desk.hears(R, Grant)) == 1
    assert len(desk.hears(S, Grant)) == 1


def test_a_process_without_slots_is_promised_one_though_several_of_its_threads_wait() -> None:
    desk = Desk(P, Q, R, max_size=2)
    first, second = desk.opened(P), desk.opened(Q)
    desk.forget()
    desk.queue(R)
    desk.queue(R)
    assert len(asked(desk, P)) + len(asked(desk, Q)) == 1
    assert moves(desk, P, first)
    assert not moves(desk, Q, second)


def test_what_is_promised_is_not_asked_for_twice() -> None:
    desk = Desk(P, Q, R, max_size=6)
    for _ in range(3):
        desk.opened(P)
        desk.opened(Q)
    desk.forget()
    desk.queue(R)
    desk.wait(ANSWER_S / 2)
    desk.queue(P)  # something happens, and all is looked through again
    assert len(asked(desk, P)) + len(asked(desk, Q)) == 1


def test_a_promise_that_is_not_kept_is_given_by_another_process() -> None:
    desk = Desk(P, Q, R, max_size=2)
    desk.opened(P)
    desk.opened(Q)
    desk.forget()
    desk.queue(R)
    first, second = (P, Q) if asked(desk, P) else (Q, P)
    desk.wait(ANSWER_S + 0.001)
    assert asked(desk, second)
    assert not asked(desk, first)


def test_a_process_that_gave_a_slot_comes_after_those_that_already_waited() -> None:
    # P has waited for longest, but had the slot meanwhile.
    desk = Desk(P, Q, R, max_size=1)
    number = desk.opened(P)
    desk.queue(P)
    desk.wait(0.1)
    desk.queue(Q)
    desk.wait(0.1)
    assert moves(desk, P, number)
    desk.say(P, Closed(number, "moved"))
    (grant,) = desk.hears(Q, Grant)
    desk.say(Q, Opened(grant.number, 0.0))
    desk.queue(R)
    desk.wait(0.1)
    desk.queue(Q)
    desk.forget()
    assert moves(desk, Q, grant.number)
    desk.say(Q, Closed(grant.number, "moved"))
    assert len(desk.hears(P, Grant)) == 1


def test_three_processes_take_turns_with_one_slot() -> None:
    desk = Desk(P, Q, R, max_size=1)
    served = []
    holder, number = P, desk.opened(P, seconds=0.1)
    for process in (Q, R):
        desk.queue(process)
    for _ in range(9):
        desk.queue(holder)
        desk.wait(0.1 * EARNED_OPENINGS)
        assert moves(desk, holder, number)
        desk.say(holder, Closed(number, "moved"))
        (got,) = ((process, grant) for process in (P, Q, R) for grant in desk.hears(process, Grant))
        holder, number = got[0], got[1].number
        desk.say(holder, Opened(number, 0.1))
        served.append(holder)
    assert served == [Q, R, P] * 3


# --- surplus -----------------------------------------------------------------------------------------------------


def test_what_has_been_idle_for_half_an_opening_moves_though_it_has_not_earned_its_opening() -> (
    None
):
    desk = Desk(P, Q, max_size=2)
    number = desk.opened(P, seconds=LOGIN_S)
    desk.opened(Q, seconds=LOGIN_S)
    desk.queue(Q)
    assert not moves(desk, P, number, SURPLUS_OPENINGS * LOGIN_S - 0.01)
    assert moves(desk, P, number, SURPLUS_OPENINGS * LOGIN_S)


def test_what_has_been_idle_for_a_moment_only_is_not_surplus_however_cheap_an_opening_is() -> None:
    desk = Desk(P, Q, max_size=2)
    number = desk.opened(P)
    desk.opened(Q)
    desk.queue(Q)
    assert not moves(desk, P, number, SHORTEST_SURPLUS_S / 2)
    assert moves(desk, P, number, SHORTEST_SURPLUS_S)


def test_what_somebody_at_home_waits_for_is_not_surplus() -> None:
    desk = Desk(P, Q, max_size=2)
    number = desk.opened(P, seconds=LOGIN_S)
    desk.opened(Q, seconds=LOGIN_S)
    desk.queue(Q)
    desk.queue(P)
    assert isinstance(desk.brings_back(P, number, 10.0), Grant)


def test_surplus_is_looked_for_at_growing_intervals() -> None:
    desk = Desk(P, Q, max_size=2)
    desk.opened(P, seconds=LOGIN_S)
    desk.opened(Q, seconds=LOGIN_S)
    desk.forget()
    desk.queue(Q)
    desk.wait(1.0)
    looks = [r for r in desk.hears(P, Reclaim) if r.idle_for]
    assert all(look.idle_for == SURPLUS_OPENINGS * LOGIN_S for look in looks)
    assert all(not look.contended for look in looks)
    assert 1.0 / LONGEST_LOOK_S <= len(looks) <= 10


def test_in_one_process_an_idle_resource_makes_room_for_another_key_at_once() -> None:
    desk = Desk(P, max_size=1)
    number = desk.opened(P, "alice", seconds=LOGIN_S)
    desk.queue(P, "bob")
    assert asked(desk, P)
    assert moves(desk, P, number)


# --- starving ----------------------------------------------------------------------------------------------------


def starving(desk: Desk) -> tuple[GrantNumber, object]:
    """P and Q have one each, and Q's waiter says that it starves."""
    number = desk.opened(P)
    desk.opened(Q)
    ticket = desk.queue(Q)
    desk.forget()
    desk.say(Q, Starves(ticket))
    return number, ticket


def test_a_process_that_starves_takes_from_equals() -> None:
    desk = Desk(P, Q, max_size=2)
    number, ticket = starving(desk)
    assert asked(desk, P)
    assert moves(desk, P, number)
    desk.say(P, Closed(number, "moved"))
    assert [grant.ticket for grant in desk.hears(Q, Grant)] == [ticket]


def test_a_process_that_starves_takes_only_what_has_earned_its_opening() -> None:
    desk = Desk(P, Q, max_size=2)
    number = desk.opened(P, seconds=LOGIN_S)
    desk.opened(Q, seconds=LOGIN_S)
    desk.say(Q, Starves(desk.queue(Q)))
    desk.forget()
    assert not moves(desk, P, number)
    desk.wait(EARNED_S)
    assert asked(desk, P)
    assert moves(desk, P, number)


@pytest.mark.parametrize("how", ["by the server", "at home", "by giving up"])
def test_a_process_starves_until_one_of_its_waiters_is_served(how: str) -> None:
    desk = Desk(P, Q, max_size=3 if how == "by the server" else 2)
    spare = desk.granted(P) if how == "by the server" else None
    number = desk.opened(P)
    mine = desk.opened(Q)
    tickets = [desk.queue(Q), desk.queue(Q)]
    desk.say(Q, Starves(tickets[0]))
    if how == "by the server":
        assert spare is not None
        desk.say(P, OpeningFailed(spare, "no", counted=False))
        (grant,) = desk.hears(Q, Grant)
        desk.say(Q, Opened(grant.number, 0.0))
    elif how == "at home":
        assert isinstance(desk.brings_back(Q, mine), Grant)
    else:
        for ticket in tickets:
            desk.say(Q, Abandoned(ticket))
        desk.queue(Q)
    assert not moves(desk, P, number)


def test_those_that_starve_wait_like_processes_without_slots_from_when_they_said_so() -> None:
    desk = Desk(P, Q, R, S, max_size=3)
    number = desk.granted(P)
    desk.opened(Q)
    desk.opened(R)
    hungry, later = desk.queue(Q), desk.queue(R)
    desk.wait(0.01)
    desk.say(Q, Starves(hungry))
    desk.wait(0.01)
    desk.queue(S)
    desk.wait(0.01)
    desk.say(R, Starves(later))
    desk.forget()
    served: list[ProcessId] = []
    for _ in range(3):
        desk.say(P if not served else served[-1], Declined(number))
        (got,) = ((p, grant) for p in (Q, R, S) for grant in desk.hears(p, Grant))
        served.append(got[0])
        number = got[1].number
    assert served == [Q, S, R]


def test_that_a_process_without_slots_starves_is_nothing_new() -> None:
    desk = Desk(P, Q, R, max_size=1)
    desk.opened(P)
    desk.queue(Q)
    ticket = desk.queue(R)
    before = desk.state()
    assert not desk.say(R, Starves(ticket))
    assert desk.state() == before


def test_a_ticket_that_does_not_wait_any_longer_cannot_starve() -> None:
    desk = Desk(P, Q, max_size=2)
    desk.opened(P)
    desk.opened(Q)
    ticket = desk.queue(Q)
    desk.say(Q, Abandoned(ticket))
    before = desk.state()
    assert not desk.say(Q, Starves(ticket))
    assert desk.state() == before
