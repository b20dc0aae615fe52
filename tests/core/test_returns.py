"""What becomes of a resource that a contended process brings back, and who is asked to bring some."""

from __future__ import annotations

from mppool.core.decisions import Close, Grant, Keep, Reclaim
from mppool.core.events import Abandoned, Closed, Detached, OpeningFailed, Reset, Resize, Returned
from mppool.core.sharing import ANSWER_S
from mppool.ids import GrantNumber
from tests.core.desk import Desk, P, Q, R, S, held
from tests.core.model.parts import POOL


def asked(desk: Desk, process: object) -> list[Reclaim]:
    """How often a process was told to be contended since the last time, sweeps for surplus left out."""
    return [r for r in desk.hears(process, Reclaim) if r.contended and not r.idle_for]  # type: ignore[arg-type]


# --- the answer to a return ----------------------------------------------------------------------------------


def test_what_nobody_wants_is_kept() -> None:
    desk = Desk(P, max_size=1)
    number = desk.opened(P)
    assert desk.brings_back(P, number) == Keep(number)
    assert desk.size() == 1


def test_a_waiter_at_home_gets_the_open_resource() -> None:
    desk = Desk(P, max_size=1)
    number = desk.opened(P)
    ticket = desk.queue(P)
    answer = desk.brings_back(P, number)
    assert isinstance(answer, Grant)
    assert (answer.ticket, answer.fresh, answer.key) == (ticket, False, "k")
    assert len(desk.pool.waiting) == 0


def test_a_process_that_was_asked_for_nothing_and_brings_something_back_is_told_so_first() -> None:
    desk = Desk(P, max_size=1)
    number = desk.opened(P)
    assert desk.brings_back(P, number) == Keep(number)
    told = [d for d in desk.told[P] if isinstance(d, (Reclaim, Keep))]
    assert told == [Reclaim(POOL, contended=False, sweep=0, idle_for=0.0), Keep(number)]


def test_a_process_whose_slots_are_closed_and_that_was_asked_for_nothing_is_told_so() -> None:
    desk = Desk(P, Q, max_size=2)
    number = desk.opened(P)
    desk.command(Resize(POOL, 2, True, None))
    desk.command(Reset(POOL))
    assert desk.brings_back(P, number) == Close(number, "retired")
    assert desk.hears(P, Reclaim) == [Reclaim(POOL, contended=False, sweep=0, idle_for=0.0)]


def test_what_another_process_waits_for_is_closed_and_moves_when_it_is_closed() -> None:
    desk = Desk(P, Q, max_size=1)
    number = desk.opened(P)
    ticket = desk.queue(Q)
    assert desk.brings_back(P, number) == Close(number, "moved")
    assert not desk.hears(Q, Grant)
    desk.say(P, Closed(number, "moved"))
    (grant,) = desk.hears(Q, Grant)
    assert (grant.ticket, grant.fresh) == (ticket, True)
    assert desk.pool.counters["moved"] == 1
    assert desk.pool.counters["closed"] == 1


def test_a_resource_is_never_handed_to_a_waiter_of_another_identity() -> None:
    desk = Desk(P, max_size=1)
    number = desk.opened(P, "alice")
    desk.queue(P, "bob")
    assert desk.brings_back(P, number) == Close(number, "moved")
    desk.say(P, Closed(number, "moved"))
    (grant,) = desk.hears(P, Grant)
    assert (grant.key, grant.fresh) == ("bob", True)


def test_one_waiter_is_served_by_one_close() -> None:
    desk = Desk(P, Q, max_size=3)
    first, second, third = (desk.opened(P) for _ in range(3))
    desk.queue(Q)
    assert isinstance(desk.brings_back(P, first), Close)
    assert desk.brings_back(P, second) == Keep(second)
    desk.wait(ANSWER_S)  # the close hangs, so it is not counted on any longer
    assert isinstance(desk.brings_back(P, third), Close)


