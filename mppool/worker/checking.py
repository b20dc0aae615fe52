"""Checks, which may hang: a connection that a firewall has forgotten gives no answer, and no error either.

A check runs beside its caller, in a thread of its own, and the caller waits for it. Who owns the resource then:

    the check returns in time                       the caller
    the caller's time is over before that           the thread: it puts the resource on its shelf, or closes it
    it has not returned after `check_timeout`       nobody. It is given up: its slot is free, so that another one
                                                    can be opened, and everything as old is replaced too, in
                                                    all processes. Should the check ever return, it is closed

A recipe that can tell its driver how long it may take does so (`Recipe.check_within`): then no thread is left
hanging. A check that works only in the thread of its caller says so by raising; from then on it runs there, and
nothing bounds it.
"""

from __future__ import annotations

import contextvars
import queue as queues  # its classes by their module: gevent may put its own there later
import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

from mppool.errors import CheckoutTimeout
from mppool.logs import Log
from mppool.process.fork import thread_ends
from mppool.worker.ending import close, close_given_up, close_soon, give_up
from mppool.worker.inside import inside
from mppool.worker.inventory import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable

    from mppool.worker.inventory import PoolEntry
    from mppool.worker.own_pool import OwnPool

log = Log("mppool")

CHECK_GRACE_S = 0.5
"""A check may take this long although the timeout of its checkout is shorter: it is work, not waiting."""

_IDLE_S = 0.5
"""A thread ends after so long without a check."""


class _Hung:
    """The outcome of a check that was given up."""


def is_healthy(local: OwnPool, entry: PoolEntry, deadline: float | None = None) -> bool:
    """Run the check. A resource that fails it is closed, as is one whose check raises or hangs.

    deadline: of the checkout that wants the resource. Raises CheckoutTimeout where the check outlasts it; the
        resource does not belong to the caller then.
    """
    local.count("checks")
    entry.checked_at = monotonic()
    limit = local.options.check_timeout
    outcome: Any
    if limit is None or local.checks_here or inside.a_hook:
        try:
            outcome = local.hooks.outcome_of_check(entry.resource, limit)
        except BaseException:  # interrupted: nobody knows in which state it is
            close(entry, "discarded")
            raise
    else:
        outcome = _beside(local, entry, limit, deadline)
    return outcome is not _Hung and _judge(local, entry, outcome)


def _judge(local: OwnPool, entry: PoolEntry, outcome: Any) -> bool:
    """Whether the resource may be used; else it is closed.

    A check that raises is counted apart. One that raises ConnectionError says no, and more: the backend is
    gone, and with it everything as old, in all processes. One that raises TimeoutError says the same, and that
    closing the resource may hang too.
    """
    if outcome is True:
        return True
    if isinstance(outcome, TimeoutError):
        log.warning("pool %r: a check got no answer: %s", local.name, outcome)
        local.count("hung_checks")
        entry.doubtful = True
        local.backend_failed(entry, hung=True)
        close_soon(entry, "unhealthy")
        return False
    if isinstance(outcome, ConnectionError):
        log.warning("pool %r: a check found the backend gone: %s", local.name, outcome)
        local.backend_failed(entry)
    elif outcome is not False:
        local.count("check_errors")
        log.warning(
            "pool %r: a check raised; the resource is replaced", local.name, exc_info=outcome
        )
        close(entry, "discarded")
        return False
    close(entry, "unhealthy")
    return False


def _beside(local: OwnPool, entry: PoolEntry, limit: float, deadline: float | None) -> Any:
    """The outcome of a check in another thread."""
    check = _Check(local, entry, limit)
    try:
        try:
            local.checkers.run(check.run)
        except RuntimeError:  # no thread is to be had
            return local.hooks.outcome_of_check(entry.resource, limit)
        outcome = check.wait(deadline)
    except CheckoutTimeout:
        raise
    except BaseException:
        check.leave()
        raise
    if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
        close(entry, "discarded")
        raise outcome
    if isinstance(outcome, Exception) and _is_about_threads(outcome):
        outcome = local.hooks.outcome_of_check(entry.resource, limit)
        if not isinstance(outcome, Exception):
            local.checks_here = True
            log.info(
                "pool %r: its check works in the thread of its caller only; it runs there, without a bound",
                local.name,
            )
    return outcome


def _is_about_threads(error: Exception) -> bool:
    """Whether a driver complains that it was called in another thread than before (sqlite3, for example)."""
    return not isinstance(error, ConnectionError) and "thread" in str(error).lower()


