"""Routes what processes say to the books, and what the books decide to journal and processes.

No clock, no epoll here: the loop tells the time, delivers messages, ends and deaths, and drops
connections that `broken` marks. The mutable state here is: the residents. `Reception`, `Debts` and
`Collector` own the rest.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from mppool.core.books import Books
from mppool.core.decisions import (
    Addressed,
    Decision,
    Draining,
    Erase,
    Grant,
    Readiness,
    Record,
)
from mppool.core.events import (
    Attach,
    CallEnded,
    Checkout,
    ClosePool,
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
from mppool.core.tokens import ForgetTokens, WantToken, is_answer
from mppool.errors import ProtocolError
from mppool.ids import GrantNumber, ProcessId, Session, Ticket
from mppool.rendezvous import liveness
from mppool.server.absentees import Absentees
from mppool.server.collecting import Collector
from mppool.server.connection import Connection
from mppool.server.debts import Debts
from mppool.server.journal import Journal
from mppool.server.members import Members
from mppool.server.reception import (
    LEAVING,
    Reception,
    check_declaration,
    check_seconds,
    session_is_over,
)
from mppool.server.residents import Resident
from mppool.wire.messages import (
    Attached,
    Done,
    Failed,
    Goodbye,
    Hello,
    Leave,
    Report,
    ToServer,
    WantStats,
)

log = logging.getLogger(__name__)


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
        self.reception = Reception(manager, books, members, self.residents, watch)
        self._watch, self._unwatch, self._leave = watch, unwatch, leave
        self._debts = Debts(journal)
        self._absentees = Absentees()

    # --- beginning -----------------------------------------------------------------------------------------

    def restore(self, now: float) -> None:
        """Take over what the previous server left in journal and member files."""
        members = self.members.living()
        slots = []
        for item in self.journal.slots:
            if item.process in self.residents or self._is_watched(item.process):
                slots.append(item)
            else:
                self._debts.write_down(Erase(item.number))
        if members and not self.journal.existed:
            log.warning("the journal is gone, but members live: they are asked first")
            self.journal.unsettled()
        if self.journal.torn:
            self._debts.awaited = {process for process in members if self._is_watched(process)}
        log.info(
            "epoch %d: %d slots of %d living processes continued, %d processes awaited",
            self.journal.epoch, len(slots), len(self.residents), len(self._debts.awaited),
        )  # fmt: skip
        self.books.restore(self.journal.pools, slots, set(self._debts.awaited), now)
        self._debts.settle_journal()

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

    def said(self, connection: Connection, message: ToServer, now: float) -> bool:
        """Take in one message of somebody who has introduced himself. ProtocolError for what has no place here.

        True: it was answered, and changed nothing; nothing else is due than before.
        """
        connection.ticket = None  # whoever goes on talking has read the answer to his last checkout
        kind = type(message)
        if self.reception.leaving and kind is not Leave and connection.role != "errand":
            self.reception.reject(connection, LEAVING)
            return False
        return self._handlers.get(kind, Dispatcher._event)(self, connection, message, now) is True

    def _hello(self, connection: Connection, hello: Hello, now: float) -> None:
        raise ProtocolError("a second Hello")

    def _report(self, connection: Connection, report: Report, now: float) -> None:
        self.collector.reported(connection, report, now)

    def _want_stats(self, connection: Connection, wanted: WantStats, now: float) -> None:
        self.collector.saw(wanted.seen)
        self.collector.wanted(connection, now)

    def _leave_asked(self, connection: Connection, leave: Leave, now: float) -> None:
        if leave.unless_needed and self._is_needed_by_others(connection.process):
            connection.send(Failed("other processes are attached"))
            return
        connection.send(Done())
        self._leave()

    def _is_needed_by_others(self, process: ProcessId | None) -> bool:
        return any(
            resident.errand is not None or self.books.slots_held(resident.process)
            for resident in self.residents.values()
            if resident.process != process
        )

    def _attach(self, connection: Connection, attach: Attach, now: float) -> None:
        """Take over an inventory."""
        resident = self.reception.attached(connection, attach)
        if resident is None:
            return
        process = resident.process
        self.collector.saw(attach.seen)
        decisions = self.books.apply(process, connection.session, attach, now)
        connection.send(Attached(connection.session))
        self._carry_out(decisions, now, adopted={item.number for item in attach.held})
        log.info(
            "process %s (%s) attached with %d slots",
            process,
            attach.label or "no label",
            len(attach.held),
        )
        self._debts.heard(process)

    def _command(
        self,
        connection: Connection,
        event: Resize | Reset | Drain | ClosePool | WantReady | ForgetTokens,
        now: float,
    ) -> None:
        """A command from anybody; answered by Done, Draining, Readiness or Failed."""
        process = connection.process
        assert process is not None
        try:
            decisions = self.books.command(process, event, now)
        except KeyError:
            assert not isinstance(event, ForgetTokens)
            if connection.role != "errand":
                connection.send(Failed(f"no process has declared a pool {event.pool!r:.100}"))
            return
        wants_figure = isinstance(event, (Drain, WantReady)) and connection.role != "errand"
        answered = self._carry_out(decisions, now, reply_to=connection if wants_figure else None)
        if not answered and connection.role != "errand":
            connection.send(Done())

    def _question(self, connection: Connection, event: Checkout | WantToken, now: float) -> bool:
        """What is answered at once, on the same connection. True: it changed nothing."""
        if connection.role != "call":
            raise ProtocolError(f"a {type(event).__name__} on {connection}")
        if event.timeout:
            check_seconds(event.timeout)
        process, ticket = connection.process, event.ticket
        assert process is not None
        connection.ticket = ticket
        decisions = self.books.apply(process, connection.session, event, now)
        if (
            len(decisions) == 1
            and decisions[0][0] == process
            and is_answer(decisions[0][1], ticket)
        ):
            connection.send(decisions[0][1])  # nothing to write down, and nobody else to be told
            return type(event) is Checkout and not self.books.touched
        answered = self._carry_out(decisions, now, reply_to=connection, ticket=ticket)
        if not answered and not self._is_stale(connection):
            connection.send(Failed(f"ticket {ticket} was answered already"))
        return False

    def _event(self, connection: Connection, event: ToServer, now: float) -> None:
        """What happened in a process; on a call connection it is answered by Done."""
        process = connection.process
        assert process is not None
        if connection.role == "control":
            raise ProtocolError(f"a {type(event).__name__} on a control connection")
        if isinstance(event, Declare):
            check_declaration(event.declaration)
        elif isinstance(event, Opened):
            check_seconds(event.seconds)
        on_call = connection.role == "call"
        if on_call and self._is_stale(connection):
            return
        decisions = self.books.apply(process, connection.session, event, now)  # type: ignore[arg-type]
        if decisions:
            self._carry_out(decisions, now)
        if on_call:
            connection.send(Done())

    def _is_stale(self, connection: Connection) -> bool:
        """Whether the session of a call connection is over; if so, that was said."""
        process, session = connection.process, connection.session
        assert process is not None
        if self.books.session_of(process) == session:
            return False
        self.reception.reject(connection, session_is_over(process, session))
        return True

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
        elif self.reception.is_errand(connection):
            self.residents[process].errand = None
            self._tell(process, connection.session, Detached(), now)
            self._absentees.lost_channel(process, now)

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
        self._debts.heard(process)

    def tick(self, now: float) -> None:
        """Carry out what has become due."""
        due = self.books.next_deadline(now)
        if due is not None and due <= now:
            self._carry_out(self.books.tick(now), now)
        self.collector.tick(now)
        for process in self._absentees.gone(self.residents, now):
            log.info("process %s lives, and what was attached there is gone", process)
            self.died(process, now)

    def next_deadline(self, now: float) -> float:
        """When `tick` is wanted next; infinity if only something that happens can change anything."""
        due = self.books.next_deadline(now)
        at = min(self.collector.deadline(), self._absentees.deadline())
        return at if due is None or at < due else due

    def look_around(self, now: float) -> None:
        """Every few seconds: member files that vanished, and what could not be written at the time."""
        for process in self.residents:
            self.members.add(process)
        self._absentees.look_at_all(self.residents.values(), now)
        self._debts.pay()

    def say_goodbye(self) -> None:
        """Tell all processes that the server is leaving."""
        self.reception.leaving = True
        for resident in self.residents.values():
            if resident.errand is not None:
                resident.errand.send(Goodbye())

    def forget_who_holds_nothing(self) -> None:
        """When leaving in order: whoever has said that he holds nothing need not be heard by the next server."""
        for process, resident in self.residents.items():
            if resident.session and not self.books.slots_held(process):
                self.members.remove(process)

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
        decisions: list[Addressed],
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
        for process, decision in decisions:  # grows where a failure leads to more
            if process is None:
                error = self._debts.write_down(decision, adopted)
                if error is not None and isinstance(decision, Record):
                    failed.add(decision.number)
                    event = JournalFailed(decision.number, error)
                    session = self.books.session_of(decision.process) or Session(0)
                    decisions.extend(self.books.apply(decision.process, session, event, now))
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

    # A table, and not a chain of isinstance: that is slow where the metaclass is not `type`.
    _handlers: ClassVar[dict[type, Callable[[Dispatcher, Connection, Any, float], bool | None]]] = {
        Checkout: _question,
        WantToken: _question,
        Attach: _attach,
        **dict.fromkeys((Resize, Reset, Drain, ClosePool, WantReady, ForgetTokens), _command),
        Hello: _hello,
        Report: _report,
        WantStats: _want_stats,
        Leave: _leave_asked,
    }


def _is_answer(decision: Decision, ticket: Ticket | None) -> bool:
    """Whether this is the direct answer to the checkout with this ticket, or else to Drain or WantReady."""
    if ticket is None:
        return isinstance(decision, (Draining, Readiness))
    return is_answer(decision, ticket)
