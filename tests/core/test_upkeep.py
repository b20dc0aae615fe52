"""The books keep a pool in shape: min_size, what is idle too long, what is stale. With a manual clock."""

from __future__ import annotations

from typing import Any

import pytest

from mppool.core import generations
from mppool.core.breaker import FIRST_BACK_OFF_S, PROBE_PATIENCE_S
from mppool.core.decisions import (
    NOBODY,
    Close,
    Grant,
    Keep,
    PoolChanged,
    Readiness,
    Reclaim,
    RecordPool,
    Refuse,
)
from mppool.core.events import (
    BackendFailed,
    Closed,
    ClosePool,
    CloseReason,
    Detached,
    IdleTooLong,
    Opened,
    OpeningFailed,
    Reset,
    Resize,
    Returned,
    WantReady,
)
from mppool.core.figures import pool_figures
from mppool.ids import GrantNumber, ProcessId
from mppool.stats.names import SERVER_COUNTERS
from tests.core.desk import Desk, P, Q, R, held
from tests.core.model.parts import POOL


def fills(desk: Desk, process: ProcessId) -> list[GrantNumber]:
    """The grants for its shelf that a process has heard of."""
    return [g.number for g in desk.hears(process, Grant) if g.ticket == NOBODY and g.fresh]


def ready(desk: Desk, process: ProcessId = P) -> Readiness:
    """Ask how far filling has come."""
    (answer,) = [d for d in desk.command(WantReady(POOL), process) if isinstance(d, Readiness)]
    return answer


def open_all(desk: Desk, *processes: ProcessId) -> list[GrantNumber]:
    """All that is granted for shelves is opened, until nothing is granted any more."""
    opened: list[GrantNumber] = []
    while True:
        granted = [(process, number) for process in processes for number in fills(desk, process)]
        if not granted:
            return opened
        for process, number in granted:
            desk.say(process, Opened(number, 0.01))
            opened.append(number)


def counters(desk: Desk) -> dict[str, int]:
    return dict(desk.pool.counters)


# --- min_size -------------------------------------------------------------------------------------------


def test_nothing_is_opened_before_anybody_wants_anything() -> None:
    desk = Desk(P, Q, min_size=3)
    desk.wait(3600)
    assert desk.size() == 0
    assert desk.books.next_deadline(desk.clock()) is None


def test_the_first_checkout_fills_up_spread_over_all_processes() -> None:
    desk = Desk(P, Q, R, min_size=6)
    desk.say(P, Opened(desk.granted(P), 0.01))
    open_all(desk, P, Q, R)
    assert dict(desk.pool.slots.levels) == {P: 2, Q: 2, R: 2}


def test_wait_ready_fills_up_and_says_how_far_that_has_come() -> None:
    desk = Desk(P, Q, min_size=2)
    assert ready(desk) == Readiness(POOL, 0, 2, "")
    (mine,), (theirs,) = fills(desk, P), fills(desk, Q)
    desk.say(P, Opened(mine, 0.01))
    assert ready(desk).open == 1
    desk.say(Q, Opened(theirs, 0.01))
    assert ready(desk).open == 2
    assert fills(desk, P) == fills(desk, Q) == []


def test_only_processes_that_know_the_recipe_are_asked_to_open() -> None:
    desk = Desk(P, min_size=2)
    desk.attach(Q, declare=False)
    ready(desk)
    assert dict(desk.pool.slots.levels) == {P: 2}


def test_a_process_that_comes_later_takes_its_part_in_what_is_missing() -> None:
    desk = Desk(P, min_size=2, max_per_process=1)
    ready(desk)
    assert dict(desk.pool.slots.levels) == {P: 1}
    desk.attach(Q)
    assert dict(desk.pool.slots.levels) == {P: 1, Q: 1}


def test_filling_keeps_to_every_bound() -> None:
    desk = Desk(P, Q, min_size=4, max_size=4, max_per_process=1)
    ready(desk)
    assert dict(desk.pool.slots.levels) == {P: 1, Q: 1}
    desk = Desk(P, Q, min_size=4, max_size=4, max_per_identity=3)
    ready(desk)
    assert desk.size() == 3


def test_what_others_identities_hold_is_not_counted_for_min_size() -> None:
    desk = Desk(P, min_size=1, max_size=2)
    desk.opened(P, "alice")
    assert desk.pool.slots.by_key == {"alice": 1, "k": 1}


