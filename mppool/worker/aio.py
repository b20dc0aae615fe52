"""Checkout for asyncio: what blocks happens in a thread, and never in the event loop's.

Checkouts wait in the loop's executor. Giving back does not: an executor full of waiting checkouts would never
run the release that they wait for. It is a chore of the member, for which there is always a thread.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, TypeVar

from mppool.worker.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

T = TypeVar("T")

log = logging.getLogger("mppool")


class AsyncLease(Lease[T]):
    """A lease for `async with`."""

    __slots__ = ()

    def __init__(self, lease: Lease[T]) -> None:
        entry = lease._entry
        del lease._entry
        super().__init__(entry, lease._face)

    async def __aenter__(self) -> T:
        return self.resource

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None and self._face.plain:
            self.release()  # nothing but an append
            return
        # Shielded: a task that is cancelled here has given its lease back all the same.
        await asyncio.shield(_give_back(self, error))


def _give_back(lease: Lease[Any], error: BaseException | None) -> asyncio.Future[None]:
    """Leave the lease, in another thread, for a reset may take its time."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle() -> None:
        if not done.done():
            done.set_result(None)

    def chore() -> None:
        try:
            lease.__exit__(None if error is None else type(error), error, None)
        finally:
            try:
                loop.call_soon_threadsafe(settle)
            except RuntimeError:
                log.debug("the event loop was closed before a lease had been given back")

    lease._face.member.chores.add(chore)
    return done


async def checkout(blocking: Callable[[], Lease[T]]) -> AsyncLease[T]:
    """Run a blocking checkout in a thread. Cancelled, it gives back whatever the thread still gets."""
    future = asyncio.get_running_loop().run_in_executor(None, blocking)
    try:
        return AsyncLease(await asyncio.shield(future))
    except asyncio.CancelledError:
        future.add_done_callback(_give_back_result)
        raise


def _give_back_result(future: asyncio.Future[Lease[Any]]) -> None:
    if not future.cancelled() and future.exception() is None:
        _give_back(future.result(), None)


class AsyncCheckout:
    """What `pool.acheckout()` returns: awaitable, and an asynchronous context manager."""

    __slots__ = ("_blocking", "_lease")

    def __init__(self, blocking: Callable[[], Lease[Any]]) -> None:
        self._blocking = blocking
        self._lease: AsyncLease[Any] | None = None

    def __await__(self) -> Any:
        return checkout(self._blocking).__await__()

    async def __aenter__(self) -> Any:
        self._lease = await checkout(self._blocking)
        return self._lease.resource

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._lease is not None
        await self._lease.__aexit__(kind, error, trace)
