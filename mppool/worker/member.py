"""This process as a member of a manager: tells the books what happens, and does what they decide."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

from mppool.core.decisions import Grant, Refuse
from mppool.core.events import (
    Attach,
    BackendFailed,
    Checkout,
    Declaration,
    Declare,
    WantReady,
)
from mppool.core.tokens import TokenFetched
from mppool.errors import PoolError, ServerUnavailable
from mppool.ids import Session, Ticket
from mppool.link.connection import SessionLost
from mppool.logs import Log, hear_everything
from mppool.process.fork import Turn, make_immortal, notice_fork, renew_in_children
from mppool.process.naming import found_name
from mppool.recipe import Recipe
from mppool.tokens.cache import TokenCache
from mppool.tokens.in_process import LocalTokenBooks
from mppool.worker.audit import Audit
from mppool.worker.budget import DeclaredBudget
from mppool.worker.callers import noted
from mppool.worker.context import Context
from mppool.worker.dispatch import Dispatch
from mppool.worker.ending import (
    begin_close,
    close,
    close_soon,
    finish_close,
    retire,
)
from mppool.worker.housekeeping import Housekeeper
from mppool.worker.inventory import PoolEntry
from mppool.worker.local_pool import LocalPool
from mppool.worker.opening import open_resource, use_grant
from mppool.worker.report import PatientReport, Reporter

if TYPE_CHECKING:
    from collections.abc import Callable

    from mppool.link.protocol import Link
    from mppool.options import PoolOptions
    from mppool.wire.messages import Report

log = Log("mppool")


_NOT_IN_INVENTORIES = (BackendFailed, TokenFetched)
"""What an inventory does not say, so that the next server must hear it too."""

_CLOSE_POLL_S = 0.002
_LEAST_DETACH_S = 0.25
EXIT_PATIENCE_S = 1.0
"""At the end of the interpreter what lies idle is closed in order, within this."""

_members: weakref.WeakSet[Member] = weakref.WeakSet()


def close_all_at_exit() -> None:
    """A normal end of the interpreter. Nothing depends on it: what is not closed dies with the process."""
    until = monotonic() + EXIT_PATIENCE_S
    for member in list(_members):
        member.close_at_exit(max(0.0, until - monotonic()))


atexit.register(close_all_at_exit)

_says_farewell_in = 0  # the process of multiprocessing in which that was arranged


def _arrange_farewell() -> None:
    """A process of multiprocessing ends without `atexit` (but for Python 3.13 and later, which do both)."""
    global _says_farewell_in
    process, util = map(sys.modules.get, ("multiprocessing.process", "multiprocessing.util"))
    if process is None or util is None or _says_farewell_in == os.getpid():
        return
    if process.parent_process() is not None:
        _says_farewell_in = os.getpid()
        util.Finalize(None, close_all_at_exit, exitpriority=0)


_process_name = ""


def process_name() -> str:
    """The label of this process in statistics; empty where nobody has named it, and nothing tells its name."""
    return _process_name or found_name()


def name_process(name: str) -> None:
    """The label of this process in the statistics of all managers, from its next attachment on."""
    global _process_name
    # It travels: what is half a surrogate (from bytes that are no text) is written out.
    _process_name = name.encode("utf-8", "backslashreplace").decode()


class Member(Context):
    """This process in one manager: it composes the parts, forks, and leaves. Cheap to make: no I/O, no thread, no
    descriptor.

    `local_pools` and `budgets` grow under the interpreter's own atomicity (setdefault); everything else that threads share is
    in `inventory`, with its lock.
    """

    housekeeper: Housekeeper
    audit: Audit

    def __init__(self, name: str, make_link: Callable[[Member], Link]) -> None:
        self.local_pools: dict[str, LocalPool] = {}
        self.budgets: dict[str, DeclaredBudget] = {}
        super().__init__(name)
        hear_everything()
        self.tokens = TokenCache(self, LocalTokenBooks)
        self.link = make_link(self)
        renew_in_children(self, Turn.MEMBER)
        _members.add(self)

    def _begin(self) -> None:
        super()._begin()
        self.housekeeper = Housekeeper(self, self.local_pools)
        self.audit = Audit(self)
        self.dispatch = Dispatch(self, self.local_pools)
        self.farewells: deque[PoolEntry] = deque()
        self.report = PatientReport(self, self.local_pools)

    def reporter(self, send: Callable[[Report], None]) -> Reporter:
        """What answers the server's requests for the figures of this process."""
        return Reporter(self, self.local_pools, send)

    def after_fork_in_child(self) -> None:
        """What the parent holds is marked and made immortal; this process starts with nothing. See Forkable."""
        parents = self.inventory
        parents.forked = True
        make_immortal(parents)
        self._begin()
        self.tokens.forget_waiters()
        self.link.after_fork_in_child()
        for local in self.local_pools.values():
            local.renew(self.inventory)

    def declare_budget(self, name: str, max_size: int) -> DeclaredBudget:
        """A budget. Raises ConfigurationMismatch if it was declared otherwise in this process."""
        declared = self.budgets.get(name)
        if declared is None:
            declared = self.budgets.setdefault(name, DeclaredBudget(name, max_size))
        declared.check_same(max_size)
        return declared

    def declare(self, name: str, recipe: Recipe[Any], options: PoolOptions) -> LocalPool:
        """What this process has of a pool. Raises ConfigurationMismatch if it was declared otherwise in this process.

        Raises ConfigurationError where its budget cannot keep open what its pools want to.
        """
        notice_fork()
        local = self.local_pools.get(name)
        if local is None:
            budget = None if options.budget is None else self.budgets[options.budget]
            if budget is not None:
                budget.check_min_sizes(name, options, self._kept_under(budget))
            local = self.local_pools.setdefault(
                name, LocalPool(self, name, recipe, options, budget)
            )
            if self._secret is not None:
                # Said in any case: another thread may be attaching, and have counted the local_pools already. Where the
                # secret is not known yet, it will count them later.
                local.seal(self._secret)
                self.inventory.tell(Declare(local.declaration()))
                if self.inventory.session is not None:
                    self.link.flush()
            return local
        local.check_same(recipe, options)
        local.declare_again()
        return local

    def _kept_under(self, budget: DeclaredBudget) -> dict[str, int]:
        """The `min_size` of each pool of a budget that is declared here."""
        local_pools = list(self.local_pools.values())
        return {
            local.name: local.options.min_size for local in local_pools if local.budget is budget
        }

    def seal(self) -> None:
        """Have all fingerprints sealed, before anybody is told of them. The first time it may read a file."""
        if self._secret is None:
            self._secret = self.link.fingerprint_secret()
        for local in list(self.local_pools.values()):
            local.seal(self._secret)

    # --- to the books ------------------------------------------------------------------------------------

    def declarations(self) -> list[Declaration]:
        """All pools that this process has declared."""
        return [local.declaration() for local in list(self.local_pools.values())]

    def attachment(self) -> Attach:
        """The first word of a new session; what the outbox says is in it. Caller holds the inventory's lock."""
        self.inventory.told_as_a_whole(besides=_NOT_IN_INVENTORIES)
        self.silence.ends()
        _arrange_farewell()
        for local in self.local_pools.values():
            local.forget_retired()
        return Attach(process_name(), self.declarations(), self.inventory.held(), self.link.seen)

    def register(self, grant: Grant, session: Session) -> bool:
        """See Dispatch."""
        return self.dispatch.register(grant, session)

    def retry(self, ticket: Ticket) -> None:
        """See Dispatch."""
        self.dispatch.retry(ticket)

    # --- from the books ----------------------------------------------------------------------------------

    def deliver(self, decision: Any, session: Session) -> None:
        """Do what the books decided. Called in the order of the decisions, by one thread at a time."""
        self.dispatch.carry_out(decision, session)

    def go_on(self, successor: PoolEntry) -> None:
        """See Context."""
        use_grant(successor.local, successor.grant)

    def session_lost(self) -> None:
        """Nobody can be told anything now: those who wait ask again, under the next session."""
        self.dispatch.session_lost()

    def server_leaves(self) -> None:
        """The server says goodbye: close what is idle (rule 8)."""
        for local in list(self.local_pools.values()):
            for entry in local.idle.shelves.take_all(lambda entry: True):
                close_soon(entry, "retired")

    def warm_up(self, pool: str, seconds: float) -> None:
        """Have a resource of a pool open on the shelf, if a slot can be had without waiting.

        It is not lent: no checkout is counted, and no time-out where there are fewer slots than processes.
        seconds: that this may take, as far as the recipe's open hook keeps to it.
        Raises PoolError or OSError.
        """
        local = self.local_pools[pool]
        if local.idle.shelves.all():
            return
        self.seal()
        bearer = local.identities.own(seconds)
        event = Checkout(pool, local.default_key, self.next_ticket(), 0.0)
        try:
            answer = self.call(event, monotonic() + seconds)
        except SessionLost as error:
            raise ServerUnavailable(str(error)) from error
        entry = self.inventory.table.get(answer.number) if isinstance(answer, Grant) else None
        if entry is not None:
            open_resource(entry, answer, seconds, bearer)
            local.idle.put_back(entry)
        elif isinstance(answer, Refuse) and answer.reason != "timeout":
            raise PoolError(answer.text)

    def fill(self) -> None:
        """Have `min_size` resources opened where that is not under way yet, spread over the processes that are here.

        Raises PoolError.
        """
        for name, local in list(self.local_pools.items()):
            options = local.options
            if options.min_size and options.prefill and not local.closed:
                self.link.command(WantReady(name))

    def close_idle(self) -> None:
        """Close what lies idle, in this thread."""
        for local in list(self.local_pools.values()):
            for entry in local.idle.shelves.take_all(lambda entry: True):
                close(entry, "drained")

    def leave(self, seconds: float) -> None:
        """Close what lies idle, what is out when it is released, and detach as soon as nothing is left.

        seconds: to wait for that. The next use attaches again.
        """
        until = monotonic() + seconds
        for local in list(self.local_pools.values()):
            retire(local, local.entries())
        for local in list(self.local_pools.values()):
            local.wait_for_closes(until)
        if not self.needs_books():
            self.link.detach(max(until, monotonic() + _LEAST_DETACH_S))
        else:
            self.leaving = True  # the background thread does it
            self.wake()

    def close_at_exit(self, seconds: float) -> None:
        """The interpreter ends: close what lies idle, in order, within so many seconds.

        In the background thread, because a close may hang, and no thread can be started any more.
        """
        until = monotonic() + seconds
        idle = [
            e
            for f in list(self.local_pools.values())
            for e in f.idle.shelves.take_all(lambda entry: True)
        ]
        entries = [entry for entry in idle if begin_close(entry)]
        if not entries:
            return
        self.farewells.extend(entries)
        self.wake()
        while any(entry.number in self.inventory.table for entry in entries):
            if monotonic() >= until:
                log.warning(
                    "manager %r: closing what was idle took longer than %g s", self.name, seconds
                )
                return
            threading.Event().wait(_CLOSE_POLL_S)

    def needs_books(self) -> bool:
        """Whether anything is held, or anybody waits."""
        return bool(self.inventory.table) or any(
            local.idle.line.waiters for local in list(self.local_pools.values())
        )

    def session_begins(self) -> None:
        """See link.protocol.Process: this server will say itself who waits elsewhere."""
        for local in list(self.local_pools.values()):
            local.idle.set_contended(False)

    def is_deaf(self) -> None:
        """See link.protocol.Process."""
        for local in list(self.local_pools.values()):
            local.idle.set_contended(True)

    def do_soon(self, function: Callable[[], None]) -> None:
        """See link.protocol.Process."""
        self.chores.add(function)

    # --- chores of the background thread -----------------------------------------------------------------

    def collect_leaked(self) -> None:
        """Close the resources of leases that were garbage-collected (rule 4: never hand them out again)."""
        self.link.tidy()
        self.audit.run(monotonic())
        while self.farewells:
            finish_close(self.farewells.popleft(), "drained")
        if self.leaving and not self.needs_books():
            self.leaving = False
            self.link.detach(monotonic() + _LEAST_DETACH_S)
        leaked = self.inventory.leaked
        while leaked:
            entry = leaked.popleft()
            if entry.state != "closing":
                age = monotonic() - (entry.lent_at or entry.opened_at)
                entry.local.durations.used(age)
                log.warning(
                    "pool %r: a lease%s was garbage-collected without being released; its resource is "
                    "closed. Keep the lease, not only its resource, and use `with`%s",
                    entry.local.name,
                    f" ({noted(entry)[0]!r})" if noted(entry)[0] else "",
                    f"; taken {age:.1f} s ago at\n{entry.stack}" if entry.stack else "",
                )
                close_soon(entry, "leaked")

    def look_around(self) -> None:
        """See link.protocol.Process."""
        self.collect_leaked()
        self.housekeeper.run(monotonic())

    def seconds_left(self) -> float | None:
        """See link.protocol.Process."""
        return self.housekeeper.seconds_left(monotonic())