@pytest.mark.parametrize(
    "reason", ["worn_out", "expired_lifetime", "unhealthy", "killed", "leaked"]
)
def test_what_goes_is_counted_by_its_reason_and_replaced(reason: CloseReason) -> None:
    desk = Desk(P, min_size=1)
    first = desk.opened(P)
    assert fills(desk, P) == []
    desk.say(P, Closed(first, reason))
    (second,) = fills(desk, P)
    assert second != first
    assert counters(desk)[reason] == counters(desk)["closed"] == 1


def test_what_died_with_its_process_is_replaced_elsewhere() -> None:
    desk = Desk(P, Q, min_size=2)
    ready(desk)
    open_all(desk, P, Q)
    desk.dies(Q)
    assert len(fills(desk, P)) == 1
    assert counters(desk)["died_with_process"] == 1


def test_waiters_come_before_filling() -> None:
    desk = Desk(P, Q, min_size=2, max_size=2)
    mine = desk.opened(P)
    (theirs,) = open_all(desk, P, Q)
    waiting = desk.queue(Q, "bob")
    desk.forget()
    desk.say(P, Closed(mine, "worn_out"))
    (grant,) = desk.hears(Q, Grant)
    assert (grant.ticket, grant.key) == (waiting, "bob")
    desk.say(Q, Closed(theirs, "worn_out"))
    assert len(fills(desk, P)) + len(fills(desk, Q)) == 1


def test_a_resize_of_min_size_fills_up_and_a_lower_one_lets_go() -> None:
    desk = Desk(P, min_size=0)
    first = desk.opened(P)
    desk.command(Resize(POOL, None, False, 3))
    assert len(open_all(desk, P)) == 2
    assert [d.min_size for d in desk.journal if isinstance(d, RecordPool)] == [3]
    desk.command(Resize(POOL, None, False, 0))
    desk.say(P, IdleTooLong(first))
    assert desk.hears(P, Close) == [Close(first, "expired_idle")]


def test_a_min_size_above_the_cap_is_filled_as_far_as_the_cap_allows() -> None:
    desk = Desk(P, min_size=3)
    desk.command(Resize(POOL, 2, True, None))
    assert ready(desk).wanted == 2
    open_all(desk, P)
    assert ready(desk) == Readiness(POOL, 2, 2, "")


def test_a_closed_pool_is_not_filled() -> None:
    desk = Desk(P, min_size=2)
    first = desk.opened(P)
    open_all(desk, P)
    desk.command(ClosePool(POOL))
    desk.say(P, Closed(first, "retired"))
    assert fills(desk, P) == []


def test_after_a_reset_what_went_is_opened_anew() -> None:
    desk = Desk(P, min_size=1)
    first = desk.opened(P)
    desk.command(Reset(POOL))
    desk.say(P, Closed(first, "retired"))
    (second,) = open_all(desk, P)
    desk.say(P, Returned(second))
    assert desk.hears(P, Keep) == [Keep(second)]


def test_a_restarted_server_goes_on_filling_where_something_is_held() -> None:
    desk = Desk(epoch=2, min_size=2)
    desk.attach(P, [held(GrantNumber(1))])
    assert len(fills(desk, P)) == 1
    desk = Desk(epoch=2, min_size=2)
    desk.attach(P, [])
    assert fills(desk, P) == []


def test_an_opening_that_fails_is_tried_again_when_the_back_off_is_over() -> None:
    desk = Desk(P, Q, min_size=2, fail_fast=False)
    desk.command(WantReady(POOL))
    mine, theirs = fills(desk, P), fills(desk, Q)
    desk.say(P, OpeningFailed(mine[0], "refused"))
    desk.say(Q, OpeningFailed(theirs[0], "refused"))
    assert ready(desk).error == "refused"
    assert fills(desk, P) == fills(desk, Q) == []
    desk.wait(FIRST_BACK_OFF_S)
    probes = fills(desk, P) + fills(desk, Q)
    assert len(probes) == 1  # one probe, over all processes
    desk.wait(PROBE_PATIENCE_S - 1)
    assert fills(desk, P) == fills(desk, Q) == []  # while it has no result
    desk.say(P, Opened(probes[0], 0.01))
    assert len(fills(desk, P) + fills(desk, Q)) == 1


