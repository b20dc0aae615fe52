"""The slots of one pool, and the counts that are derived from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from mppool.core.slot import Slot, SlotState
from mppool.ids import GrantNumber, ProcessId


class SlotTable:
    """All slots in use. The counts change only here, together with the slots.

    levels: slots by process. closing: slots whose resources are being closed.
    """

    def __init__(self) -> None:
        self._slots: dict[GrantNumber, Slot] = {}
        self.levels: Counter[ProcessId] = Counter()
        self.by_key: Counter[str] = Counter()
        self.closing: dict[GrantNumber, Slot] = {}
        self._by_both: Counter[tuple[ProcessId, str]] = Counter()
        self._by_state: Counter[SlotState] = Counter()
        self._open_by_key: Counter[str] = Counter()
        self._closing_of: Counter[ProcessId] = Counter()

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots.values())

    def get(self, number: GrantNumber) -> Slot | None:
        """The slot that was granted under this number, while it is in use."""
        return self._slots.get(number)

    def of(self, process: ProcessId) -> list[Slot]:
        """The slots of one process."""
        return [slot for slot in self._slots.values() if slot.process == process]

    def level_of(self, process: ProcessId, key: str) -> int:
        """How many slots a process has for a key."""
        return self._by_both[process, key]

    def closing_of(self, process: ProcessId) -> int:
        """How many resources of a process are being closed."""
        return self._closing_of[process]

    def on_the_way(self, now: float) -> int:
        """How many slots will be free in a moment: their resources are being closed, and not for too long."""
        return sum(now < slot.expected_until for slot in self.closing.values())

    def in_state(self, state: SlotState) -> int:
        """How many slots are in a state."""
        return self._by_state[state]

    def has_working(self, key: str) -> bool:
        """Whether some resource of this key is open."""
        return self.open_for(key) > 0

    def open_for(self, key: str) -> int:
        """How many resources of this key are open."""
        return self._open_by_key[key]

    def staying_for(self, key: str) -> int:
        """How many slots of this key are not on their way out."""
        return self.by_key[key] - sum(slot.key == key for slot in self.closing.values())

    def add(self, slot: Slot) -> None:
        """Enter a slot."""
        self._slots[slot.number] = slot
        self.levels[slot.process] += 1
        self.by_key[slot.key] += 1
        self._by_both[slot.process, slot.key] += 1
        self._count_state(slot)

    def move(self, slot: Slot, state: SlotState) -> None:
        """Put a slot into another state."""
        self._uncount_state(slot)
        slot.state = state
        self._count_state(slot)

    def remove(self, slot: Slot) -> None:
        """A slot is free."""
        del self._slots[slot.number]
        _decrement(self.levels, slot.process)
        _decrement(self.by_key, slot.key)
        _decrement(self._by_both, (slot.process, slot.key))
        self._uncount_state(slot)
        slot.state = SlotState.FREE

    def _count_state(self, slot: Slot) -> None:
        self._by_state[slot.state] += 1
        if slot.state is SlotState.OPEN:
            self._open_by_key[slot.key] += 1
        elif slot.state is SlotState.CLOSING:
            self.closing[slot.number] = slot
            self._closing_of[slot.process] += 1

    def _uncount_state(self, slot: Slot) -> None:
        _decrement(self._by_state, slot.state)
        if slot.state is SlotState.OPEN:
            _decrement(self._open_by_key, slot.key)
        elif slot.state is SlotState.CLOSING:
            del self.closing[slot.number]
            _decrement(self._closing_of, slot.process)


def _decrement(counter: Counter[Any], entry: Any) -> None:
    """Take one away; a counter of processes or keys must not keep those that are long gone."""
    counter[entry] -= 1
    if not counter[entry]:
        del counter[entry]
