"""The lease of a resource in a host."""

from __future__ import annotations

import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from mppool.errors import PoolError, ServerUnavailable
from mppool.hosting import frames
from mppool.hosting.streams import GREETING_S, HostGone
from mppool.logs import Log
from mppool.worker.lease import Lease

if TYPE_CHECKING:
    from collections import deque
    from types import TracebackType

    from mppool.hosting.proxies import Hold
    from mppool.hosting.stream_table import Streams
    from mppool.hosting.streams import Stream
    from mppool.worker.local_pool import LocalPool

T = TypeVar("T")

log = Log("mppool.hosting")

_decode = msgspec.msgpack.Decoder().decode


class Lender(Protocol):
    """What a lease needs of its pool.

    streams: where its stream goes. leaked: texts of leases that were garbage-collected, for a thread that may log.
    """

    streams: Streams
    leaked: deque[str]

    def connected(self, deadline: float | None, host: int | None = None) -> Stream:
        """A stream of its own to a host."""


class HostedLease(Lease[T]):
    """The lease of a resource in a host. source: tells the resource from all others of the manager."""

    __slots__ = ("_hold", "_lender", "_resource", "source")

    _hold: Hold

    def __init__(self, local: LocalPool, lender: Lender, hold: Hold, resource: T) -> None:
        self._lender = lender
        self._local = local
        self._hold = hold
        self.source = hold.stream.source
        self._resource = resource
        hold.lease = weakref.ref(self)
        self._held = []  # of resources in this process

    @property
    def resource(self) -> T:
        """The resource. Raises what Lease.resource raises."""
        self._hold.check()
        return self._resource

    @property
    def commits(self) -> bool:
        """Whether each statement of a database connection is committed at once."""
        return self._hold.commits

    @property
    def released(self) -> bool:
        """Whether the lease was given back."""
        return self._hold.is_over and not self._hold.why_over

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end(frames.GIVEN_BACK if error is None else frames.SUSPECT)

    def release(self) -> None:
        """Give the resource back: the host resets it. A second release is refused, harmless, counted and logged."""
        self._end(frames.GIVEN_BACK)

    def discard(self) -> None:
        """Have the resource closed instead."""
        self._end(frames.DISCARDED)

    def _end(self, how: int) -> None:
        hold = self._hold
        stream = hold.stream
        if not stream.mark[0]:
            return
        if hold.is_over:
            if hold.why_over:  # the host is gone, and said so
                hold.why_over = ""
                self._lender.streams.put(stream)
            else:
                self._local.count("double_releases")
                log.warning(
                    "pool %r: a lease was released a second time; refused, nothing was changed",
                    self._local.name,
                )
            return
        hold.is_over = True
        try:
            # A connection whose autocommit was changed is told of once more.
            keeps = how == frames.GIVEN_BACK and hold.may_stay and hold.commits == stream.commits
            stream.give_back(hold.number, how, keeps=keeps)
        except HostGone:
            log.debug("pool %r: the host is gone, and the lease with it", self._local.name)
        except BaseException:
            stream.close()
            raise
        self._lender.streams.put(stream)

    def invalidate(self, *, renewed: bool = False) -> None:
        """As Lease.invalidate."""
        self._hold.answered("invalidating", frames.INVALIDATE, [renewed])

    def detach(self) -> T:
        """Refused: raises PoolError."""
        raise PoolError(
            f'pool {self._local.name!r}: a resource that lives in a host cannot be detached; use placement="worker", or '
            "open one of your own"
        )

    def cancel(self) -> bool:
        """As Lease.cancel: from any thread, over a stream of its own."""
        hold = self._hold
        hold.check()
        stream = self._lender.connected(monotonic() + GREETING_S, hold.stream.host)
        try:
            if stream.host_pid != hold.stream.host_pid:
                return False  # it has died, and another one was started
            _, body = stream.call(0, frames.CANCEL, [], hold.stream.number, hold.number)
        except HostGone as error:
            raise ServerUnavailable(
                f"pool {self._local.name!r}: the host cannot be reached to cancel the call"
            ) from error
        self._lender.streams.put(stream)
        return bool(_decode(body)[0])

    async def __aenter__(self) -> T:
        return self.resource

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, trace)  # which waits for nothing: the host resets

    def for_asyncio(self) -> Any:
        """The same lease: it can do `async with` as it is."""
        return self

    def __del__(self) -> None:
        # Runs in any thread at any instruction: it takes no lock. The host sees the end of the stream.
        try:
            hold = self._hold
            if hold.is_over or not hold.stream.mark[0]:
                return
            hold.is_over = True
            hold.stream.close()
            self._lender.leaked.append(
                f"pool {hold.pool!r}: a lease was garbage-collected without being released; it has ended. Keep the "
                "lease, not only its resource, and use `with`"
            )
        except AttributeError:
            return  # it was never finished

    abandon = __del__

    def __repr__(self) -> str:
        state = "released" if self.released else "in use"
        return f"<Lease of pool {self._local.name!r} in a host, {state}>"
