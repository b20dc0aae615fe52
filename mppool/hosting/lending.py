"""The lease of one stream in a host: taken from the host's own pool, used by a worker, and given back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mppool.errors import PoolError, StaleLease
from mppool.hosting import frames
from mppool.hosting.asked import Use
from mppool.hosting.values import FromWorker
from mppool.logs import Log
from mppool.recipe import overrides
from mppool.worker.callers import note_caller

if TYPE_CHECKING:
    from collections.abc import Callable

    from mppool.worker.lease import Lease
    from mppool.worker.pool import Pool

log = Log("mppool.hosting")

_REPLACE_S = 30.0
"""A session that was dead is replaced within this, as a checkout would have done it."""


class Lending:
    """What a stream has been lent. It belongs to the stream's thread; others may `cancel`.

    number: of the lease; a request that names another one is refused. why_over: why the lease has ended without its worker.
    decode: reads requests, which may name what the lease has been given.
    """

    def __init__(self, pool: Pool[Any], next_number: Callable[[], int]) -> None:
        self.number = 0
        self.why_over = ""
        self._pool = pool
        self._next_number = next_number
        self._lease: Lease[Any] | None = None
        self._use: Use | None = None
        self._identity: str | None = None
        self._who = ("", "")
        self._told: set[type] = set()
        self._handles: dict[int, Any] = {}
        self._spoils = False
        self._is_untouched = False
        recipe, guard = pool._local.recipe, pool.options.guard
        self._recipe = recipe
        self._guards = recipe.guard if guard is None else guard
        may_pickle = pool.options.values == "pickle"
        self.decode = FromWorker(self._handles, may_pickle=may_pickle).decode

    @property
    def is_out(self) -> bool:
        """Whether a resource is lent."""
        return self._lease is not None

    # --- begin --------------------------------------------------------------------------------------------------

    def take(self, timeout: float | None, identity: str | None, label: str, caller: str) -> None:
        """Check out. label, caller: who is said to hold it, where anything is said. Raises what a checkout raises."""
        self.why_over, self._identity, self._who = "", identity, (label, caller)
        self._take(timeout)
        self.number = self._next_number()
        self._is_untouched = True

    def _take(self, timeout: float | None) -> None:
        lease = self._pool.checkout(timeout, identity=self._identity)
        label, caller = self._who
        if caller:
            note_caller(lease._held[0], label, caller)
        self._lease = lease
        self._spoils = False
        self._use = Use(lease.resource, self._told, self._handles)

    def introduced(self) -> tuple[bytes, bool]:
        """What the worker is told of the resource, and whether each statement commits."""
        use = self.living()
        return use.introduced(), getattr(use.resource, "autocommit", None) is True

    # --- use ----------------------------------------------------------------------------------------------------

    def living(self) -> Use:
        """What the lease is used by. Raises StaleLease where it was held for too long, and its resource was closed."""
        assert self._lease is not None
        assert self._use is not None
        self._lease.resource  # noqa: B018  # raises
        return self._use

    def touched(self, name: str, arguments: tuple[Any, ...]) -> Use:
        """The same, for something that may leave traces."""
        self._is_untouched = False
        return self._noting(name, arguments)

    def _noting(self, name: str, arguments: tuple[Any, ...]) -> Use:
        if self._guards and self._recipe.leaves_behind(name, arguments):
            self._spoils = True
        return self.living()

    def run(
        self,
        handle: int,
        of_connection: bool,
        name: str,
        args: Any,
        kwargs: Any,
        *,
        may_replace: bool,
    ) -> tuple[int, bytes]:
        """See Use.run. The first statement of a lease may find its session dead, and gets another one.

        may_replace: a resource can be opened without the worker's help.
        """
        use = self._noting(name, tuple(args))
        try:
            return use.run(handle, of_connection, name, args, kwargs)
        except Exception:
            if not may_replace or not self._was_dead_before():
                raise
            self.end(frames.DISCARDED)
            self._take(_REPLACE_S)
            return self.living().run(handle, of_connection, name, args, kwargs)
        finally:
            self._is_untouched = False

    def _was_dead_before(self) -> bool:
        """Whether nothing can have been done: it was the first statement, outside of autocommit, and the session is dead."""
        lease, recipe = self._lease, self._recipe
        if not self._is_untouched or lease is None or not overrides(recipe, "check"):
            return False
        if getattr(lease.resource, "autocommit", None) is not False:
            return False
        try:
            return recipe.check(lease.resource) is False
        except ConnectionError:
            lease.invalidate()  # what is as old has very likely lost its backend too
            return True
        except Exception:
            log.debug(
                "pool %r: the check says nothing of the session", self._pool.name, exc_info=True
            )
            return False

    def forget(self, handles: list[int]) -> None:
        """Proxies of these are gone."""
        if self._use is not None:
            self._use.forget(handles)

    def invalidate(self, renewed: bool) -> None:
        """See Lease.invalidate."""
        assert self._lease is not None
        self._lease.invalidate(renewed=renewed)

    def stale(self) -> StaleLease:
        """The error of a request that names a lease which has ended."""
        why = self.why_over or "its lease has ended"
        return StaleLease(f"pool {self._pool.name!r}: {why}; check out again")

    # --- end ----------------------------------------------------------------------------------------------------

    def end(self, how: int) -> None:
        """Give it back, where there is one. how: see frames."""
        lease, self._lease = self._lease, None
        use, self._use = self._use, None
        if use is not None:
            use.end()
        if lease is None:
            return
        try:
            if how == frames.DISCARDED or self._spoils:
                lease.discard()
            elif how == frames.SUSPECT:
                error = PoolError("an exception ended the use in the worker")
                lease.__exit__(PoolError, error, None)
            else:
                lease.release()
        except Exception:
            log.exception("pool %r: a lease could not be given back", self._pool.name)
            lease.discard()

    def cancel(self, number: int) -> bool:
        """Have the call that runs end with an error; from any thread. False: it cannot be done, or nothing runs.

        number: of the lease that is meant; 0: whichever it is.
        """
        lease, use = self._lease, self._use
        if lease is None or use is None or number not in (0, self.number):
            return False
        try:
            if lease.cancel():
                return True
            # The recipe cannot; a cursor may know how. The resource is closed all the same: the database may be told late.
            self._spoils = True
            return use.cancel()
        except Exception:
            log.warning("pool %r: a call could not be cancelled", self._pool.name, exc_info=True)
            return False
