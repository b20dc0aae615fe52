"""The budgets of one server: declared, set, and found for the pools that name them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mppool.core.budget import BudgetBooks
from mppool.core.decisions import Notice, RecordBudget
from mppool.core.events import BudgetDeclaration, Declaration, ResizeBudget, Share
from mppool.core.memory import Memory
from mppool.core.outbox import Outbox
from mppool.core.pool import PoolBooks
from mppool.core.share import Demand, Shares, of_budget
from mppool.ids import ProcessId


class Budgets:
    """By name. One that was declared stays, as a pool does.

    shares: what other machines leave to this one. touch: is told of every pool that may have another deadline.
    """

    def __init__(
        self, outbox: Outbox, memory: Memory, shares: Shares, touch: Callable[[Any], object]
    ) -> None:
        self._outbox = outbox
        self._memory = memory
        self._shares = shares
        self._touch = touch
        self._by_name: dict[str, BudgetBooks] = {}

    def __iter__(self) -> Iterator[BudgetBooks]:
        return iter(self._by_name.values())

    def __getitem__(self, name: str) -> BudgetBooks:
        return self._by_name[name]

    def declare(self, said: BudgetDeclaration, pool: str, process: ProcessId, now: float) -> None:
        """A process declares a budget, with one of its pools. Between processes the newest wins, with one warning."""
        made_at = now - said.age
        budget = self._by_name.get(said.budget)
        if budget is None:
            budget = self._begin(said, made_at)
        before = budget.bound.declared
        if budget.declare(said, made_at):
            text = f"max_size={before} became {said.max_size}"
            text = f"this declaration of budget {said.budget!r} replaces an older one: {text}"
            self._outbox.tell(process, Notice(pool, text))
            self._outbox.write_down(budget.record())
            self._settle(budget, now)

    def _begin(self, said: BudgetDeclaration, made_at: float) -> BudgetBooks:
        unclaimed = self._memory.count_against(said.budget)
        budget = self._by_name[said.budget] = BudgetBooks(said, made_at, unclaimed, self._touch)
        record = self._memory.recall_budget(said.budget)
        if record is not None:
            budget.restore(record)
        share = self._shares.of(of_budget(said.budget))
        if share is not None:
            budget.limit(share.size)
        return budget

    def take_share(self, share: Share, now: float) -> None:
        """Other machines leave so much of a budget to this one; of one that nobody has declared it counts later."""
        for budget in self:
            if of_budget(budget.name) == share.pool:
                budget.limit(share.size)
                self._settle(budget, now)

    def demands(self) -> dict[str, Demand]:
        """What each budget has and could use, as if it were a pool."""
        return {
            of_budget(budget.name): Demand(
                budget.bound.value,
                budget.total.size,
                sum(len(pool.waiting) for pool in budget.members.values()),
                budget.cap,
                sum(pool.min_size.target() for pool in budget.members.values()),
                pools=tuple(budget.members),
            )
            for budget in self
        }

    def resize(self, event: ResizeBudget, now: float) -> None:
        """Another cap for a budget. KeyError: nobody has declared it."""
        budget = self._by_name[event.budget]
        budget.resize(event.max_size, now)
        self._outbox.write_down(budget.record())
        self._settle(budget, now)

    def place(self, pool: PoolBooks, declaration: Declaration, now: float) -> None:
        """The pool counts against the budget that the newest declaration names."""
        is_newest = now - declaration.age >= pool.declarations.declared_at
        options = declaration.options if is_newest else pool.declarations.options
        budget = None if options.budget is None else self._by_name[options.budget]
        before = pool.budget
        pool.place_under(budget)
        if before is not None and before is not budget:
            self._settle(before, now)

    def claimed(self, counted: Mapping[str, int], now: float) -> None:
        """So many slots that only the journal told of are gone, or count with their pools from now on."""
        for name, count in counted.items():
            budget = self._by_name.get(name)
            if budget is not None:
                budget.total.size -= count
                self._settle(budget, now)

    def records(self) -> list[RecordBudget]:
        """What the next server must know."""
        return [budget.record() for budget in self]

    def _settle(self, budget: BudgetBooks, now: float) -> None:
        pool = next(iter(budget.members.values()), None)
        if pool is not None:  # it settles all of them
            budget.settle(pool, now)
