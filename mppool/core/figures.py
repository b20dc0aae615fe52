"""What the books say of pools and budgets for the statistics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mppool.core.budget import BudgetBooks
from mppool.core.pool import PoolBooks
from mppool.core.slot import SlotState
from mppool.ids import ProcessId


def all_figures(
    labels: dict[ProcessId, str], pools: dict[str, PoolBooks], budgets: Iterable[BudgetBooks]
) -> dict[str, Any]:
    """JSON-compatible figures of all processes, with their labels, of all pools and of all budgets."""
    return {
        "processes": [process_figures(process, label) for process, label in labels.items()],
        "pools": {name: pool_figures(pool) for name, pool in pools.items()},
        "budgets": {budget.name: budget_figures(budget) for budget in budgets},
    }


def process_figures(process: ProcessId, label: str) -> dict[str, Any]:
    """JSON-compatible."""
    return {
        "pid": process.pid,
        "birth": process.birth,
        "member": process.member,
        "label": label,
    }


def pool_figures(pool: PoolBooks) -> dict[str, Any]:
    """JSON-compatible but for the processes of slots; `stats.merge` adds what the processes know."""
    return {
        "name": pool.name,
        "placement": pool.declarations.options.placement,
        "max_size": pool.capacity.declared,
        "share": pool.machine.size(),
        "min_size": pool.min_size.size,
        "budget": None if pool.budget is None else pool.budget.name,
        "lanes": None if pool.lanes is None else pool.lanes.figures(),
        "size": len(pool.slots),
        "opening": pool.slots.in_state(SlotState.OPENING),
        "waiting": len(pool.waiting),
        "breaker": pool.breakers.worst_state(),
        "identities": len(pool.slots.by_key),
        "generation": pool.generations.current,
        "closed": pool.generations.closed,
        "counters": dict(pool.counters),
        "born": pool.born,
        # Rows of number, key, state and process, because there may be many thousands of them.
        "slots": [(slot.number, slot.key, slot.state._value_, slot.process) for slot in pool.slots],
    }


def budget_figures(budget: BudgetBooks) -> dict[str, Any]:
    """JSON-compatible. size: with what only the journal tells of yet."""
    members = sorted(budget.members.items())
    return {
        "name": budget.name,
        "max_size": budget.bound.value,
        "size": budget.total.size,
        "waiting": sum(len(pool.waiting) for _, pool in members),
        "pools": {name: len(pool.slots) for name, pool in members},
    }
