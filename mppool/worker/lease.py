"""A lease: the right to use one resource until it is given back."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from mppool.errors import ForkedLease, LeaseReleased, PoolError, StaleLease
from mppool.logs import Log
from mppool.stats.names import BRIEF_S
from mppool.worker.detaching import detach, say_closed
from mppool.worker.ending import cancel

if TYPE_CHECKING:
    from types import TracebackType

    from mppool.worker.inventory import PoolEntry
    from mppool.worker.local_pool import LocalPool

T = TypeVar("T")

log = Log("mppool")


class Lease(Generic[T]):
    """What a checkout gives: a context manager whose value is the resource.

    Keep the lease for as long as the resource: when it is garbage-collected without having been
    released, its resource is closed, never handed out again.

    `_held` holds the entry until somebody takes it out. To pop the only item of a list is atomic, with the
    interpreter's global lock and on free-threaded builds; so of two threads that release at once exactly one
    gives the resource back. (To delete an attribute is atomic only with that lock.)

    In a child of the process that took it a lease does nothing at all, however the child was forked and however early
    it is finalized: nothing is taken out, no lock is taken, nothing is logged (see fork.py).
    """

    __slots__ = ("__weakref__", "_detached", "_held", "_local")

    # No __init__: to call one takes a tenth of a warm checkout. Code that makes a lease sets these two, `_held` last:
    # interrupted before, the finalizer has nothing to do.
    _local: LocalPool
    _held: list[PoolEntry]
    _detached: PoolEntry  # not set before `detach`

    @property
    def resource(self) -> T:
        """The resource.

        Raises LeaseReleased after the release, StaleLease after the lease was killed, ForkedLease in a
        child of the process that took it. A child that C code has forked without Python's hooks (uwsgi does that)
        notices at its first checkout, or other use of a pool: before that this gives its parent's resource. To look at
        each access would make a warm use 4 % slower.
        """
        try:
            entry = self._held[0]
        except IndexError:
            self._raise_released()
        if entry.killed or entry.inventory.forked:
            self._raise_unusable(entry)
        return entry.resource  # type: ignore[no-any-return]

    @property
    def released(self) -> bool:
        """Whether the lease has been given back."""
        return not self._held

    def __enter__(self) -> T:
        return self.resource

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and self._local.hooks.check is not None:
            self._release_suspect()
        else:
            self.release()

    def _release_suspect(self) -> None:
        """An exception ended the use; it may have been the resource that failed."""
        try:
            entry = self._take_out()
            if entry is not None:
                entry.local.put_back_slowly(entry, monotonic(), suspect=True)
        except BaseException as error:
            entry = None
            self._local.member.interrupted(error)
            raise

    def release(self) -> None:
        """Give the resource back. A second release is refused, harmless, counted and logged."""
        try:
            now = monotonic()
            try:
                entry = self._held.pop()
            except IndexError:
                self._refuse_second()
                return
            if entry.inventory.forked:
                self._held.append(entry)  # it is our parent's, and `resource` must say so
                return
            idle = entry.idle
            used = now - entry.lent_at
            if idle.plain and now < entry.retire_at:
                entry.released_at = now
                entry.shelf.append(entry)
                if idle.attention or entry.retire_at <= now:
                    idle.look_after(entry)
            else:
                entry.local.put_back_slowly(entry, now)
            if used >= BRIEF_S and not entry.killed:
                entry.local.durations.used(used)
        except BaseException as error:
            entry = None  # the traceback keeps this frame, and must not keep it
            self._local.member.interrupted(error)
            raise

    def discard(self) -> None:
        """Close the resource instead of giving it back, because it is known to be broken."""
        try:
            entry = self._take_out()
            if entry is not None:
                entry.local.throw_away(entry, monotonic())
        except BaseException as error:
            entry = None
            self._local.member.interrupted(error)
            raise

    def invalidate(self, *, renewed: bool = False) -> None:
        """Report that the resource has lost its backend, and with it everything that is as old.

        All processes replace what was opened for the same identity up to now: what is idle at once, and what is
        in use when it is released, this resource included. The lease itself goes on until it is released. If
        several callers report the same failure, only the first report changes anything.
        renewed: the caller has replaced what is inside this resource, so this one may stay.
        Raises what `resource` raises.
        """
        self.resource  # noqa: B018  # raises where it is not ours any more
        entry = self._held[0]
        entry.local.backend_failed(entry, renewed=renewed)

    def cancel(self) -> bool:
        """Make the call that runs on the resource end with an error. Safe from any thread.

        The thread that is in the call gets the driver's own error. True: the driver was told. False: the recipe has no
        `cancel`, or its driver cannot do it. The lease goes on until it is released; its resource is closed then,
        because the database may act on the cancel late.
        Raises what `resource` raises.
        """
        self.resource  # noqa: B018  # raises where it is not ours any more
        try:
            entry = self._held[0]
        except IndexError:
            self._raise_released()  # just now, in another thread
        return cancel(entry, lambda: bool(self._held) and not entry.killed)

    def detach(self) -> T:
        """Take the resource out of the pool: it is the caller's from now on, and the lease is over.

        Nothing of the pool resets it, checks it or ends it any more. It still counts against the caps, until the caller has
        closed it and then called `closed()` on this lease, which has to be kept for that; or until the process ends.
        Raises what `resource` raises.
        """
        self.resource  # noqa: B018  # raises where it is not ours any more
        entry = None
        try:
            entry = self._take_out()
            if entry is None:
                self._raise_not_ours()
            self._detached = entry  # first: from now on nobody takes it for lost
            if detach(entry):
                return entry.resource  # type: ignore[no-any-return]
            del self._detached
            self._held.append(entry)
            self._raise_unusable(entry)
        except BaseException as error:
            if entry is not None and hasattr(self, "_detached"):
                del self._detached  # interrupted: nobody has got it, and the audit closes it
            entry = None
            self._local.member.interrupted(error)
            raise

    def closed(self) -> None:
        """What `detach` returned has been closed: its slot is free. Call it once; again it does nothing.

        Raises PoolError where nothing was detached.
        """
        if not hasattr(self, "_detached"):
            raise PoolError(
                f"pool {self._local.name!r}: closed() is for a resource that detach() has taken out of the pool; to have "
                "the pool close a resource, call discard()"
            )
        try:
            say_closed(self._detached)
        except BaseException as error:
            self._local.member.interrupted(error)
            raise

    def _take_out(self) -> PoolEntry | None:
        """The entry, for the first who asks. None: it is our parent's, or was given back already."""
        held = self._held
        try:
            if not held[0].mark[0]:
                return None
            return held.pop()
        except IndexError:
            self._refuse_second()
            return None

    def _is_forked(self) -> bool:
        """Whether our parent holds it."""
        return any(not entry.mark[0] for entry in self._held)

    def __del__(self) -> None:
        # Runs in any thread at any instruction, whatever locks are held: only note it (hazard 15).
        try:
            held = self._held
            if not held or not held[0].mark[0]:
                return
            # Taken out, for in a cycle our owner may be finalized after us, and release us then.
            entry = held.pop()
        except (AttributeError, IndexError):
            return
        if not entry.killed:
            entry.inventory.leaked.append(entry)
            entry.local.member.wake()

    # For code that keeps a lease on behalf of another object, and learns in a finalizer that the object is gone.
    abandon = __del__

    def for_asyncio(self) -> AsyncLease[T]:
        """The same lease, for `async with`. Do not use this object afterwards."""
        return AsyncLease(self)

    def __reduce__(self) -> NoReturn:
        raise PoolError(
            f"a lease of pool {self._local.name!r} cannot be pickled: its resource belongs to this process; "
            "send the Pool instead and check out there"
        )

    def __repr__(self) -> str:
        state = "released" if self.released else "in use"
        if hasattr(self, "_detached"):
            state = "detached"
        return f"<Lease of pool {self._local.name!r}, {state}>"

    def _raise_not_ours(self) -> NoReturn:
        """Another thread was quicker, or this is a child that C code has forked."""
        for entry in self._held:
            self._raise_unusable(entry)
        self._raise_released()

    def _raise_released(self) -> NoReturn:
        if hasattr(self, "_detached"):
            raise LeaseReleased(
                f"pool {self._local.name!r}: the resource of this lease was detached; use what detach() returned"
            )
        raise LeaseReleased(
            f"pool {self._local.name!r}: this lease was given back already; check out again to go on"
        )

    def _raise_unusable(self, entry: PoolEntry) -> NoReturn:
        if entry.inventory.inherited:
            raise ForkedLease(
                f"pool {self._local.name!r}: this lease was taken by the parent of this process, and its "
                "resource belongs to the parent; check out in this process instead"
            )
        if entry.why_ended:
            raise StaleLease(
                f"pool {self._local.name!r}: this lease was ended and its resource closed, because "
                f"{entry.why_ended}; check out again"
            )
        raise StaleLease(
            f"pool {self._local.name!r}: this lease was held for longer than max_lease_kill="
            f"{entry.local.options.max_lease_kill:g} s, so its resource was closed; check out again"
        )

    def _refuse_second(self) -> None:
        if self._local.inventory.inherited:
            return  # a finalizer in a child, before any hook: locks may be held by nobody
        if hasattr(self, "_detached"):
            return  # the end of a `with` block
        self._local.count("double_releases")
        log.warning(
            "pool %r: a lease was released a second time; refused, nothing was changed",
            self._local.name,
        )


