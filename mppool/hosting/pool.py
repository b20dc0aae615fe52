"""HostedPool: a pool whose resources live in hosts, and its leases."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import weakref
from collections import deque
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from mppool.core.events import WantReady
from mppool.errors import CheckoutTimeout as CheckoutTimedOut
from mppool.errors import (
    LeaseReleased,
    OpenFailed,
    PoolClosed,
)
from mppool.hosting import dbapi, frames, launch
from mppool.hosting.answers import raise_error
from mppool.hosting.declared import Declared
from mppool.hosting.lease import HostedLease
from mppool.hosting.proxies import Hold
from mppool.hosting.stream_table import Streams
from mppool.hosting.streams import GREETING_S, HostGone, Stream
from mppool.hosting.travel import Luggage, main_script, pickled
from mppool.link.troubles import pool_error
from mppool.logs import Log
from mppool.options import checked_lease_label
from mppool.process.fork import call_in_children, notice_fork
from mppool.worker.callers import caller_name
from mppool.worker.lanes import checked_lane
from mppool.worker.lease import Lease
from mppool.worker.pool import _DEFAULT, Pool

if TYPE_CHECKING:
    from collections.abc import Callable

    from mppool.link.server_link import ServerLink
    from mppool.recipe import Recipe
    from mppool.worker.local_pool import LocalPool
    from mppool.worker.principal import Principal

T = TypeVar("T")

log = Log("mppool.hosting")

_PAUSE_S = 0.005
_MOST_DEATHS = 5
_LEAVE_S = 5.0

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

    streams: to hosts. leaked: texts of leases that were garbage-collected, to be logged at the next checkout.
    """

    def __init__(self, local: LocalPool, all_stats: Any, rebuild: Any) -> None:
        super().__init__(local, all_stats, rebuild)
        self.streams = _streams_of(local)
        self.leaked: deque[str] = deque()
        self._may_pickle = self.options.values == "pickle"

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
        """Lend a resource of a host. Arguments and errors are those of Pool.checkout."""
        notice_fork()
        seconds, noted = self._asked(timeout, lane, label)
        principal = self.principal_of(identity, credential, seconds)
        deadline = None if seconds is None else monotonic() + seconds
        deaths = 0
        while True:
            stream = self.streams.take()
            is_fresh = stream is None
            if stream is not None and (lease := self.kept(stream, principal, noted)):
                return lease
            try:
                if stream is None:
                    stream = self.connected(deadline)
                timeout, whose, token = self.said(deadline, seconds, principal)
                answer = stream.check_out(timeout, deadline, whose, token, noted)
                return self.granted(stream, *answer, principal)
            except HostGone:
                # A host that leaves closes its streams: another one is found, or started. So is one for a host that died.
                if is_fresh:
                    deaths += 1
                    sleep(self.pause_after(deadline, deaths))

    def _asked(
        self, timeout: float | None, lane: str | None, label: str | None
    ) -> tuple[float | None, frames.Noted]:
        """For how long, and what is noted of who asks. Raises what a checkout raises at once."""
        local = self._local
        checked_lane(local, lane)
        seconds = self._seconds(timeout)
        noted: frames.Noted = ("", "", lane)
        if label is not None or local.notes_callers:
            text = "" if label is None else checked_lease_label(self.name, label)
            noted = (text, f"pid {os.getpid()}, {caller_name()}", lane)
        while self.leaked:
            log.warning("%s", self.leaked.popleft())
        if local.closed:
            raise PoolClosed(f"pool {self.name!r} is closed; it hands out nothing any more")
        return seconds, noted

    # --- the steps of a checkout, for a thread and for a task ---------------------------------------------------

    def principal_of(
        self, identity: str | None, credential: Any, seconds: float | None
    ) -> Principal | None:
        """For whom a checkout is; None: for nobody in particular. It may fetch a token."""
        local = self._local
        if identity is None and credential is None and local.recipe.credential is None:
            return None
        if not local.is_sealed:
            local.member.seal()
        return local.identities.of(identity, credential, seconds)

    def said(
        self, deadline: float | None, seconds: float | None, principal: Principal | None
    ) -> tuple[float | None, str | None, Callable[[bool], tuple[Any, Any]] | None]:
        """What a host is asked: its time, for whom, and what gives a token."""
        left = None if deadline is None else max(0.0, deadline - monotonic())
        identity = None if principal is None else principal.identity
        token = None
        if principal is not None and principal.credential is not None:
            token = _asker(principal, deadline)
        # What is left of no time at all is no time: the host opens within the cap, and waits for nobody.
        return (0 if seconds == 0 else left), identity, token

    def granted(
        self, stream: Stream, kind: int, body: Any, principal: Principal | None
    ) -> HostedLease[T]:
        """What the host has answered. Raises what it has raised."""
        if kind == frames.ERROR:
            self.streams.put(stream)
            raise_error(body, self.name)
        stream.lease, introduced, stream.commits, stream.source = _decode(body)
        lease = self._lease_on(stream, pickle.loads(introduced))  # noqa: S301  # see values.py
        lease._hold.may_stay = principal is None
        return lease

    def _lease_on(self, stream: Stream, introduced: Any) -> HostedLease[T]:
        hold = Hold(
            stream,
            stream.lease,
            self.name,
            may_pickle=self._may_pickle,
            commits=stream.commits,
            connection_of=dbapi.made_for,
        )
        stands_for_it = hold.stands_for(introduced)
        stream.introduced = (introduced[0], stands_for_it._facts.name)
        return HostedLease(self._local, self, hold, stands_for_it)

    def kept(
        self, stream: Stream, principal: Principal | None, noted: frames.Noted
    ) -> HostedLease[T] | None:
        """The lease that was kept for this process since its last release; None: it has to be asked for."""
        if not stream.is_kept or principal is not None or noted[1]:
            return None
        try:
            if not stream.has_kept():
                return None
            lease = self._lease_on(stream, stream.introduced)
            lease._hold.may_stay = True
        except BaseException:
            stream.close()  # nobody knows whose it is
            raise
        return lease

    def connected(self, deadline: float | None, host: int | None = None) -> Stream:
        """A new stream, to a host that is there or was just started. host: to this one; None: to the next one."""
        local = self._local
        if not local.is_sealed:
            local.member.seal()
        link: ServerLink = local.member.link  # type: ignore[assignment]
        paths = link.locator.paths()
        paths.prepare()
        place = launch.Place(paths, self.name, local.fingerprint, self.options.values)
        number = self.streams.next_host(self.options.hosts) if host is None else host
        try:
            around = self.streams.around
            connection = launch.find_or_start(paths, place, number, around, self._luggage, deadline)
            stream = self.streams.enter(Stream(connection, self.name, number))
            stream.greet(
                link.locator.linger, monotonic() + GREETING_S if deadline is None else deadline
            )
            self._tend(stream)
        except TimeoutError as error:
            local.count("timeouts")
            raise CheckoutTimedOut(
                f"pool {self.name!r}: no host could be reached in time: {error}"
            ) from error
        except OSError as error:
            raise (pool_error(local.member.name, error) or error) from error
        return stream

    def _tend(self, stream: Stream) -> None:
        if self.options.min_size and self.options.prefill:
            self.streams.tender.note(self, stream.host, stream.host_pid)
            self._local.member.housekeeper.look_after(self.streams.tender)

    # --- for the Tender -----------------------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """See Tended."""
        return self._local.closed

    def do_soon(self, function: Callable[[], None]) -> None:
        """See Tended."""
        self._local.member.chores.add(function)

    def start_host(self, number: int) -> None:
        """See Tended."""
        stream = self._attached(self.connected(None, number))
        self.streams.put(stream)
        link: Any = self._local.member.link
        link.command(WantReady(self.name), monotonic() + GREETING_S)

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

    def pause_after(self, deadline: float | None, deaths: int) -> float:
        """How long to wait until hosts are looked for again, after so many have ended. Raises where it is enough."""
        if deaths >= _MOST_DEATHS:
            raise OpenFailed(
                f"pool {self.name!r}: its host has ended {deaths} times while this checkout waited; does opening a "
                "resource end the process? See hosts.log in the directory of the manager"
            )
        if deadline is not None and monotonic() + _PAUSE_S >= deadline:
            raise CheckoutTimedOut(
                f"pool {self.name!r}: its hosts keep ending; no resource became available in time"
            )
        return _PAUSE_S

    def acheckout(
        self,
        timeout: float | None = _DEFAULT,
        *,
        identity: str | None = None,
        credential: Any = None,
        lane: str | None = None,
        label: str | None = None,
    ) -> Any:
        """As Pool.acheckout: a task waits for its turn, and neither the event loop nor a thread does.

        Calls of the resource wait for its host; run what takes long in a thread (`asyncio.to_thread`).
        """
        from mppool.hosting.aio import HostedCheckout

        seconds, noted = self._asked(timeout, lane, label)
        return HostedCheckout(self, seconds, (identity, credential), noted)

    # --- what this process has ----------------------------------------------------------------------------------

    @property
    def idle_here(self) -> int:
        """Nothing lies idle here: what is released goes back to its host."""
        return 0

    def close_idle(self) -> int:
        """Close the streams to hosts that have no lease. Returns 0: resources are closed by their hosts."""
        self.streams.close_idle()
        return 0

    def wait_ready(self, timeout: float | None = 30.0) -> bool:
        """As Pool.wait_ready; a host is started where there is none."""
        seconds = self._seconds(timeout)
        deadline = None if seconds is None else monotonic() + seconds
        self.streams.put(self._reached(deadline))
        left = None if deadline is None else max(0.0, deadline - monotonic())
        return super().wait_ready(left)

    def _reached(self, deadline: float | None) -> Stream:
        """A stream to a host whose process is a member of the manager by now."""
        deaths = 0
        while True:
            try:
                return self._attached(self.streams.take() or self.connected(deadline))
            except HostGone:
                deaths += 1
                sleep(self.pause_after(deadline, deaths))

    def _attached(self, stream: Stream) -> Stream:
        kind, body = stream.call(0, frames.ATTACH, [])
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
        self.streams.leave()


def leave_hosts(local: LocalPool) -> None:
    """Close idle streams; hosts that no other process uses leave. For the end of a `with` block."""
    streams = _streams_of(local)
    streams.tender.forget()
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
    _streams_of(local).leave()


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
