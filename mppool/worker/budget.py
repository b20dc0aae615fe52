"""Budget: one cap over several pools, for users; and what a process has declared of one."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from mppool.core.events import BudgetDeclaration, ResizeBudget
from mppool.errors import ConfigurationError, ConfigurationMismatch
from mppool.options import checked_whole

if TYPE_CHECKING:
    from mppool.options import PoolOptions
    from mppool.stats.shape import BudgetStats, ManagerStats
    from mppool.worker.context import Context


class DeclaredBudget:
    """A budget as this process has declared it. It goes to the books with the pools that name it."""

    def __init__(self, name: str, max_size: int) -> None:
        self.name = name
        self.max_size = max_size
        self.declared_at = monotonic()

    def declaration(self) -> BudgetDeclaration:
        """What the books are told."""
        return BudgetDeclaration(self.name, self.max_size, monotonic() - self.declared_at)

    def check_same(self, max_size: int) -> None:
        """Raises ConfigurationMismatch if a second declaration in this process differs from the first."""
        if max_size != self.max_size:
            raise ConfigurationMismatch(
                f"budget {self.name!r} is declared twice in this process, with max_size={self.max_size} and "
                f"{max_size}; declare it once, or use another name; `resize` changes it while it runs"
            )

    def check_min_sizes(self, pool: str, options: PoolOptions, others: dict[str, int]) -> None:
        """Raises ConfigurationError if its pools would keep more open than there may be. others: of the other pools."""
        kept = {**others, pool: options.min_size}
        if options.min_size and sum(kept.values()) > self.max_size:
            each = ", ".join(f"{name} {least}" for name, least in kept.items() if least)
            raise ConfigurationError(
                f"pool {pool!r}: min_size={options.min_size} is not allowed: the pools of budget {self.name!r} "
                f"would keep {sum(kept.values())} resources open ({each}), and it has max_size={self.max_size}; "
                "lower a min_size or raise the budget's max_size"
            )


class Budget:
    """One cap over several pools of a manager. Made by `manager.budget(...)`, for `manager.pool(..., budget=it)`.

    Safe to use from any thread, before and after a fork; pickles as its name, cap and manager.

    max_size: as this process declared it. `resize` sets another one, which `stats` shows.
    """

    def __init__(
        self,
        declared: DeclaredBudget,
        member: Context,
        all_stats: Callable[[], ManagerStats],
        rebuild: tuple[Callable[..., Budget], tuple[Any, ...]],
    ) -> None:
        self._declared = declared
        self._member = member
        self._all_stats = all_stats
        self._rebuild = rebuild
        self.name = declared.name
        self.max_size = declared.max_size

    def resize(self, max_size: int) -> None:
        """Change the cap, for all processes at once. Above a lowered cap, idle and released resources are closed.

        It holds until a later declaration gives a different value from the last one. Raises ConfigurationError for a
        cap that is not allowed, and PoolError if no process has used a pool of this budget yet.
        """
        self._member.link.command(resize_of(self.name, max_size))

    def stats(self) -> BudgetStats:
        """Statistics of the budget over all its pools and processes, JSON-compatible."""
        found = self._all_stats()["budgets"].get(self.name)
        if found is None:  # no pool has named it yet
            return {
                "name": self.name,
                "max_size": self.max_size,
                "size": 0,
                "waiting": 0,
                "pools": {},
            }
        return found

    def declared_for(self, member: Context) -> DeclaredBudget | None:
        """What was declared, for pools of the same manager; None: it is of another one."""
        return self._declared if member is self._member else None

    def __eq__(self, other: object) -> bool:
        # The same name declared again in this process is the same budget.
        return isinstance(other, Budget) and self._declared is other._declared

    def __hash__(self) -> int:
        return hash(self._declared)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._rebuild

    def __repr__(self) -> str:
        return f"<Budget {self.name!r} of manager {self._member.name!r}, max_size={self.max_size}>"


def resize_of(budget: str, max_size: int) -> ResizeBudget:
    """The event for another cap. Raises ConfigurationError."""
    return ResizeBudget(budget, checked_whole(f"budget {budget!r}: max_size", max_size, 1))
