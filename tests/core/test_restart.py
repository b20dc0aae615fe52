"""Attaching with an inventory, and what the next server makes of the journal."""

from __future__ import annotations

from typing import Any

from mppool.core.decisions import (
    Close,
    Erase,
    Grant,
    Keep,
    PoolChanged,
    Queued,
    Record,
    RecordPool,
    Refuse,
)
from mppool.core.events import Attach, Closed, Detached, Opened, OpeningFailed, Remembered, Reset
from mppool.core.figures import pool_figures
from mppool.core.slot import SlotState
from mppool.ids import GrantNumber, ProcessId, Session, grant_number
from mppool.options import PoolOptions
from tests.core.desk import Desk, P, Q, R, held
from tests.core.model.parts import POOL

N1, N2, N3 = (grant_number(1, sequence) for sequence in (1, 2, 3))


def remembered(
    number: GrantNumber, process: ProcessId, key: str = "k", pool: str = POOL
) -> Remembered:
    return Remembered(pool, key, number, process, 0)


def next_server(
    slots: list[Remembered],
    pools: list[RecordPool] | None = None,
    awaited: set[ProcessId] | None = None,
    **options: Any,
) -> Desk:
    desk = Desk(epoch=2, **options)
    desk.books.restore(pools or [], slots, awaited or set(), desk.clock())
    return desk


# --- one server ------------------------------------------------------------------------------------------------------


def test_an_inventory_frees_what_it_does_not_name() -> None:
    desk = Desk(P, Q, max_size=2)
    kept, lost = desk.opened(P), desk.granted(P)
    ticket = desk.queue(Q)
    desk.forget()
    desk.attach(P, [held(kept)])
    assert desk.journal[0] == Erase(lost)
    assert [g.ticket for g in desk.hears(Q, Grant)] == [ticket]


def test_a_new_session_cancels_the_waiters_of_the_old_one() -> None:
    desk = Desk(P, Q, max_size=1)
    number = desk.opened(P)
    desk.queue(Q)
    desk.attach(Q)
    desk.say(P, Closed(number, "discarded"))
    assert not desk.hears(Q, Grant)


def test_a_word_from_an_old_session_is_void() -> None:
    desk = Desk(P, max_size=1)
    number = desk.opened(P)
    old = desk.books.session_of(P)
    assert old is not None
    desk.attach(P, [held(number)])
    before = desk.state()
    for event in (Closed(number, "discarded"), Detached(), Opened(number, 0.1)):
        assert desk.say(P, event, session=old) == []
    assert desk.say(P, _attach_with_nothing(), session=old) == []
    assert desk.state() == before


def _attach_with_nothing() -> Any:
    return Attach("", [], [])


def test_an_inventory_that_says_returned_is_answered() -> None:
    desk = Desk(P, max_size=1)
    number = desk.opened(P)
    desk.say(P, Detached())
    decisions = desk.attach(P, [held(number, "returned")])
    assert Keep(number) in decisions


def test_the_answer_to_a_return_that_got_lost_is_given_again() -> None:
    desk = Desk(P, Q, max_size=1)
    number = desk.opened(P)
    desk.queue(Q)
    assert isinstance(desk.brings_back(P, number), Close)
    decisions = desk.attach(P, [held(number, "returned")])
    assert Close(number, "moved") in decisions


def test_an_opened_that_got_lost_is_learned_from_the_inventory_and_counted_once() -> None:
    desk = Desk(P, max_size=3)
    first, second = desk.granted(P), desk.granted(P)
    desk.say(P, Opened(second, 0.1))
    desk.attach(P, [held(first, "open", before=0), held(second, "open", before=1)])
    desk.say(P, Opened(first, 0.1))  # said twice: too late
    assert desk.pool.counters["opened"] == 2
    assert desk.pool.slots.get(first).state is SlotState.OPEN


