"""Identities that nobody uses any more are forgotten (row C6). With a manual clock."""

from __future__ import annotations

import msgspec
import pytest

from mppool.core.decisions import NOBODY, Close, DropToken, Grant, Keep
from mppool.core.events import (
    Closed,
    ClosePool,
    Declare,
    IdleTooLong,
    Opened,
    OpeningFailed,
    Resize,
    TokenReplaced,
    WantReady,
)
from mppool.core.eviction import SHORTEST_WINDOW_S
from mppool.core.figures import pool_figures
from mppool.ids import GrantNumber, ProcessId
from tests.core.desk import Desk, P, Q
from tests.core.model.parts import POOL, declaration

OWN, ALICE, BOB = "k", "k\0alice", "k\0bob"


def idle_too_long(desk: Desk, process: ProcessId, number: GrantNumber) -> object:
    """The answer to a resource that was idle for `max_idle`."""
    decisions = desk.say(process, IdleTooLong(number))
    (answer,) = (d for d in decisions if getattr(d, "number", None) == number)
    if isinstance(answer, Close):
        desk.say(process, Closed(number, answer.reason))
    return answer


def evicted(desk: Desk) -> int:
    return int(desk.pool.counters["evicted_identities"])


def identities(desk: Desk) -> int:
    return int(pool_figures(desk.pool)["identities"])


def test_the_sub_pool_is_evicted_at_once_with_its_last_resource() -> None:
    desk = Desk(P, Q)
    numbers = [(P, desk.opened(P, ALICE)), (Q, desk.opened(Q, ALICE))]
    bob = desk.opened(P, BOB)
    assert identities(desk) == 2
    for process, number in numbers:
        assert evicted(desk) == 0
        assert idle_too_long(desk, process, number) == Close(number, "expired_idle")
    assert (evicted(desk), identities(desk)) == (1, 1)
    desk.say(P, Closed(bob, "worn_out"))
    assert (evicted(desk), identities(desk)) == (2, 0)


def test_what_is_checked_out_or_in_flight_keeps_the_sub_pool() -> None:
    desk = Desk(P, Q)
    in_use = desk.opened(P, ALICE)
    idle_too_long(desk, Q, desk.opened(Q, ALICE))
    assert (evicted(desk), identities(desk)) == (0, 1)
    opening = desk.granted(Q, ALICE)
    desk.say(P, Closed(in_use, "discarded"))
    assert (evicted(desk), identities(desk)) == (0, 1)
    desk.say(Q, Opened(opening, 0.01))
    idle_too_long(desk, Q, opening)
    assert (evicted(desk), identities(desk)) == (1, 0)


def test_the_identity_that_is_being_asked_for_is_not_evicted() -> None:
    desk = Desk(P, max_size=1)
    number = desk.opened(P, ALICE)
    ticket = desk.queue(P, ALICE)
    answer = idle_too_long(desk, P, number)
    assert isinstance(answer, Grant)  # kept open, for the one that asks
    assert (answer.ticket, answer.fresh) == (ticket, False)
    assert evicted(desk) == 0


def test_the_recipes_own_identity_is_never_evicted() -> None:
    desk = Desk(P)
    number = desk.opened(P, OWN)
    assert idle_too_long(desk, P, number) == Close(number, "expired_idle")
    assert (evicted(desk), identities(desk)) == (0, 0)


def test_min_size_holds_no_other_identity_alive() -> None:
    desk = Desk(P, max_size=4, min_size=1)
    desk.command(WantReady(POOL))
    (grant,) = desk.hears(P, Grant)
    desk.say(P, Opened(grant.number, 0.01))
    alice = desk.opened(P, ALICE)
    assert isinstance(idle_too_long(desk, P, alice), Close)
    assert isinstance(idle_too_long(desk, P, grant.number), Keep)
    assert evicted(desk) == 1


def test_an_identity_that_could_not_log_in_was_never_there() -> None:
    desk = Desk(P)
    desk.say(P, OpeningFailed(desk.granted(P, ALICE), "refused"))
    assert (evicted(desk), identities(desk)) == (0, 0)


def test_the_death_of_a_process_evicts_what_it_had_alone() -> None:
    desk = Desk(P, Q)
    desk.opened(P, ALICE)
    desk.opened(P, BOB)
    desk.opened(Q, BOB)
    desk.dies(P)
    assert (evicted(desk), identities(desk)) == (1, 1)


# --- the sweep --------------------------------------------------------------------------------------


def fail(desk: Desk, key: str) -> None:
    desk.say(P, OpeningFailed(desk.granted(P, key), "refused"))


def anything(desk: Desk) -> None:
    """Something happens in the pool."""
    desk.say(P, Closed(desk.opened(P, OWN), "discarded"))


