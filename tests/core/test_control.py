"""Reset, drain, close, resize; declarations, and which of them wins."""

from __future__ import annotations

import msgspec
import pytest

from mppool.core.decisions import Close, Draining, Grant, Keep, Notice, PoolChanged, RecordPool
from mppool.core.events import (
    BackendFailed,
    Closed,
    ClosePool,
    Declare,
    Drain,
    Opened,
    Reset,
    Resize,
    WantReady,
)
from mppool.options import PoolOptions
from tests.core.desk import Desk, P, Q, R, S, declared
from tests.core.model.parts import POOL


def written(desk: Desk) -> list[tuple[int | None, int, int, bool]]:
    """The bounds, the generation and whether it is closed, as they were written down."""
    return [
        (record.max_size, record.min_size, record.generation, record.closed)
        for record in desk.journal
        if isinstance(record, RecordPool)
    ]


def test_a_reset_is_journalled_and_told_to_everybody() -> None:
    desk = Desk(P, Q, max_size=2)
    desk.forget()
    desk.command(Reset(POOL))
    for process in (P, Q):
        assert [c.generation for c in desk.hears(process, PoolChanged)] == [1]
    assert written(desk) == [(2, 0, 1, False)]


def test_what_was_granted_before_a_reset_is_retired_when_it_comes_back() -> None:
    desk = Desk(P, max_size=3)
    before, opening = desk.opened(P), desk.granted(P)
    desk.command(Reset(POOL))
    desk.say(P, Opened(opening, 0.1))
    after = desk.opened(P)
    assert desk.brings_back(P, before) == Close(before, "retired")
    assert desk.brings_back(P, opening) == Close(opening, "retired")
    assert desk.brings_back(P, after) == Keep(after)


def test_a_generation_at_a_pace_leaves_what_is_older_to_its_process_until_its_time_is_over() -> (
    None
):
    desk = Desk(P, Q, max_size=3)
    desk.forget()
    number = desk.opened(P)
    desk.command(Reset(POOL, 60.0))
    assert [(c.generation, c.over) for c in desk.hears(Q, PoolChanged)] == [(1, 60.0)]
    desk.wait(20.0)
    assert desk.brings_back(P, number) == Keep(number)
    desk.attach(R)  # it hears what is left of it
    assert [(c.generation, c.over) for c in desk.hears(R, PoolChanged)] == [(1, 40.0)]
    desk.wait(40.0)
    assert desk.brings_back(P, number) == Close(number, "retired")
    desk.attach(S)
    assert [c.over for c in desk.hears(S, PoolChanged)] == [0.0]


def test_a_reset_at_once_ends_the_pace_of_one_before() -> None:
    desk = Desk(P, max_size=3)
    number = desk.opened(P)
    desk.command(Reset(POOL, 60.0))
    desk.command(Reset(POOL))
    assert [c.over for c in desk.hears(P, PoolChanged)][-1] == 0.0
    assert desk.brings_back(P, number) == Close(number, "retired")


def test_a_failed_backend_ends_the_pace_of_its_key() -> None:
    desk = Desk(P, max_size=3)
    one, other = desk.opened(P), desk.opened(P, "other")
    desk.command(Reset(POOL, 60.0))
    fresh = desk.opened(P)
    desk.say(P, BackendFailed(POOL, "k", 1))
    assert desk.brings_back(P, one) == Close(one, "retired")
    assert desk.brings_back(P, fresh) == Close(fresh, "retired")
    assert desk.brings_back(P, other) == Keep(other)


def test_for_one_reason_one_generation_begins() -> None:
    desk = Desk(P, Q, max_size=3)
    for process in (P, Q, P):
        desk.command(Reset(POOL, 60.0, "db is at 10.0.0.2"), process)
    assert desk.pool.generations.current == 1
    desk.command(Reset(POOL, 60.0, "db is at 10.0.0.1"))
    desk.command(Reset(POOL, 60.0, "db is at 10.0.0.2"))
    assert desk.pool.generations.current == 3


def test_a_drain_says_how_much_is_left() -> None:
    desk = Desk(P, max_size=2)
    number = desk.opened(P)
    desk.granted(P)
    assert Draining(POOL, 1, 2) in desk.command(Drain(POOL, None))
    desk.say(P, Closed(number, "drained"))
    assert desk.command(Drain(POOL, 1)) == [Draining(POOL, 1, 1)]
    assert desk.command(Drain(POOL, 1), R) == [Draining(POOL, 1, 1)]


