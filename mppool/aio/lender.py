"""What lends the resources of one asynchronous pool to the tasks of this process, and takes them back."""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from time import monotonic
from typing import TYPE_CHECKING, Any

from mppool.aio.bridge import LoopRecipe, opens_in
from mppool.aio.hooks import TaskHooks
from mppool.aio.recipe import has_hook, settled
from mppool.logs import Log
from mppool.process.fork import notice_fork
from mppool.worker.ending import close_soon
from mppool.worker.task_checkout import TaskCheckout
from mppool.worker.tasks import in_thread, running_loop

if TYPE_CHECKING:
    from mppool.aio.homes import Home
    from mppool.worker.inventory import PoolEntry
    from mppool.worker.local_pool import LocalPool
    from mppool.worker.principal import Principal

log = Log("mppool")


class Lender:
    """Between leases and the pool of this process. It holds nothing itself.

    by_loop: that of the homes, one step nearer for warm checkouts.
    """

    def __init__(self, local: LocalPool, recipe: LoopRecipe) -> None:
        self.local = local
        self.name = local.name
        self.homes = recipe.homes_of(local)
        self.by_loop = self.homes.by_loop
        self._recipe = recipe
        self._hooks = TaskHooks(local)

    async def check_out(
        self, seconds: float | None, identity: str | None, credential: Any, lane: str | None
    ) -> PoolEntry:
        """A resource, beyond the quickest way."""
        local = self.local
        if not local.ours[0]:  # forked by somebody who told nobody
            notice_fork()
        home = self.by_loop.get(running_loop())
        if home is None or home.is_over:
            home = await self.homes.here()
        started = monotonic()
        if not local.is_sealed:
            await in_thread(local.member.asker, local.member.seal)
        where = opens_in.set(home)
        try:
            principal = None
            if (
                identity is not None
                or credential is not None
                or local.recipe.credential is not None
            ):
                principal = await self._principal(identity, credential, seconds)
            key = home.key_for(local.default_key if principal is None else principal.key)
            if principal is not None:
                principal.key = key
                if principal.fetched is not None and seconds is not None:
                    seconds = max(0.0, seconds - (monotonic() - started))
            entry = await TaskCheckout(home.desk, self._hooks, key, seconds, principal, lane).run()
        finally:
            try:
                opens_in.reset(where)
            except ValueError:
                pass  # the garbage collector ends this coroutine, in another context: nobody looks there
        if entry.shelf is not home.shelf:
            home.look_at_shelf()
        return entry

    async def _principal(
        self, identity: str | None, credential: Any, seconds: float | None
    ) -> Principal | None:
        """For whom this is, which may take a token."""
        local = self.local
        if credential is None and (identity is not None or local.recipe.credential is None):
            return local.identities.of(identity, credential, seconds)
        here = copy_context()  # it says in which loop a credential is asked
        return await in_thread(
            local.member.chores,
            lambda: here.run(local.identities.of, identity, credential, seconds),
        )

    def is_clean(self, entry: PoolEntry) -> bool:
        """Whether a release is nothing but an append, because there is nothing to reset."""
        local, options = self.local, self.local.options
        return (
            local.hooks.reset is not None
            and options.max_uses is None
            and options.keep
            and not local.watched
            and (held := entry.resource) is not None
            and not self._recipe.asynchronous.needs_reset(held.resource)
        )

    async def cancel(self, entry: PoolEntry) -> bool:
        """Run the recipe's hook; whether the driver was told."""
        recipe = self._recipe.asynchronous
        if not has_hook(recipe, "cancel"):
            return False
        try:
            return await settled(recipe.cancel(entry.resource.resource)) is not False
        except Exception:
            self.local.count("hook_errors")
            log.warning("pool %r: the cancel hook raised", self.name, exc_info=True)
            return False

    def give_back(self, entry: PoolEntry, *, suspect: bool) -> asyncio.Future[None] | None:
        """In the loop that owns the resource; to the end, also where the caller is cancelled.

        Returns what the caller awaits; None: nothing.
        """
        home = self._home_of_released(entry)
        if home is None:
            return None
        work = self._hooks.give_back(entry, suspect=suspect)
        if home.loop is running_loop():
            return home.finish(work)
        return asyncio.shield(
            asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, home.loop))
        )

    def give_back_soon(self, entry: PoolEntry) -> None:
        """The same, where nothing can be awaited. Called by any thread."""
        home = self._home_of_released(entry)
        if home is not None:
            asyncio.run_coroutine_threadsafe(self._hooks.give_back(entry, suspect=False), home.loop)

    def _home_of_released(self, entry: PoolEntry) -> Home | None:
        """Where what was released is looked after; None: it is gone, or being closed."""
        if not entry.inventory.end_lease(entry):
            log.warning("pool %r: a lease was released after it had been killed", self.name)
            return None
        home: Home = entry.resource.home
        if not home.runs:
            close_soon(entry, "discarded")
            return None
        return home
