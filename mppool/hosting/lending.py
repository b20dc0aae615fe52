"""The lease of one stream in a host: taken from the host's own pool, used by a worker, and given back."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from mppool.errors import PoolError, StaleLease
from mppool.hosting import frames
from mppool.hosting.asked import Told, Use
from mppool.hosting.keeping import Right
from mppool.hosting.pins import LeasePins
from mppool.hosting.values import FromWorker
from mppool.logs import Log
from mppool.recipe import overrides
from mppool.worker.callers import note_caller
from mppool.worker.renewing import put_back_unused, renewed

if TYPE_CHECKING:
    from mppool.hosting.keeping import Kept
    from mppool.stats.pins import Pins
    from mppool.worker.lease import Lease
    from mppool.worker.pool import Pool

log = Log("mppool.hosting")

_REPLACE_S = 30.0
"""A session that was dead is replaced within this, as a checkout would have done it."""


class Lending:
    """What a stream has been lent. It belongs to the stream's thread; others may `cancel`.

    number: of the lease; a request that names another one is refused. why_over: why the lease has ended without its worker.
    decode: reads requests, which may name what the lease has been given.
    is_kept: the lease was begun in advance, and its worker has not been heard of since (see keeping.py); since kept_at.
    right: decides then whose it is; None: nothing is kept in this pool.
    """

    def __init__(self, pool: Pool[Any], kept: Kept | None, pins: Pins) -> None:
        """kept: what the host keeps; None: nothing. pins: what ties leases of the host to their sessions."""
        self.number = 0
        self.why_over = ""
        self.is_kept = False
        self.kept_at = 0.0
        self.right = None if kept is None else Right()
        self._kept = kept
        self._pins = LeasePins(pins)
        self._pool = pool
        self._lease: Lease[Any] | None = None
        self._use: Use | None = None
        self._identity: str | None = None
        self._lane: str | None = None
        self._who = ("", "")
        self._told = Told()
        self._handles: dict[int, Any] = {}
        self._spoils = False
        self._is_untouched = False
        recipe, guard = pool._local.recipe, pool.options.guard
        self._recipe = recipe
        self._may_be_replaced = getattr(recipe, "may_be_replaced", True)
        self._guards = recipe.guard if guard is None else guard
        may_pickle = pool.options.values == "pickle"
        self.decode = FromWorker(self._handles, may_pickle=may_pickle).decode

    @property
    def is_out(self) -> bool:
        """Whether a resource is lent."""
        return self._lease is not None

    # --- begin --------------------------------------------------------------------------------------------------

    def take(
        self,
        timeout: float | None,
        identity: str | None,
        label: str,
        caller: str,
        lane: str | None = None,
    ) -> None:
        """Check out. label, caller: who is said to hold it, where anything is said. Raises what a checkout raises."""
        self.why_over, self._identity, self._lane = "", identity, lane
        self._who = (label, caller)
        self._take(timeout)
        self.number += 1
        self._is_untouched = True

    def _take(self, timeout: float | None) -> None:
        lease = self._checked_out(timeout)
        label, caller = self._who
        if caller:
            note_caller(lease._held[0], label, caller)
        self._lease = lease
        self._spoils = False
        self._use = Use(lease.resource, self._told, self._handles)
        self._pins.begin(lease.resource)

    def _checked_out(self, timeout: float | None) -> Lease[Any]:
        kept, idle = self._kept, self._pool._local.idle
        if kept is None or self._identity is not None:
            return self._pool.checkout(timeout, identity=self._identity, lane=self._lane)
        if not idle.lying(idle.own_key):
            kept.call_in_one()
            if not idle.lying(idle.own_key):
                with kept.waiting():
                    return self._pool.checkout(timeout)
        return self._pool.checkout(timeout)

    def introduced(self) -> tuple[bytes, bool, int]:
        """What the worker is told of the resource, whether each statement commits, and which of all resources it is."""
        use = self.living()
        assert self._lease is not None
        return use.introduced(), _commits(use.resource), self._lease._held[0].number

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
        self._pins.said(name, args[0] if args else None)
        try:
            return use.run(handle, of_connection, name, args, kwargs)
        except Exception:
            if not may_replace or not self._was_dead_before():
                raise
            self._replace()
            return self.living().run(handle, of_connection, name, args, kwargs)
        finally:
            self._is_untouched = False

    def execute(
        self,
        handle: int,
        of_connection: bool,
        statement: str,
        parameters: Any,
        may_replace: bool,
    ) -> tuple[int, bytes]:
        """The same for Use.execute."""
        pins = self._pins
        pins.is_open, pins.statement = True, statement  # what `executes` does
        if self._guards:
            self._noting("execute", (statement, parameters)[: 1 if parameters is None else 2])
        use: Any = self._use
        lease: Any = self._lease
        if lease._held[0].killed:
            lease.resource  # noqa: B018  # raises, as in `living`
        try:
            answer: tuple[int, bytes] = use.execute(handle, of_connection, statement, parameters)
        except Exception:
            if not may_replace or not self._was_dead_before():
                raise
            self._replace()
            return self.living().execute(handle, of_connection, statement, parameters)
        finally:
            self._is_untouched = False
        return answer

    def _replace(self) -> None:
        self.end(frames.DISCARDED)
        self._take(_REPLACE_S)

    def _was_dead_before(self) -> bool:
        """Whether nothing can have been done: it was the first statement, outside of autocommit, and the session is dead."""
        lease, recipe = self._lease, self._recipe
        if not self._is_untouched or lease is None or not overrides(recipe, "check"):
            return False
        if not self._may_be_replaced:
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

    def ends_transaction(self, name: str) -> None:
        """A method of the connection is called, which may be one that does that."""
        self._pins.said(name, None)

    def look(self) -> None:
        """Note what ties the lease to its session by now."""
        if self._use is not None:
            self._pins.look(self._use)

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

    # --- kept ---------------------------------------------------------------------------------------------------

    def keep(self) -> None:
        """The worker has given it back, and has the right to the next one, unless somebody waits: see keeping.py."""
        assert self._kept is not None
        assert self.right is not None
        is_wanted = self._kept.flag.is_set() or self._pool._local.idle.attention
        if is_wanted and self.right.take():
            self.end(frames.GIVEN_BACK)
        elif not self._goes_on() and not self.right.take():
            self._give_another()

    def keep_nothing(self, is_expected: bool) -> None:
        """The lease that the worker gives back has ended before. is_expected: the worker wants the next one kept."""
        if is_expected and self.right is not None and not self.right.take():
            self._give_another()

    def _goes_on(self) -> bool:
        """Begin the next lease of the same resource. False: it could not go on, and nothing is lent."""
        lease, use = self._lease, self._use
        assert lease is not None
        assert use is not None
        use.end()
        self._pins.end()
        if self._spoils:
            self.end(frames.DISCARDED)
            return False
        try:
            is_renewed = renewed(lease)
        except Exception:
            log.exception("pool %r: a lease could not be given back", self._pool.name)
            is_renewed = False
        if not is_renewed:
            self._lease = self._use = None
            return False
        self._use = Use(lease.resource, self._told, self._handles)
        self._pins.begin(lease.resource)
        self._begins_in_advance(lease)
        return True

    def _begins_in_advance(self, lease: Lease[Any]) -> None:
        self.number += 1
        self._is_untouched, self._who = True, ("", "")
        self.kept_at = monotonic()
        self._pool._local.idle.lent_ahead.add(lease._held[0].number)
        self.is_kept = True

    def _give_another(self) -> None:
        """The worker has its next lease already, and its resource could not go on: another one takes its place."""
        self._who = ("", "")
        try:
            if not self._may_be_replaced:
                raise PoolError(
                    "it was closed, and another one is not what the worker has prepared"
                )
            self.take(self._pool.options.timeout, None, "", "")
        except Exception as error:  # noqa: BLE001  # the worker sees it at its first use
            self.number += 1
            self.why_over = (
                f"what it was lent could not be replaced ({type(error).__name__}: {error})"
            )
            log.warning("pool %r: %s", self._pool.name, self.why_over)

    def is_wanted(self) -> bool:
        """Whether somebody waits for what is kept."""
        return self._kept is not None and self._kept.flag.is_set()

    def is_used(self) -> None:
        """The worker uses what was kept."""
        self.is_kept = False
        if self._lease is not None:
            self._pool._local.idle.lent_ahead.discard(self._lease._held[0].number)

    def call_in(self) -> bool:
        """End the lease that is kept, if its worker has not taken it. False: the worker has it."""
        assert self.right is not None
        is_ours = self.right.take()
        self.is_used()
        if is_ours and self._lease is not None and self._use is not None:
            lease, self._lease = self._lease, None
            self._use.end()
            self._use = None
            put_back_unused(lease)
        return is_ours

    def asked_for(self, identity: str | None, label: str, caller: str) -> bool:
        """A checkout comes while a lease is kept. True: that is what it gets."""
        assert self.right is not None
        assert self._kept is not None
        if identity is not None or self._kept.flag.is_set():
            self.call_in()
            return False
        if not self.right.take():
            return False
        self.is_used()
        if caller and self._lease is not None:
            note_caller(self._lease._held[0], label, caller)
        return True

    # --- end ----------------------------------------------------------------------------------------------------

    def end(self, how: int) -> None:
        """Give it back, where there is one. how: see frames."""
        if self.is_kept:
            self.is_used()
        lease, self._lease = self._lease, None
        use, self._use = self._use, None
        if use is not None:
            use.end()
            self._pins.end()
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


def _commits(resource: Any) -> bool:
    """Whether each statement does; sqlite3 says it with its isolation level."""
    mode = getattr(resource, "autocommit", None)
    if mode is not True and mode is not False and hasattr(resource, "in_transaction"):
        return getattr(resource, "isolation_level", "") is None
    return mode is True