def test_an_inventory_that_says_opening_counts_nothing_as_opened() -> None:
    desk = Desk(P, max_size=3)
    number = desk.granted(P)
    desk.attach(P, [held(number, "opening", before=0)])
    assert desk.pool.counters["opened"] == 0
    desk.say(P, Opened(number, 0.1))
    assert desk.pool.counters["opened"] == 1


def test_a_closing_resource_of_an_inventory_keeps_its_slot() -> None:
    desk = Desk(P, Q, max_size=1)
    number = desk.opened(P)
    desk.attach(P, [held(number, "closing")])
    desk.queue(Q)
    assert desk.size() == 1
    desk.say(P, Closed(number, "discarded"))
    assert len(desk.hears(Q, Grant)) == 1


def test_what_was_granted_to_somebody_else_is_closed() -> None:
    desk = Desk(P, Q, max_size=2)
    number = desk.opened(P)
    decisions = desk.attach(Q, [held(number)])
    assert Close(number, "retired") in decisions
    assert desk.books.slots_held(P) == 1
    assert desk.books.slots_held(Q) == 0


# --- the next server -------------------------------------------------------------------------------------------------


def test_what_the_journal_says_counts_against_the_cap_before_anybody_attaches() -> None:
    desk = next_server([remembered(N1, P)], max_size=1)
    desk.attach(Q)
    assert isinstance(desk.ask(Q), Queued)


def test_the_dead_of_the_journal_are_dropped() -> None:
    desk = next_server([remembered(N1, P)], max_size=1)
    desk.attach(Q)
    ticket = desk.queue(Q)
    desk.dies(P)
    assert Erase(N1) in desk.journal
    assert [g.ticket for g in desk.hears(Q, Grant)] == [ticket]


def test_the_inventory_overrules_the_journal() -> None:
    desk = next_server([remembered(N1, P), remembered(N2, P)], max_size=3)
    desk.attach(P, [held(N2), held(N3, "opening", before=2)])
    assert {slot.number for slot in desk.pool.slots} == {N2, N3}
    assert Erase(N1) in desk.journal
    assert Record(POOL, "k", N3, P, 0) in desk.journal
    assert Record(POOL, "k", N2, P, 0) not in desk.journal


def test_an_inventory_that_exceeds_the_cap_is_taken_over_and_asked_back() -> None:
    desk = next_server([], max_size=1)
    desk.attach(P, [held(N1), held(N2)])
    assert desk.size() == 2
    assert desk.brings_back(P, N1) == Close(N1, "retired")
    assert desk.brings_back(P, N2) == Keep(N2)


def test_creation_numbers_go_on() -> None:
    desk = next_server([], max_size=None)
    desk.attach(P, [held(N1, before=6), held(N2, before=4)])
    assert desk.ask(P).opened_before == 7


def test_grant_numbers_are_never_given_again() -> None:
    desk = next_server([], max_size=2)
    desk.attach(P)
    assert desk.granted(P) > grant_number(1, 2**32 - 1)


def test_a_slot_of_a_pool_that_nobody_has_declared_yet_is_remembered() -> None:
    desk = next_server([remembered(N1, P, pool="later")], max_size=1)
    desk.attach(Q)
    assert desk.books.slots_held(P) == 1
    assert desk.books.slots_held() == 1
    desk.dies(P)
    assert desk.journal == [Erase(N1)]
    assert desk.books.slots_held() == 0


def test_what_a_process_does_not_name_of_undeclared_pools_is_forgotten_when_it_attaches() -> None:
    desk = next_server([remembered(N1, P, pool="later"), remembered(N2, Q, pool="later")])
    desk.attach(P)
    assert desk.journal == [Erase(N1)]
    assert desk.books.slots_held(Q) == 1


def test_resize_reset_and_close_survive_the_server() -> None:
    desk = next_server([], [RecordPool(POOL, 7, 1, 3, True)], max_size=2)
    desk.attach(P)
    assert (
        desk.pool.capacity.max_size,
        desk.pool.min_size.size,
        desk.pool.generations.current,
    ) == (7, 1, 3)
    assert desk.ask(P).reason == "closed"


