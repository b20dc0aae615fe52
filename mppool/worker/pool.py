"""The public face of a pool."""

from __future__ import annotations

import threading
import traceback
from functools import partial
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import ref

from mppool.core.events import ClosePool, Drain, Reset, WantReady
from mppool.errors import CheckoutTimeout, PoolClosed, PoolError
from mppool.options import (
    LONGEST_S,
    PoolOptions,
    checked_lease_label,
    checked_over,
    checked_timeout,
)
from mppool.process.fork import notice_fork
from mppool.recipe import HOOKS, refuse_nameless
from mppool.stats.advice import Advice, advise
from mppool.stats.health import Health, asked
from mppool.worker.callers import note_caller
from mppool.worker.checkout import ColdCheckout, check_out_at_once
from mppool.worker.ending import close, retire
from mppool.worker.lanes import checked_lane, take_in_lane
from mppool.worker.lease import Lease
from mppool.worker.lookup import lease_of
from mppool.worker.principal import Principal
from mppool.worker.resizing import UNCHANGED, resize_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from mppool.stats.shape import AllStats, PoolStats
    from mppool.worker.aio import AsyncCheckout, Desks
    from mppool.worker.inventory import PoolEntry
    from mppool.worker.local_pool import LocalPool

T = TypeVar("T")

_POLL_S = 0.02

CLOSE_PATIENCE_S = 5.0
"""`close` waits so long for what it closes; what takes longer goes on in the background."""


class _Default:
    """The timeout of a checkout that names none: the pool's own."""

    def __repr__(self) -> str:
        return "the pool's timeout"


_DEFAULT: Any = _Default()
_ZERO = 0  # CPython has but one of it; elsewhere it is looked at like any other


