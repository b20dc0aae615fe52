"""The order of service: what is kept ready in heaps equals what sorting everything afresh would say."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mppool.core import sharing
from mppool.core.reclaim import Reclaimer
from mppool.core.slot import Slot, SlotState
from mppool.core.table import SlotTable
from mppool.core.waiting import Waiter, Waiting
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
        self.waiting = Waiting(self.slots.levels)
        self.reclaimer = Reclaimer(self.slots)
        self.slots.level_changed = self.level_changed
        self.asked: dict[ProcessId, tuple[int, float]] = {}
        self.everybody: Any = SimpleNamespace(
            name="p",
            slots=self.slots,
            is_attached=lambda process: True,
            tell=lambda process, decision: None,
        )
        self.waiters: list[Waiter] = []
        self.held: list[Slot] = []
        self.serial = 0

    def level_changed(self, process: ProcessId) -> None:
        self.waiting.level_changed(process)
        self.reclaimer.level_changed(process)

    def next(self) -> int:
        self.serial += 1
        return self.serial

    @rule(process=a_process, key=a_key, patience=st.sampled_from([0.05, 5.0, math.inf]))
    def wait(self, process: ProcessId, key: str, patience: float) -> None:
        waiter = Waiter(process, Ticket(self.next()), key, self.now, self.now + patience)
        self.waiting.add(waiter)
        self.waiters.append(waiter)

    @rule(which=st.integers(0, 10**6))
    def stop_waiting(self, which: int) -> None:
        if self.waiters:
            waiter = self.waiters.pop(which % len(self.waiters))
            assert self.waiting.remove(waiter.process, waiter.ticket) is waiter

    @rule(process=a_process)
    def all_stop_waiting(self, process: ProcessId) -> None:
        self.waiting.remove_process(process)
        self.waiters = [waiter for waiter in self.waiters if waiter.process != process]

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
        self.waiters = [waiter for waiter in self.waiters if waiter not in gone]

    @invariant()
    def the_line_is_that_of_sorting_everything(self) -> None:
        heads: dict[Any, Waiter] = {}
        for waiter in self.waiters:
            heads.setdefault((waiter.process, waiter.key), waiter)
        levels = Counter(slot.process for slot in self.held)

        def place(waiter: Waiter) -> Any:
            return (*sharing.rank(waiter, levels, self.now), waiter.serial)

        assert list(self.waiting.in_line(self.now)) == sorted(heads.values(), key=place)

    @rule(process=a_process)
    def ask(self, process: ProcessId) -> None:
        if self.reclaimer._spare(self.everybody, process, self.now) > 0:
            self.reclaimer._ask(self.everybody, process, self.now, everything=False)
            wanted, _ = self.asked.get(process, (0, 0.0))
            self.asked[process] = (wanted + 1, self.now + sharing.ANSWER_S)

    @rule(process=a_process, given=st.booleans())
    def bring_back(self, process: ProcessId, given: bool) -> None:
        self.reclaimer.brought_back(self.everybody, process, self.now, given=given)
        if process in self.asked:
            wanted, until = self.asked.pop(process)
            if wanted > 1 and given:
                self.asked[process] = (wanted - 1, until)

    @invariant()
    def the_richest_are_those_that_can_be_asked_for_the_most(self) -> None:
        left = Counter(slot.process for slot in self.held if slot.state is SlotState.OPEN)
        for process, (wanted, until) in self.asked.items():
            left[process] -= wanted if until > self.now else 10**6
        found = list(self.reclaimer._by_spare(self.everybody, self.now))
        assert dict(found) == {process: spare for process, spare in left.items() if spare > 0}
        assert [spare for _, spare in found] == sorted(dict(found).values(), reverse=True)

    @invariant()
    def what_was_asked_for_is_counted_on_for_a_while(self) -> None:
        timely = sum(wanted for wanted, until in self.asked.values() if until > self.now)
        assert self.reclaimer._asked_for(self.now) == timely

    @invariant()
    def what_is_counted_on_is_what_closes_and_not_for_too_long(self) -> None:
        closing = [s for s in self.held if s.state is SlotState.CLOSING]
        expected = [s.expected_until for s in closing if s.expected_until > self.now]
        assert self.slots.next_disappointment(self.now) == min(expected, default=math.inf)
        assert self.slots.on_the_way(self.now) == len(expected)

    @invariant()
    def patience_ends_when_it_ends(self) -> None:
        ends = [waiter.since + sharing.PATIENCE_S for waiter in self.waiters]
        later = min((end for end in ends if end > self.now), default=math.inf)
        assert self.waiting.next_loss_of_patience(self.now) == later

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
    line.hold(process, "alice")
    line.hold(process, "alice")
    line.the_richest_are_those_that_can_be_asked_for_the_most()
    for _ in range(2):
        line.ask(process)
        line.the_richest_are_those_that_can_be_asked_for_the_most()
    line.bring_back(process, given=False)
    line.the_richest_are_those_that_can_be_asked_for_the_most()
