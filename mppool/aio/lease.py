"""What an asynchronous checkout gives: the right to use one resource until it is given back."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from mppool.errors import ForkedLease, LeaseReleased, PoolError, StaleLease
from mppool.logs import Log
from mppool.stats.names import BRIEF_S
from mppool.worker.callers import note_caller
from mppool.worker.detaching import detach, say_closed
from mppool.worker.ending import close_soon
from mppool.worker.tasks import running_loop

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

    from mppool.aio.lender import Lender
    from mppool.worker.inventory import PoolEntry

T = TypeVar("T")

log = Log("mppool")


class AsyncLease(Generic[T]):
    """An asynchronous context manager whose value is the resource.

    Keep the lease for as long as the resource: when it is garbage-collected without having been released, its
    resource is closed, never handed out again. It is used in the event loop that opened the resource.

    `_held` holds the entry until somebody takes it out, in one atomic step: who does so gives it back.
    """

    __slots__ = ("__weakref__", "_detached", "_held", "_lender")

    # No __init__: to call one takes a tenth of a warm checkout. The maker of a lease sets these two.
    _lender: Lender
    _held: list[PoolEntry]
    _detached: PoolEntry  # not set before `detach`

    @property
    def resource(self) -> T:
        """The resource.

        Raises LeaseReleased after the release, StaleLease after the lease was killed, ForkedLease in a child of the
        process that took it.
        """
        try:
            entry = self._held[0]
        except IndexError:
            self._raise_released()
        if entry.killed or entry.inventory.forked:
            self._raise_unusable(entry)
        return entry.resource.resource  # type: ignore[no-any-return]

    @property
    def released(self) -> bool:
        """Whether the lease has been given back."""
        return not self._held

    async def __aenter__(self) -> T:
        return self.resource

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        entry = self._put_back(error)
        if entry is not None:
            given_back = self._lender.give_back(entry, suspect=error is not None)
            if given_back is not None:
                await given_back

    def _put_back(self, error: BaseException | None) -> PoolEntry | None:
        """Give the resource back, as far as that is nothing but an append; else it is the caller's to give back."""
        try:
            entry = self._held.pop()
        except IndexError:
            self._refuse_second()
            return None
        if entry.inventory.forked:
            self._held.append(entry)  # it is our parent's, and `resource` must say so
            return None
        local, now = entry.local, monotonic()
        used = now - entry.lent_at
        if used >= BRIEF_S and not entry.killed:
            local.durations.used(used)
        if (
            now < entry.retire_at
            and (local.plain or self._lender.is_clean(entry))
            and (error is None or local.hooks.check is None)
            and not entry.killed
        ):
            entry.released_at = now
            entry.shelf.append(entry)
            idle = local.idle
            if idle.attention or entry.retire_at <= now:
                idle.look_after(entry)
            return None
        return entry

    async def release(self) -> None:
        """Give the resource back. A second release is refused, harmless, counted and logged."""
        await self.__aexit__(None, None, None)

    def release_soon(self) -> None:
        """Give the resource back, for code that cannot await. What has to be awaited runs as a task of its loop."""
        entry = self._put_back(None)
        if entry is not None:
            self._lender.give_back_soon(entry)

    async def discard(self) -> None:
        """Close the resource instead of giving it back, because it is known to be broken."""
        self.discard_soon()

    def discard_soon(self) -> None:
        """The same, for code that cannot await."""
        entry = self._take_out()
        if entry is not None:
            local = entry.local
            local.durations.used(monotonic() - entry.lent_at)
            entry.lent_at = 0.0
            close_soon(entry, "discarded")

    def detach(self) -> T:
        """Take the resource out of the pool: it is the caller's from now on, and the lease is over.

        Nothing of the pool resets it, checks it or ends it any more. It still counts against the caps, until the caller has
        closed it, and then called `closed()` on this lease, which has to be kept for that; or until the process ends.
        Raises what `resource` raises.
        """
        if hasattr(self, "_detached"):
            self._raise_released()
        self.resource  # noqa: B018  # raises where it is not ours any more
        entry = None
        try:
            entry = self._take_out()
            if entry is None:
                self._raise_not_ours()
            self._detached = entry  # first: from now on nobody takes it for lost
            if detach(entry):
                return entry.resource.resource  # type: ignore[no-any-return]
            del self._detached
            self._held.append(entry)
            self._raise_unusable(entry)
        except BaseException as error:
            if entry is not None and hasattr(self, "_detached"):
                del self._detached  # interrupted: nobody has got it, and the audit closes it
            entry = None
            self._lender.local.member.interrupted(error)
            raise

    def closed(self) -> None:
        """What `detach` returned has been closed: its slot is free. Call it once; again it does nothing.

        Raises PoolError where nothing was detached.
        """
        if not hasattr(self, "_detached"):
            raise PoolError(
                f"pool {self._lender.name!r}: closed() is for a resource that detach() has taken out of the pool; to have "
                "the pool close a resource, await discard()"
            )
        try:
            say_closed(self._detached)
        except BaseException as error:
            self._lender.local.member.interrupted(error)
            raise

    async def cancel(self) -> bool:
        """Make what runs on the resource end with an error; see Lease.cancel.

        Call it from another task of the resource's loop. True: the driver was told. False: the recipe has no `cancel`,
        its driver cannot do it, or the lease has ended.
        """
        held = list(self._held)
        return bool(held) and not held[0].killed and await self._lender.cancel(held[0])

    def invalidate(self, *, renewed: bool = False) -> None:
        """Report that the resource has lost its backend, and with it everything that is as old; see Lease."""
        self.resource  # noqa: B018  # raises where it is not ours any more
        entry = self._held[0]
        entry.local.backend_failed(entry, renewed=renewed)

    def _take_out(self) -> PoolEntry | None:
        """The entry, for the first who asks. None: it is our parent's, or was given back already."""
        try:
            if not self._held[0].mark[0]:
                return None
            return self._held.pop()
        except IndexError:
            self._refuse_second()
            return None

    def __del__(self) -> None:
        # Runs in any thread at any instruction, whatever locks are held: only note it.
        try:
            held = self._held
            if not held or not held[0].mark[0]:
                return
            entry = held.pop()
        except (AttributeError, IndexError):
            return
        if not entry.killed:
            entry.inventory.leaked.append(entry)
            entry.local.member.wake()

    def __enter__(self) -> NoReturn:
        raise PoolError(f"pool {self._lender.name!r}: use `async with`; its resources are awaited")

    def __exit__(self, *_: object) -> None:
        """Never reached."""

    def __reduce__(self) -> NoReturn:
        raise PoolError(
            f"a lease of pool {self._lender.name!r} cannot be pickled: its resource belongs to an event loop of this "
            "process; send the AsyncPool instead and check out there"
        )

    def __repr__(self) -> str:
        state = "in use" if self._held else "released"
        if hasattr(self, "_detached"):
            state = "detached"
        return f"<{type(self).__name__} of pool {self._lender.name!r}, {state}>"

    def _raise_not_ours(self) -> NoReturn:
        """Another thread was quicker, or this is a child that C code has forked."""
        for entry in self._held:
            self._raise_unusable(entry)
        self._raise_released()

    def _raise_released(self) -> NoReturn:
        what = "nothing is lent here now; check out (again) to go on"
        if hasattr(self, "_detached"):
            what = "the resource of this lease was detached; use what detach() returned"
        raise LeaseReleased(f"pool {self._lender.name!r}: {what}") from None

    def _raise_unusable(self, entry: PoolEntry) -> NoReturn:
        if entry.inventory.inherited:
            raise ForkedLease(
                f"pool {self._lender.name!r}: this lease was taken by the parent of this process, and its resource "
                "belongs to the parent; check out in this process instead"
            )
        raise StaleLease(
            f"pool {self._lender.name!r}: this lease was held for too long (max_lease_kill), or beyond the end of its "
            "event loop, so its resource was closed; check out again"
        )

    def _refuse_second(self) -> None:
        local = self._lender.local
        if local.inventory.inherited or hasattr(self, "_detached"):
            return
        local.count("double_releases")
        log.warning(
            "pool %r: a lease was released a second time; refused, nothing was changed", local.name
        )


