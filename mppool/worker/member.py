"""This process as a member of a manager: tells the books what happens, and does what they decide."""

from __future__ import annotations

import atexit
import itertools
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
    CloseReason,
    Declaration,
    Declare,
    Event,
)
from mppool.core.tokens import TokenFetched
from mppool.errors import PoolError, ServerUnavailable
from mppool.ids import Session, Ticket
from mppool.link.connection import SessionLost
from mppool.link.troubles import pool_error
from mppool.logs import Log
from mppool.process.executor import BackgroundExecutor
from mppool.process.fork import Turn, make_immortal, notice_fork, renew_in_children
from mppool.process.locks import release_own
from mppool.recipe import Recipe
from mppool.tokens.cache import TokenCache
from mppool.tokens.in_process import LocalTokenBooks
from mppool.worker.audit import Audit, forget_frames
from mppool.worker.deciding import carry_out
from mppool.worker.demand import Silence
from mppool.worker.ending import (
    begin_close,
    close,
    finish_close,
    retire,
)
from mppool.worker.face import Face
from mppool.worker.housekeeping import Housekeeper
from mppool.worker.inventory import Entry, Inventory
from mppool.worker.opening import open_resource
from mppool.worker.report import PatientReport, Reporter
from mppool.worker.shelf import shelve, take_idle
from mppool.worker.waiter import Retry

if TYPE_CHECKING:
    from collections.abc import Callable

    from mppool.link.protocol import Link
    from mppool.options import PoolOptions
    from mppool.wire.messages import Report

log = Log("mppool")


_NOT_IN_INVENTORIES = (BackendFailed, TokenFetched)
"""What an inventory does not say, so that the next server must hear it too."""

MOST_OPENERS = 1000
"""So many resources are opened at one time in this process: for each there is a thread that waits."""

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
    """The label of this process in statistics; empty where nobody has named it."""
    return _process_name


def name_process(name: str) -> None:
    """The label of this process in the statistics of all managers, from its next attachment on."""
    global _process_name
    # It travels: what is half a surrogate (from bytes that are no text) is written out.
    _process_name = name.encode("utf-8", "backslashreplace").decode()


