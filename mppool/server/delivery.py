"""Carries out what the books decide: what the journal must know is written first, then the processes are told."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from mppool.core.books import Books
from mppool.core.decisions import Addressed, Decision, Draining, Grant, Readiness, Record
from mppool.core.events import CallEnded, Detached, Died, JournalFailed
from mppool.core.tokens import is_answer
from mppool.ids import GrantNumber, ProcessId, Session, Ticket
from mppool.server.connection import Connection
from mppool.server.journal_writer import JournalWriter
from mppool.server.processes import ProcessRegistry


class Delivery:
    """It has no state of its own. It belongs to the loop's thread."""

    def __init__(self, books: Books, journal: JournalWriter, processes: ProcessRegistry) -> None:
        self._books, self._journal, self._processes = books, journal, processes

    def happened(
        self, process: ProcessId, session: Session, event: Died | Detached | CallEnded, now: float
    ) -> None:
        """Tell the books what has happened to a process, and carry out what they decide."""
        self.carry_out(self._books.apply(process, session, event, now), now)

    def carry_out(
        self,
        decisions: Iterable[Addressed],
        now: float,
        *,
        reply_to: Connection | None = None,
        ticket: Ticket | None = None,
        adopted: Iterable[GrantNumber] = (),
    ) -> bool:
        """Write and send, in order. True if the direct answer was sent on `reply_to`: that to the checkout
        with this ticket, or, without one, Draining or Readiness.

        A grant that cannot be written down is not sent; what the books decide instead follows. What a process is told on
        its errand channel is sent at once, when all is written: each time it wakes up takes longer than to read.

        adopted: grants that the journal is told of late, because an inventory has just said that they are there.
        """
        answered = False
        told: dict[ProcessId, list[Decision]] = {}
        failed: set[GrantNumber] = set()
        pending = deque(decisions)
        while pending:
            process, decision = pending.popleft()
            if process is None:
                error = self._journal.write_down(decision, adopted)
                if error is not None and isinstance(decision, Record):
                    failed.add(decision.number)
                    pending += self._decided_instead(decision, error, now)
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
                told.setdefault(process, []).append(decision)
        for process, errands in told.items():
            self._processes.tell(process, *errands)
        return answered

    def heard(self, process: ProcessId) -> None:
        """What a process holds is known now: an inventory of it was taken over, or it is dead."""
        self._journal.heard(process)

    def _decided_instead(self, record: Record, error: str, now: float) -> list[Addressed]:
        event = JournalFailed(record.number, error)
        session = self._books.session_of(record.process) or Session(0)
        return self._books.apply(record.process, session, event, now)


def _is_answer(decision: Decision, ticket: Ticket | None) -> bool:
    """Whether this is the direct answer to the checkout with this ticket, or else to Drain or WantReady."""
    if ticket is None:
        return isinstance(decision, (Draining, Readiness))
    return is_answer(decision, ticket)