class _Check:
    """One check beside its caller.

    _settled: who was first, twice. "caller": the thread, which has an outcome, or the caller, who leaves. "limit":
        the thread, which returns to find the caller gone, or the one that gives the check up. Each entry is made by
        `setdefault`, which is atomic.
    """

    def __init__(self, local: OwnPool, entry: PoolEntry, limit: float) -> None:
        self._local, self._entry, self._limit = local, entry, limit
        self._started = monotonic()
        self._context = contextvars.copy_context()
        self._settled: dict[str, str] = {}
        self._gate = threading.Lock()
        self._gate.acquire()
        self._discard = False
        self._outcome: Any = None

    def _is_first(self, who: str, lot: str) -> bool:
        return self._settled.setdefault(lot, who) == who

    # --- the thread's part -----------------------------------------------------------------------------------

    def run(self) -> None:
        """Check, and pass on what comes of it."""
        try:
            self._outcome = self._context.run(
                self._local.hooks.outcome_of_check, self._entry.resource, self._limit
            )
        except BaseException as error:  # noqa: BLE001  # raised where somebody waits for it
            self._outcome = error
        if self._is_first("thread", "caller"):
            self._gate.release()
        elif not self._is_first("thread", "limit"):
            close_given_up(self._entry)
        elif self._discard:
            close(self._entry, "discarded")
        elif _judge(self._local, self._entry, self._outcome):
            self._local.idle.put_back(self._entry)

    # --- the caller's part -----------------------------------------------------------------------------------

    def wait(self, deadline: float | None) -> Any:
        """The outcome. Raises CheckoutTimeout at the deadline."""
        until = end = self._started + self._limit
        if deadline is not None:
            until = min(end, max(deadline, self._started + CHECK_GRACE_S))
        if self._gate.acquire(timeout=max(0.0, until - monotonic())):
            return self._outcome
        if not self._is_first("caller", "caller"):
            return self._outcome  # it came in this very moment
        if until == end:
            self._give_up()
            return _Hung
        self._local.member.housekeeper.look_after(self)
        self._local.count("timeouts")
        raise CheckoutTimeout(
            f"pool {self._local.name!r}: the timeout passed while a resource was being checked; the check "
            f"itself is given up after check_timeout={self._limit:g} s; wait longer, or lower check_timeout"
        )

    def leave(self) -> None:
        """The caller was interrupted: nobody knows in which state the resource is."""
        self._discard = True
        if self._is_first("caller", "caller"):
            self._local.member.housekeeper.look_after(self)
        else:
            close(self._entry, "discarded")

    # --- nobody waits any more -------------------------------------------------------------------------------

    def look(self, now: float) -> float:
        """See Keeper: give the check up in time, although its caller has left."""
        end = self._started + self._limit
        if self.is_over():
            return NEVER
        if now < end:
            return end
        self._give_up()
        return NEVER

    def is_over(self) -> bool:
        """See Keeper."""
        return "limit" in self._settled

    def _give_up(self) -> None:
        entry, local = self._entry, self._local
        if not self._is_first("keeper", "limit") or not give_up(entry):
            return
        local.count("hung_checks")
        log.warning(
            "pool %r: a check has not returned after check_timeout=%g s; the resource is replaced, and with it "
            "everything that is as old",
            local.name,
            self._limit,
        )
        local.backend_failed(entry, hung=True)


class Checkers:
    """Threads that check. There is always one more: those that hang keep no other check from running.

    _idle: the queues of those that have nothing to do; taking one, and putting it back, is atomic.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: deque[queues.SimpleQueue[Callable[[], None]]] = deque()

    def run(self, check: Callable[[], None]) -> None:
        """Have it done at once. Raises RuntimeError where no thread is to be had."""
        try:
            queue = self._idle.pop()
        except IndexError:
            queue = queues.SimpleQueue()
            threading.Thread(
                target=self._serve, args=(queue,), name=f"mppool-checks-{self._name}", daemon=True
            ).start()
        queue.put(check)

    def _serve(self, queue: queues.SimpleQueue[Callable[[], None]]) -> None:
        inside.checker = True
        while True:
            try:
                check = queue.get(timeout=_IDLE_S)
            except queues.Empty:
                try:
                    self._idle.remove(queue)
                except ValueError:
                    continue  # somebody has just taken it, and has a check for it
                thread_ends()
                return
            try:
                check()
            except Exception:
                log.exception("pool %r: a check could not be finished", self._name)
            del check  # it refers to a resource
            self._idle.append(queue)