class Member:
    """What all threads of a process share of one manager. Cheap to make: no I/O, no thread, no descriptor.

    `faces` grows under the interpreter's own atomicity (setdefault); everything else that threads share is
    in `inventory`, with its lock.
    """

    def __init__(self, name: str, make_link: Callable[[Member], Link]) -> None:
        self.name = name
        self.faces: dict[str, Face] = {}
        self.inventory = Inventory()
        self._make_chores()
        self.housekeeper = Housekeeper(self)
        self.audit = Audit(self)
        self.leaving = False
        self.farewells: deque[Entry] = deque()
        self.silence = Silence()
        self.tokens = TokenCache(self, LocalTokenBooks)
        self.report = PatientReport(self)
        self._tickets = itertools.count(1)
        self._secret: bytes | None = None
        self.link = make_link(self)
        renew_in_children(self, Turn.MEMBER)
        _members.add(self)

    def reporter(self, send: Callable[[Report], None]) -> Reporter:
        """What answers the server's requests for the figures of this process."""
        return Reporter(self, send)

    def _make_chores(self) -> None:
        def expects(due: float) -> None:
            self.housekeeper.expects(due)

        self.chores = BackgroundExecutor(self.name, expects=expects)
        # On behalf of tasks, which must not wait.
        self.asker = BackgroundExecutor(f"{self.name}-ask", most=1)
        self.openers = BackgroundExecutor(
            f"{self.name}-open", idle_s=0.0, most=MOST_OPENERS, expects=expects
        )

    def after_fork_in_child(self) -> None:
        """The parent's inventory are marked and buried; this process starts with none. See Forkable."""
        parents = self.inventory
        parents.forked = True
        make_immortal(parents)
        self.inventory = Inventory()
        self._secret = None  # it may be another user's process, with another directory
        self._make_chores()
        self.housekeeper = Housekeeper(self)
        self.audit = Audit(self)
        self.leaving = False
        self.farewells = deque()
        self.report = PatientReport(self)
        self.silence = Silence()
        self.tokens.forget_waiters()
        self.link.after_fork_in_child()
        for face in self.faces.values():
            face.renew(self.inventory)

    def declare(self, name: str, recipe: Recipe[Any], options: PoolOptions) -> Face:
        """The face of a pool. Raises ConfigurationMismatch if it was declared otherwise in this process."""
        notice_fork()
        face = self.faces.get(name)
        if face is None:
            face = self.faces.setdefault(name, Face(self, name, recipe, options))
            if self._secret is not None:
                # Said in any case: another thread may be attaching, and have counted the faces already. Where the
                # secret is not known yet, it will count them later.
                face.seal(self._secret)
                self.inventory.tell(Declare(face.declaration()))
                if self.inventory.session is not None:
                    self.link.flush()
            return face
        face.check_same(recipe, options)
        face.declare_again()
        return face

    @property
    def is_sealed(self) -> bool:
        """Whether fingerprints may be told to others."""
        return self._secret is not None

    def seal(self) -> None:
        """Have all fingerprints sealed, before anybody is told of them. The first time it may read a file."""
        if self._secret is None:
            self._secret = self.link.fingerprint_secret()
        for face in list(self.faces.values()):
            face.seal(self._secret)

    # --- to the books ------------------------------------------------------------------------------------

    def next_ticket(self) -> Ticket:
        """A ticket that this process has never used."""
        return Ticket(next(self._tickets))

    def call(self, event: Event, deadline: float | None) -> Any:
        """Tell the books and return their answer; a Grant is registered in the table already."""
        notice_fork()
        try:
            return self.link.call(event, deadline)
        except (OSError, RuntimeError, UnicodeError) as error:
            told = pool_error(self.name, error)
            if told is None:
                raise
            raise told from error

    def tell(self, event: Event) -> None:
        """Tell the books, without an answer. Never blocks on the server."""
        notice_fork()
        self.inventory.tell(event)
        self.link.flush()

    def note(self, event: Event) -> None:
        """Tell the books what is worth knowing, if this process is attached to any."""
        if self.inventory.session is not None:
            self.tell(event)

    def attend(self) -> None:
        """Hear, from soon on, what the server says to all."""
        self.chores.add(self.link.attend)

    def flush(self) -> None:
        """Send what is in the outbox, as far as that is possible without waiting."""
        if not self.inventory.inherited:  # else it is the outbox of our parent
            self.link.flush()

    def wake(self) -> None:
        """Have the background thread look around. Safe in a finalizer: it writes to a descriptor."""
        if not self.inventory.inherited:
            self.link.wake()

    def declarations(self) -> list[Declaration]:
        """All pools that this process has declared."""
        return [face.declaration() for face in list(self.faces.values())]

    def attachment(self) -> Attach:
        """The first word of a new session; what the outbox says is in it. Caller holds the inventory's lock."""
        self.inventory.told_as_a_whole(besides=_NOT_IN_INVENTORIES)
        self.silence.ends()
        _arrange_farewell()
        for face in self.faces.values():
            face.forget_retired()
        return Attach(_process_name, self.declarations(), self.inventory.held(), self.link.seen)

    def register(self, grant: Grant, session: Session) -> bool:
        """Enter a fresh grant into the table; False if it belongs to another session, or was voided (rule 2)."""
        face, inventory = self.faces[grant.pool], self.inventory
        entry = Entry(
            face, inventory, grant.number, grant.key, grant.generation, grant.opened_before
        )
        return inventory.register(entry, grant, session, monotonic())

    def decline(self, grant: Grant, inventory: Inventory) -> None:
        """A registered grant is not needed any more."""
        inventory.opening_ended(grant.number)
        self.flush()

    def retry(self, ticket: Ticket) -> None:
        """The thread that waits with this ticket must ask again: its place in the queue is gone."""
        self.answer(ticket, Retry)
        self.tokens.retry(ticket, Retry)

    def answer(self, ticket: Ticket, answer: Any) -> None:
        """Answer the thread that waits with this ticket, if there is one."""
        for face in list(self.faces.values()):
            if face.line.ticket_ended(ticket, answer):
                return

    def interrupted(self, error: BaseException) -> None:
        """A checkout or a release was left by an exception that is none of ours.

        It may have struck between any two instructions. Whatever the thread has left behind is put in
        order here, where that is one step, or found by the audit.
        """
        if isinstance(error, PoolError):
            return
        release_own(self.inventory.lock)
        self.chores.interrupted()
        self.openers.interrupted()
        self.link.interrupted()
        forget_frames(error)
        self.audit.want()

    # --- from the books ----------------------------------------------------------------------------------

    def deliver(self, decision: Any, session: Session) -> None:
        """Do what the books decided. Called in the order of the decisions, by one thread at a time."""
        carry_out(self, decision, session)

    def close_soon(self, entry: Entry, reason: CloseReason) -> None:
        """Close a resource that the caller owns, in another thread."""
        if begin_close(entry):
            self.chores.add(lambda: finish_close(entry, reason))

    def session_lost(self) -> None:
        """Nobody can be told anything now: those who wait ask again, under the next session."""
        for face in list(self.faces.values()):
            face.line.set_contended(False)
            face.line.forget_tickets()
            for waiter in face.line.all_waiters():
                waiter.give(Retry)
        self.tokens.session_lost(Retry)

    def server_leaves(self) -> None:
        """The server says goodbye: close what is idle (rule 8)."""
        for face in list(self.faces.values()):
            for entry in take_idle(face, lambda entry: True):
                self.close_soon(entry, "retired")

    def warm_up(self, pool: str, seconds: float) -> None:
        """Have a resource of a pool open on the shelf, if a slot can be had without waiting.

        It is not lent: no checkout is counted, and no time-out where there are fewer slots than processes.
        seconds: that this may take, as far as the recipe's open hook keeps to it.
        Raises PoolError or OSError.
        """
        face = self.faces[pool]
        if any(face.shelves.values()):
            return
        self.seal()
        bearer = face.identities.own(seconds)
        event = Checkout(pool, face.default_key, self.next_ticket(), 0.0)
        try:
            answer = self.call(event, monotonic() + seconds)
        except SessionLost as error:
            raise ServerUnavailable(str(error)) from error
        entry = self.inventory.table.get(answer.number) if isinstance(answer, Grant) else None
        if entry is not None:
            open_resource(entry, answer, seconds, bearer)
            shelve(entry)
        elif isinstance(answer, Refuse) and answer.reason != "timeout":
            raise PoolError(answer.text)

    def wait_for_closes(self, face: Face | None, seconds: float) -> bool:
        """Wait until what is being closed has been, of one pool or of all; False if that takes longer."""
        until = monotonic() + seconds
        while any(
            entry.state == "closing"
            for one in ([face] if face else list(self.faces.values()))
            for entry in one.entries()
        ):
            if monotonic() >= until:
                return False
            threading.Event().wait(_CLOSE_POLL_S)
        return True

    def close_idle(self) -> None:
        """Close what lies idle, in this thread."""
        for face in list(self.faces.values()):
            for entry in take_idle(face, lambda entry: True):
                close(entry, "drained")

    def leave(self, seconds: float) -> None:
        """Close what lies idle, what is out when it is released, and detach as soon as nothing is left.

        seconds: to wait for that. The next use attaches again.
        """
        until = monotonic() + seconds
        for face in list(self.faces.values()):
            retire(face, face.entries())
        self.wait_for_closes(None, seconds)
        if not self.needs_books():
            self.link.detach(max(until, monotonic() + _LEAST_DETACH_S))
        else:
            self.leaving = True  # the background thread does it
            self.wake()

    def close_at_exit(self, seconds: float) -> None:
        """The interpreter ends: close what lies idle, in order, within so many seconds.

        In the background thread, for a close may hang, and no thread can be started any more.
        """
        until = monotonic() + seconds
        idle = [e for f in list(self.faces.values()) for e in take_idle(f, lambda entry: True)]
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
            face.line.waiters for face in list(self.faces.values())
        )

    def session_begins(self) -> None:
        """See link.protocol.Process: this server will say itself who waits elsewhere."""
        for face in list(self.faces.values()):
            face.line.set_contended(False)

    def is_deaf(self) -> None:
        """See link.protocol.Process."""
        for face in list(self.faces.values()):
            face.line.set_contended(True)

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
                entry.face.observe("use", age)
                log.warning(
                    "pool %r: a lease was garbage-collected without being released; its resource is "
                    "closed. Keep the lease, not only its resource, and use `with`%s",
                    entry.face.name,
                    f"; taken {age:.1f} s ago at\n{entry.stack}" if entry.stack else "",
                )
                self.close_soon(entry, "leaked")

    def look_around(self) -> None:
        """See link.protocol.Process."""
        self.collect_leaked()
        self.housekeeper.run(monotonic())

    def seconds_left(self) -> float | None:
        """See link.protocol.Process."""
        return self.housekeeper.seconds_left(monotonic())
