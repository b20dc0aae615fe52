"""`guard=True`: a thin proxy of the resource, which is dead after the release, and whose cursors die with it.

    pool.checkout() ---> GuardedLease ---> Guard of the connection ---> Guard of each cursor
                              |                   |
                              |                   | every call and every assignment: alive? does it leave
                              | release           | something behind that the recipe cannot put back?
                              v                   v
    cursors closed, all proxies dead      ---> then the resource is closed instead of given back

Without it a connection or a cursor that is kept after the `with` block works on what somebody else has by now.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from mppool.errors import ForkedLease, LeaseReleased, PoolError
from mppool.logs import Log
from mppool.worker.lease import AsyncLease, Lease
from mppool.worker.pool import _DEFAULT, Pool

if TYPE_CHECKING:
    from types import TracebackType

    from mppool.worker.inventory import Inventory, PoolEntry
    from mppool.worker.local_pool import LocalPool

T = TypeVar("T")

log = Log("mppool")

_CURSOR = ("execute", "fetchone")
"""What has these methods is a cursor (PEP 249), and dies with the lease."""


class _Loan:
    """What all proxies of one lease share. Used by single atomic operations.

    alive: False from the release on. altered: what was done that the recipe cannot put back, or "".
    """

    __slots__ = (
        "alive",
        "altered",
        "cursors",
        "inventory",
        "leaves_behind",
        "outer",
        "pool",
        "resource",
    )

    def __init__(self, resource: Any, inventory: Inventory, local: LocalPool) -> None:
        self.resource = resource
        self.inventory = inventory
        self.pool = local.name
        self.leaves_behind = local.recipe.leaves_behind
        self.alive = True
        self.altered = ""
        self.cursors: weakref.WeakSet[Guard] = weakref.WeakSet()
        self.outer: weakref.ref[Guard] | None = None

    def check(self) -> None:
        """Raises LeaseReleased after the release, ForkedLease in a child of the process that has the lease."""
        if not self.alive:
            raise LeaseReleased(
                f"pool {self.pool!r}: this was given back already, and somebody else may use it by now; check "
                "out again to go on"
            )
        if self.inventory.forked:
            raise ForkedLease(
                f"pool {self.pool!r}: this belongs to the parent of this process; check out in this process"
            )

    def note(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Something is called, or assigned."""
        if not self.altered and self.leaves_behind(name, arguments):
            self.altered = name

    def end(self) -> None:
        """No proxy does anything from now on; cursors are closed, so that none keeps unread results."""
        self.alive = False
        if self.inventory.forked:
            return
        cursors, self.cursors = list(self.cursors), weakref.WeakSet()
        for cursor in cursors:
            inner = object.__getattribute__(cursor, "_inner")
            try:
                inner.close()
            except Exception as error:  # noqa: BLE001  # whatever the driver says of a cursor that is broken
                log.debug("pool %r: closing a cursor raised: %r", self.pool, error)


class Guard:
    """A proxy of a resource, or of a cursor of it, for as long as it is lent.

    It says that it is of the resource's class (`isinstance`), and passes everything on.
    """

    __slots__ = ("__weakref__", "_inner", "_loan")

    def __init__(self, inner: Any, loan: _Loan) -> None:
        object.__setattr__(self, "_inner", inner)
        object.__setattr__(self, "_loan", loan)

    @property  # type: ignore[misc]  # what `isinstance` looks at
    def __class__(self) -> type:
        return type(object.__getattribute__(self, "_inner"))

    def __getattr__(self, name: str) -> Any:
        inner, loan = _parts(self)
        loan.check()
        found = getattr(inner, name)
        if callable(found) and not isinstance(found, type):
            return _Method(self, name, found)
        return _wrapped(self, found)

    def __setattr__(self, name: str, value: Any) -> None:
        inner, loan = _parts(self)
        loan.check()
        loan.note(name, (value,))
        setattr(inner, name, value)

    def __delattr__(self, name: str) -> None:
        inner, loan = _parts(self)
        loan.check()
        delattr(inner, name)

    def __enter__(self) -> Any:
        inner, loan = _parts(self)
        loan.check()
        return _wrapped(self, inner.__enter__())

    def __exit__(self, *exception: object) -> Any:
        inner, loan = _parts(self)
        loan.check()
        return inner.__exit__(*exception)

    def __iter__(self) -> Iterator[Any]:
        inner, loan = _parts(self)
        loan.check()
        iterator = iter(inner)
        return self if iterator is inner else iterator

    def __next__(self) -> Any:
        inner, loan = _parts(self)
        loan.check()
        return next(inner)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        inner, loan = _parts(self)
        loan.check()
        loan.note("", arguments)
        return _wrapped(self, inner(*arguments, **keywords))

    def __len__(self) -> int:
        inner, loan = _parts(self)
        loan.check()
        return len(inner)

    def __bool__(self) -> bool:
        return bool(_parts(self)[0])

    def __getitem__(self, key: Any) -> Any:
        inner, loan = _parts(self)
        loan.check()
        return _wrapped(self, inner[key])

    def __setitem__(self, key: Any, value: Any) -> None:
        inner, loan = _parts(self)
        loan.check()
        inner[key] = value

    def __contains__(self, item: Any) -> bool:
        inner, loan = _parts(self)
        loan.check()
        return item in inner

    def __dir__(self) -> list[str]:
        return dir(_parts(self)[0])

    def __repr__(self) -> str:
        inner, loan = _parts(self)
        state = "lent" if loan.alive else "given back"
        return f"<{type(inner).__name__} of pool {loan.pool!r}, {state}>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise PoolError(
            f"a resource of pool {_parts(self)[1].pool!r} cannot be pickled: it belongs to this process; send "
            "the Pool instead and check out there"
        )


