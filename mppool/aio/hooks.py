"""What a task does with a resource that is its own: it awaits the hooks itself, in the loop that owns the resource.

Each hook here ends in one of three ways: the resource is the caller's, it is on its shelf, or it is being closed. That
holds for a cancellation at any await too.
"""

from __future__ import annotations

import asyncio
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from mppool.aio.bridge import LoopRecipe
from mppool.aio.recipe import settled
from mppool.errors import CheckoutTimeout
from mppool.logs import Log
from mppool.worker.callers import note_caller
from mppool.worker.checking import CHECK_GRACE_S
from mppool.worker.ending import close_soon
from mppool.worker.in_thread import in_thread

if TYPE_CHECKING:
    from mppool.aio.homes import OnLoop
    from mppool.aio.loop_tasks import Release
    from mppool.core.events import CloseReason
    from mppool.worker.inventory import PoolEntry
    from mppool.worker.local_pool import LocalPool
    from mppool.worker.principal import Principal

log = Log("mppool")


class TaskHooks:
    """The hooks of one pool. Each is awaited in the loop that owns the resource, which the entry knows."""

    def __init__(self, local: LocalPool) -> None:
        assert isinstance(local.recipe, LoopRecipe)
        self._local = local
        self._recipe = local.recipe.asynchronous

    # --- before a caller gets it ----------------------------------------------------------------------------

    async def prepare(
        self, entry: PoolEntry, principal: Principal | None, deadline: float | None
    ) -> bool:
        """Make a resource from the shelf ready for a caller; False if it has to be closed instead.

        Raises CheckoutTimeout where its check outlasts the deadline.
        """
        local, now = self._local, monotonic()
        if now >= entry.retire_at:
            self._close(entry, entry.retire_reason)
            return False
        if entry.token and principal is not None and time() >= entry.ask_at:
            here = entry.resource.home.context()
            goes_on = await in_thread(
                local.member.chores,
                lambda: here.run(local._goes_on, entry, principal),
                lambda same: entry.local.idle.put_where_it_lay(entry) if same else None,
            )
            if not goes_on:
                return False
            now = monotonic()
        idle_for = local.options.check_idle_for
        if (
            local.hooks.check is not None
            and idle_for is not None
            and now - entry.released_at >= idle_for
        ):
            if not await self.is_healthy(entry, deadline):
                return False
            now = monotonic()
        if local.watched or local.hooks.on_checkout is not None:
            await self.lend(entry)
        else:
            entry.uses += 1
            entry.lent_at = now
        return True

    async def lend(self, entry: PoolEntry) -> None:
        """The resource goes to a caller: count it, and tell the hook."""
        local = self._local
        entry.uses += 1
        entry.lent_at = monotonic()
        if local.watched:
            entry.warned = False
            note_caller(entry)
            local.member.housekeeper.expects(entry.lent_at + local.first_lease_limit_s)
        if local.hooks.on_checkout is None:
            return
        try:
            await settled(self._recipe.on_checkout(entry.resource.resource))
        except Exception as error:  # noqa: BLE001  # it is counted and logged
            self._note_raised("on_checkout", error)
        except GeneratorExit:  # perhaps by the garbage collector, in which no lock may be taken
            entry.inventory.leaked.append(entry)
            local.member.wake()
            raise
        except BaseException:  # cancelled: the caller gets no lease
            self._close(entry, "discarded")
            raise

    async def is_healthy(self, entry: PoolEntry, deadline: float | None = None) -> bool:
        """Run the check; a resource that fails it is closed.

        It is a task of its own: a caller that leaves it alone, at the deadline or cancelled, finds the resource on its shelf
        later. Raises CheckoutTimeout at the deadline.
        """
        local, limit = self._local, self._local.options.check_timeout
        local.count("checks")
        entry.checked_at = monotonic()
        check = entry.resource.home.tasks.spawn(self._outcome(entry, limit))
        left = None
        if deadline is not None:
            left = max(deadline - monotonic(), CHECK_GRACE_S)
        try:
            await asyncio.wait([check], timeout=left)
        except BaseException:
            check.add_done_callback(lambda _: self._after_lonely_check(entry, check))
            raise
        if check.cancelled():  # not with us: somebody ends all tasks
            self._close(entry, "discarded")
            return False
        if check.done():
            return self._judge(entry, check.result())
        check.add_done_callback(lambda _: self._after_lonely_check(entry, check))
        local.count("timeouts")
        raise CheckoutTimeout(
            f"pool {local.name!r}: the timeout passed while a resource was being checked; the check itself is "
            f"given up after check_timeout={limit:g} s; wait longer, or lower check_timeout"
        )

    async def _outcome(self, entry: PoolEntry, limit: float | None) -> Any:
        """True, False, or what the check raised."""
        try:
            held = entry.resource
            checking = settled(self._recipe.check(held.resource))
            return bool(await held.home.watch.bounded(checking, limit))
        except Exception as error:  # noqa: BLE001  # it is judged, logged and counted by the owner of the resource
            return error

    def _after_lonely_check(self, entry: PoolEntry, check: asyncio.Task[Any]) -> None:
        if check.cancelled() or check.exception() is not None:
            self._close(entry, "discarded")
        elif self._judge(entry, check.result()):
            entry.local.idle.put_back(entry)

    def _judge(self, entry: PoolEntry, outcome: Any) -> bool:
        """Whether the resource may be used; else it is closed. See `worker.checking` for what an outcome says."""
        local = self._local
        if outcome is True:
            return True
        if isinstance(outcome, (TimeoutError, asyncio.TimeoutError)):
            log.warning("pool %r: a check got no answer: %s", local.name, outcome)
            local.count("hung_checks")
            entry.doubtful = True
            local.backend_failed(entry, hung=True)
        elif isinstance(outcome, ConnectionError):
            log.warning("pool %r: a check found the backend gone: %s", local.name, outcome)
            local.backend_failed(entry)
        elif outcome is not False:
            local.count("check_errors")
            log.warning(
                "pool %r: a check raised; the resource is replaced", local.name, exc_info=outcome
            )
            self._close(entry, "discarded")
            return False
        self._close(entry, "unhealthy")
        return False

    # --- after its use --------------------------------------------------------------------------------------

    async def give_back(self, release: Release, *, suspect: bool = False) -> None:
        """A lease has ended. suspect: an exception ended its use, so it is checked before anybody gets it.

        A task of its own: a caller that is cancelled has given it back all the same.
        """
        entry, local = release.begins(), self._local
        limit = local.options.max_uses
        try:
            if monotonic() >= entry.retire_at:
                self._close(entry, entry.retire_reason)
            elif limit is not None and entry.uses >= limit:
                self._close(entry, "worn_out")
            elif not await self._was_reset(entry):
                self._close(entry, "discarded")
            elif not suspect or local.hooks.check is None or await self._is_sound(entry):
                entry.released_at = monotonic()
                local.idle.put_back(entry)
        finally:
            release.ends()

    async def _is_sound(self, entry: PoolEntry) -> bool:
        try:
            return await self.is_healthy(entry)
        except asyncio.CancelledError:  # its check puts it where it belongs
            return False

    async def _was_reset(self, entry: PoolEntry) -> bool:
        local, held = self._local, entry.resource
        if held is None:
            return False  # its loop has just been given up
        if local.hooks.reset is None or not (held.is_dirty or self.note_dirty(held)):
            return True
        held.is_dirty = False
        try:
            said = settled(self._recipe.reset(held.resource))
            await held.home.watch.bounded(said, local.options.check_timeout)
        except Exception as error:  # noqa: BLE001  # it is counted and logged
            self._note_raised("reset", error)
            if isinstance(error, ConnectionError):
                local.backend_failed(entry)
            return False
        except BaseException:  # the loop is being ended: nobody knows in which state it is
            self._close(entry, "discarded")
            raise
        return True

    def note_dirty(self, held: OnLoop) -> bool:
        """Whether it needs a reset, by its recipe; True where that raises: then its reset says what is the matter."""
        try:
            held.is_dirty = bool(self._recipe.needs_reset(held.resource))
        except Exception as error:  # noqa: BLE001  # it is counted and logged
            self._note_raised("needs_reset", error)
            held.is_dirty = True
        return held.is_dirty

    def _close(self, entry: PoolEntry, reason: CloseReason) -> None:
        close_soon(entry, reason)

    def _note_raised(self, hook: str, error: Exception) -> None:
        self._local.count("hook_errors")
        log.warning("pool %r: the hook %s raised", self._local.name, hook, exc_info=error)