def test_home_comes_first_where_the_levels_are_even() -> None:
    desk = Desk(P, Q, max_size=2)
    number = desk.opened(P)
    desk.opened(Q)
    desk.queue(Q)
    mine = desk.queue(P)
    answer = desk.brings_back(P, number)
    assert isinstance(answer, Grant)
    assert answer.ticket == mine


def test_a_poorer_process_comes_before_home() -> None:
    desk = Desk(P, Q, max_size=2)
    number = desk.opened(P)
    desk.opened(P)
    desk.queue(P)
    desk.queue(Q)
    assert desk.brings_back(P, number) == Close(number, "moved")


def test_an_unknown_resource_that_is_brought_back_is_closed() -> None:
    desk = Desk(P, max_size=1)
    number = GrantNumber(4711)
    assert desk.say(P, Returned(number)) == [Close(number, "retired")]


def test_above_a_lowered_cap_everything_that_is_brought_back_is_closed() -> None:
    desk = Desk(P, max_size=3)
    first, second, third = (desk.opened(P) for _ in range(3))
    desk.queue(P)
    desk.command(Resize(POOL, 1, True, None))
    assert desk.brings_back(P, first) == Close(first, "retired")
    assert desk.brings_back(P, second) == Close(second, "retired")
    assert isinstance(desk.brings_back(P, third), Grant)


# --- who is asked ----------------------------------------------------------------------------------------------


def test_a_process_with_two_more_is_asked_at_once() -> None:
    desk = Desk(P, Q, max_size=2)
    desk.opened(P)
    desk.opened(P)
    desk.forget()
    desk.queue(Q)
    assert desk.hears(P, Reclaim)[0] == Reclaim(POOL, True, 1, 0.0)


def test_the_richest_is_asked_first() -> None:
    desk = Desk(P, Q, R, max_size=5)
    for process in (P, P, Q, Q, Q):
        desk.opened(process)
    desk.forget()
    desk.queue(R)
    assert asked(desk, Q)
    assert not asked(desk, P)


def test_several_waiters_are_shared_among_those_who_have() -> None:
    desk = Desk(P, Q, R, max_size=6)
    for process in (P, P, P, Q, Q, Q):
        desk.opened(process)
    desk.forget()
    desk.queue(R)
    desk.queue(R)
    assert len(asked(desk, P)) == len(asked(desk, Q)) == 1


def test_a_process_that_does_not_answer_is_not_counted_on_and_the_next_is_asked() -> None:
    desk = Desk(P, Q, R, max_size=4)
    for process in (P, P, Q, Q):
        desk.opened(process)
    desk.forget()
    desk.queue(R)
    first, second = (P, Q) if asked(desk, P) else (Q, P)
    desk.wait(ANSWER_S - 0.001)
    assert not asked(desk, second)
    desk.wait(0.002)
    assert len(asked(desk, second)) == 1
    desk.wait(5.0)
    assert not asked(desk, first)


def test_a_close_that_hangs_does_not_mask_what_lies_idle_elsewhere() -> None:
    desk = Desk(P, Q, R, max_size=2)
    hanging, idle = desk.opened(P), desk.opened(Q)
    desk.queue(R)
    assert isinstance(desk.brings_back(P, hanging), Close)
    desk.forget()
    desk.wait(ANSWER_S + 0.01)
    assert asked(desk, Q)
    assert isinstance(desk.brings_back(Q, idle), Close)


def test_who_gave_what_was_wanted_is_not_contended_any_more() -> None:
    desk = Desk(P, Q, max_size=2)
    number = desk.opened(P)
    desk.opened(P)
    desk.queue(Q)
    desk.forget()
    desk.brings_back(P, number)
    assert [r.contended for r in desk.hears(P, Reclaim)] == [False]


