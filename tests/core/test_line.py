"""The order of service: what is kept ready in heaps equals what sorting everything again would say."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mppool.core import sharing
from mppool.core.breaker import Breakers
from mppool.core.capacity import Capacity
from mppool.core.reclaim import Reclaimer
from mppool.core.sharing import OpeningTimes
from mppool.core.slot import Slot, SlotState
from mppool.core.table import SlotTable
from mppool.core.waiter import Waiter
from mppool.core.waiting import Waiting
from mppool.ids import GrantNumber, ProcessId, Ticket

PROCESSES = [ProcessId(pid, 1) for pid in range(1, 5)]
a_process = st.sampled_from(PROCESSES)
a_key = st.sampled_from(["alice", "bob", "carol"])


class Line(RuleBasedStateMachine):
    """Waiters and slots come and go; the model is two lists."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.slots = SlotTable()
        self.waiting = Waiting(self.slots.levels, self.slots.by_process_and_key)
        capacity = Capacity(self.slots, Breakers(), ())
        self.reclaimer = Reclaimer("p", self.waiting, capacity, OpeningTimes(), PROCESSES)
        self.slots.level_changed = self.level_changed
        self.asked: dict[ProcessId, tuple[list[ProcessId], float]] = {}
        self.waiters: list[Waiter] = []
        self.starving: dict[Any, tuple[float, int]] = {}
        self.arrivals = 0
        self.in_peace: dict[ProcessId, float] = {}
        self.gave_at: dict[ProcessId, float] = {}
        self.held: list[Slot] = []
        self.serial = 0

    def level_changed(self, process: ProcessId, key: str) -> None:
        self.waiting.level_changed(process, key)
        self.reclaimer.level_changed(process)

    def next(self) -> int:
        self.serial += 1
        return self.serial

    @rule(process=a_process, key=a_key, timeout=st.sampled_from([0.05, 5.0, math.inf]))
    def wait(self, process: ProcessId, key: str, timeout: float) -> None:
        waiter = Waiter(process, Ticket(self.next()), key, self.now, self.now + timeout)
        self.arrivals += 1
        self.waiting.add(waiter)
        self.waiters.append(waiter)

    def keep(self, waiters: list[Waiter]) -> None:
        """These are left. What was known of groups and processes without waiters is forgotten."""
        self.waiters = waiters
        groups = {(waiter.process, waiter.key) for waiter in waiters}
        self.starving = {g: said_at for g, said_at in self.starving.items() if g in groups}
        processes = {waiter.process for waiter in waiters}
        self.gave_at = {p: at for p, at in self.gave_at.items() if p in processes}

    @rule(which=st.integers(0, 10**6), served=st.booleans())
    def stop_waiting(self, which: int, served: bool) -> None:
        if self.waiters:
            waiter = self.waiters[which % len(self.waiters)]
            leave = self.waiting.served if served else self.waiting.remove
            assert leave(waiter.process, waiter.ticket) is waiter
            self.keep([other for other in self.waiters if other is not waiter])
            if served:
                self.starving.pop((waiter.process, waiter.key), None)

    @rule(process=a_process)
    def all_stop_waiting(self, process: ProcessId) -> None:
        self.waiting.remove_process(process)
        self.keep([waiter for waiter in self.waiters if waiter.process != process])

    @rule(which=st.integers(0, 10**6))
    def starve(self, which: int) -> None:
        if self.waiters:
            waiter = self.waiters[which % len(self.waiters)]
            group = (waiter.process, waiter.key)
            has_slots = any(slot.process == waiter.process for slot in self.held)
            new = has_slots and group not in self.starving
            assert self.waiting.starves(waiter.process, waiter.ticket, self.now) == new
            if new:
                self.arrivals += 1
                self.starving[group] = (self.now, self.arrivals)

    @rule(process=a_process)
    def give(self, process: ProcessId) -> None:
        self.waiting.gave(process, self.now)
        if any(waiter.process == process for waiter in self.waiters):
            self.gave_at[process] = self.now

    @rule(process=a_process, key=a_key)
    def hold(self, process: ProcessId, key: str) -> None:
        number = GrantNumber(self.next())
        slot = Slot(number, process, key, 0, SlotState.OPEN, self.now, Ticket(number))
        self.slots.add(slot)
        self.held.append(slot)

    @rule(which=st.integers(0, 10**6))
    def close(self, which: int) -> None:
        if self.held:
            slot = self.held[which % len(self.held)]
            self.slots.move(slot, SlotState.CLOSING)
            self.slots.expect_end(slot, self.now + sharing.ANSWER_S)

    @rule(which=st.integers(0, 10**6))
    def free(self, which: int) -> None:
        if self.held:
            self.slots.remove(self.held.pop(which % len(self.held)))

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.06, 0.1, 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        gone = self.waiting.expired(self.now)
        assert gone == sorted(gone, key=lambda w: (w.deadline, w.serial))
        assert set(gone) == {w for w in self.waiters if w.deadline <= self.now}
        self.keep([waiter for waiter in self.waiters if waiter not in gone])

    @invariant()
    def the_line_is_that_of_sorting_everything(self) -> None:
        heads: dict[Any, Waiter] = {}
        for waiter in self.waiters:
            heads.setdefault((waiter.process, waiter.key), waiter)
        levels = Counter(slot.process for slot in self.held)
        of_keys = Counter((slot.process, slot.key) for slot in self.held)

        def place(waiter: Waiter) -> Any:
            level = levels[waiter.process]
            since = max(waiter.since, self.gave_at.get(waiter.process, 0.0))
            group = (waiter.process, waiter.key)
            if group in self.starving:
                return (0, 0, *self.starving[group])
            return (level, of_keys[group], since, waiter.serial)

        assert list(self.waiting.in_line()) == sorted(heads.values(), key=place)

    @rule(process=a_process, taker=a_process)
    def ask(self, process: ProcessId, taker: ProcessId) -> None:
        if self.reclaimer._spare(process, self.now) > 0:
            self.reclaimer._ask(process, self.now, taker)
            takers, _ = self.asked.get(process, ([], 0.0))
            self.asked[process] = ([*takers, taker], self.now + sharing.ANSWER_S)

    @rule(process=a_process, given=st.booleans())
    def bring_back(self, process: ProcessId, given: bool) -> None:
        self.reclaimer.brought_back(process, self.now, given=given)
        if process in self.asked:
            takers, until = self.asked.pop(process)
            if len(takers) > 1 and given:
                self.asked[process] = (takers[1:], until)
            if not given:
                self.in_peace[process] = self.now + sharing.ANSWER_S

    @invariant()
    def the_richest_are_those_that_can_be_asked_for_the_most(self) -> None:
        left = Counter(slot.process for slot in self.held if slot.state is SlotState.OPEN)
        for process, (takers, until) in self.asked.items():
            left[process] -= len(takers) if until > self.now else 10**6
        for process, until in self.in_peace.items():
            left[process] -= 10**6 if until > self.now else 0
        found = list(self.reclaimer._by_spare(self.now))
        assert dict(found) == {process: spare for process, spare in left.items() if spare > 0}
        assert [spare for _, spare in found] == sorted(dict(found).values(), reverse=True)

    @invariant()
    def what_was_asked_for_is_counted_on_for_a_while(self) -> None:
        timely = [t for takers, until in self.asked.values() if until > self.now for t in takers]
        assert self.reclaimer._asked_for(self.now) == len(timely)
        assert self.reclaimer._takers_of_timely == Counter(timely)

    @invariant()
    def what_is_counted_on_is_what_closes_and_not_for_too_long(self) -> None:
        closing = [s for s in self.held if s.state is SlotState.CLOSING]
        expected = [s.expected_until for s in closing if s.expected_until > self.now]
        assert self.slots.next_disappointment(self.now) == min(expected, default=math.inf)
        assert self.slots.on_the_way(self.now) == len(expected)

    @invariant()
    def tickets_find_their_slots(self) -> None:
        for slot in self.held:
            assert slot.ticket is not None
            assert self.slots.by_ticket[slot.process, slot.ticket] is slot
        for process in PROCESSES:
            assert self.slots.of(process) == [s for s in self.held if s.process == process]


Line.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestLine = Line.TestCase


def test_what_was_asked_for_and_not_given_can_be_asked_for_again() -> None:
    line = Line()
    process = PROCESSES[0]

    def can_be_asked_for() -> int:
        return dict(line.reclaimer._by_spare(line.now)).get(process, 0)

    line.hold(process, "alice")
    line.hold(process, "alice")
    assert can_be_asked_for() == 2
    for left in (1, 0):
        line.ask(process, PROCESSES[1])
        assert can_be_asked_for() == left
    line.bring_back(process, given=False)
    assert can_be_asked_for() == 0  # it is left in peace for a while
    line.time_passes(sharing.ANSWER_S)
    assert can_be_asked_for() == 2