class AsyncLease(Lease[T]):
    """A lease for `async with`."""

    __slots__ = ()

    def __init__(self, lease: Lease[T]) -> None:
        self._local = lease._local
        held, lease._held = lease._held, []
        self._held = held

    async def __aenter__(self) -> T:
        return self.resource

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_forked():
            return
        if error is None and self._local.plain and self._released_at_once():
            return
        from mppool.worker.loops import done_in_thread  # asyncio is loaded here, if anywhere

        # In a thread, because a reset or a close may take its time.
        kind = None if error is None else type(error)
        await done_in_thread(self._local.member.chores, lambda: self.__exit__(kind, error, None))

    def _released_at_once(self) -> bool:
        """Lay the resource on its shelf. False: it is still held, for it has to be closed, which may take its time.

        One look decides: it may have to be closed from any moment on.
        """
        entry = None
        try:
            try:
                entry = self._held.pop()
            except IndexError:
                self._refuse_second()
                return True
            now = monotonic()
            if now >= entry.retire_at:
                self._held.append(entry)
                return False
            used = now - entry.lent_at
            entry.released_at = now
            entry.idle.put_back(entry)
            if used >= BRIEF_S and not entry.killed:
                entry.local.durations.used(used)
        except BaseException as error:
            entry = None
            self._local.member.interrupted(error)
            raise
        return True


class _OfTheResource:
    """An attribute that is looked for at the lease by mistake: it is one of the resource.

    Not `__getattr__`, which would make every use of a lease slower.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, lease: Any, owner: Any = None) -> NoReturn:
        raise AttributeError(
            f"a lease has no {self._name!r}: it is not the resource. Use `with pool.checkout() as resource`, or "
            f"lease.resource.{self._name}"
        )


_LOOKED_FOR = (
    *("execute", "executemany", "cursor", "commit", "rollback", "close", "callproc", "autocommit"),
    *(
        "fetchone",
        "fetchmany",
        "fetchall",
        "fetch",
        "fetchval",
        "fetchrow",
        "execute_many",
        "query",
    ),
    *("begin", "transaction", "prepare", "scalar", "scalars", "run", "call", "ping", "info"),
    *("get", "post", "put", "delete", "request", "send", "recv", "read", "write", "set", "publish"),
    *("get_container_client", "get_blob_client", "list_containers", "submit", "acquire", "connect"),
)
for _name in _LOOKED_FOR:
    setattr(Lease, _name, _OfTheResource(_name))
