"""The slots of one pool, and the counts that are derived from them. Only the `Ledger` changes them."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from mppool.core.slot import Slot, SlotState
from mppool.ids import GrantNumber, ProcessId, Ticket

OPENING_PATIENCE_S = 30.0
"""An opening that takes longer is not counted by `max_opening` any more: its process is stopped, or its open hook
hangs, and the others need not wait for it. Its slot counts against the cap all the same."""

HEARD_WITHIN_S = 2.0
"""After a restart processes attach within milliseconds. Until one has, each slot that the journal says it has may be
one that it is opening."""


class Total:
    """How many slots there are of all pools that share a budget. A pool without a budget has one for itself."""

    __slots__ = ("size",)

    def __init__(self, size: int = 0) -> None:
        self.size = size


class SlotTable:
    """All slots in use. The counts change only here, together with the slots.

    total: counts these slots, with those of the other pools of the budget, if there is one.

    levels: slots by process. by_key: slots by identity. by_number: all of them.
    by_ticket: the slot that was granted to a ticket of a process, while it is in use; shared by all pools,
        for a process gives a ticket once.
    by_process_and_key: slots by both.
    level_changed: is told of every process and key that has more or fewer slots, or closes more or fewer of them.
    anywhere: the slots of all pools, by number, for those who look for the pool of one.
    """

    def __init__(
        self,
        anywhere: dict[GrantNumber, Slot] | None = None,
        by_ticket: dict[tuple[ProcessId, Ticket], Slot] | None = None,
    ) -> None:
        self._anywhere = {} if anywhere is None else anywhere
        self.total = Total()
        self.by_number: dict[GrantNumber, Slot] = {}
        self.levels: Counter[ProcessId] = Counter()
        self.by_key: Counter[str] = Counter()
        self.level_changed: Callable[[ProcessId, str], None] = lambda process, key: None
        self._of_process: dict[ProcessId, dict[GrantNumber, Slot]] = {}
        self.by_ticket = {} if by_ticket is None else by_ticket
        # Slots whose ends are counted on, in the order in which they will have been counted on for too long.
        self._expected: OrderedDict[GrantNumber, Slot] = OrderedDict()
        self._closing_by_key: Counter[str] = Counter()
        self.by_process_and_key: Counter[tuple[ProcessId, str]] = Counter()
        self._by_state: Counter[SlotState] = Counter()
        self._open_by_key: Counter[str] = Counter()
        self._closing_of: Counter[ProcessId] = Counter()
        self._open_in_order: OrderedDict[GrantNumber, Slot] = OrderedDict()
        # What `max_opening` counts, and until when: what is being opened, and what the journal tells of, while its
        # process has not said what became of it. In the order in which it ends, because the journal is read first.
        self._opening_until: OrderedDict[GrantNumber, float] = OrderedDict()
        # Of those whose ends are counted on: for which processes they are closed.
        self._promised_to: Counter[ProcessId] = Counter()

    def __len__(self) -> int:
        return len(self.by_number)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self.by_number.values())

    def get(self, number: GrantNumber) -> Slot | None:
        """The slot that was granted under this number, while it is in use."""
        return self.by_number.get(number)

    def count_in(self, total: Total) -> None:
        """These slots are counted there from now on, and no longer where they were."""
        self.total.size -= len(self.by_number)
        total.size += len(self.by_number)
        self.total = total

    def of(self, process: ProcessId) -> list[Slot]:
        """The slots of one process."""
        return list(self._of_process.get(process, {}).values())

    def oldest_of(self, process: ProcessId) -> Slot | None:
        """The slot that a process has had for longest."""
        return next(iter(self._of_process.get(process, {}).values()), None)

    def give_to(self, slot: Slot, ticket: Ticket) -> None:
        """The slot goes to another ticket of its process."""
        self._forget_ticket(slot)
        slot.ticket = ticket
        self.by_ticket[slot.process, ticket] = slot

    def level_of(self, process: ProcessId, key: str) -> int:
        """How many slots a process has for a key."""
        return self.by_process_and_key[process, key]

    def closing_of(self, process: ProcessId) -> int:
        """How many resources of a process are being closed."""
        return self._closing_of.get(process, 0)

    def on_the_way(self, now: float) -> int:
        """How many slots will be free in a moment: their resources are being closed, and not for too long."""
        expected = self._expected
        while expected:
            slot = next(iter(expected.values()))
            if now < slot.expected_until:
                break
            self._expect_no_more(slot)
        return len(expected)

    def expect_end(self, slot: Slot, until: float, promised_to: ProcessId | None = None) -> None:
        """A slot that is being closed is counted on until then. Time only ever goes on between calls.

        promised_to: the process for which it is closed.
        """
        self._expect_no_more(slot)
        slot.expected_until = until
        slot.promised_to = promised_to
        self._expected[slot.number] = slot
        if promised_to is not None:
            self._promised_to[promised_to] += 1

    def promised_to(self, process: ProcessId) -> int:
        """How many slots are being closed for a process, as far as their ends are counted on."""
        return self._promised_to[process]

    def _expect_no_more(self, slot: Slot) -> None:
        if self._expected.pop(slot.number, None) is not None and slot.promised_to is not None:
            _decrement(self._promised_to, slot.promised_to)
            slot.promised_to = None

    def oldest_open(self, process: ProcessId) -> Slot | None:
        """Of the open slots of a process the one that was granted first."""
        slots = self._of_process.get(process, {}).values()
        return next((slot for slot in slots if slot.state is SlotState.OPEN), None)

    def open_in_order(self) -> Iterator[Slot]:
        """All open slots, in the order in which they were opened."""
        return iter(self._open_in_order.values())

    def next_disappointment(self, since: float) -> float:
        """When, after `since`, a slot is not counted on any longer; infinity if none is."""
        for slot in self._expected.values():
            if slot.expected_until > since:
                return slot.expected_until
        return math.inf

    def in_state(self, state: SlotState) -> int:
        """How many slots are in a state."""
        return self._by_state.get(state, 0)

    def open_for(self, key: str) -> int:
        """How many resources of this key are open."""
        return self._open_by_key[key]

    def staying_for(self, key: str) -> int:
        """How many slots of this key are not on their way out."""
        return self.by_key[key] - self._closing_by_key[key]

    def may_be_opening(self) -> int:
        """How many resources may be being opened, as far as anybody still believes it."""
        return len(self._opening_until)

    def remember(self, slot: Slot, now: float) -> None:
        """Enter a slot that the journal tells of. For a while its process is waited for to say more of it."""
        self.add(slot)
        self._opening_until[slot.number] = now + HEARD_WITHIN_S

    def heard(self, process: ProcessId) -> None:
        """A process says what became of its slots."""
        for slot in self._of_process.get(process, {}).values():
            if slot.state is not SlotState.OPENING:
                self._opening_until.pop(slot.number, None)

    def give_up_openings(self, now: float) -> None:
        """What has been opening for too long, or said nothing for too long, is not believed in any longer."""
        openings = self._opening_until
        while openings and next(iter(openings.values())) <= now:
            openings.popitem(last=False)

    def next_given_up(self) -> float:
        """When the next opening is not believed in any longer; infinity if there is none."""
        return next(iter(self._opening_until.values()), math.inf)

    def add(self, slot: Slot) -> None:
        """Enter a slot."""
        self.total.size += 1
        self.by_number[slot.number] = slot
        self._anywhere[slot.number] = slot
        self._of_process.setdefault(slot.process, {})[slot.number] = slot
        if slot.ticket:
            self.by_ticket[slot.process, slot.ticket] = slot
        _increment(self.levels, slot.process)
        _increment(self.by_key, slot.key)
        _increment(self.by_process_and_key, (slot.process, slot.key))
        self._count_state(slot)
        self.level_changed(slot.process, slot.key)

    def move(self, slot: Slot, state: SlotState) -> None:
        """Put a slot into another state."""
        if slot.state is state:
            return
        self._uncount_state(slot)
        slot.state = state
        self._count_state(slot)
        self.level_changed(slot.process, slot.key)

    def rename(self, slot: Slot, key: str) -> None:
        """The slot turns out to be for another key than was believed."""
        if slot.key != key:
            state = slot.state
            self.remove(slot)
            slot.key, slot.state = key, state
            self.add(slot)

    def remove(self, slot: Slot) -> None:
        """A slot is free."""
        self.total.size -= 1
        del self.by_number[slot.number]
        if self._anywhere.get(slot.number) is slot:
            del self._anywhere[slot.number]
        others = self._of_process[slot.process]
        del others[slot.number]
        if not others:
            del self._of_process[slot.process]
        self._forget_ticket(slot)
        self._opening_until.pop(slot.number, None)
        _decrement(self.levels, slot.process)
        _decrement(self.by_key, slot.key)
        _decrement(self.by_process_and_key, (slot.process, slot.key))
        self._uncount_state(slot)
        slot.state = SlotState.FREE
        self.level_changed(slot.process, slot.key)

    def _forget_ticket(self, slot: Slot) -> None:
        if slot.ticket and self.by_ticket.get((slot.process, slot.ticket)) is slot:
            del self.by_ticket[slot.process, slot.ticket]

    def _count_state(self, slot: Slot) -> None:
        _increment(self._by_state, slot.state)
        if slot.state is SlotState.OPENING:
            self._opening_until[slot.number] = slot.granted_at + OPENING_PATIENCE_S
        elif slot.state is SlotState.OPEN:
            _increment(self._open_by_key, slot.key)
            self._open_in_order[slot.number] = slot
        elif slot.state is SlotState.CLOSING:
            _increment(self._closing_by_key, slot.key)
            _increment(self._closing_of, slot.process)

    def _uncount_state(self, slot: Slot) -> None:
        _decrement(self._by_state, slot.state)
        if slot.state is SlotState.OPENING:
            self._opening_until.pop(slot.number, None)
        elif slot.state is SlotState.OPEN:
            _decrement(self._open_by_key, slot.key)
            del self._open_in_order[slot.number]
        elif slot.state is SlotState.CLOSING:
            self._expect_no_more(slot)
            _decrement(self._closing_by_key, slot.key)
            _decrement(self._closing_of, slot.process)


def _increment(counter: Counter[Any], entry: Any) -> None:
    """Add one. A Counter asks a function of Python for what it does not have."""
    counter[entry] = counter.get(entry, 0) + 1


def _decrement(counter: Counter[Any], entry: Any) -> None:
    """Take one away; a counter of processes or keys must not keep those that are long gone."""
    left = counter[entry] - 1
    if left:
        counter[entry] = left
    else:
        counter.pop(entry, None)  # a Counter's own deletion is a function of Python