class Pool(Generic[T]):
    """One pool over all processes of an application. Made by `manager.pool(...)`.

    Safe to use from any thread, before and after a fork; pickles as its name, options, manager and recipe.
    """

    def __init__(
        self,
        local: LocalPool,
        all_stats: AllStats,
        rebuild: tuple[Callable[..., Pool[T]], tuple[Any, ...]],
    ) -> None:
        self._local = local
        self._all_stats = all_stats
        self._rebuild = rebuild
        self._desks: Desks | None = None
        self.name = local.name

    @property
    def options(self) -> PoolOptions:
        """The options as they were declared in this process."""
        return self._local.options

    def lease_of(self, resource: T) -> Lease[T]:
        """The lease of this resource, for code that has only the resource and wants to release, discard or cancel it.

        It looks through all objects of the process, which takes from 1 ms to tens of milliseconds. Use it for errors,
        not for each request. Raises LeaseReleased if this process has not lent the resource, or it is another pool's.
        """
        return lease_of(self._local, resource)

    def checkout(
        self,
        timeout: float | None = _DEFAULT,
        *,
        identity: str | None = None,
        credential: Any = None,
        lane: str | None = None,
        label: str | None = None,
    ) -> Lease[T]:
        """Lend a resource: the one that this process used last, or else one that the whole application can spare.

        timeout: seconds to wait, for others and not for hooks; None: forever; 0: not at all (an opening is no waiting).
        identity: whose resource; only one opened for the same identity is handed out. Any text; it overrides the credential.
        credential: a token credential (azure-identity's, or any with `get_token`) that the recipe opens with, and whose it is;
            None: the recipe's own. A token is fetched for an opening, and before that only if nothing else tells the identity.
        lane: one of the pool's `lanes`, each of which has resources reserved; None: the common one.
        label: what the lease is for, 1 to 100 printable characters; shown by statistics, errors and `mppool leases`.

        Raises ConfigurationError for an argument that is not valid, CheckoutTimeout, TooManyWaiting, PoolClosed,
        ServerUnavailable, OpenFailed (its cause is what the recipe raised). A BaseException in a hook passes through.
        """
        local = self._local
        try:
            if not local.ours[0]:  # forked by somebody who told nobody
                notice_fork()
            if (  # otherwise a wrong timeout would show only when the pool is under pressure
                timeout is not _DEFAULT
                and (type(timeout) is not float or not 0.0 <= timeout <= LONGEST_S)
                and timeout is not _ZERO
            ):
                self._seconds(timeout)
            if identity is None and credential is None and lane is None and label is None:
                try:
                    entry = local.pop()
                except IndexError:
                    pass  # nothing on the shelf; not handled here, so that errors do not name this one too
                else:
                    now = monotonic()
                    if now < entry.retire_at and now - entry.released_at < local.trust_s:
                        entry.uses += 1
                        entry.lent_at = now
                        lease: Lease[T] = Lease()
                        lease._local = local
                        lease._held = [entry]
                        return lease
                    return self._checkout_prepared(local, entry, now, timeout)
                wanted = local.options.timeout if timeout is _DEFAULT else timeout
                if wanted != 0 or not local.asks_plainly:
                    return self._checkout_anew(local, timeout, None, None)
                got = check_out_at_once(local)
                if not isinstance(got, str):
                    return self._lease(got)
            else:
                return self._checkout_for(local, timeout, identity, credential, lane, label)
        except BaseException as error:
            entry = got = None  # type: ignore[assignment]  # this frame is kept by the traceback, and must keep neither
            if not isinstance(error, PoolError):
                local.member.interrupted(error)
            raise
        raise CheckoutTimeout(got)  # not above: nothing is held that would have to be let go of

    def _checkout_prepared(
        self, local: LocalPool, entry: PoolEntry, now: float, timeout: float | None
    ) -> Lease[T]:
        """A resource from the shelf that has to be looked at first; if it cannot be lent, another one."""
        try:
            bearer = None
            if entry.token and time() >= entry.ask_at:
                bearer = local.identities.own_quickly(self._deadline(timeout))
            if local.prepare(entry, now, bearer, self._deadline(timeout)):
                return self._lease(entry)
        except BaseException:
            del entry  # the traceback keeps this frame, and must not keep it
            raise
        if bearer is not None and bearer.fetched is not None:
            return self._checkout_cold(local, self._seconds(timeout), bearer, None)
        # Others may lie on the shelf: the books are not asked before it is empty.
        return self._checkout_anew(local, timeout, None, None)

    def _checkout_for(
        self,
        local: LocalPool,
        timeout: float | None,
        identity: str | None,
        credential: Any,
        lane: str | None,
        label: str | None,
    ) -> Lease[T]:
        """A checkout that says for whom, or for what. What is remembered of a credential makes it nearly as short."""
        if label is not None:
            checked_lease_label(self.name, label)
            labelled: Lease[T] = Pool.checkout(
                self, timeout, identity=identity, credential=credential, lane=lane
            )
            note_caller(labelled._held[0], label)
            return labelled
        if lane is not None or local.idle.has_lanes:
            return self._checkout_anew(local, timeout, identity, credential, lane)
        if identity is None:
            try:
                known = local.identities.known.get(ref(credential))
            except TypeError:  # it cannot be referred to weakly, or hashed
                known = None
            if known is None or known.watch() is not credential:
                return self._checkout_anew(local, timeout, identity, credential)
        else:
            known = local.identities.recall_name(identity, credential)
            if known is None:
                return self._checkout_anew(local, timeout, identity, credential)
            credential = local.identities.credential if credential is None else credential
        try:
            entry = known.pop()
        except IndexError:
            return self._checkout_anew(local, timeout, identity, credential)
        try:
            now = monotonic()
            if (
                now < entry.retire_at
                and now - entry.released_at < local.trust_s
                and time() < entry.ask_at
            ):
                entry.uses += 1
                entry.lent_at = now
                lease: Lease[T] = Lease()
                lease._local = local
                lease._held = [entry]
                return lease
            bearer = Principal(
                local, known.key, known.identity, credential, given=identity is not None
            )
            bearer.deadline = self._deadline(timeout)
            if local.prepare(entry, now, bearer, bearer.deadline):
                return self._lease(entry)
            return self._checkout_cold(local, self._seconds(timeout), bearer, None)
        except BaseException:
            del entry  # the traceback keeps this frame, and must not keep it
            raise

    def _seconds(self, timeout: float | None) -> float | None:
        if timeout is _DEFAULT:
            return self._local.options.timeout
        return checked_timeout(self.name, timeout)

    def _deadline(self, timeout: float | None) -> float | None:
        seconds = self._seconds(timeout)
        return None if seconds is None else monotonic() + seconds

    def _checkout_anew(
        self,
        local: LocalPool,
        timeout: float | None,
        identity: str | None,
        credential: Any,
        lane: str | None = None,
    ) -> Lease[T]:
        """Find out for whom this is, which may take a token, and go on from there."""
        if lane is not None or local.idle.has_lanes:
            lane = checked_lane(local, lane)
            if identity is None and credential is None:
                entry = take_in_lane(local, lane)  # whatever was its lane before
                if entry is not None:
                    return self._lease(entry)
        started, seconds = monotonic(), self._seconds(timeout)
        if not local.is_sealed:
            local.member.seal()
        bearer = local.identities.of(identity, credential, seconds)
        if bearer is not None and bearer.fetched is not None and seconds is not None:
            seconds = max(0.0, seconds - (monotonic() - started))
        return self._checkout_cold(local, seconds, bearer, lane)

    def _checkout_cold(
        self, local: LocalPool, seconds: float | None, bearer: Principal | None, lane: str | None
    ) -> Lease[T]:
        key = local.default_key if bearer is None else bearer.key
        return self._lease(ColdCheckout(local, key, seconds, bearer, lane).run())

    def _lease(self, entry: PoolEntry) -> Lease[T]:
        self._note(entry)
        lease: Lease[T] = Lease()
        lease._local = self._local
        lease._held = [entry]
        return lease

    def _note(self, entry: PoolEntry) -> None:
        """Who has it, where that is wanted."""
        if self._local.notes_callers:
            note_caller(entry)
            if self._local.options.track_leaks:
                entry.stack = "".join(traceback.format_stack()[:-3])

    def acheckout(
        self,
        timeout: float | None = _DEFAULT,
        *,
        identity: str | None = None,
        credential: Any = None,
        lane: str | None = None,
        label: str | None = None,
    ) -> AsyncCheckout[T]:
        """Like `checkout`, for asyncio: the event loop goes on while a task waits, and no thread waits for it.

        `async with pool.acheckout() as resource`, or `lease = await pool.acheckout()`. Raises
        ConfigurationError at once for a bad timeout, lane or label, and what `checkout` raises when it is awaited.
        """
        from mppool.worker.aio import AsyncCheckout, Desks

        self._desks = self._desks or Desks()
        if label is not None:
            checked_lease_label(self.name, label)
        seconds, lane = self._seconds(timeout), checked_lane(self._local, lane)
        make = partial(self._lease_for_task, label)
        return AsyncCheckout(self._local, self._desks, seconds, (identity, credential), make, lane)

    def _lease_for_task(self, label: str | None, entry: PoolEntry) -> Lease[T]:
        lease = self._lease(entry)
        if label is not None:
            note_caller(entry, label)
        return lease

    # --- what this process has ---------------------------------------------------------------------------

    @property
    def idle_here(self) -> int:
        """How many resources are idle in this process. Asks no other process."""
        return len(self._local.idle.shelves.all())

    @property
    def in_use_here(self) -> int:
        """How many resources are lent in this process. Asks no other process."""
        local = self._local
        leaked = sum(entry.local is local for entry in list(local.inventory.leaked))
        open_here = sum(entry.counts_as_open for entry in local.entries())
        return max(0, open_here - leaked - self.idle_here)

    def close_idle(self) -> int:
        """Close what is idle in this process, and return how many resources that were.

        The pool goes on: leases that are out keep working, and the next checkout opens a resource.
        """
        idle = self._local.idle.shelves.take_all(lambda entry: True)
        for entry in idle:
            close(entry, "drained")
        return len(idle)

    # --- control -----------------------------------------------------------------------------------------

    def stats(self) -> PoolStats:
        """Statistics of the pool over all processes, JSON-compatible. All durations are seconds."""
        return self._all_stats()["pools"][self.name]

    def health(self) -> Health:
        """Whether the pool can serve: `status` "ok", "degraded" or "down", and `reasons`. Opens nothing."""
        if self._local.closed:
            return {"status": "down", "reasons": ["it is closed in this process"]}
        whole = asked(self._all_stats)
        return whole["pools"].get(self.name) or {
            "status": whole["status"],
            "reasons": whole["reasons"],
        }

    def advice(self) -> list[Advice]:
        """What to do about this pool, judged by what was measured in all processes. Empty if nothing is to be done.

        Each item has `about`, an option or a counter, and `text`. Bounds are judged after 200 checkouts. The database is
        asked for its own limit, if a connection is idle and its user may look.
        """
        return advise(self._all_stats(survey=True)["pools"][self.name], time())

    def resize(self, *, max_size: int | None = UNCHANGED, min_size: int = UNCHANGED) -> None:
        """Change the bounds, for all processes at once. Above a lowered cap, idle and released resources are closed.

        A bound that is not given stays as it is. If `min_size` is above the cap, only as many are kept open as
        the cap allows. Raises ConfigurationError for bounds that are not allowed.
        """
        event = resize_of(self.name, max_size, min_size)
        self._local.member.link.command(event)

    def reset(self, *, over: float = 0.0) -> None:
        """Replace everything that is open now, in all processes: it is closed as soon as it is idle or released.

        over: seconds over which this is spread, so that not all log in at once. Each resource has a moment of its
            own, and is lent as always until then. 0: at once.
        """
        local, seconds = self._local, checked_over(self.name, over)
        before = local.entries()
        local.member.link.command(Reset(self.name, seconds))
        if not seconds:
            # The word goes round on another connection; in this process nothing old is handed out from now on.
            retire(local, before)

    def drain(self, timeout: float = 30.0) -> int:
        """Close what is idle, in all processes, and wait up to `timeout` seconds for leases to come back.

        Returns how many resources that were opened before this call are still out. New checkouts are served as
        always; `close` the pool first if there must be none.
        """
        deadline, generation = self._deadline(timeout), None
        while True:
            answer = self._local.member.link.command(Drain(self.name, generation), deadline)
            generation = answer.generation
            if not answer.left or (deadline is not None and monotonic() >= deadline):
                return int(answer.left)
            threading.Event().wait(_POLL_S)

    def wait_ready(self, timeout: float | None = 30.0) -> bool:
        """Have `min_size` resources opened, spread over the processes, and wait until they are open.

        Returns True. Raises CheckoutTimeout, with the last error, if they are not open after `timeout`
        seconds (None: no limit); opening goes on in the background. Raises PoolClosed.
        """
        deadline = self._deadline(timeout)
        while True:
            answer = self._local.member.link.command(WantReady(self.name), deadline)
            if answer.closed or self._local.closed:
                raise PoolClosed(f"pool {self.name!r} is closed; nothing is opened any more")
            if answer.open >= answer.wanted:
                return True
            if deadline is not None and monotonic() >= deadline:
                raise CheckoutTimeout(
                    f"pool {self.name!r}: {answer.open} of {answer.wanted} resources (min_size) are open "
                    f"after {timeout:g} s{'; the last error was: ' + answer.error if answer.error else ''}"
                )
            threading.Event().wait(_POLL_S)

    def close(self, *, everywhere: bool = False) -> None:
        """Stop lending in this process: checkouts raise PoolClosed.

        Leases that are out keep working; their resources are closed when they are released. What is idle here is
        closed at once. Other processes go on, and so do children that are forked later.

        everywhere: close it in all processes, until the pool is declared again, by a process that starts later or by
            `manager.pool(...)` in any process. That opens it for all.
        """
        local = self._local
        if everywhere:
            # Not later: the word that somebody has opened it again may come at any time from now on.
            local.closed_everywhere = True
            local.member.link.command(ClosePool(self.name))
            retire(local, local.entries())
            return
        retire(local, local.close_here())
        local.wait_for_closes(monotonic() + CLOSE_PATIENCE_S)

    def __eq__(self, other: object) -> bool:
        # The same name declared again in this process is the same pool.
        return isinstance(other, Pool) and self._local is other._local

    def __hash__(self) -> int:
        return hash(self._local)

    def __reduce__(self) -> tuple[Any, ...]:
        _, (_, _, recipe, options, *_) = self._rebuild
        refuse_nameless(
            {"open": recipe, **{name: options[name] for name in HOOKS if name in options}}
        )
        return self._rebuild

    def __repr__(self) -> str:
        return f"<Pool {self.name!r} of manager {self._local.member.name!r}>"