def test_a_remembered_slot_of_an_older_generation_is_retired() -> None:
    desk = next_server([remembered(N1, P)], [RecordPool(POOL, 2, 0, 1, False)], max_size=2)
    desk.attach(P, [held(N1, "returned")])
    assert Close(N1, "retired") in desk.told[P]


def test_a_generation_that_the_journal_has_forgotten_is_learned_and_told_to_everybody() -> None:
    desk = next_server([], max_size=3)
    desk.attach(Q, [held(N1)])
    desk.forget()
    desk.attach(P, [held(N2, generation=3)])
    assert [c.generation for c in desk.hears(Q, PoolChanged)] == [3]
    assert desk.brings_back(Q, N1) == Close(N1, "retired")
    desk.command(Reset(POOL))
    assert desk.pool.generations.current == 4


# --- a torn journal --------------------------------------------------------------------------------------------------


def test_after_a_torn_journal_nothing_is_granted_until_everybody_was_heard() -> None:
    desk = next_server([], awaited={P, Q}, max_size=1)
    desk.attach(P)
    ticket = desk.queue(P)
    assert desk.ask(P, timeout=0.0).reason == "timeout"
    desk.wait(5.0)
    assert not desk.hears(P, Grant)
    desk.attach(Q)
    assert [g.ticket for g in desk.hears(P, Grant)] == [ticket]


def test_an_awaited_process_that_dies_is_awaited_no_longer() -> None:
    desk = next_server([], awaited={Q}, max_size=1)
    desk.attach(P)
    ticket = desk.queue(P)
    desk.dies(Q)
    assert [g.ticket for g in desk.hears(P, Grant)] == [ticket]


def test_waiters_keep_to_their_timeouts_while_somebody_is_awaited() -> None:
    desk = next_server([], awaited={Q}, max_size=1)
    desk.attach(P)
    desk.queue(P, timeout=1.0)
    desk.wait(1.0)
    assert [r.reason for r in desk.hears(P, Refuse)] == ["timeout"]


def test_what_the_awaited_hold_counts() -> None:
    desk = next_server([], awaited={Q, R}, max_size=1)
    desk.attach(P)
    desk.queue(P)
    desk.attach(R)
    desk.attach(Q, [held(N1)])
    assert not desk.hears(P, Grant)
    assert desk.size() == 1


def test_a_session_is_known_only_while_it_lasts() -> None:
    desk = Desk(P)
    assert desk.books.session_of(P) == Session(1)
    desk.say(P, Detached())
    assert desk.books.session_of(P) is None


def test_options_of_the_declaration_hold_where_the_journal_says_nothing() -> None:
    desk = next_server([], max_size=2)
    desk.attach(P, options=PoolOptions(max_size=3))
    assert desk.pool.capacity.max_size == 3


def test_an_inventory_closes_no_breaker_by_an_opening_that_goes_on() -> None:
    desk = Desk(P)
    desk.say(P, OpeningFailed(desk.granted(P), "no"))
    desk.wait(0.1)
    probe = desk.granted(P)
    desk.attach(P, [held(probe, "opening")])
    assert pool_figures(desk.pool)["breaker"] == "probing"


def test_what_is_opened_for_a_process_that_attaches_is_in_the_books() -> None:
    """Its declaration changes something, so the pool settles; its inventory, which comes then, cannot name the new one."""
    desk = Desk(P, max_size=1, min_size=1)
    desk.opened(P)
    desk.dies(P)
    desk.wait(1.0)
    desk.forget()
    desk.attach(Q, options=PoolOptions(max_size=1, min_size=1, timeout=5.0))
    assert [grant.number for grant in desk.hears(Q, Grant)] == [
        slot.number for slot in desk.pool.slots
    ]
    assert desk.size() == 1
