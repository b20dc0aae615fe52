"""AsyncPool: the public face of a pool whose resources belong to event loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mppool.aio.bridge import LoopRecipe
from mppool.aio.lease import AsyncCheckout, LabelledCheckout
from mppool.aio.lender import Lender
from mppool.core.events import Drain, WantReady
from mppool.errors import CheckoutTimeout, ConfigurationError, PoolClosed
from mppool.options import LONGEST_S, PoolOptions, checked_lease_label, checked_timeout
from mppool.worker.ending import retire
from mppool.worker.in_thread import in_thread
from mppool.worker.lanes import checked_lane
from mppool.worker.pool import _DEFAULT, CLOSE_PATIENCE_S, Pool
from mppool.worker.resizing import UNCHANGED

if TYPE_CHECKING:
    from mppool.stats.health import Health
    from mppool.stats.shape import AllStats, PoolStats
    from mppool.worker.local_pool import LocalPool

T = TypeVar("T")

_POLL_S = 0.02


class AsyncPool(Generic[T]):
    """One pool over all processes of an application, for asyncio. Made by `manager.apool(...)`.

    Its resources belong to the event loop that opened them; all loops of all processes share one cap. A coroutine
    of any loop may use it, before and after a fork; it pickles as its name, options, manager and recipe.
    """

    def __init__(
        self,
        local: LocalPool,
        all_stats: AllStats,
        rebuild: tuple[Callable[..., AsyncPool[T]], tuple[Any, ...]],
    ) -> None:
        assert isinstance(local.recipe, LoopRecipe)
        self._local = local
        self._lender: Lender = Lender(local, local.recipe)
        self._rebuild = rebuild
        self.name = local.name
        # Its commands block, and are used in threads.
        self._blocking: Pool[Any] = Pool(local, all_stats, (_never, ()))

    @property
    def options(self) -> PoolOptions:
        """The options as they were declared in this process."""
        return self._local.options

    def checkout(
        self,
        timeout: float | None = _DEFAULT,
        *,
        identity: str | None = None,
        credential: Any = None,
        lane: str | None = None,
        label: str | None = None,
    ) -> AsyncCheckout[T]:
        """Lend a resource: `async with pool.checkout() as resource`, or `lease = await pool.checkout()`.

        The arguments are those of `Pool.checkout`, and so are the errors that are raised when it is awaited; the timeout
        counts from then on. Tasks are served in the order in which they came, lane by lane. Raises ConfigurationError
        at once for a bad timeout, lane or label.
        """
        if timeout is not _DEFAULT and (
            type(timeout) is not float or not 0.0 <= timeout <= LONGEST_S
        ):
            timeout = checked_timeout(self.name, timeout)
        made: AsyncCheckout[T] = AsyncCheckout() if label is None else self._labelled(label)
        made._lender = self._lender
        made._held = []
        made._seconds = self._local.options.timeout if timeout is _DEFAULT else timeout
        made._lane = None
        if lane is not None or self._local.idle.has_lanes:
            made._lane = checked_lane(self._local, lane)
        made._for_whom = None if identity is None and credential is None else (identity, credential)
        return made

    def _labelled(self, label: str) -> AsyncCheckout[T]:
        made: LabelledCheckout[T] = LabelledCheckout()
        made._label = checked_lease_label(self.name, label)
        return made

    # --- what this process has ------------------------------------------------------------------------------

    @property
    def idle_here(self) -> int:
        """How many resources are idle in this process. Asks no other process."""
        return self._blocking.idle_here

    @property
    def in_use_here(self) -> int:
        """How many resources are lent in this process. Asks no other process."""
        return self._blocking.in_use_here

    # --- control --------------------------------------------------------------------------------------------

    async def stats(self) -> PoolStats:
        """See Pool.stats."""
        return await in_thread(self._local.member.chores, self._blocking.stats)

    async def health(self) -> Health:
        """See Pool.health."""
        return await in_thread(self._local.member.chores, self._blocking.health)

    async def resize(self, *, max_size: int | None = UNCHANGED, min_size: int = UNCHANGED) -> None:
        """See Pool.resize."""
        await in_thread(
            self._local.member.chores,
            lambda: self._blocking.resize(max_size=max_size, min_size=min_size),
        )

    async def reset(self, *, over: float = 0.0) -> None:
        """See Pool.reset."""
        await in_thread(self._local.member.chores, lambda: self._blocking.reset(over=over))

    async def drain(self, timeout: float = 30.0) -> int:
        """See Pool.drain."""
        seconds = checked_timeout(self.name, timeout)
        deadline = None if seconds is None else monotonic() + seconds
        generation = None
        while True:
            answer = await self._command(Drain(self.name, generation), deadline)
            generation = answer.generation
            if not answer.left or (deadline is not None and monotonic() >= deadline):
                return int(answer.left)
            await asyncio.sleep(_POLL_S)

    async def wait_ready(self, timeout: float | None = 30.0) -> bool:
        """See Pool.wait_ready. What is opened belongs to the running loop, if that is the pool's first one."""
        seconds = checked_timeout(self.name, timeout)
        deadline = None if seconds is None else monotonic() + seconds
        await self._lender.homes.here()
        while True:
            answer = await self._command(WantReady(self.name), deadline)
            if answer.closed or self._local.closed:
                raise PoolClosed(f"pool {self.name!r} is closed; nothing is opened any more")
            if answer.open >= answer.wanted:
                return True
            if deadline is not None and monotonic() >= deadline:
                raise CheckoutTimeout(
                    f"pool {self.name!r}: {answer.open} of {answer.wanted} resources (min_size) are open "
                    f"after {seconds:g} s{'; the last error was: ' + answer.error if answer.error else ''}"
                )
            await asyncio.sleep(_POLL_S)

    async def _command(self, event: Any, deadline: float | None) -> Any:
        link = self._local.member.link
        return await in_thread(self._local.member.chores, lambda: link.command(event, deadline))

    async def close_idle(self) -> int:
        """Close what is idle in this process, and return how many resources that were. The pool goes on."""
        return await in_thread(self._local.member.chores, self._blocking.close_idle)

    def close_idle_soon(self) -> None:
        """The same, for code that cannot await."""

        def close() -> None:
            self._blocking.close_idle()

        self._local.member.chores.add(close)

    async def aclose(self, *, everywhere: bool = False) -> None:
        """Stop lending in this process, in all of its loops; see Pool.close."""
        if everywhere:
            await in_thread(
                self._local.member.chores, lambda: self._blocking.close(everywhere=True)
            )
            return
        retire(self._local, self._local.close_here())
        deadline = monotonic() + CLOSE_PATIENCE_S
        while monotonic() < deadline and any(
            entry.state == "closing" for entry in self._local.entries()
        ):
            await asyncio.sleep(_POLL_S / 10)

    def __eq__(self, other: object) -> bool:
        # The same name declared again in this process is the same pool.
        return isinstance(other, AsyncPool) and self._local is other._local

    def __hash__(self) -> int:
        return hash(self._local)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._rebuild

    def __repr__(self) -> str:
        return f"<AsyncPool {self.name!r} of manager {self._local.member.name!r}>"


def _never() -> Any:
    raise ConfigurationError("this part of an AsyncPool is not pickled")
