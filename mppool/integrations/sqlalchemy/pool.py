"""SharedPool: a pool class of SQLAlchemy whose connections come from one pool of all processes."""

from __future__ import annotations

import time
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import exc
from sqlalchemy.pool import Pool

from mppool.errors import CheckoutTimeout, OpenFailed, PoolError, TooManyWaiting
from mppool.integrations.sqlalchemy import opening
from mppool.integrations.sqlalchemy.record import OurPool

if TYPE_CHECKING:
    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

    from mppool.base_manager import Manager
    from mppool.integrations.sqlalchemy.record import Held, Record
    from mppool.worker.pool import Pool as ProcessPool

OWN_OPTIONS = {
    "max_size": "pool_size and max_overflow",
    "min_size": "pool_size",
    "prefill": "pool_size",
    "timeout": "pool_timeout",
    "order": "pool_use_lifo",
}
"""Options that follow from SQLAlchemy's."""

_OVERFLOW_IDLE_S = 60.0
"""So long connections above pool_size stay idle where several processes have them."""


class SharedPool(OurPool):
    """Made by `shared_pool`, which says of which manager and of which name it is."""

    manager: ClassVar[Manager]
    name: ClassVar[str]
    more: ClassVar[dict[str, Any]]
    open_in_caller: ClassVar[bool] = False
    lane: ClassVar[str | None] = None

    _is_asyncio = False  # as in QueuePool: refused by create_async_engine

    def __init__(
        self,
        creator: Any,
        pool_size: int = 5,
        max_overflow: int = 10,
        timeout: float | None = 30.0,
        use_lifo: bool = False,
        _fingerprint: str | None = None,
        **kw: Any,
    ) -> None:
        """_fingerprint: that of the face that this one replaces."""
        Pool.__init__(self, creator, **kw)
        self._check_dialect(kw.get("dialect"))
        self._size = pool_size
        self._max_overflow = -1 if pool_size == 0 else max_overflow
        self._timeout = None if timeout is None else float(timeout)
        self._use_lifo = use_lifo
        # Whether a process may have to close what is above pool_size when it is given back.
        self._trims = pool_size > 0 and self._max_overflow != 0
        self.secrets = opening.secrets_of(creator)
        self.disposed_at = 0.0
        # In the first releases of 2.0 `do_connect` hooks change the arguments for good; what is opened stays the same.
        self._fingerprint = _fingerprint or opening.fingerprint_of(creator, self._dialect)
        recipe = opening.EngineRecipe(self._fingerprint)
        recipe.open_in_caller = self.open_in_caller
        self._shared, self.recipe = self._declare(recipe)
        self.identity = self.recipe.enter(self)
        whose: dict[str, Any] = {"identity": self.identity, "lane": self.lane}
        named = {name: value for name, value in whose.items() if value is not None}
        self._checkout = partial(self._shared.checkout, **named) if named else self._shared.checkout

    def _check_dialect(self, dialect: Any) -> None:
        """Early releases of SQLAlchemy 2.0 do not look themselves."""
        if (
            dialect is not None
            and bool(getattr(dialect, "is_async", False)) is not self._is_asyncio
        ):
            kind = "a blocking" if self._is_asyncio else "an asyncio"
            other = "shared_pool" if self._is_asyncio else "shared_async_pool"
            raise exc.ArgumentError(
                f"pool {self.name!r}: this is {kind} engine; give it {other}(...)"
            )

    def _declare(self, recipe: opening.EngineRecipe) -> tuple[Any, opening.EngineRecipe]:
        shared: ProcessPool[Held] = self.manager.pool(self.name, recipe, **self._options())
        return opening.declare(shared, recipe)

    def _options(self) -> dict[str, Any]:
        unbounded = self._max_overflow < 0
        return {
            "max_size": None if unbounded else self._size + self._max_overflow,
            "min_size": self._size,
            "prefill": False,
            "max_idle": _OVERFLOW_IDLE_S if self._trims else None,
            "max_lifetime": None,  # pool_recycle does that, at checkout
            "check_idle_for": None,  # pool_pre_ping does that
            "order": "lifo" if self._use_lifo else "fifo",
            **self.more,
        }

    def _should_wrap_creator(self, creator: Any) -> Any:
        connect = super()._should_wrap_creator(creator)
        return lambda record: opening.connected(self, record, connect)

    # --- checkout and return ------------------------------------------------------------------------------

    def _do_get(self) -> ConnectionPoolEntry:
        me: weakref.ref[OurPool] = weakref.ref(self)  # always the same object
        if opening.asking.get() is not me:
            opening.asking.set(me)
        try:
            while True:
                lease = self._lease()
                held: Held = lease.resource
                record: Record = held.record  # type: ignore[assignment]  # what lies idle has one
                if held.pool is not self:
                    if held.pool.disposed_at > record.starttime:
                        self._discard(lease)
                        continue
                    record.move_to(self)
                held.record = None
                record.lease = lease
                return record
        except PoolError as error:
            failure = error
        # Outside of the handler: SQLAlchemy's users know the errors of SQLAlchemy and of the driver.
        raise self._translated(failure)

    def _lease(self) -> Any:
        return self._checkout(self._timeout)

    def _release(self, lease: Any) -> None:
        lease.release()

    def _discard(self, lease: Any) -> None:
        lease.discard()

    def _close_idle(self) -> None:
        self._shared.close_idle()

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        lease = record.lease  # type: ignore[attr-defined]
        if lease is None:
            return
        record.lease = None  # type: ignore[attr-defined]
        held: Held = record.held  # type: ignore[attr-defined]
        if record.dbapi_connection is None:  # invalidated, and closed; or detached, and its user's
            held.connection = None  # the record keeps its place, and connects at its next checkout
        held.record = record  # type: ignore[assignment]
        if (
            self._trims
            and len(self.recipe.open_here) > self._size
            and self._shared.idle_here >= self._size
        ):
            self._discard(lease)
        else:
            self._release(lease)

    def _translated(self, failure: PoolError) -> Exception:
        cause = failure.__cause__
        if isinstance(failure, OpenFailed):
            if isinstance(cause, Exception):
                return cause
            # Another process, or another thread, has found out a moment ago that nothing can be opened.
            kind = getattr(getattr(self._dialect, "dbapi", None), "OperationalError", None)
            return failure if kind is None else kind(str(failure))
        if isinstance(failure, (CheckoutTimeout, TooManyWaiting)):
            return exc.TimeoutError(
                f"QueuePool limit of size {self._size} overflow {self._max_overflow} reached over all "
                f"processes, connection timed out, timeout {self._timeout or 0:.2f}: {failure}",
                code="3o7r",
            )
        return failure

    # --- the end of connections ---------------------------------------------------------------------------

    def _invalidate(
        self,
        connection: PoolProxiedConnection,
        exception: BaseException | None = None,
        _checkin: bool = True,
    ) -> None:
        """A disconnect: whatever was opened before goes, in all processes."""
        lease = getattr(getattr(connection, "_connection_record", None), "lease", None)
        if lease is not None:
            # After a ping SQLAlchemy connects again in place, and says that nothing is to be checked in.
            lease.invalidate(renewed=not _checkin)
        super()._invalidate(connection, exception, _checkin)

    def dispose(self) -> None:
        """Close what lies idle in this process; what is in use goes when a later face of the pool meets it."""
        self.disposed_at = time.time()
        self._close_idle()
        self.logger.info("Pool disposed. %s", self.status())

    def recreate(self) -> SharedPool:
        """Another face of the same pool."""
        self.logger.info("Pool recreating")
        return self.__class__(
            self._creator,
            pool_size=self._size,
            max_overflow=self._max_overflow,
            pre_ping=self._pre_ping,
            use_lifo=self._use_lifo,
            timeout=self._timeout,
            recycle=self._recycle,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            _dispatch=self.dispatch,
            dialect=self._dialect,
            _fingerprint=self._fingerprint,
        )

    # --- figures of this process --------------------------------------------------------------------------

    def status(self) -> str:
        """What this process has, in QueuePool's words."""
        return (
            f"Pool size: {self.size()}  Connections in pool: {self.checkedin()} "
            f"Current Overflow: {self.overflow()} Current Checked out connections: {self.checkedout()}"
        )

    def size(self) -> int:
        """pool_size."""
        return self._size

    def timeout(self) -> float | None:
        """pool_timeout."""
        return self._timeout

    def checkedin(self) -> int:
        """How many lie idle in this process."""
        return int(self._shared.idle_here)

    def checkedout(self) -> int:
        """How many are in use in this process."""
        return int(self._shared.in_use_here)

    def overflow(self) -> int:
        """How many more than pool_size are open in this process."""
        return self.checkedin() + self.checkedout() - self._size if self._size else 0
