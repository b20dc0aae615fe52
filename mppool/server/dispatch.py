"""Routes what processes say to the books, and what the books decide to journal and processes.

No clock, no selector here: the loop tells the time, delivers messages, ends and deaths, and drops
connections that `broken` marks. The mutable state is: the residents, what the journal still owes, and
the statistics that are being collected.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable

import msgspec

from mppool import __version__
from mppool.core.books import Books
from mppool.core.decisions import (
    Addressed,
    Decision,
    Draining,
    Erase,
    Grant,
    Readiness,
    Record,
    RecordPool,
)
from mppool.core.events import (
    Attach,
    CallEnded,
    Checkout,
    ClosePool,
    Declaration,
    Declare,
    Detached,
    Died,
    Drain,
    JournalFailed,
    Opened,
    Reset,
    Resize,
    WantReady,
)
from mppool.core.tokens import ANSWERS, WantToken
from mppool.errors import ConfigurationError, ProtocolError
from mppool.ids import GrantNumber, ProcessId, Session, Ticket, own_process
from mppool.options import checked_name, checked_options
from mppool.server import handshake, liveness
from mppool.server.collecting import Collector
from mppool.server.connection import Connection
from mppool.server.journal import Journal
from mppool.server.members import Members
from mppool.server.residents import Resident
from mppool.wire.messages import (
    PROTOCOL,
    Attached,
    Done,
    Failed,
    Goodbye,
    Hello,
    Leave,
    Rejected,
    Report,
    ToServer,
    WantStats,
    Welcome,
)

log = logging.getLogger(__name__)

SESSION_BITS = 32
_LEAVING = Rejected("leaving", "this server is leaving: start the next one")
_COMMANDS = (Resize, Reset, Drain, ClosePool, WantReady)


class Dispatcher:
    """All that is said and decided passes here. Not thread-safe: it belongs to the loop's thread."""

    def __init__(
        self,
        manager: str,
        books: Books,
        journal: Journal,
        members: Members,
        *,
        watch: Callable[[ProcessId, int], None],
        unwatch: Callable[[int], None],
        leave: Callable[[], None],
    ) -> None:
        self.manager = manager
        self.books = books
        self.journal = journal
        self.members = members
        self.residents: dict[ProcessId, Resident] = {}
        self.collector = Collector(manager, books, self.residents)
        self.longest_linger = 0.0
        self.leaving = False
        self._watch, self._unwatch, self._leave = watch, unwatch, leave
        self._own = own_process()
        self._sessions = 0
        self._awaited: set[ProcessId] = set()
        # What could not be written down although it is so; tried again at every look around.
        self._owed: dict[GrantNumber | str, Record | RecordPool] = {}

    # --- beginning -----------------------------------------------------------------------------------------

    def restore(self, now: float) -> None:
        """Take over what the previous server left in journal and member files."""
        members = self.members.living()
        slots = []
        for item in self.journal.slots:
            if item.process in self.residents or self._is_watched(item.process):
                slots.append(item)
            else:
                self._write_down(Erase(item.number), ())
        if members and not self.journal.existed:
            log.warning("the journal is gone, but members live: they are asked first")
            self.journal.unsettled()
        if self.journal.torn:
            self._awaited = {process for process in members if self._is_watched(process)}
        log.info(
            "epoch %d: %d slots of %d living processes continued, %d processes awaited",
            self.journal.epoch, len(slots), len(self.residents), len(self._awaited),
        )  # fmt: skip
        self.books.restore(self.journal.pools, slots, set(self._awaited), now)
        self._settle_journal()

    def _is_watched(self, process: ProcessId) -> bool:
        """Watch a process that is not connected. False if it is dead."""
        if process in self.residents:
            return True
        pidfd = liveness.watch_process(process)
        if pidfd is None:
            return False
        self.residents[process] = Resident(process, pidfd)
        self._watch(process, pidfd)
        return True

    # --- what is said ----------------------------------------------------------------------------------------

    def said(self, connection: Connection, message: ToServer, now: float) -> None:
        """Take in one message. ProtocolError for what has no place here."""
        connection.ticket = None  # whoever goes on talking has read the answer to his last checkout
        if connection.role is None:
            self._introduced(connection, message)
        elif isinstance(message, Hello):
            raise ProtocolError("a second Hello")
        elif self.leaving and not isinstance(message, Leave) and connection.role != "errand":
            self._reject(connection, _LEAVING)
        elif isinstance(message, Report):
            self.collector.reported(connection, message, now)
        elif isinstance(message, Leave):
            connection.send(Done())
            self._leave()
        elif isinstance(message, WantStats):
            self.collector.wanted(connection, now)
        elif isinstance(message, Attach):
            self._attach(connection, message, now)
        elif isinstance(message, _COMMANDS):
            self._command(connection, message, now)
        elif connection.role == "control":
            raise ProtocolError(f"a {type(message).__name__} on a control connection")
        else:
            self._event(connection, message, now)

    def _introduced(self, connection: Connection, hello: ToServer) -> None:
        if not isinstance(hello, Hello):
            raise ProtocolError(f"a {type(hello).__name__} before Hello")
        _check_seconds(hello.linger)
        peer = liveness.peer_of(connection.socket)
        rejected = handshake.refusal(hello, peer, self.manager)
        if rejected is None and hello.role == "call":
            rejected = self._session_refusal(hello.process, hello.session)
        if rejected is None and hello.role == "errand":
            connection.pidfd = liveness.watch_peer(connection.socket, hello.process)
            if connection.pidfd is None:
                rejected = handshake.birth_refusal(hello.process)
        if rejected is None and self.leaving:
            rejected = _LEAVING
        if rejected is not None:
            self._reject(connection, rejected)
            return
        session = self._new_session() if hello.role == "errand" else hello.session
        # One object for all connections of a process: what is the same is found faster than what is equal.
        resident = self.residents.get(hello.process)
        process = hello.process if resident is None else resident.process
        connection.welcomed(hello.role, process, session)
        if hello.role != "control":  # whoever only looks does not say how long it is to stay
            self.longest_linger = max(self.longest_linger, hello.linger)
        connection.send(Welcome(PROTOCOL, self.books.epoch, session, self._own, __version__))

    def _session_refusal(self, process: ProcessId, session: Session) -> Rejected | None:
        if self.books.session_of(process) == session:
            return None
        return Rejected("session", f"session {session} of process {process} is over: attach again")

    def _reject(self, connection: Connection, rejected: Rejected) -> None:
        log.info("%s rejected (%s): %s", connection, rejected.reason, rejected.text)
        connection.send(rejected)
        connection.part()

    def _new_session(self) -> Session:
        self._sessions += 1
        return Session(self.books.epoch << SESSION_BITS | self._sessions)

    def _attach(self, connection: Connection, attach: Attach, now: float) -> None:
        """Take over an inventory. The process is on file and watched before it can be granted anything."""
        process = connection.process
        assert process is not None
        if connection.role != "errand" or (
            connection.pidfd is None and not self._is_errand(connection)
        ):
            raise ProtocolError("an Attach on a connection that is no errand channel")
        for declaration in attach.declarations:
            _check_declaration(declaration)
        resident = self.residents.get(process)
        if resident is not None and resident.session > connection.session:
            self._reject(
                connection, Rejected("session", "a later session of this process is attached")
            )
            return
        if self.leaving:
            self._reject(connection, _LEAVING)
            return
        try:
            self.members.add(process)
        except OSError as error:
            log.error("process %s cannot be put on file: %s", process, error)
            connection.send(Failed(f"the server cannot write to its directory: {error.strerror}"))
            connection.part()
            return
        if resident is None:
            assert connection.pidfd is not None
            resident = Resident(process, connection.pidfd)
            connection.pidfd = None
            self.residents[process] = resident
            self._watch(process, resident.pidfd)
        elif connection.pidfd is not None:
            os.close(connection.pidfd)
            connection.pidfd = None
        before, resident.errand = resident.errand, connection
        if before is not None and before is not connection:
            before.break_off("its process has attached anew")
        resident.session, resident.label = connection.session, attach.label
        decisions = self.books.apply(process, connection.session, attach, now)
        connection.send(Attached(connection.session))
        self._carry_out(decisions, now, adopted={item.number for item in attach.held})
        log.info(
            "process %s (%s) attached with %d slots",
            process,
            attach.label or "no label",
            len(attach.held),
        )
        self._heard(process)

    def _is_errand(self, connection: Connection) -> bool:
        resident = self.residents.get(connection.process) if connection.process else None
        return resident is not None and resident.errand is connection

    def _command(
        self,
        connection: Connection,
        event: Resize | Reset | Drain | ClosePool | WantReady,
        now: float,
    ) -> None:
        """A command from anybody; answered by Done, Draining, Readiness or Failed."""
        process = connection.process
        assert process is not None
        try:
            decisions = self.books.command(process, event, now)
        except KeyError:
            if connection.role != "errand":
                connection.send(Failed(f"no process has declared a pool {event.pool!r:.100}"))
            return
        wants_figure = isinstance(event, (Drain, WantReady)) and connection.role != "errand"
        answered = self._carry_out(decisions, now, reply_to=connection if wants_figure else None)
        if not answered and connection.role != "errand":
            connection.send(Done())

    def _event(self, connection: Connection, event: ToServer, now: float) -> None:
        process = connection.process
        assert process is not None
        assert isinstance(event, msgspec.Struct)
        if isinstance(event, Declare):
            _check_declaration(event.declaration)
        elif isinstance(event, Opened):
            _check_seconds(event.seconds)
        on_call = connection.role == "call"
        if on_call:
            stale = self._session_refusal(process, connection.session)
            if stale is not None:
                self._reject(connection, stale)
                return
        if isinstance(event, (Checkout, WantToken)):
            if not on_call:
                raise ProtocolError(f"a {type(event).__name__} on an errand channel")
            _check_seconds(event.timeout)
            connection.ticket = event.ticket
            decisions = self.books.apply(process, connection.session, event, now)
            if not self._carry_out(decisions, now, reply_to=connection, ticket=event.ticket):
                connection.send(Failed(f"ticket {event.ticket} was answered already"))
            return
        decisions = self.books.apply(process, connection.session, event, now)  # type: ignore[arg-type]
        if decisions:
            self._carry_out(decisions, now)
        if on_call:
            connection.send(Done())

    # --- what happens -----------------------------------------------------------------------------------------

    def ended(self, connection: Connection, now: float) -> None:
        """A connection is gone. That says nothing about its process."""
        process = connection.process
        if connection.pidfd is not None:
            os.close(connection.pidfd)
            connection.pidfd = None
        self.collector.ended(connection)
        if process is None:
            return
        if connection.role == "call" and connection.ticket is not None:
            self._tell(process, connection.session, CallEnded(connection.ticket), now)
        elif self._is_errand(connection):
            self.residents[process].errand = None
            self._tell(process, connection.session, Detached(), now)

    def died(self, process: ProcessId, now: float) -> None:
        """A process is dead, proved by its pidfd."""
        resident = self.residents.pop(process, None)
        if resident is None:
            return
        self._unwatch(resident.pidfd)
        os.close(resident.pidfd)
        if resident.errand is not None:
            resident.errand.break_off("its process died")
            resident.errand = None
        self.collector.died(resident, now)
        held = self.books.slots_held(process)
        self._tell(process, resident.session, Died(), now)
        self.members.remove(process)
        log.info("process %s (%s) died with %d slots", process, resident.label or "no label", held)
        self._heard(process)

    def tick(self, now: float) -> None:
        """Carry out what has become due."""
        due = self.books.next_deadline(now)
        if due is not None and due <= now:
            self._carry_out(self.books.tick(now), now)
        self.collector.tick(now)

    def next_deadline(self, now: float) -> float | None:
        """When `tick` is wanted next."""
        of_books, of_collector = self.books.next_deadline(now), self.collector.deadline()
        if of_books is None or of_collector is None:
            return of_collector if of_books is None else of_books
        return min(of_books, of_collector)

    def look_around(self) -> None:
        """Every few seconds: member files that vanished, and what could not be written at the time."""
        for process in self.residents:
            self.members.add(process)
        for identity, decision in list(self._owed.items()):
            try:
                self.journal.write(decision)
            except OSError as error:
                log.error("the journal still cannot be written: %s", error)
                return
            self._owed.pop(identity, None)
        self._settle_journal()

    def say_goodbye(self) -> None:
        """Tell all processes that the server is leaving."""
        self.leaving = True
        for resident in self.residents.values():
            if resident.errand is not None:
                resident.errand.send(Goodbye())

    def close(self) -> None:
        """Stop watching."""
        for resident in self.residents.values():
            self._unwatch(resident.pidfd)
            os.close(resident.pidfd)
        self.residents.clear()

    # --- what is decided --------------------------------------------------------------------------------------

    def _tell(
        self, process: ProcessId, session: Session, event: Died | Detached | CallEnded, now: float
    ) -> None:
        self._carry_out(self.books.apply(process, session, event, now), now)

    def _carry_out(
        self,
        decisions: Iterable[Addressed],
        now: float,
        *,
        reply_to: Connection | None = None,
        ticket: Ticket | None = None,
        adopted: Iterable[GrantNumber] = (),
    ) -> bool:
        """Write and send, in order. True if the direct answer was sent on `reply_to`: that to the checkout
        with this ticket, or, without one, Draining.

        A grant that cannot be written down is not sent; what the books decide instead follows.
        """
        answered = False
        failed: set[GrantNumber] = set()
        queue = list(decisions)  # grows where a failure leads to more
        for process, decision in queue:
            if process is None:
                error = self._write_down(decision, adopted)
                if error is not None and isinstance(decision, Record):
                    failed.add(decision.number)
                    event = JournalFailed(decision.number, error)
                    session = self.books.session_of(decision.process) or Session(0)
                    queue.extend(self.books.apply(decision.process, session, event, now))
            elif failed and isinstance(decision, Grant) and decision.number in failed:
                continue
            elif (
                reply_to is not None
                and not answered
                and process == reply_to.process
                and _is_answer(decision, ticket)
            ):
                reply_to.send(decision)
                answered = True
            else:
                resident = self.residents.get(process)
                if resident is not None and resident.errand is not None:
                    resident.errand.send(decision)
        return answered

    def _write_down(self, decision: object, adopted: Iterable[GrantNumber]) -> str | None:
        """Carry out a decision for the journal. The reason, if a grant could not be written down.

        What is so in any case (an inventory, the state of a pool) is owed instead, and written later.
        """
        assert isinstance(decision, (Record, Erase, RecordPool))
        try:
            self.journal.write(decision)
        except OSError as error:
            log.error("%s", error)
            if isinstance(decision, Record) and decision.number not in adopted:
                return str(error)
            if not isinstance(decision, Erase):
                self._owed[_debt(decision)] = decision
        else:
            if self._owed:
                self._owed.pop(_debt(decision), None)
        if isinstance(decision, Erase):
            self._owed.pop(decision.number, None)
        return None

    def _heard(self, process: ProcessId) -> None:
        """What a process holds is known now."""
        if process in self._awaited:
            self._awaited.discard(process)
            self._settle_journal()

    def _settle_journal(self) -> None:
        if not self.journal.torn or self._awaited or self._owed:
            return
        try:
            self.journal.settled()
            log.info("journal: whole again, everybody has been heard")
        except OSError as error:
            log.error("the journal stays torn for now: %s", error)


def _is_answer(decision: Decision, ticket: Ticket | None) -> bool:
    """Whether this is the direct answer to the checkout with this ticket, or else to Drain or WantReady."""
    if ticket is None:
        return isinstance(decision, (Draining, Readiness))
    return isinstance(decision, ANSWERS) and decision.ticket == ticket


def _debt(decision: Record | RecordPool | Erase) -> GrantNumber | str:
    return decision.pool if isinstance(decision, RecordPool) else decision.number


def _check_seconds(seconds: float | None) -> None:
    """Refuse what is no duration. What is not a number would upset every later comparison of times."""
    if seconds is not None and not 0.0 <= seconds < math.inf:
        raise ProtocolError(f"{seconds} is no number of seconds")


def _check_declaration(declaration: Declaration) -> None:
    """Refuse what no mppool declares: the books take options at their word."""
    _check_seconds(declaration.age)
    try:
        checked_name("pool", declaration.pool)
        checked_options(declaration.pool, msgspec.structs.asdict(declaration.options))
    except ConfigurationError as error:
        raise ProtocolError(str(error)) from error