def test_nobody_is_contended_when_nobody_waits_any_more() -> None:
    desk = Desk(P, Q, max_size=2)
    desk.opened(P)
    desk.opened(P)
    ticket = desk.queue(Q)
    desk.forget()
    desk.say(Q, Abandoned(ticket))
    assert desk.hears(P, Reclaim) == [Reclaim(POOL, False, 0, 0.0)]


def test_the_end_of_the_asking_is_told_before_what_is_kept() -> None:
    desk = Desk(P, Q, max_size=2)
    number = desk.opened(P)
    desk.opened(P)
    ticket = desk.queue(Q)
    desk.forget()
    desk.pool.waiting.remove(Q, ticket)  # as if it had been served this instant
    desk.say(P, Returned(number))
    kinds = [type(d) for d in desk.told[P]]
    assert kinds.index(Reclaim) < kinds.index(Keep)


def test_contended_is_told_again_at_every_attach() -> None:
    desk = Desk(P, Q, max_size=2)
    numbers = [desk.opened(P), desk.opened(P)]
    desk.queue(Q)
    assert len(asked(desk, P)) == 1
    desk.say(P, Detached())
    desk.attach(P, [held(n) for n in numbers])
    assert len(asked(desk, P)) == 1


def test_contended_is_told_again_although_the_end_of_the_old_session_was_not_seen() -> None:
    desk = Desk(P, Q, max_size=2)
    numbers = [desk.opened(P), desk.opened(P)]
    desk.queue(Q)
    assert len(asked(desk, P)) == 1
    desk.attach(P, [held(n) for n in numbers])
    assert len(asked(desk, P)) == 1


def test_a_process_that_cannot_be_told_anything_is_not_asked() -> None:
    desk = Desk(P, Q, R, max_size=4)
    for process in (P, P, P, Q):
        desk.opened(process)
    desk.say(P, Detached())
    desk.forget()
    desk.queue(R)
    assert P not in desk.told
    assert asked(desk, Q)


def test_what_was_brought_back_in_vain_is_not_asked_for_again_at_once() -> None:
    # Q waits for alice, of whom there may be only one. P brings bob's idle resource back, which is no use.
    desk = Desk(P, Q, max_size=4, max_per_identity=1)
    desk.opened(P, "alice")
    bob = desk.opened(P, "bob")
    desk.queue(Q, "alice")
    assert asked(desk, P)
    assert isinstance(desk.brings_back(P, bob), Keep)
    assert not asked(desk, P)
    desk.wait(ANSWER_S + 0.001)
    assert asked(desk, P)


def test_where_only_one_identity_helps_everything_idle_is_looked_at() -> None:
    desk = Desk(P, Q, max_size=4, max_per_identity=1)
    alice = desk.opened(P, "alice")
    desk.opened(P, "bob")
    desk.opened(P, "carol")
    desk.queue(Q, "alice")
    assert asked(desk, P)[-1].sweep == 3
    assert isinstance(desk.brings_back(P, alice), Close)


def test_identities_make_room_for_each_other_within_a_process() -> None:
    desk = Desk(P, max_size=4, max_per_process=1)
    alice = desk.opened(P, "alice")
    desk.queue(P, "bob")
    assert asked(desk, P)
    assert isinstance(desk.brings_back(P, alice), Close)
    desk.say(P, Closed(alice, "moved"))
    assert [g.key for g in desk.hears(P, Grant)] == ["bob"]


def test_a_full_process_does_not_take_from_others() -> None:
    desk = Desk(P, Q, max_size=4, max_per_process=2)
    desk.opened(P)
    desk.opened(P)
    number = desk.opened(Q)
    desk.queue(P)
    desk.forget()
    desk.wait(1.0)
    assert not asked(desk, Q)
    assert desk.brings_back(Q, number) == Keep(number)