def test_a_database_that_stays_away_is_tried_once_per_step_of_the_back_off() -> None:
    desk = Desk(P, Q, R, min_size=3)
    desk.command(WantReady(POOL))
    tries = 0
    while desk.clock() < 1060.0:
        granted = [(process, n) for process in (P, Q, R) for n in fills(desk, process)]
        tries += len(granted)
        for process, number in granted:
            desk.say(process, OpeningFailed(number, "refused"))
        due = desk.books.next_deadline(desk.clock())
        assert due is not None
        desk.clock.now = due
        desk.note(desk.books.tick(due))
    # 3 together, then at 0.1, 0.2, 0.4 ... 6.4, and every 10 s.
    assert 10 <= tries <= 16


# --- idle for too long ----------------------------------------------------------------------------------


def test_max_idle_never_goes_below_min_size() -> None:
    desk = Desk(P, Q, min_size=2)
    numbers = [desk.opened(P), *open_all(desk, P, Q), desk.opened(Q), desk.opened(P)]
    owners = [desk.pool.slots.get(number).process for number in numbers]
    for process, number in zip(owners, numbers, strict=True):
        desk.say(process, IdleTooLong(number))
    told: list[Any] = [
        d for process in (P, Q) for d in desk.told[process] if isinstance(d, (Close, Keep))
    ]
    assert sorted(told, key=lambda decision: decision.number) == [
        Close(numbers[0], "expired_idle"),
        Close(numbers[1], "expired_idle"),
        Keep(numbers[2]),
        Keep(numbers[3]),
    ]
    for process, number in zip(owners[:2], numbers[:2], strict=True):
        desk.say(process, Closed(number, "expired_idle"))
    assert fills(desk, P) == fills(desk, Q) == []
    assert counters(desk)["expired_idle"] == 2


def test_min_size_holds_no_other_identity_alive() -> None:
    desk = Desk(P, min_size=2)
    alices = desk.opened(P, "alice")
    open_all(desk, P)
    desk.say(P, IdleTooLong(alices))
    assert desk.hears(P, Close) == [Close(alices, "expired_idle")]


def test_what_is_idle_too_long_goes_to_who_waits_for_it() -> None:
    desk = Desk(P, min_size=1, max_size=1)
    number = desk.opened(P)
    ticket = desk.queue(P)
    desk.forget()
    desk.say(P, IdleTooLong(number))
    (grant,) = desk.hears(P, Grant)
    assert (grant.number, grant.ticket, grant.fresh) == (number, ticket, False)


# --- stale ----------------------------------------------------------------------------------------------


def test_one_detection_makes_everything_as_old_stale_in_all_processes() -> None:
    desk = Desk(P, Q)
    mine, theirs = desk.opened(P), desk.opened(Q)
    desk.forget()
    desk.say(P, BackendFailed(POOL, "k", 0))
    assert desk.hears(P, PoolChanged) == [PoolChanged(POOL, 1, False, "k")]
    assert desk.hears(Q, PoolChanged) == [PoolChanged(POOL, 1, False, "k")]
    desk.say(Q, Returned(theirs))
    assert desk.hears(Q, Close) == [Close(theirs, "retired")]
    desk.say(P, Closed(mine, "unhealthy"))
    assert desk.ask(P).generation == 1


def test_many_detections_of_one_failure_are_one() -> None:
    desk = Desk(P, Q)
    desk.opened(P)
    desk.opened(Q)
    desk.say(P, BackendFailed(POOL, "k", 0))
    desk.forget()
    desk.say(Q, BackendFailed(POOL, "k", 0))
    assert desk.hears(P, PoolChanged) == desk.hears(Q, PoolChanged) == []
    fresh = desk.ask(Q)
    assert fresh.generation == 1
    desk.say(Q, Opened(fresh.number, 0.01))
    desk.say(Q, Returned(fresh.number))
    assert desk.hears(Q, Keep) == [Keep(fresh.number)]


def test_a_failure_found_for_one_identity_says_nothing_about_the_others() -> None:
    desk = Desk(P)
    bobs = desk.opened(P, "bob")
    desk.opened(P, "alice")
    desk.say(P, BackendFailed(POOL, "alice", 0))
    desk.say(P, Returned(bobs))
    assert desk.hears(P, Keep) == [Keep(bobs)]


def test_a_second_failure_of_the_backend_is_one_again() -> None:
    desk = Desk(P)
    desk.opened(P)
    desk.say(P, BackendFailed(POOL, "k", 0))
    desk.say(P, BackendFailed(POOL, "k", 1))
    assert [d.generation for d in desk.hears(P, PoolChanged) if d.key] == [1, 2]


