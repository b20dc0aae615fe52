"""Checkout of blocking resources for asyncio: a task waits for a future, and what blocks happens in a thread.

A task stands in the same line as the threads that wait (see tasks.py), and takes no thread while it does. Hooks that block
(check, on_checkout, reset) run in threads of the pool's own, not in the loop's executor.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from mppool.logs import Log
from mppool.process.fork import notice_fork
from mppool.worker.awaited import AwaitedCheckout
from mppool.worker.in_thread import in_thread
from mppool.worker.inventory import NEVER
from mppool.worker.lease import AsyncLease, Lease
from mppool.worker.task_checkout import TaskCheckout
from mppool.worker.tasks import Desk

if TYPE_CHECKING:
    from collections.abc import Callable

    from mppool.worker.inventory import PoolEntry
    from mppool.worker.local_pool import LocalPool
    from mppool.worker.principal import Principal

T = TypeVar("T")

log = Log("mppool")


class ThreadHooks:
    """How a blocking resource is made ready for a task: what may block happens in a thread. See task_checkout.Hooks."""

    def __init__(self, local: LocalPool) -> None:
        self._local = local

    async def prepare(
        self, entry: PoolEntry, principal: Principal | None, deadline: float | None
    ) -> bool:
        """A resource from the shelf is made ready; False: it had to be closed instead."""
        local, now = self._local, monotonic()
        if now < entry.retire_at and now - entry.released_at < local.trust_s:
            local.lend(entry, now)
            return True
        return await in_thread(
            local.member.chores,
            lambda: local.prepare(entry, monotonic(), principal, deadline),
            lambda is_ready: self._give_back(entry) if is_ready else None,
        )

    async def lend(self, entry: PoolEntry) -> None:
        """A resource that was opened a moment ago is made ready."""
        if self._local.hooks.on_checkout is None:
            self._local.lend(entry, monotonic())
            return
        await in_thread(
            self._local.member.chores,
            lambda: self._local.lend(entry, monotonic()),
            lambda _: self._give_back(entry),
        )

    def _give_back(self, entry: PoolEntry) -> None:
        """Its task was cancelled meanwhile. In a thread, because a reset may take its time."""
        self._local.put_back_slowly(entry, monotonic())


class Desks:
    """The desks of a pool, one for each event loop of this process. See Keeper."""

    def __init__(self) -> None:
        self._by_loop: dict[asyncio.AbstractEventLoop, Desk] = {}

    def here(self, local: LocalPool) -> Desk:
        """Of the running loop. Raises RuntimeError where none runs."""
        loop = asyncio.get_running_loop()
        desk = self._by_loop.get(loop)
        if desk is None:
            desk = self._by_loop.setdefault(loop, Desk(local, loop))
            local.member.housekeeper.look_after(self)
        return desk

    def look(self, now: float) -> float:
        """What tasks that were never finished have left."""
        for loop, desk in list(self._by_loop.items()):
            desk.look_after_deserted()
            if loop.is_closed():
                self._by_loop.pop(loop, None)
        return NEVER

    def is_over(self) -> bool:
        """Nothing to look after while no loop uses the pool."""
        return not self._by_loop


class AsyncCheckout(AwaitedCheckout[T, AsyncLease[T]]):
    """What `pool.acheckout()` returns."""

    __slots__ = ("_desks", "_lane", "_local", "_make", "_seconds", "_whose")

    def __init__(
        self,
        local: LocalPool,
        desks: Desks,
        seconds: float | None,
        whose: tuple[str | None, Any],
        make: Callable[[PoolEntry], Lease[T]],
        lane: str | None = None,
    ) -> None:
        """seconds: to wait, from when this is awaited. whose: identity and credential. make: the lease of an entry.

        lane: None in a pool without lanes.
        """
        self._lane = lane
        self._local = local
        self._desks = desks
        self._seconds = seconds
        self._whose = whose
        self._make = make

    async def _checkout(self) -> AsyncLease[T]:
        local, seconds, started = self._local, self._seconds, monotonic()
        notice_fork()
        desk = self._desks.here(local)
        if not local.is_sealed:
            await in_thread(local.member.asker, local.member.seal)
        principal = await self._principal()
        key = local.default_key if principal is None else principal.key
        if principal is not None and principal.fetched is not None and seconds is not None:
            seconds = max(0.0, seconds - (monotonic() - started))
        hooks, lane = ThreadHooks(local), self._lane
        entry = await TaskCheckout(desk, hooks, key, seconds, principal, lane).run()
        return self._make(entry).for_asyncio()

    async def _principal(self) -> Principal | None:
        """For whom this is, which may take a token."""
        local, (identity, credential) = self._local, self._whose
        if credential is None and (identity is not None or local.recipe.credential is None):
            return local.identities.of(identity, credential, self._seconds)
        return await in_thread(
            local.member.chores, lambda: local.identities.of(identity, credential, self._seconds)
        )