def test_a_closed_pool_retires_what_comes_back_and_stays_closed() -> None:
    desk = Desk(P, max_size=2)
    number = desk.opened(P)
    desk.forget()
    desk.command(ClosePool(POOL))
    assert [c.closed for c in desk.hears(P, PoolChanged)] == [True]
    assert written(desk) == [(2, 0, 0, True)]
    assert desk.brings_back(P, number) == Close(number, "retired")
    desk.say(P, Closed(number, "retired"))
    desk.command(Resize(POOL, 5, True, None))
    assert desk.ask(P).reason == "closed"


def test_a_pool_that_is_reopened_hands_out_again_and_everybody_is_told() -> None:
    desk = Desk(P, max_size=2)
    desk.command(ClosePool(POOL))
    assert desk.ask(P).reason == "closed"
    desk.forget()
    desk.command(ClosePool(POOL, reopened=True))
    assert [c.closed for c in desk.hears(P, PoolChanged)] == [False]
    assert written(desk) == [(2, 0, 0, False)]
    desk.granted(P)
    desk.forget()
    desk.command(ClosePool(POOL, reopened=True))
    assert not written(desk)


def test_a_resize_is_journalled() -> None:
    desk = Desk(P, max_size=2)
    desk.forget()
    desk.command(Resize(POOL, 5, True, 3))
    desk.command(Resize(POOL, None, False, 1))
    desk.command(Resize(POOL, None, True, None))
    assert written(desk) == [(5, 3, 0, False), (5, 1, 0, False), (None, 1, 0, False)]


def test_after_a_resize_down_nothing_new_is_granted_until_it_fits() -> None:
    desk = Desk(P, Q, max_size=3)
    numbers = [desk.opened(P) for _ in range(3)]
    desk.command(Resize(POOL, 2, True, None))
    desk.queue(Q)
    desk.say(P, Closed(numbers[0], "discarded"))
    assert not desk.hears(Q, Grant)
    desk.say(P, Closed(numbers[1], "discarded"))
    assert len(desk.hears(Q, Grant)) == 1
    assert desk.size() == 2


def test_a_command_about_a_pool_that_nobody_declared() -> None:
    desk = Desk(P)
    with pytest.raises(KeyError):
        desk.books.command(P, Reset("nowhere"), desk.clock())


# --- declarations --------------------------------------------------------------------------------------------------


def test_the_newest_declaration_wins_with_one_warning_that_names_both() -> None:
    desk = Desk(P, max_size=2)
    desk.forget()
    desk.clock.advance(10.0)
    desk.attach(Q, options=PoolOptions(max_size=5), age=1.0)
    (notice,) = desk.hears(Q, Notice)
    assert "max_size=2" in notice.text
    assert "5" in notice.text
    assert desk.pool.capacity.max_size == 5
    assert not desk.hears(P, Notice)


def test_an_older_declaration_changes_nothing() -> None:
    desk = Desk(P, max_size=2)
    desk.attach(Q, options=PoolOptions(max_size=5), age=100.0)
    assert desk.pool.capacity.max_size == 2
    assert not desk.hears(Q, Notice)


def test_the_newest_wins_in_whatever_order_they_are_heard() -> None:
    new, old = PoolOptions(max_size=2), PoolOptions(max_size=5)
    desk = Desk(max_size=2)
    desk.clock.advance(100.0)
    desk.attach(P, options=new, age=90.0)
    desk.attach(Q, options=new, age=10.0)  # the same options once more, and newer
    desk.attach(R, options=old, age=50.0)
    assert desk.pool.capacity.max_size == 2


def test_a_pool_may_be_declared_after_attaching() -> None:
    desk = Desk(P)
    desk.say(P, Declare(declared(PoolOptions(max_size=1), pool="second")))
    assert desk.books.pools["second"].capacity.max_size == 1


def test_an_attach_tells_the_state_of_every_pool() -> None:
    desk = Desk(P)
    desk.command(Reset(POOL))
    desk.command(ClosePool(POOL))
    desk.attach(Q)
    (changed,) = desk.hears(Q, PoolChanged)
    assert (changed.generation, changed.closed) == (1, True)


# --- a bound that was set --------------------------------------------------------------------------------------------


def next_books(desk: Desk) -> Desk:
    """The next server, with what this one wrote down of its pools."""
    records = [record for record in desk.journal if isinstance(record, RecordPool)]
    after = Desk(epoch=desk.books.epoch + 1)
    after.clock.now = desk.clock() + 1.0
    after.books.restore(records[-1:], [], set(), after.clock())
    return after


