"""SharedAsyncPool: the pool class for asynchronous engines, whose connections belong to event loops.

SQLAlchemy calls a pool from a greenlet of the task, in which what has to wait is awaited (`await_only`). The hooks of the
recipe run in tasks of the owning loop, each in a greenlet of its own, for connecting and closing await too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.util.concurrency import await_only, greenlet_spawn, in_greenlet

from mppool.aio.recipe import AsyncRecipe
from mppool.aio.sockets import shut_down
from mppool.integrations.sqlalchemy import opening
from mppool.integrations.sqlalchemy.pool import SharedPool
from mppool.logs import Log
from mppool.odbc.connection_thread import close_without_loop, leave_to_executor

if TYPE_CHECKING:
    from mppool.aio.pool import AsyncPool
    from mppool.integrations.sqlalchemy.record import Held
    from mppool.recipe import Opening

log = Log("mppool.sqlalchemy")


class AsyncEngineRecipe(AsyncRecipe["Held"]):
    """The recipe of an engine, for a pool of event loops."""

    def __init__(self, recipe: opening.EngineRecipe) -> None:
        self._recipe = recipe

    def __reduce__(self) -> tuple[Any, ...]:
        return AsyncEngineRecipe, (self._recipe,)

    async def open(self, opening: Opening) -> Held:
        """Have SQLAlchemy connect, with all its events."""
        held: Held = await greenlet_spawn(self._recipe.open, opening)
        return held

    async def check(self, held: Held) -> bool:
        """The dialect's ping, for background checks."""
        return bool(await greenlet_spawn(self._recipe.check, held))

    async def close(self, held: Held) -> None:
        """Close it as SQLAlchemy does, with its event."""
        connection, pool = held.connection, held.pool
        try:
            await greenlet_spawn(self._recipe.close, held)
        except BaseException:
            if connection is not None and opening.driver_of(pool._dialect) == "aioodbc":
                leave_to_executor(pool._dialect.get_driver_connection(connection))
            raise

    def abandon(self, held: Held) -> None:
        """End it without its event loop, as far as its driver can do that."""
        self._recipe.open_here.discard(held)
        connection, held.connection, held.record = held.connection, None, None
        if connection is None:
            return
        driver: Any = held.pool._dialect.get_driver_connection(connection)
        if hasattr(driver, "pgconn"):  # psycopg
            driver.pgconn.finish()
            return
        if opening.driver_of(held.pool._dialect) != "aioodbc":
            shut_down(getattr(driver, "_transport", None))  # asyncpg's
            return
        try:
            close_without_loop(driver)
        except Exception:
            log.debug("a connection without its event loop could not be closed", exc_info=True)

    async def describe(self, held: Held) -> str:
        """Dialect and driver."""
        return self._recipe.describe(held)

    def fingerprint(self) -> str:
        """What the engine's URL and arguments say."""
        return self._recipe.fingerprint()


class SharedAsyncPool(SharedPool):
    """Made by `shared_async_pool`, which says of which manager and of which name it is."""

    _is_asyncio = True  # as in AsyncAdaptedQueuePool: refused by create_engine

    def _declare(self, recipe: opening.EngineRecipe) -> tuple[Any, opening.EngineRecipe]:
        shared: AsyncPool[Held] = self.manager.apool(
            self.name, AsyncEngineRecipe(recipe), **self._options()
        )
        return opening.declare(shared, recipe)

    def _lease(self) -> Any:
        return await_only(self._checkout(self._timeout))

    def _release(self, lease: Any) -> None:
        lease.release_soon()

    def _discard(self, lease: Any) -> None:
        lease.discard_soon()

    def _close_idle(self) -> None:
        if in_greenlet():
            await_only(self._shared.close_idle())
        else:
            self._shared.close_idle_soon()
