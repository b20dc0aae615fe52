"""Checkouts of hosted resources for asyncio: a task waits, and neither the event loop nor a thread does.

The resource is the same as a thread gets: what is called on it waits for the host. Run what takes long in a thread
(`asyncio.to_thread`); a lease is used by one at a time.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mppool.hosting import frames
from mppool.hosting.answers import token_of
from mppool.hosting.streams import SLICE_S, HostGone
from mppool.process.fork import notice_fork
from mppool.worker.awaited import AwaitedCheckout
from mppool.worker.in_thread import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from mppool.hosting.lease import HostedLease
    from mppool.hosting.stream_table import Streams
    from mppool.hosting.streams import Stream
    from mppool.process.executor import BackgroundExecutor
    from mppool.worker.local_pool import LocalPool
    from mppool.worker.principal import Principal

T = TypeVar("T")


class Steps(Protocol[T]):
    """What a checkout needs of its pool (HostedPool): the steps, which a thread takes too."""

    streams: Streams
    _local: LocalPool

    def principal_of(
        self, identity: str | None, credential: Any, seconds: float | None
    ) -> Principal | None:
        """For whom it is."""

    def kept(
        self, stream: Stream, principal: Principal | None, noted: frames.Noted
    ) -> HostedLease[T] | None:
        """The lease that was kept for this process."""

    def connected(self, deadline: float | None, host: int | None = None) -> Stream:
        """A new stream."""

    def said(
        self, deadline: float | None, seconds: float | None, principal: Principal | None
    ) -> tuple[float | None, str | None, Callable[[bool], tuple[Any, Any]] | None]:
        """What a host is asked."""

    def granted(
        self, stream: Stream, kind: int, body: Any, principal: Principal | None
    ) -> HostedLease[T]:
        """What it has answered."""

    def pause_after(self, deadline: float | None, deaths: int) -> float:
        """How long to wait until hosts are looked for again."""


class HostedCheckout(AwaitedCheckout[T, "HostedLease[T]"]):
    """What `acheckout` of a pool with hosts returns."""

    __slots__ = ("_noted", "_pool", "_seconds", "_whose")

    def __init__(
        self,
        pool: Steps[T],
        seconds: float | None,
        whose: tuple[str | None, Any],
        noted: frames.Noted,
    ) -> None:
        """seconds: to wait, from when this is awaited. whose: identity and credential. noted: see frames."""
        self._pool = pool
        self._seconds = seconds
        self._whose = whose
        self._noted = noted

    async def _checkout(self) -> HostedLease[T]:
        notice_fork()
        pool, seconds = self._pool, self._seconds
        deadline = None if seconds is None else monotonic() + seconds
        principal = await self._principal()
        deaths = 0
        while True:
            stream = pool.streams.take()
            is_fresh = stream is None
            if stream is not None and (lease := pool.kept(stream, principal, self._noted)):
                return lease
            try:
                if stream is None:
                    stream = await in_thread(
                        self._chores, lambda: pool.connected(deadline), pool.streams.put
                    )
                return await self._asked(stream, deadline, principal)
            except HostGone:
                if is_fresh:
                    deaths += 1
                    await asyncio.sleep(pool.pause_after(deadline, deaths))

    async def _asked(
        self, stream: Stream, deadline: float | None, principal: Principal | None
    ) -> HostedLease[T]:
        pool = self._pool
        timeout, identity, token = pool.said(deadline, self._seconds, principal)
        grace = stream.grace(timeout)
        steps = stream.checking_out(timeout, identity, token is not None, self._noted)
        answer: Any = None
        try:
            while True:
                refused = steps.send(answer)
                answer = None
                if refused is None:
                    await _readable(stream, deadline, grace)
                else:
                    assert token is not None
                    answer = await self._token(token, refused)
        except StopIteration as end:
            kind, body = end.value
            return pool.granted(stream, kind, body, principal)
        finally:
            steps.close()  # left before its answer came, the stream is closed

    async def _token(self, token: Callable[[bool], tuple[Any, Any]], refused: bool) -> Any:
        return await in_thread(self._chores, lambda: token_of(token, refused))

    @property
    def _chores(self) -> BackgroundExecutor:
        return self._pool._local.member.chores

    async def _principal(self) -> Principal | None:
        """For whom this is, which may take a token."""
        identity, credential = self._whose
        local, seconds = self._pool._local, self._seconds
        if identity is None and credential is None and local.recipe.credential is None:
            return None
        return await in_thread(
            self._chores, lambda: self._pool.principal_of(identity, credential, seconds)
        )


async def _readable(stream: Stream, deadline: float | None, grace: float | None) -> None:
    """Until something has come. Raises CheckoutTimeout where the host is stopped, or does not answer in time."""
    if stream.has_unread:
        return
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    descriptor = stream.fileno()

    def has_come() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(descriptor, has_come)
    try:
        while True:
            left = None if deadline is None else deadline - monotonic()
            pause = left if left is None or left > 0 else SLICE_S
            if (await asyncio.wait([ready], timeout=pause))[0]:
                return
            stream.check_late(deadline, grace)
    finally:
        loop.remove_reader(descriptor)
