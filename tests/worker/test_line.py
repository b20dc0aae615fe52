"""The line of waiting threads: whom it wakes, and what it does not go through."""

from __future__ import annotations

import math
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest

from mppool import InProcessManager
from mppool.ids import GrantNumber, Ticket
from mppool.process.waiter import LocalWaiter, give_to_oldest, wake_oldest
from mppool.worker.demand import LONGEST_SILENCE_S, SHORTEST_SILENCE_S, Silence
from mppool.worker.line import Line


@pytest.fixture
def line() -> Line:
    """Of a pool that nobody uses: no thread, no books."""
    pool = InProcessManager().pool("p", object)
    found: Line = pool._local.idle.line
    return found


def waiting(line: Line, key: str = "k", **how: Any) -> LocalWaiter:
    """A thread that waits; with which ticket, its line tells."""
    waiter = LocalWaiter(line._context.next_ticket(), key, **how)
    line.enqueue(waiter)
    return waiter


def is_poked(waiter: LocalWaiter) -> bool:
    return waiter._gate.acquire(blocking=False)


class Unwalked(dict[Any, Any]):
    """Found by key only."""

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("all keys are gone through")

    keys = values = items = __iter__  # type: ignore[assignment]


def test_nothing_that_is_done_often_goes_through_all_keys(line: Line) -> None:
    """With 20,000 identities timeouts used to come late."""
    line.demands = Unwalked()
    waiter = waiting(line)
    assert line.must_ask(waiter, None)
    assert not line.ticket_ended(Ticket(999), None), "a ticket of another pool"
    line.dequeue(waiter, served=True)
    assert line.give_up_spare(0.0) < math.inf, "its ticket is spare now"
    assert line.give_up_spare(math.inf) == math.inf
    again = waiting(line)
    assert line.must_ask(again, None)
    assert line.ticket_ended(again.ticket, "refused")
    assert again.withdraw() == "refused"
    line.dequeue(again, served=False)
    line.forget_tickets()
    assert not dict.__len__(line.demands)


def test_what_is_lacking_is_told_to_a_thread_that_could_ask(line: Line) -> None:
    insists = waiting(line, insists=True)
    calling, second, third = waiting(line), waiting(line), waiting(line)
    calling.calling = True
    line.poke("k")
    assert is_poked(second)
    assert not any(map(is_poked, (insists, calling, third)))
    second.opening = 7  # type: ignore[assignment]
    line.demand_for("k").granted(second.opening, 60.0, second.since)
    line.poke("k")
    assert is_poked(third), "the second is to hear first what becomes of its opening"


def test_where_each_asks_for_itself_one_that_has_asked_is_not_woken(line: Line) -> None:
    line.asks_at_once = True
    first, second = waiting(line), waiting(line)
    assert line.must_ask(first, None)
    line.poke("k")
    assert not is_poked(first)
    assert is_poked(second)


def test_a_thread_that_is_in_a_call_is_handed_nothing_that_others_release(line: Line) -> None:
    calling, ready = waiting(line), waiting(line)
    calling.calling = True
    queue = line.waiters["k"]
    assert give_to_oldest(queue, "a")
    assert ready.withdraw() == "a"
    assert not give_to_oldest(queue, "b")
    wake_oldest(queue)
    assert not is_poked(calling)
    assert line.give_to("k", calling.ticket, "c"), "but the answer to its ticket"
    assert calling.withdraw() == "c"


def test_nothing_is_opened_in_the_hands_of_a_thread_that_is_in_a_call(line: Line) -> None:
    calling = waiting(line, opens_here=True)
    calling.calling = True
    assert line.waiter_for("k", calling.ticket) is calling
    assert line.waiter_for("k", Ticket(999)) is None
    beside = waiting(line)
    beside.calling = True
    assert line.waiter_for("k", Ticket(999)) is beside
    ready = waiting(line)
    assert line.waiter_for("k", Ticket(999)) is ready


def test_in_a_silence_a_thread_that_can_be_served_without_the_books_does_not_ask(
    line: Line,
) -> None:
    silence = line._context.silence
    waiter = waiting(line)
    silence.begins(waiter.since, waiter.since + 1e9, stopped=True)
    assert line.must_ask(waiter, None), "nothing is open: nobody else could serve it"
    line.ticket_ended(waiter.ticket, None)
    demand = line.demand_for("k")
    demand.granted(1, 0.0, waiter.since)  # type: ignore[arg-type]
    demand.opened(1, waiter.since)  # type: ignore[arg-type]
    assert not line.must_ask(waiter, None)
    silence.ends()
    assert line.must_ask(waiter, None)


def test_a_silence_grows_where_the_server_is_only_slow() -> None:
    silence, now, lengths = Silence(), 100.0, []
    for _ in range(5):
        silence.begins(now, now + 0.5, stopped=False)
        silence.begins(now, now + 0.6, stopped=False)  # another thread, which asked meanwhile
        lengths.append(silence.until - now - 0.5)
        now = silence.until
    assert lengths == [SHORTEST_SILENCE_S, 2.0, 4.0, LONGEST_SILENCE_S, LONGEST_SILENCE_S]
    silence.begins(now, now + 0.5, stopped=True)
    assert silence.until == now + 0.5 + SHORTEST_SILENCE_S
    silence.ends()
    assert silence.until < 0
    silence.begins(now + 10.0, now + 10.5, stopped=False)
    assert silence.until == now + 10.5 + SHORTEST_SILENCE_S


def test_who_may_not_ask_before_its_opening_is_late_does_not_look_before_that(line: Line) -> None:
    # Found by tests/simulation: it looked again and again, without a pause, while a neighbour waited too.
    first, second = waiting(line), waiting(line)
    opening = GrantNumber(1)
    now = monotonic()
    line.demand_for("k").granted(opening, 1000.0, now)
    first.opening = opening
    assert not line.must_ask(first, None)
    assert line.look_at(first, None) > now + 500.0
    assert line.look_at(second, None) < now + 500.0, "it may ask"
    line.demand_for("k").ended(opening)
    assert line.look_at(first, None) == math.inf, "it is told"
    first.opening = None
    assert line.look_at(first, None) < now + 500.0
