"""HostedPool: a pool whose resources live in hosts, and its leases."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import weakref
from collections import deque
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import msgspec

from mppool.errors import CheckoutTimeout as CheckoutTimedOut
from mppool.errors import (
    ConfigurationError,
    LeaseReleased,
    OpenFailed,
    PoolClosed,
    ServerUnavailable,
)
from mppool.hosting import dbapi, frames, launch
from mppool.hosting.declared import Declared
from mppool.hosting.proxies import Hold
from mppool.hosting.streams import HostGone, Stream, Streams, raise_error
from mppool.hosting.travel import Luggage, main_script, pickled
from mppool.logs import Log
from mppool.options import checked_lease_label
from mppool.process.fork import call_in_children, notice_fork
from mppool.worker.callers import caller_name
from mppool.worker.lanes import checked_lane
from mppool.worker.lease import Lease
from mppool.worker.pool import _DEFAULT, Pool

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from mppool.link.server_link import ServerLink
    from mppool.recipe import Recipe
    from mppool.worker.aio import AsyncCheckout
    from mppool.worker.local_pool import LocalPool
    from mppool.worker.principal import Principal

T = TypeVar("T")

log = Log("mppool.hosting")

_PAUSE_S = 0.005
_MOST_DEATHS = 5
_LEAVE_S = 5.0
_GREETING_S = 10.0

_all_streams: weakref.WeakKeyDictionary[LocalPool, Streams] = weakref.WeakKeyDictionary()
_finding = threading.Lock()
"""Guards `_all_streams`: pools of one declaration share their streams."""


def _renew_lock() -> None:
    global _finding
    _finding = threading.Lock()


call_in_children(_renew_lock)


def _streams_of(local: LocalPool) -> Streams:
    with _finding:
        found = _all_streams.get(local)
        if found is None:
            found = _all_streams[local] = Streams(launch.Surroundings())
        return found


_decode = msgspec.msgpack.Decoder().decode


def declared(pool: str, recipe: Recipe[Any]) -> Declared:
    """The recipe as this process declares it. Raises ConfigurationError where it cannot travel to a host."""
    pickled(pool, recipe)
    return Declared(recipe)


class HostedPool(Pool[T]):
    """The same interface as every pool. Its resources are opened in hosts, and driven from here.

    _leaked: texts of leases that were garbage-collected, to be logged at the next checkout.
    """

    def __init__(self, local: LocalPool, all_stats: Any, rebuild: Any) -> None:
        super().__init__(local, all_stats, rebuild)
        self._streams = _streams_of(local)
        self._leaked: deque[str] = deque()

    # --- checkout -----------------------------------------------------------------------------------------------

    def checkout(
        self,
        timeout: float | None = _DEFAULT,
        *,
        identity: str | None = None,
        credential: Any = None,
        lane: str | None = None,
        label: str | None = None,
    ) -> Lease[T]:
        """Lend a resource of a host. Arguments and errors are those of Pool.checkout; there are no lanes."""
        notice_fork()
        local = self._local
        if lane is not None:
            checked_lane(local, lane)
        seconds = self._seconds(timeout)
        noted = ("", "")
        if label is not None or local.notes_callers:
            text = "" if label is None else checked_lease_label(self.name, label)
            noted = (text, f"pid {os.getpid()}, {caller_name()}")
        deadline = None if seconds is None else monotonic() + seconds
        while self._leaked:
            log.warning("%s", self._leaked.popleft())
        if local.closed:
            raise PoolClosed(f"pool {self.name!r} is closed; it hands out nothing any more")
        principal: Principal | None = None
        if identity is not None or credential is not None or local.recipe.credential is not None:
            if not local.is_sealed:
                local.member.seal()
            principal = local.identities.of(identity, credential, seconds)
        deaths = 0
        while True:
            stream = self._streams.take()
            is_fresh = stream is None
            try:
                if stream is None:
                    stream = self._connected(deadline)
                return self._checked_out(stream, deadline, seconds, principal, noted)
            except HostGone:
                # A host that leaves closes its streams: another one is found, or started. So is one for a host that died.
                if is_fresh:
                    deaths += 1
                    self._pause(deadline, deaths)

    def _checked_out(
        self,
        stream: Stream,
        deadline: float | None,
        seconds: float | None,
        principal: Principal | None,
        noted: tuple[str, str],
    ) -> Lease[T]:
        left = None if deadline is None else max(0.0, deadline - monotonic())
        identity = None if principal is None else principal.identity
        token = None
        if principal is not None and principal.credential is not None:
            token = _asker(principal, deadline)
        # What is left of no time at all is no time: the host opens within the cap, and waits for nobody.
        kind, body = stream.check_out(0 if seconds == 0 else left, deadline, identity, token, noted)
        if kind == frames.ERROR:
            self._streams.put(stream)
            raise_error(body, self.name)
        number, introduced, commits = _decode(body)
        hold = Hold(
            stream,
            number,
            self.name,
            may_pickle=self.options.values == "pickle",
            commits=commits,
            connection_of=dbapi.made_for,
        )
        return HostedLease(self, hold, hold.stands_for(pickle.loads(introduced)))  # noqa: S301  # see values.py

    def _connected(self, deadline: float | None, host: int | None = None) -> Stream:
        """A new stream, to a host that is there or was just started. host: to this one; None: to the next one."""
        local = self._local
        if not local.is_sealed:
            local.member.seal()
        link: ServerLink = local.member.link  # type: ignore[assignment]
        paths = link.locator.paths()
        paths.prepare()
        place = launch.Place(paths, self.name, local.fingerprint, self.options.values)
        number = self._streams.next_host(self.options.hosts) if host is None else host
        try:
            around = self._streams.around
            connection = launch.find_or_start(paths, place, number, around, self._luggage, deadline)
            stream = self._streams.enter(Stream(connection, self.name, number))
            stream.greet(
                link.locator.linger, monotonic() + _GREETING_S if deadline is None else deadline
            )
        except TimeoutError as error:
            local.count("timeouts")
            raise CheckoutTimedOut(
                f"pool {self.name!r}: no host could be reached in time: {error}"
            ) from error
        return stream

    def _luggage(self) -> Luggage:
        link: ServerLink = self._local.member.link  # type: ignore[assignment]
        recipe = self._local.recipe.inner  # type: ignore[attr-defined]
        return Luggage(
            self.name,
            self.options,
            pickled(self.name, recipe),
            main_script() or "",
            list(sys.argv),
            link.locator.linger,
            recipe.credential is not None,
            None if self._local.budget is None else self._local.budget.max_size,
        )

    def _pause(self, deadline: float | None, deaths: int) -> None:
        if deaths >= _MOST_DEATHS:
            raise OpenFailed(
                f"pool {self.name!r}: its host has ended {deaths} times while this checkout waited; does opening a "
                "resource end the process? See hosts.log in the directory of the manager"
            )
        if deadline is not None and monotonic() + _PAUSE_S >= deadline:
            raise CheckoutTimedOut(
                f"pool {self.name!r}: its hosts come and go; nothing could be had in time"
            )
        sleep(_PAUSE_S)

    def acheckout(
        self,
        timeout: float | None = _DEFAULT,
        *,
        identity: str | None = None,
        credential: Any = None,
        lane: str | None = None,
        label: str | None = None,
    ) -> AsyncCheckout[T]:
        """Not offered: what a hosted resource does blocks, and its lease is for one thread.

        Raises ConfigurationError; check out in a thread (`asyncio.to_thread`), and use the resource there.
        """
        raise ConfigurationError(
            f"pool {self.name!r}: acheckout is not offered with placement='host'; run the whole block in a thread: "
            "await asyncio.to_thread(function_with_checkout)"
        )

    # --- what this process has ----------------------------------------------------------------------------------

    @property
    def idle_here(self) -> int:
        """Nothing lies idle here: what is released goes back to its host."""
        return 0

    def close_idle(self) -> int:
        """Close the streams to hosts that have no lease. Returns 0: resources are closed by their hosts."""
        self._streams.close_idle()
        return 0

    def wait_ready(self, timeout: float | None = 30.0) -> bool:
        """As Pool.wait_ready; a host is started where there is none."""
        seconds = self._seconds(timeout)
        deadline = None if seconds is None else monotonic() + seconds
        self._streams.put(self._reached(deadline))
        left = None if deadline is None else max(0.0, deadline - monotonic())
        return super().wait_ready(left)

    def _reached(self, deadline: float | None) -> Stream:
        """A stream to a host whose process is a member of the manager by now."""
        deaths = 0
        while True:
            stream = self._streams.take() or self._connected(deadline)
            try:
                kind, body = stream.call(0, frames.ATTACH, [])
            except HostGone:
                deaths += 1
                self._pause(deadline, deaths)
                continue
            if kind == frames.ERROR:
                raise_error(body, self.name)
            return stream

    def lease_of(self, resource: T) -> Lease[T]:
        """The lease whose resource this is."""
        hold = getattr(resource, "_hold", None)
        lease = getattr(hold, "lease", None)
        found: Lease[T] | None = lease() if lease is not None else None
        if found is None or found.released or found._local is not self._local:
            raise LeaseReleased(
                f"pool {self.name!r}: this process has no lease of that resource: it was given back, or is another "
                "pool's"
            )
        return found

    def close(self, *, everywhere: bool = False) -> None:
        """As Pool.close. Streams without a lease are closed."""
        super().close(everywhere=everywhere)
        self._streams.close_idle()


def leave_hosts(local: LocalPool) -> None:
    """Close idle streams; hosts that no other process uses leave. For the end of a `with` block."""
    streams = _streams_of(local)
    while (stream := streams.take()) is not None:
        try:
            _, body = stream.call(0, frames.LEAVE, [])
            if _decode(body)[0]:
                stream.wait_for_end(_LEAVE_S)
        except HostGone:
            log.debug("a host has left by itself")
        stream.close()


def close_streams(local: LocalPool) -> None:
    """Close what has no lease."""
    _streams_of(local).close_idle()


def _asker(principal: Principal, deadline: float | None) -> Callable[[bool], tuple[Any, Any]]:
    """What gives a token to a host that opens on behalf of this checkout."""
    last: list[Any] = []

    def token(refused: bool) -> tuple[Any, Any]:
        if refused and last:
            principal.refused(last.pop())
        left = None if deadline is None else max(0.0, deadline - monotonic())
        found = principal.token(left)
        if found is None:
            return None, None
        last[:] = [found]
        return found.token_struct, found.expires_on

    return token


class HostedLease(Lease[T]):
    """The lease of a resource in a host."""

    __slots__ = ("_hold", "_pool", "_resource")

    _hold: Hold

    def __init__(self, pool: HostedPool[T], hold: Hold, resource: T) -> None:
        self._pool = pool
        self._local = pool._local
        self._hold = hold
        self._resource = resource
        hold.lease = weakref.ref(self)
        self._held = []  # of resources in this process

    @property
    def resource(self) -> T:
        """The resource. Raises what Lease.resource raises."""
        self._hold.check()
        return self._resource

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
                self._pool._streams.put(stream)
            else:
                self._local.count("double_releases")
                log.warning(
                    "pool %r: a lease was released a second time; refused, nothing was changed",
                    self._local.name,
                )
            return
        hold.is_over = True
        try:
            stream.tell(hold.number, frames.RELEASE, how)
        except HostGone:
            log.debug("pool %r: the host is gone, and the lease with it", self._local.name)
        except BaseException:
            stream.close()
            raise
        self._pool._streams.put(stream)

    def invalidate(self, *, renewed: bool = False) -> None:
        """As Lease.invalidate."""
        self._hold.answered("invalidating", frames.INVALIDATE, [renewed])

    def cancel(self) -> bool:
        """As Lease.cancel: from any thread, over a stream of its own."""
        hold = self._hold
        hold.check()
        stream = self._pool._connected(monotonic() + _GREETING_S, hold.stream.host)
        try:
            if stream.host_pid != hold.stream.host_pid:
                return False  # it has died, and another one was started
            _, body = stream.call(0, frames.CANCEL, [], hold.stream.number, hold.number)
        except HostGone as error:
            raise ServerUnavailable(
                f"pool {self._local.name!r}: the host cannot be reached to cancel the call"
            ) from error
        self._pool._streams.put(stream)
        return bool(_decode(body)[0])

    def for_asyncio(self) -> NoReturn:
        """Not offered; see HostedPool.acheckout."""
        raise ConfigurationError(
            f"pool {self._local.name!r}: leases of hosts are not for event loops"
        )

    def __del__(self) -> None:
        # Runs in any thread at any instruction: it takes no lock. The host sees the end of the stream.
        try:
            hold = self._hold
            if hold.is_over or not hold.stream.mark[0]:
                return
            hold.is_over = True
            hold.stream.close()
            self._pool._leaked.append(
                f"pool {hold.pool!r}: a lease was garbage-collected without being released; it has ended. Keep the "
                "lease, not only its resource, and use `with`"
            )
        except AttributeError:
            return  # it was never finished

    abandon = __del__

    def __repr__(self) -> str:
        state = "released" if self.released else "in use"
        return f"<Lease of pool {self._local.name!r} in a host, {state}>"
