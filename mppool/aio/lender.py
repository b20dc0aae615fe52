"""What lends the resources of one asynchronous pool to the tasks of this process, and takes them back."""

from __future__ import annotations

import asyncio
import traceback
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from mppool.aio.bridge import LoopRecipe
from mppool.aio.hooks import TaskHooks
from mppool.aio.loop_tasks import Release
from mppool.aio.recipe import has_hook, settled
from mppool.logs import Log
from mppool.process.fork import notice_fork
from mppool.worker.callers import note_caller
from mppool.worker.ending import close_soon
from mppool.worker.in_thread import in_thread
from mppool.worker.task_checkout import TaskCheckout
from mppool.worker.tasks import running_loop

if TYPE_CHECKING:
    from collections.abc import Coroutine

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

    def check_out(
        self, seconds: float | None, for_whom: tuple[str | None, Any] | None, lane: str | None
    ) -> Coroutine[Any, Any, PoolEntry]:
        """A resource, beyond the quickest way. for_whom: identity and credential, where they are named."""
        local = self.local
        home = self.by_loop.get(running_loop())
        if (
            home is None
            or home.is_over
            or for_whom is not None
            or local.recipe.credential is not None
            or not (local.ours[0] and local.is_sealed)
        ):
            return self._prepare_and_check_out(seconds, for_whom, lane)
        key = home.key_for(local.default_key)
        return TaskCheckout(home.desk, self._hooks, key, seconds, None, lane).run()

    async def _prepare_and_check_out(
        self, seconds: float | None, for_whom: tuple[str | None, Any] | None, lane: str | None
    ) -> PoolEntry:
        """The same, where process or loop are new to the pool, or an identity or a credential is involved."""
        local = self.local
        if not local.ours[0]:  # forked by somebody who told nobody
            notice_fork()
        home = self.by_loop.get(running_loop())
        if home is None or home.is_over:
            home = await self.homes.here()
        started = monotonic()
        if not local.is_sealed:
            await in_thread(local.member.asker, local.member.seal)
        principal = None
        if for_whom is not None or local.recipe.credential is not None:
            identity, credential = for_whom or (None, None)
            principal = await self._principal(home, identity, credential, seconds)
        key = home.key_for(local.default_key if principal is None else principal.key)
        if principal is not None:
            principal.key = key
            if principal.fetched is not None and seconds is not None:
                seconds = max(0.0, seconds - (monotonic() - started))
        return await TaskCheckout(home.desk, self._hooks, key, seconds, principal, lane).run()

    def note_lent(self, entry: PoolEntry) -> None:
        """A checkout has come to this resource beyond the quickest way."""
        home: Home = entry.resource.home
        if entry.shelf is not home.shelf:
            home.look_at_shelf()
        if self.local.notes_callers:
            note_caller(entry)
            if self.local.options.track_leaks:
                entry.stack = "".join(traceback.format_stack()[:-2])

    async def _principal(
        self, home: Home, identity: str | None, credential: Any, seconds: float | None
    ) -> Principal | None:
        """For whom this is, which may take a token."""
        local = self.local
        if credential is None and (identity is not None or local.recipe.credential is None):
            return local.identities.of(identity, credential, seconds)
        here = home.context()
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
            and not self._hooks.note_dirty(held)
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

        Returns what the caller awaits. None: the resource is gone, or others wait for it, so the caller need not.
        """
        home = self._home_of_released(entry)
        if home is None:
            return None
        work = partial(self._hooks.give_back, suspect=True) if suspect else self._hooks.give_back
        release = Release(home.tasks, entry)
        if home.loop is running_loop():
            others_wait = entry.key in self.local.idle.line.waiters
            return release.start(work, is_awaited=not others_wait)
        return asyncio.shield(
            asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(release), home.loop))
        )

    def give_back_soon(self, entry: PoolEntry) -> None:
        """The same, where nothing can be awaited. Called by any thread."""
        home = self._home_of_released(entry)
        if home is not None:
            asyncio.run_coroutine_threadsafe(
                self._hooks.give_back(Release(home.tasks, entry)), home.loop
            )

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