def test_a_back_off_outlives_the_empty_sub_pool_and_is_forgotten_by_the_sweep() -> None:
    desk = Desk(P, max_idle=10.0)
    fail(desk, ALICE)
    anything(desk)
    assert set(desk.pool.breakers) == {ALICE}
    desk.wait(9.0)
    anything(desk)
    assert set(desk.pool.breakers) == {ALICE}
    desk.wait(12.0)
    anything(desk)
    assert not desk.pool.breakers


def test_the_sweep_runs_once_per_idle_window() -> None:
    desk = Desk(P, max_idle=10.0)
    fail(desk, BOB)  # a sweep
    desk.wait(1.0)
    fail(desk, ALICE)
    desk.wait(9.5)  # the second sweep is due, and finds Bob's back-off too young
    anything(desk)
    desk.wait(2.0)  # by now both are old enough
    anything(desk)
    assert ALICE in desk.pool.breakers
    desk.wait(8.0)
    anything(desk)
    assert not desk.pool.breakers


def test_the_window_is_one_second_at_least() -> None:
    desk = Desk(P, max_idle=0.01)
    fail(desk, ALICE)
    desk.wait(SHORTEST_WINDOW_S * 0.9)
    anything(desk)
    assert desk.pool.breakers
    desk.wait(SHORTEST_WINDOW_S * 2)
    anything(desk)
    assert not desk.pool.breakers


@pytest.mark.parametrize("command", [Resize(POOL, 9, True, 0), ClosePool(POOL)])
def test_after_reconfiguring_or_closing_the_sweep_need_not_wait(command: object) -> None:
    desk = Desk(P, max_idle=10.0)
    fail(desk, BOB)
    desk.wait(5.0)
    fail(desk, ALICE)
    desk.wait(5.2)
    anything(desk)  # a sweep: Bob goes, Alice is too young
    assert set(desk.pool.breakers) == {ALICE}
    desk.wait(5.1)
    anything(desk)  # Alice is old enough, and it is not time yet
    assert set(desk.pool.breakers) == {ALICE}
    desk.command(command)
    assert not desk.pool.breakers


def test_whoever_waits_keeps_the_back_off() -> None:
    desk = Desk(P, max_idle=2.0, max_size=1, fail_fast=False)
    fail(desk, ALICE)
    desk.opened(P, OWN)
    desk.queue(P, ALICE)
    desk.wait(30.0)
    desk.say(P, Declare(declaration(desk.options)))
    assert set(desk.pool.breakers) == {ALICE}


# --- whose min_size it is ---------------------------------------------------------------------------


def redeclare(desk: Desk, process: ProcessId, key: str, age: float) -> None:
    desk.say(process, Declare(msgspec.structs.replace(declaration(desk.options, age), key=key)))


def test_a_process_that_learns_its_own_identity_moves_min_size_to_it() -> None:
    desk = Desk(P, max_size=4, min_size=1)
    redeclare(desk, P, "k\0?", age=0.0)
    desk.command(WantReady(POOL))
    (first,) = desk.hears(P, Grant)
    assert (first.key, first.ticket) == ("k\0?", NOBODY)
    redeclare(desk, P, ALICE, age=5.0)  # the same declaration as before: it is older by now
    desk.say(P, OpeningFailed(first.number, "not this one", counted=False))
    (second,) = desk.hears(P, Grant)
    assert second.key == ALICE


def test_nobody_is_asked_to_open_what_only_another_declaration_can() -> None:
    """Rule 11: two connection strings under one name share the cap, and are never mixed."""
    desk = Desk(P, Q, max_size=4, min_size=2)
    desk.wait(1.0)
    redeclare(desk, Q, "other", age=0.0)
    desk.command(WantReady(POOL))
    assert desk.hears(P, Grant) == []
    assert [grant.key for grant in desk.hears(Q, Grant)] == ["other"] * 2


def test_if_those_who_could_open_are_gone_another_ones_key_counts() -> None:
    desk = Desk(P, Q, max_size=4, min_size=1)
    desk.wait(1.0)
    redeclare(desk, Q, "other", age=0.0)
    desk.command(WantReady(POOL))
    desk.dies(Q)
    (grant,) = desk.hears(P, Grant)
    assert grant.key == OWN


# --- a token that was replaced ----------------------------------------------------------------------


def test_all_processes_hear_that_a_token_was_replaced() -> None:
    desk = Desk(P, Q)
    desk.opened(P, ALICE)
    desk.say(P, TokenReplaced(POOL, ALICE, "digest"))
    for process in (P, Q):
        assert desk.hears(process, DropToken) == [DropToken(POOL, ALICE, "digest")]