class AsyncCheckout(AsyncLease[T]):
    """What `pool.checkout()` returns: `async with` it for the resource, or `await` it for the lease."""

    __slots__ = ("_for_whom", "_lane", "_seconds")

    # See AsyncLease. _for_whom: identity and credential, where they are named. _lane: None in a pool without lanes.
    _lane: str | None
    _seconds: float | None
    _for_whom: tuple[str | None, Any] | None

    async def __aenter__(self) -> T:
        lender = self._lender
        if self._for_whom is None:
            local = lender.local
            home = lender.by_loop.get(running_loop())
            if home is not None and not local.idle.attention and local.ours[0]:
                try:
                    entry = home.pop()
                except IndexError:
                    pass  # nothing on the shelf; not handled here, so that errors do not name this one too
                else:
                    now = monotonic()
                    if now < entry.retire_at and now - entry.released_at < local.trust_s:
                        entry.uses += 1
                        entry.lent_at = now
                        self._held.append(entry)
                        return entry.resource.resource  # type: ignore[no-any-return]
                    entry.shelf.append(entry)
        if self._held:
            self._refuse_reuse()
        entry = await lender.check_out(self._seconds, self._for_whom, self._lane)
        self._held.append(entry)
        held = entry.resource
        if entry.shelf is not held.home.shelf or lender.local.notes_callers:  # saves a call
            lender.note_lent(entry)
        return held.resource  # type: ignore[no-any-return]

    def _refuse_reuse(self) -> NoReturn:
        raise PoolError(
            f"pool {self._lender.name!r}: this checkout was used already; call pool.checkout() for each"
        )

    def __await__(self) -> Generator[Any, None, AsyncLease[T]]:
        return self._lease().__await__()

    async def _lease(self) -> AsyncLease[T]:
        await self.__aenter__()
        lease: AsyncLease[T] = AsyncLease()
        lease._lender = self._lender
        held, self._held = self._held, []
        lease._held = held
        return lease


class LabelledCheckout(AsyncCheckout[T]):
    """A checkout that says what it is for."""

    __slots__ = ("_label",)

    _label: str

    async def __aenter__(self) -> T:
        resource = await super().__aenter__()
        note_caller(self._held[0], self._label)
        return resource
