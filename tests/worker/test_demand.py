"""When a process asks the books, and when its threads hope for each other: pure, with time as an argument."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mppool.ids import GrantNumber, Ticket
from mppool.worker.demand import (
    GAP_S,
    LONGEST_HOPE_S,
    SPARE_S,
    Demand,
    hope_s,
    starves_after_s,
)

NOW = 1000.0


class Thread:
    """A thread that waits, by name."""

    def __init__(self, name: object, *, is_open: bool = True) -> None:
        self.name = name
        self.is_open = is_open

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Thread) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)


def grant(number: int) -> GrantNumber:
    return GrantNumber(number)


def using(*numbers: int) -> Demand:
    """A process that has these resources, all of them lent."""
    demand = Demand()
    for number in numbers:
        demand.granted(grant(number), 0.3, NOW - 10)
        demand.opened(grant(number), NOW - 10)
    return demand


def must_ask(demand: Demand, now: float, hope: float = 0.1, idle: int = 0) -> bool:
    return demand.must_ask(hope, idle, now)


@pytest.mark.parametrize(
    ("opening", "left", "hope"),
    [(0.1, None, 0.05), (3.0, None, LONGEST_HOPE_S), (0.1, 0.04, 0.02), (0.0, 5.0, 0.0)],
)
def test_a_thread_hopes_for_half_an_opening_and_half_of_its_time(
    opening: float, left: float | None, hope: float
) -> None:
    assert hope_s(opening, left) == hope


def test_where_nothing_is_in_use_a_thread_asks_at_once() -> None:
    demand = Demand()
    demand.begins_to_wait(Thread("a"), NOW)
    assert must_ask(demand, NOW)


def test_what_lies_on_the_shelf_is_not_in_use() -> None:
    demand = using(1)
    demand.begins_to_wait(Thread("a"), NOW)
    assert must_ask(demand, NOW, idle=1)
    assert not must_ask(demand, NOW, idle=0)


def test_where_something_is_in_use_a_thread_hopes_first() -> None:
    demand = using(1)
    demand.begins_to_wait(Thread("a"), NOW)
    assert not must_ask(demand, NOW + 0.09)
    assert demand.look_at(0.1, NOW) == NOW + 0.1
    assert must_ask(demand, NOW + 0.1)


def test_a_thread_whose_hope_ends_between_two_looks_does_not_wait_for_ever() -> None:
    demand = using(1)
    demand.begins_to_wait(Thread("a"), NOW)
    assert not must_ask(demand, NOW + 0.09)
    assert demand.look_at(0.1, NOW + 0.11) <= NOW + 0.11


def test_what_is_open_and_has_not_arrived_is_still_on_its_way() -> None:
    demand = Demand()
    demand.begins_to_wait(Thread("a"), NOW)
    demand.granted(grant(1), 0.0, NOW)
    assert demand.begins(grant(1), NOW)
    demand.opened(grant(1), NOW)
    assert not must_ask(demand, NOW, hope=0.0)
    demand.stops_waiting(Thread("a"), NOW, served=True)
    demand.arrived(grant(1))
    assert not demand.opening
    assert demand.open == {grant(1)}


def test_a_thread_does_not_ask_again_before_it_has_heard_that_its_opening_has_failed() -> None:
    demand = Demand()
    demand.begins_to_wait(Thread("a"), NOW)
    demand.granted(grant(1), 0.0, NOW)
    assert demand.begins(grant(1), NOW)
    demand.ended(grant(1))
    assert not must_ask(demand, NOW, hope=0.0)
    demand.arrived(grant(1))
    assert must_ask(demand, NOW, hope=0.0)


def test_nobody_asks_while_as_much_is_on_its_way_as_threads_wait() -> None:
    demand = using(1)
    demand.begins_to_wait(Thread("a"), NOW)
    demand.asks(Ticket(1))
    assert not must_ask(demand, NOW + 5)
    demand.begins_to_wait(Thread("b"), NOW + 5)
    assert must_ask(demand, NOW + 5)
    demand.granted(grant(2), 0.3, NOW + 5)
    assert not must_ask(demand, NOW + 5)


def test_an_opening_that_takes_too_long_is_not_counted_on() -> None:
    demand = Demand()
    demand.begins_to_wait(Thread("a"), NOW)
    demand.granted(grant(1), 0.5, NOW)
    assert demand.begins(grant(1), NOW)
    assert not must_ask(demand, NOW + 1.4)
    assert demand.look_at(0.1, NOW) == NOW + 1.5
    assert must_ask(demand, NOW + 1.5)


def test_the_clock_is_that_of_the_line() -> None:
    """Each thread waits for a short time only, but there is always one: the process wants more."""
    demand = using(1)
    now = NOW
    demand.begins_to_wait(Thread("first"), now)
    for step in range(10):
        now += 0.02
        demand.begins_to_wait(Thread(step), now)
        demand.stops_waiting(Thread("first" if step == 0 else step - 1), now, served=True)
        if now < NOW + 0.1:
            assert not must_ask(demand, now)
    assert must_ask(demand, now)
    demand.asks(Ticket(1))
    assert not must_ask(demand, now)
    demand.begins_to_wait(Thread("another"), now)
    assert must_ask(demand, now)  # more wait than were asked for


def test_an_interval_without_waiters_ends_the_streak_and_a_shorter_one_does_not() -> None:
    for gap, streak_goes_on in ((GAP_S / 2, True), (GAP_S * 2, False)):
        demand = using(1)
        demand.begins_to_wait(Thread("a"), NOW)
        demand.stops_waiting(Thread("a"), NOW + 0.2, served=True)
        demand.begins_to_wait(Thread("b"), NOW + 0.2 + gap)
        assert must_ask(demand, NOW + 0.2 + gap) is streak_goes_on


def test_a_thread_that_has_been_answered_wants_nothing_more() -> None:
    """It leaves the line when it wakes up. Until then nobody may ask, or open, in its place."""
    demand = using(1)
    demand.granted(grant(2), 0.3, NOW)
    demand.granted(grant(3), 0.3, NOW)
    demand.begins_to_wait(served := Thread("a"), NOW)
    demand.begins_to_wait(Thread("b"), NOW)
    assert demand.begins(grant(2), NOW)
    assert demand.begins(grant(3), NOW)
    demand.opened(grant(2), NOW)
    served.is_open = False
    demand.arrived(grant(2))
    assert not demand.wants_more(NOW + 0.1)
    assert not must_ask(demand, NOW + 0.1, hope=0.0)
    demand.granted(grant(4), 0.3, NOW)
    assert not demand.begins(grant(4), NOW)


def test_an_opening_is_not_begun_when_its_thread_was_served_meanwhile() -> None:
    demand = using(1)
    demand.begins_to_wait(Thread("a"), NOW)
    demand.granted(grant(2), 0.3, NOW)
    demand.stops_waiting(Thread("a"), NOW, served=True)
    assert not demand.begins(grant(2), NOW)


def test_no_more_openings_are_begun_than_threads_wait() -> None:
    demand = Demand()
    demand.begins_to_wait(Thread("a"), NOW)
    for number in (1, 2):
        demand.granted(grant(number), 0.3, NOW)
    assert demand.begins(grant(1), NOW)
    assert not demand.begins(grant(2), NOW)
    assert demand.begins(grant(2), NOW, insists=True)  # it waits for this one alone


def test_a_ticket_without_a_thread_is_kept_for_a_moment_and_then_given_up() -> None:
    demand = using(1)
    demand.begins_to_wait(Thread("a"), NOW)
    demand.asks(Ticket(1))
    assert demand.spare_due_at() == math.inf
    demand.stops_waiting(Thread("a"), NOW, served=True)
    assert demand.spare_due_at() == NOW + SPARE_S
    demand.begins_to_wait(Thread("b"), NOW + 0.01)
    assert demand.spare_due_at() == math.inf
    demand.stops_waiting(Thread("b"), NOW + 0.02, served=True)
    assert demand.give_up_spare(NOW + 1) == [Ticket(1)]
    assert not demand.tickets


def test_the_newest_tickets_are_given_up_first() -> None:
    demand = using(1)
    for name in ("a", "b", "c"):
        demand.begins_to_wait(Thread(name), NOW)
        demand.asks(Ticket(ord(name)))
    demand.stops_waiting(Thread("a"), NOW, served=True)
    demand.stops_waiting(Thread("b"), NOW, served=True)
    assert demand.give_up_spare(NOW + 1) == [Ticket(ord("b")), Ticket(ord("c"))]


def test_a_key_starves_where_threads_wait_and_nothing_is_given_back() -> None:
    demand = using(1)
    demand.begins_to_wait(Thread("a"), NOW)
    assert demand.starves_at(NOW, 0.3, 0.0) == math.inf  # nothing was asked for
    demand.asks(Ticket(1))
    after = starves_after_s(0.3)
    assert demand.starves_at(NOW, 0.3, 0.0) == NOW + after
    demand.begins_to_wait(Thread("b"), NOW)
    demand.stops_waiting(Thread("b"), NOW + 2, served=True)
    assert demand.starves_at(NOW, 0.3, 0.0) == NOW + 2 + after
    assert demand.says_starving(NOW + 2 + after) == Ticket(1)
    assert demand.starves_at(NOW, 0.3, 0.0) == NOW + 2 + 2 * after


def test_where_uses_are_long_a_key_does_not_starve_sooner() -> None:
    assert starves_after_s(0.3, 10.0) == 30.0
    demand = using(1)
    demand.begins_to_wait(Thread("a"), NOW)
    demand.asks(Ticket(1))
    assert demand.starves_at(NOW, 0.3, 10.0) == NOW + 30.0


def test_nothing_starves_while_a_resource_is_being_opened() -> None:
    demand = using(1)
    for name in ("a", "b"):
        demand.begins_to_wait(Thread(name), NOW)
    demand.asks(Ticket(1))
    demand.granted(grant(2), 0.3, NOW)
    assert demand.starves_at(NOW, 0.3, 0.0) == math.inf
    demand.opened(grant(2), NOW + 2)
    assert demand.starves_at(NOW, 0.3, 0.0) == NOW + 2 + starves_after_s(0.3)


def test_a_timeout_is_no_service() -> None:
    demand = using(1)
    demand.begins_to_wait(Thread("a"), NOW)
    demand.asks(Ticket(1))
    demand.begins_to_wait(Thread("b"), NOW)
    demand.stops_waiting(Thread("b"), NOW + 2, served=False)
    assert demand.starves_at(NOW, 0.3, 0.0) == NOW + starves_after_s(0.3)


class DemandMachine(RuleBasedStateMachine):
    """Threads come and go, the books answer; the model is what stands in the comments of the module."""

    def __init__(self) -> None:
        super().__init__()
        self.demand = Demand()
        self.now = NOW
        self.serial = 0
        self.threads: list[tuple[int, float]] = []
        self.opening: list[GrantNumber] = []
        self.arriving: list[GrantNumber] = []

    def next(self) -> int:
        self.serial += 1
        return self.serial

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.02, 0.1, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def wait(self) -> None:
        name = self.next()
        self.threads.append((name, self.now))
        self.demand.begins_to_wait(Thread(name), self.now)

    @precondition(lambda self: self.threads)
    @rule(which=st.integers(0, 100), served=st.booleans(), twice=st.booleans())
    def leave(self, which: int, served: bool, twice: bool) -> None:
        name, _ = self.threads.pop(which % len(self.threads))
        for _ in range(1 + twice):  # an interrupted thread does it again
            self.demand.stops_waiting(Thread(name), self.now, served=served)

    @precondition(lambda self: self.threads)
    @rule()
    def look(self) -> None:
        if self.demand.must_ask(0.05, 0, self.now):
            assert self.demand.wants_more(self.now)
            self.demand.asks(Ticket(self.next()))
        else:
            again = self.demand.look_at(0.05, self.now)
            assert again > self.now

    @precondition(lambda self: self.demand.tickets)
    @rule()
    def grant(self) -> None:
        self.demand.answered(next(iter(self.demand.tickets)))
        number = grant(self.next())
        self.demand.granted(number, 0.1, self.now)
        self.opening.append(number)

    @precondition(lambda self: self.opening)
    @rule(failed=st.booleans())
    def open(self, failed: bool) -> None:
        number = self.opening.pop(0)
        if not self.demand.begins(number, self.now):
            self.demand.ended(number)
            assert number not in self.demand.opening
            return
        self.arriving.append(number)
        if failed:
            self.demand.ended(number)
        else:
            self.demand.opened(number, self.now)
        assert number in self.demand.opening

    @precondition(lambda self: self.arriving)
    @rule()
    def arrive(self) -> None:
        self.demand.arrived(self.arriving.pop(0))

    @precondition(lambda self: self.demand.open)
    @rule()
    def close(self) -> None:
        self.demand.ended(next(iter(self.demand.open)))

    @rule()
    def clean(self) -> None:
        if self.demand.spare_due_at() <= self.now:
            self.demand.give_up_spare(self.now)
            assert self.demand.spare_due_at() == math.inf

    @invariant()
    def what_is_spare_will_be_given_up(self) -> None:
        coming = sum(until > self.now for until in self.demand.opening.values())
        on_the_way = len(self.demand.tickets) + coming
        if self.demand.tickets and on_the_way > len(self.threads):
            assert self.demand.spare_due_at() <= self.now + SPARE_S

    @invariant()
    def nobody_is_forgotten(self) -> None:
        """A thread that waits has something on its way, asks now, or knows when to look again."""
        if self.threads:
            covered = not self.demand.wants_more(self.now)
            asks = self.demand.must_ask(0.05, 0, self.now)
            look_at = self.demand.look_at(0.05, self.now)
            assert covered or asks or look_at < math.inf
            assert asks or look_at > self.now, "it would look again and again"
            later = self.now + 0.2
            if self.demand.must_ask(0.05, 0, later):
                assert look_at <= later, "it would sleep until somebody wakes it"
                assert self.demand.look_at(0.05, later) <= later

    @invariant()
    def begun_is_a_part_of_opening(self) -> None:
        assert self.demand.begun <= set(self.demand.opening)


DemandMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestDemand: Any = DemandMachine.TestCase


def test_a_thread_whose_hope_has_just_ended_looks_again_at_once() -> None:
    demand = using(1)
    demand.begins_to_wait(Thread("a"), NOW)
    assert not must_ask(demand, NOW + 0.0999)
    assert demand.look_at(0.1, NOW + 0.1001) <= NOW + 0.1001


def test_what_a_thread_opens_for_itself_is_not_on_its_way_to_others() -> None:
    demand = Demand()
    for waiter, ticket in (("a", 1), ("b", 2)):
        demand.begins_to_wait(Thread(waiter), NOW)
        demand.asks(Ticket(ticket))
    demand.answered(Ticket(1))
    demand.granted(grant(1), 0.3, NOW)
    demand.opens_for_itself(grant(1), NOW)
    demand.stops_waiting(Thread("a"), NOW, served=False)
    assert demand.spare_due_at() == math.inf, "b's ticket would be given up"
    demand.answered(Ticket(2))
    assert demand.wants_more(NOW)