class _Method:
    """A method of what is guarded: looked at when it is called, because it may be kept until after the release."""

    __slots__ = ("_function", "_guard", "_name")

    def __init__(self, guard: Guard, name: str, function: Callable[..., Any]) -> None:
        self._guard = guard
        self._name = name
        self._function = function

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        guard = self._guard
        _, loan = _parts(guard)
        loan.check()
        loan.note(self._name, arguments)
        return _wrapped(guard, self._function(*arguments, **keywords))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)

    def __repr__(self) -> str:
        return repr(self._function)


def _parts(guard: Guard) -> tuple[Any, _Loan]:
    return object.__getattribute__(guard, "_inner"), object.__getattribute__(guard, "_loan")


def _wrapped(guard: Guard, value: Any) -> Any:
    """What leads back to the resource, or is a cursor of it, is guarded too."""
    inner, loan = _parts(guard)
    if value is inner:
        return guard
    if value is loan.resource:
        outer = None if loan.outer is None else loan.outer()
        return Guard(value, loan) if outer is None else outer
    if value is None or isinstance(value, (str, bytes, int, float, tuple, list, dict)):
        return value
    if all(hasattr(type(value), method) for method in _CURSOR):
        cursor = Guard(value, loan)
        loan.cursors.add(cursor)
        return cursor
    return value


class GuardedLease(Lease[T]):
    """A lease whose value is a Guard."""

    __slots__ = ("_guard", "_loan")

    def __init__(self, entry: PoolEntry, local: LocalPool) -> None:
        self._loan = _Loan(entry.resource, entry.inventory, local)
        self._guard = Guard(entry.resource, self._loan)
        self._loan.outer = weakref.ref(self._guard)
        self._local = local
        self._held = [entry]

    @property
    def resource(self) -> T:
        """See Lease.resource."""
        super().resource  # noqa: B018  # raises where it is not ours any more
        return self._guard  # type: ignore[return-value]

    def release(self) -> None:
        """Give the resource back, or close it, if something was done that stays and cannot be put back."""
        self._loan.end()
        if self._is_altered():
            super().discard()
        else:
            super().release()

    def discard(self) -> None:
        """See Lease.discard."""
        self._loan.end()
        super().discard()

    def detach(self) -> T:
        """See Lease.detach; what it returns is the resource itself, no proxy."""
        self._loan.end()
        return super().detach()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loan.end()
        if self._is_altered():
            super().discard()
        else:
            super().__exit__(kind, error, trace)

    def for_asyncio(self) -> AsyncLease[T]:
        """See Lease.for_asyncio."""
        return GuardedAsyncLease(self)

    def _is_altered(self) -> bool:
        if not self._loan.altered or self.released:
            return False
        log.debug(
            "pool %r: a resource is closed, because what %s() has changed would stay for the next one",
            self._loan.pool, self._loan.altered,
        )  # fmt: skip
        return True


class GuardedAsyncLease(GuardedLease[T], AsyncLease[T]):
    """The same for `async with`."""

    __slots__ = ()

    def __init__(self, lease: GuardedLease[T]) -> None:
        self._loan = lease._loan
        self._guard = lease._guard
        AsyncLease.__init__(self, lease)

    def _released_at_once(self) -> bool:
        self._loan.end()
        return not self._loan.altered and super()._released_at_once()


class GuardedPool(Pool[T]):
    """A pool with `guard=True`. What is not guarded costs nothing of this."""

    def checkout(self, timeout: float | None = _DEFAULT, *args: Any, **more: Any) -> Lease[T]:
        """See Pool.checkout; the value of the lease is a proxy."""
        lease = super().checkout(timeout, *args, **more)
        guarded: GuardedLease[T] = GuardedLease(lease._held.pop(), lease._local)
        return guarded

    def _lease_for_task(self, label: str | None, entry: PoolEntry) -> Lease[T]:
        lease = super()._lease_for_task(label, entry)
        guarded: GuardedLease[T] = GuardedLease(lease._held.pop(), self._local)
        return guarded

    def lease_of(self, resource: T) -> Lease[T]:
        """See Pool.lease_of; the proxy of a resource is known, and that of a cursor."""
        known: Any = resource
        return super().lease_of(_parts(known)[1].resource if type(known) is Guard else known)
