"""What the journal of the last server said, until somebody declares the pool or the budget that it is of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from mppool.core.decisions import RecordBudget, RecordPool
from mppool.core.events import Remembered
from mppool.core.share import Demand, of_budget
from mppool.ids import GrantNumber, ProcessId


class Memory:
    """Nothing is done with it before: nobody knows how what is remembered is opened, or under which bounds."""

    def __init__(self) -> None:
        self._pools: dict[str, RecordPool] = {}
        self._budgets: dict[str, RecordBudget] = {}
        self._slots: dict[str, list[Remembered]] = {}

    def take_in(
        self,
        pools: Iterable[RecordPool],
        budgets: Iterable[RecordBudget],
        slots: Iterable[Remembered],
    ) -> None:
        """This was written down."""
        self._pools.update((record.pool, record) for record in pools)
        self._budgets.update((record.budget, record) for record in budgets)
        for item in slots:
            self._slots.setdefault(item.pool, []).append(item)

    def recall_pool(self, name: str) -> tuple[RecordPool | None, list[Remembered]]:
        """What is known of a pool that was declared. It is not kept."""
        return self._pools.pop(name, None), self._slots.pop(name, [])

    def recall_budget(self, name: str) -> RecordBudget | None:
        """What is known of a budget that was declared. It is not kept."""
        return self._budgets.pop(name, None)

    def demands(self) -> dict[str, Demand]:
        """What pools and budgets have that nobody has declared."""
        counts = {name: len(items) for name, items in self._slots.items()}
        counts.update(Counter(of_budget(item.budget) for item in self._all() if item.budget))
        return {name: Demand(None, has, 0, 0, 0, known=False) for name, has in counts.items()}

    def count(self, process: ProcessId | None) -> int:
        """Slots of a process, or (None) of all."""
        return sum(process in (None, item.process) for item in self._all())

    def count_against(self, budget: str) -> int:
        """Slots that count against a budget."""
        return sum(item.budget == budget for item in self._all())

    def forget(self, process: ProcessId) -> tuple[list[GrantNumber], Counter[str]]:
        """The slots of a process that is gone, or has said what it holds; and how many counted against which budget."""
        gone = [item for item in self._all() if item.process == process]
        if gone:
            for name, items in list(self._slots.items()):
                left = [item for item in items if item.process != process]
                if left:
                    self._slots[name] = left
                else:
                    del self._slots[name]
        return [item.number for item in gone], Counter(item.budget for item in gone if item.budget)

    def _all(self) -> list[Remembered]:
        return [item for items in self._slots.values() for item in items]
