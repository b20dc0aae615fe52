"""Checkout for asyncio: the blocking work happens in a thread of the loop's executor."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from mppool.worker.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class AsyncLease(Lease[T]):
    """A lease for `async with`: giving back runs in a thread, for a reset may take its time."""

    __slots__ = ()

    def __init__(self, lease: Lease[T]) -> None:
        entry = lease._entry
        del lease._entry
        super().__init__(entry, lease._face)

    async def __aenter__(self) -> T:
        return self.resource

    async def __aexit__(self, *_: object) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.release)


async def checkout(blocking: Callable[[], Lease[T]]) -> AsyncLease[T]:
    """Run a blocking checkout in a thread. Cancelled, it gives back whatever the thread still gets."""
    future = asyncio.get_running_loop().run_in_executor(None, blocking)
    try:
        return AsyncLease(await asyncio.shield(future))
    except asyncio.CancelledError:
        future.add_done_callback(_release_result)
        raise


def _release_result(future: asyncio.Future[Lease[Any]]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().release()


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

    async def __aexit__(self, *_: object) -> None:
        assert self._lease is not None
        await self._lease.__aexit__()