def test_a_reset_after_a_detection_counts_further_than_it() -> None:
    desk = Desk(P)
    desk.opened(P)
    desk.say(P, BackendFailed(POOL, "k", 0))
    fresh = desk.opened(P)
    desk.forget()
    desk.command(Reset(POOL))
    (changed,) = desk.hears(P, PoolChanged)
    assert changed.generation == 2
    desk.say(P, Returned(fresh))
    assert desk.hears(P, Close) == [Close(fresh, "retired")]


def test_who_was_not_attached_at_a_detection_is_told_when_it_comes_back() -> None:
    desk = Desk(P, Q)
    desk.opened(P)
    theirs = desk.opened(Q)
    desk.say(Q, Detached())
    desk.say(P, BackendFailed(POOL, "k", 0))
    desk.forget()
    desk.attach(Q, [held(theirs)])
    assert PoolChanged(POOL, 1, False, "k") in desk.hears(Q, PoolChanged)


def test_the_next_server_learns_from_inventories_what_is_stale() -> None:
    desk = Desk(epoch=2)
    old, new = GrantNumber(1), GrantNumber(2)
    desk.attach(P, [held(old, generation=0)])
    desk.attach(Q, [held(new, generation=3)])
    assert PoolChanged(POOL, 3, False, "k") in desk.hears(P, PoolChanged)
    desk.say(P, Returned(old))
    assert desk.hears(P, Close) == [Close(old, "retired")]
    assert desk.ask(P).generation == 3


def test_a_reset_forgets_what_was_remembered_of_single_keys() -> None:
    desk = Desk(P)
    desk.opened(P)
    desk.say(P, BackendFailed(POOL, "k", 0))
    assert len(desk.pool.generations._stale_before) == 1
    desk.command(Reset(POOL))
    assert not desk.pool.generations._stale_before
    assert desk.ask(P).generation == 2


def test_a_failure_of_one_key_too_many_begins_a_generation_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(generations, "MOST_STALE_KEYS", 2)
    desk = Desk(P, Q)
    bobs = desk.opened(P, "bob")
    for key in ("alice", "carol"):
        desk.say(P, BackendFailed(POOL, key, 0))
    desk.forget()
    desk.say(P, BackendFailed(POOL, "dave", 0))
    assert not desk.pool.generations._stale_before
    assert desk.pool.generations.current == 4  # greater than the three of single keys
    for process in (P, Q):
        assert desk.hears(process, PoolChanged) == [PoolChanged(POOL, 4, False)]
    desk.say(P, Returned(bobs))
    assert desk.hears(P, Close) == [Close(bobs, "retired")]
    assert desk.ask(P, "alice").generation == 4


# --- figures --------------------------------------------------------------------------------------------


def test_every_counter_of_the_books_is_there_from_the_beginning() -> None:
    desk = Desk(P)
    assert counters(desk) == dict.fromkeys(SERVER_COUNTERS, 0)


def test_the_snapshot_of_a_known_history() -> None:
    desk = Desk(P, Q, max_size=3, max_waiting=0)
    first, second = desk.opened(P), desk.opened(Q, "alice")
    desk.granted(P)
    assert isinstance(desk.ask(Q), Refuse)
    shot = pool_figures(desk.pool)
    assert (shot["size"], shot["opening"], shot["waiting"], shot["identities"]) == (3, 1, 0, 2)
    assert (shot["breaker"], shot["closed"]) == ("closed", False)
    assert {number for number, *_ in shot["slots"]} >= {first, second}
    desk.say(P, Closed(first, "worn_out"))
    after = pool_figures(desk.pool)
    assert after["size"] == 2
    # A snapshot taken before does not change.
    assert (shot["size"], shot["counters"]["worn_out"]) == (3, 0)
    expected = {"opened": 2, "closed": 1, "worn_out": 1, "refused": 1}
    assert {name: count for name, count in after["counters"].items() if count} == expected


def test_a_move_is_counted_where_it_is_decided_and_only_once() -> None:
    desk = Desk(P, Q, max_size=2)
    desk.opened(P)
    number = desk.opened(P)
    desk.queue(Q)
    assert desk.hears(P, Reclaim)
    assert desk.brings_back(P, number) == Close(number, "moved")
    desk.say(P, Closed(number, "moved"))
    assert (counters(desk)["moved"], counters(desk)["closed"]) == (1, 1)


def test_who_asks_whether_it_is_ready_is_told_that_it_is_closed() -> None:
    """What the process knows may be older: the word of its attachment travels on another channel."""
    desk = Desk(P, min_size=1)
    assert not ready(desk).closed
    desk.command(ClosePool(POOL), P)
    assert ready(desk).closed
