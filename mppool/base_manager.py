"""What both managers offer: pools, credentials and statistics, over whatever link."""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, Any, TypeVar

from mppool.core.events import Attach
from mppool.core.tokens import ForgetTokens
from mppool.credentials.identity import checked_identity
from mppool.errors import ConfigurationError
from mppool.hosting.declared import Declared
from mppool.ids import Session, own_process
from mppool.options import checked_name, checked_options, checked_whole
from mppool.process.executor import let_others
from mppool.recipe import SETTINGS, as_recipe
from mppool.stats.health import ManagerHealth, asked
from mppool.tokens.in_process import forget_all
from mppool.worker.member import Member, process_name
from mppool.worker.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from typing_extensions import Unpack  # for checkers only, which bring it

    from mppool.aio.pool import AsyncPool
    from mppool.aio.recipe import AsyncRecipe
    from mppool.arguments import AsyncPoolArguments, PoolArguments
    from mppool.credentials.shared import SharedCredential
    from mppool.credentials.shared_async import AsyncSharedCredential
    from mppool.recipe import Recipe
    from mppool.stats.shape import ManagerStats
    from mppool.wire.messages import Report
    from mppool.worker.budget import Budget
    from mppool.worker.local_pool import LocalPool

T = TypeVar("T")


class Manager:
    """What both managers offer: pools, credentials and statistics."""

    _member: Member

    def pool(
        self, name: str, recipe: Recipe[T] | Callable[..., T], **options: Unpack[PoolArguments]
    ) -> Pool[T]:
        """Declare a pool. Costs nothing: no process, no thread, no I/O before the first checkout.

        recipe: a Recipe, or a callable that opens a resource; hooks as keyword arguments go with the
            latter (`configure, on_checkout, reset, check, close, stats, describe, cancel`), and `open_in_caller=True`
            if a resource belongs to the thread that opens it.
        options: see PoolOptions. The same name again with the same options is the same pool.

        Raises ConfigurationError, which names the option, the value and what is allowed, and
        ConfigurationMismatch if this process has declared the pool differently.
        """
        checked_name("pool", name)
        said: dict[str, Any] = {**options}
        hooks = {setting: said[setting] for setting in SETTINGS if setting in said}
        given = {option: value for option, value in said.items() if option not in SETTINGS}
        checked = checked_options(name, self._with_budget_name(name, given))
        made = as_recipe(recipe, hooks)
        if checked.placement == "host":
            made = self._for_hosts(name, made)
        local = self._member.declare(name, made, checked)
        return self._pool_of(local, (self, name, recipe, said))

    def _for_hosts(self, pool: str, recipe: Recipe[Any]) -> Recipe[Any]:
        """The recipe of a pool whose resources are opened in hosts, as this process declares it."""
        from mppool.hosting.pool import declared

        return declared(pool, recipe)

    def _hosted(self) -> list[LocalPool]:
        """What this process has of pools with hosts."""
        return [
            local
            for local in list(self._member.local_pools.values())
            if isinstance(local.recipe, Declared)
        ]

    def apool(
        self,
        name: str,
        recipe: AsyncRecipe[T] | Callable[..., Awaitable[T]],
        **options: Unpack[AsyncPoolArguments],
    ) -> AsyncPool[T]:
        """Declare a pool of resources that belong to event loops. Costs nothing, as `pool` does.

        recipe: an AsyncRecipe, or a coroutine function that opens a resource; hooks as keyword arguments go with the
            latter, as in `pool`, each a coroutine function or a plain one that does not wait.
        options: see PoolOptions. The same cap holds for all loops of all processes.

        Raises what `pool` raises, and ConfigurationMismatch if this process has given the name to a `pool`.
        """
        from mppool.aio.bridge import LoopRecipe  # asyncio is loaded only where it is used
        from mppool.aio.recipe import ASYNC_HOOKS, as_async_recipe

        checked_name("pool", name)
        said: dict[str, Any] = {**options}
        hooks = {hook: said[hook] for hook in ASYNC_HOOKS if hook in said}
        given = {option: value for option, value in said.items() if option not in ASYNC_HOOKS}
        checked = checked_options(name, self._with_budget_name(name, given))
        if checked.placement == "host":
            raise ConfigurationError(
                f"pool {name!r}: placement='host' is not offered by apool: what belongs to an event loop lives in "
                "its process. Use manager.pool(..., placement='host') with a driver that blocks: "
                "`async with pool.acheckout() as connection`, and `await asyncio.to_thread(connection.execute, ...)`"
            )
        bridge = LoopRecipe(as_async_recipe(recipe, hooks))
        local = self._member.declare(name, bridge, checked)
        return self._apool_of(local, (self, name, recipe, said))

    def budget(self, name: str, max_size: int) -> Budget:
        """Declare one cap over several pools, for `manager.pool(..., budget=...)`. Costs nothing.

        The pools share it max-min by demand; each keeps its own `max_size` and `min_size` within it. The same name
        again with the same cap is the same budget.

        Raises ConfigurationError for a name or a cap that is not allowed, and ConfigurationMismatch if this process
        has declared the budget differently.
        """
        from mppool.worker.budget import Budget

        checked_name("budget", name)
        checked = checked_whole(f"budget {name!r}: max_size", max_size, 1)
        declared = self._member.declare_budget(name, checked)
        return Budget(declared, self._member, self.stats, (_rebuild_budget, (self, name, checked)))

    def _with_budget_name(self, pool: str, given: dict[str, Any]) -> dict[str, Any]:
        """The options of a pool, with the name of its budget. Raises ConfigurationError."""
        from mppool.worker.budget import Budget

        budget = given.get("budget")
        if budget is None:
            return given
        if not isinstance(budget, Budget):
            raise ConfigurationError(
                f"pool {pool!r}: budget={budget!r:.80} is not allowed: give what manager.budget(name, max_size) returns"
            )
        if budget.declared_for(self._member) is None:
            raise ConfigurationError(
                f"pool {pool!r}: budget {budget.name!r} is of another manager; a budget is for the pools of its own"
            )
        return {**given, "budget": budget.name}

    def _apool_of(self, local: LocalPool, declared: tuple[Any, ...]) -> AsyncPool[Any]:
        from mppool.aio.pool import AsyncPool

        return AsyncPool(local, self.stats, (_rebuild_apool, (*declared, local.mark)))

    def _pool_of(self, local: LocalPool, declared: tuple[Any, ...]) -> Pool[Any]:
        rebuild = (_rebuild_pool, (*declared, local.mark))
        if isinstance(local.recipe, Declared):
            from mppool.hosting.pool import HostedPool

            return HostedPool(local, self.stats, rebuild)
        guard = local.options.guard
        if not (local.recipe.guard if guard is None else guard):
            return Pool(local, self.stats, rebuild)
        from mppool.worker.guard import GuardedPool

        return GuardedPool(local, self.stats, rebuild)

    def credential(self, credential: Any, *, identity: str | None = None) -> SharedCredential:
        """A credential whose tokens are fetched once for all processes, for any Azure SDK client.

        credential: of azure-identity, or any other with `get_token`. Costs nothing before its first use.
        identity: what it stands for, the same in all processes; None: see `mppool.azure.identity_of`. If
            only a token can tell, tokens are shared by the threads of this process only.

        Raises ConfigurationError for an object that is not a credential, and if the extra `azure` is missing.
        """
        from mppool.credentials.shared import SharedCredential

        return SharedCredential(self, credential, identity=identity)

    def async_credential(
        self, credential: Any, *, identity: str | None = None
    ) -> AsyncSharedCredential:
        """The same for asyncio; a synchronous credential is run in a thread."""
        from mppool.credentials.shared_async import AsyncSharedCredential

        return AsyncSharedCredential(self, credential, identity=identity)

    def stats(self, *, survey: bool = False) -> ManagerStats:
        """Statistics of all pools and processes, JSON-compatible. All durations are seconds.

        survey: ask each database, on an idle connection, for its limit and its sessions (`database` of each pool).

        Without a server, the pools are those that this process has declared, with what it holds. After `shutdown`, processes
        keep what is open, and report it to the next server.
        """
        stats: Any = self._member.link.stats(survey=survey)
        if not stats:
            snapshot = self._unattached_snapshot()
            stats = self._merge(snapshot, self._member.report(False), seen=self._member.link.seen)
            stats["processes"], stats["server_pid"], stats["epoch"] = [], None, None
        stats.setdefault("budgets", {})  # an older server has none
        unknown = [name for name in self._member.local_pools if name not in stats["pools"]]
        if unknown:  # the server runs, but this process has not attached to it yet
            own = self._merge(self._unattached_snapshot(), self._member.report(False))
            stats["pools"].update({name: own["pools"][name] for name in unknown})
            stats["budgets"] = {**own["budgets"], **stats["budgets"]}
        found: ManagerStats = stats
        return found

    def health(self) -> ManagerHealth:
        """Whether the pools can serve: `status` "ok", "degraded" or "down", `reasons`, and `pools` by name.

        For readiness probes: nothing is opened, and no server is started. A server that does not answer within
        5 seconds is "down". No server is "ok", because the next checkout that needs one starts it.
        """
        return asked(self.stats)

    def forget_tokens(self, identity: str | None = None) -> None:
        """Have all processes drop the tokens of this identity. The next one that needs a token asks the issuer.

        Use it when rights were just granted or withdrawn. Sessions that were opened with the old tokens go on.

        identity: as in `stats()["tokens"]`; None: all identities, and also tokens that only one process has.
        """
        checked = checked_identity(identity, f"manager {self._member.name!r}: ")
        self._command_tokens(ForgetTokens(checked))
        # The word goes round on another connection; in this process no copy is used from now on.
        self._member.tokens.drop(checked)
        if checked is None:
            forget_all()

    def _command_tokens(self, event: ForgetTokens) -> None:
        self._member.link.command(event)

    @classmethod
    def register(cls, *arguments: Any, **keywords: Any) -> None:
        """Not offered: a driver must not share the server's process."""
        raise ConfigurationError(
            "register is not offered: what crashes in the server would take all pools with it; "
            "use multiprocessing.managers.SyncManager for other shared objects"
        )

    def _unattached_snapshot(self) -> dict[str, Any]:
        """What the books would say if this process alone were attached."""
        # Both from one copy of the library, whichever that is by now: see test_members.
        from mppool.core.books import Books

        books = Books(0)
        with self._member.inventory.lock:
            held = self._member.inventory.held()
        attach = Attach("", self._member.declarations(), held)
        books.apply(own_process(), Session(1), attach, time.monotonic())
        return books.snapshot()

    def _merge(
        self,
        snapshot: dict[str, Any],
        report: Report,
        uptime: float = 0.0,
        seen: bytes = b"",
    ) -> dict[str, Any]:
        return merged_alone(self._member.name, snapshot, report, uptime, seen)