def test_a_waiter_whom_nobody_can_help_does_not_hold_up_the_next() -> None:
    # S waits for alice, of whom S itself uses the only one. R has waited for less, and can be helped.
    desk = Desk(P, R, S, max_size=3, max_per_identity=2)
    desk.opened(S, "alice")
    desk.opened(S, "alice")
    bob = desk.opened(P, "bob")
    desk.queue(S, "alice")
    desk.wait(0.01)
    desk.queue(R, "carol")
    assert asked(desk, P) or asked(desk, S)
    assert isinstance(desk.brings_back(P, bob), Close)


def test_one_process_that_waits_for_its_own_does_not_hold_up_another() -> None:
    desk = Desk(P, Q, max_size=1)
    number = desk.opened(P)
    desk.queue(P)
    desk.wait(0.01)
    desk.forget()
    desk.queue(Q)
    assert asked(desk, P)
    desk.say(P, Returned(number))
    assert desk.pool.slots.get(number) is not None


def test_where_two_bounds_stand_in_the_way_both_are_cleared() -> None:
    desk = Desk(P, Q, max_size=4, max_per_identity=1, max_per_process=1)
    alice, bob = desk.opened(Q, "alice"), desk.opened(P, "bob")
    ticket = desk.queue(P, "alice")
    assert asked(desk, Q)
    assert isinstance(desk.brings_back(Q, alice), Close)
    desk.say(Q, Closed(alice, "moved"))
    desk.wait(ANSWER_S)
    assert asked(desk, P)
    assert isinstance(desk.brings_back(P, bob), Close)
    desk.say(P, Closed(bob, "moved"))
    assert [g.ticket for g in desk.hears(P, Grant)] == [ticket]


# --- order -------------------------------------------------------------------------------------------------------


def test_the_oldest_of_a_process_is_served_first() -> None:
    desk = Desk(P, Q, max_size=1)
    number = desk.opened(P)
    tickets = [desk.queue(Q) for _ in range(3)]
    desk.say(P, Closed(number, "discarded"))
    assert [g.ticket for g in desk.hears(Q, Grant)] == tickets[:1]


def test_the_poorest_process_is_served_first_though_another_came_earlier() -> None:
    desk = Desk(P, Q, R, max_size=2)
    number = desk.opened(P)
    desk.opened(Q)
    desk.queue(Q)
    desk.wait(0.01)
    desk.queue(R)
    desk.say(P, Closed(number, "discarded"))
    assert len(desk.hears(R, Grant)) == 1


# --- a lowered cap -----------------------------------------------------------------------------------------------


def test_what_is_above_a_lowered_cap_is_asked_for_though_nobody_waits() -> None:
    desk = Desk(P, Q, max_size=4)
    for process in (P, P, Q, Q):
        desk.opened(process)
    desk.forget()
    desk.command(Resize(POOL, 1, True, None))
    wanted = max(r.sweep for r in asked(desk, P)) + max(r.sweep for r in asked(desk, Q))
    assert wanted == 3


def test_what_is_above_a_lowered_cap_is_asked_for_though_the_only_holder_waits_itself() -> None:
    desk = Desk(P, max_size=3)
    for _ in range(3):
        desk.opened(P)
    desk.queue(P)
    desk.forget()
    desk.command(Resize(POOL, 1, True, None))
    assert max(r.sweep for r in asked(desk, P)) == 2


def test_if_one_process_does_not_bring_the_excess_another_one_must() -> None:
    desk = Desk(P, Q, max_size=4)
    for process in (P, P, P, Q):
        desk.opened(process)
    desk.forget()
    desk.command(Resize(POOL, 3, True, None))
    assert asked(desk, P)
    assert not asked(desk, Q)
    desk.wait(ANSWER_S + 0.001)
    assert asked(desk, Q)


def test_a_failed_opening_does_not_count_as_closed() -> None:
    desk = Desk(P, max_size=1)
    desk.say(P, OpeningFailed(desk.granted(P), "no"))
    assert desk.pool.counters["closed"] == 0
    assert desk.pool.counters["open_failed"] == 1