def test_a_bound_that_was_set_outlives_the_server_whichever_declarations_there_are() -> None:
    """Two declarations that differ in something else, or in the bound itself; both made before it was set."""
    for newer in (PoolOptions(max_size=6, timeout=20.0), PoolOptions(max_size=9)):
        for order in ((P, Q), (Q, P)):
            desk = Desk(P, max_size=6)
            desk.clock.advance(10.0)
            desk.attach(Q, options=newer, age=2.0)
            desk.command(Resize(POOL, 2, True, None))
            desk.clock.advance(5.0)
            for _ in range(3):
                desk = next_books(desk)
                now = desk.clock()
                ages = {P: now - 0.0, Q: now - 8.0}
                for process in order:
                    options = newer if process == Q else PoolOptions(max_size=6)
                    desk.attach(process, options=options, age=ages[process])
                assert desk.pool.capacity.max_size == 2
                desk.command(Reset(POOL))  # something to write down


def test_a_declaration_made_after_it_changes_the_bound_that_it_says_otherwise() -> None:
    desk = Desk(P, max_size=6, min_size=1)
    desk.clock.advance(1.0)
    desk.command(Resize(POOL, 2, True, None))
    desk.clock.advance(1.0)
    desk.attach(Q, options=PoolOptions(max_size=6, min_size=2, timeout=5.0))
    assert (desk.pool.capacity.max_size, desk.pool.min_size.size) == (2, 2)
    desk.clock.advance(1.0)
    desk.attach(R, options=PoolOptions(max_size=7, min_size=2))
    assert (desk.pool.capacity.max_size, desk.pool.min_size.size) == (7, 2)


def test_what_was_declared_is_known_to_the_next_server_although_nobody_is_left_who_declared_it() -> (
    None
):
    desk = Desk(P, max_size=6)
    desk.clock.advance(1.0)
    desk.command(Resize(POOL, 2, True, None))
    desk = next_books(desk)
    desk.attach(Q, options=PoolOptions(max_size=6, timeout=3.0))  # born into it
    assert desk.pool.capacity.max_size == 2
    desk.clock.advance(1.0)
    desk.attach(R, options=PoolOptions(max_size=3))
    assert desk.pool.capacity.max_size == 3


def test_setting_one_bound_is_not_setting_the_other() -> None:
    desk = Desk(P, max_size=6, min_size=0)
    desk.clock.advance(10.0)
    desk.command(Resize(POOL, 2, True, None))
    desk.attach(Q, options=PoolOptions(max_size=5, min_size=1), age=1.0)
    assert (desk.pool.capacity.max_size, desk.pool.min_size.size) == (2, 1)


# --- closed, and opened again ----------------------------------------------------------------------------------------


def test_a_declaration_made_after_the_close_opens_the_pool_again_for_everybody() -> None:
    desk = Desk(P, max_size=2)
    desk.clock.advance(1.0)
    desk.command(ClosePool(POOL))
    desk.attach(Q, age=1.0)  # made before
    assert desk.ask(Q).reason == "closed"
    desk.forget()
    desk.clock.advance(1.0)
    desk.attach(R)
    assert [changed.closed for changed in desk.hears(P, PoolChanged)] == [False]
    assert written(desk)[-1] == (2, 0, 0, False)
    assert isinstance(desk.ask(P), Grant)


def test_a_declaration_made_before_the_close_does_not_open_it_under_the_next_server_either() -> (
    None
):
    desk = Desk(P, max_size=2)
    desk.clock.advance(1.0)
    desk.command(ClosePool(POOL))
    desk = next_books(desk)
    desk.attach(P, age=desk.clock())
    assert desk.ask(P).reason == "closed"
    desk.clock.advance(1.0)
    desk.say(P, Declare(declared(desk.options)))
    assert isinstance(desk.ask(P), Grant)


def test_who_has_closed_a_pool_for_itself_opens_nothing_for_min_size() -> None:
    desk = Desk(P, Q, max_size=4, min_size=2)
    closed = declared(desk.options)
    desk.say(P, Declare(msgspec.structs.replace(closed, closed=True)))
    desk.command(WantReady(POOL))
    assert not desk.hears(P, Grant)
    assert len(desk.hears(Q, Grant)) == 2


def test_bounds_of_who_opens_nothing_now_count_all_the_same() -> None:
    """An AsyncPool, before an event loop of the process uses it. Else a worker that is born later undoes a resize."""
    desk = Desk(P, Q, max_size=8)
    newer = msgspec.structs.replace(declared(PoolOptions(max_size=4)), kind="loops")
    desk.clock.advance(1.0)
    desk.say(Q, Declare(msgspec.structs.replace(newer, closed=True)))
    assert desk.pool.capacity.max_size == 4
    desk.command(Resize(POOL, 2, True, None))
    desk.clock.advance(1.0)
    desk.say(Q, Declare(newer))
    assert desk.pool.capacity.max_size == 2