def merged_alone(
    manager: str,
    snapshot: dict[str, Any],
    report: Report,
    uptime: float = 0.0,
    seen: bytes = b"",
) -> dict[str, Any]:
    """The statistics of a process that keeps the books itself, or of one that finds no server.

    seen: what the statistics of the last server said.
    """
    from mppool.stats.carried import Carried
    from mppool.stats.merge import ProcessFigures, Totals, merged

    pools = {one.pool: one for one in report.pools}
    figures = [ProcessFigures(own_process(), process_name(), pools, stale=False)]
    carried = Carried(math.inf)
    carried.take_in(seen)
    own = own_process()
    for process in [one for one in carried.living if (one.pid, one.birth) == (own.pid, own.birth)]:
        carried.heard(process)
    wall, now = time.time(), time.monotonic()
    for pool, entry in snapshot["pools"].items():
        for name, count in carried.books.get(pool, {}).items():
            entry["counters"][name] = max(count, entry["counters"].get(name, 0))
    began = {pool: round(wall - (now - one["born"]), 3) for pool, one in snapshot["pools"].items()}
    return merged(
        snapshot,
        figures,
        carried.add_to(Totals()),
        name=manager,
        server_pid=os.getpid(),
        uptime=uptime,
        began={**began, **carried.began},
        lift=carried.lift,
        pause=let_others,
    )


def refuse_initializer(manager: str, initializer: Any) -> None:
    """BaseManager.start has one; ours has no process in which it could run."""
    if initializer is not None:
        raise ConfigurationError(
            f"manager {manager!r}: start(initializer=...) is not offered: the server runs nothing of the "
            "application; do it in the recipe's open or configure hook"
        )


def _rebuild_pool(
    manager: Manager, name: str, recipe: Any, options: dict[str, Any], mark: str
) -> Pool[Any]:
    """The pool in another process.

    mark: of its declaration. A forked child has that declaration itself, credential and all: the copy of the
        credential that was pickled would look like somebody else's.
    """
    local = manager._member.local_pools.get(name)
    if local is not None and local.mark == mark:
        return manager._pool_of(local, (manager, name, recipe, options))
    pool = manager.pool(name, recipe, **options)
    if local is None:
        pool._local.mark = mark
        pool = manager._pool_of(pool._local, (manager, name, recipe, options))
    return pool


def _rebuild_budget(manager: Manager, name: str, max_size: int) -> Budget:
    """The budget in another process."""
    return manager.budget(name, max_size)


def _rebuild_apool(
    manager: Manager, name: str, recipe: Any, options: dict[str, Any], mark: str
) -> AsyncPool[Any]:
    """The pool in another process; see `_rebuild_pool`."""
    local = manager._member.local_pools.get(name)
    if local is not None and local.mark == mark:
        return manager._apool_of(local, (manager, name, recipe, options))
    pool = manager.apool(name, recipe, **options)
    if local is None:
        pool._local.mark = mark
        pool = manager._apool_of(pool._local, (manager, name, recipe, options))
    return pool
