"""What becomes of processes: they are found in the journal, lose a connection, die, or are left behind."""

from __future__ import annotations

import logging

from mppool.core.books import Books
from mppool.core.decisions import Erase
from mppool.core.events import CallEnded, Detached, Died
from mppool.ids import ProcessId
from mppool.server.collecting import Collector
from mppool.server.connection import Connection
from mppool.server.delivery import Delivery
from mppool.server.journal import Journal
from mppool.server.journal_writer import JournalWriter
from mppool.server.processes import ProcessRegistry

log = logging.getLogger(__name__)


def restore(
    books: Books, journal: Journal, writer: JournalWriter, processes: ProcessRegistry, now: float
) -> None:
    """Take over what the previous server left in journal and member files."""
    members = processes.living_members()
    slots = []
    for item in journal.slots:
        if processes.watch(item.process):
            slots.append(item)
        else:
            writer.write_down(Erase(item.number))
    if members and not journal.existed:
        log.warning("the journal is gone, but members live: they are asked first")
        journal.unsettled()
    awaited = {one for one in members if processes.watch(one)} if journal.torn else set()
    writer.awaits(awaited)
    log.info(
        "epoch %d: %d slots of %d living processes continued, %d processes awaited",
        journal.epoch, len(slots), len(processes), len(awaited),
    )  # fmt: skip
    books.restore(journal.pools, slots, set(awaited), now, journal.budgets)
    writer.settle_journal()


class Departures:
    """It has no state of its own. It belongs to the loop's thread."""

    def __init__(
        self,
        books: Books,
        processes: ProcessRegistry,
        collector: Collector,
        delivery: Delivery,
    ) -> None:
        self._books, self._processes = books, processes
        self._collector, self._delivery = collector, delivery

    def ended(self, connection: Connection, now: float) -> None:
        """A connection is gone. That says nothing about its process (rule 1)."""
        connection.close_pidfd()
        self._collector.ended(connection)
        process, session = connection.process, connection.session
        if process is None:
            return
        if connection.role == "call" and connection.ticket is not None:
            self._delivery.happened(process, session, CallEnded(connection.ticket), now)
        elif self._processes.is_errand(connection):
            self._processes.detached(connection, now)
            self._delivery.happened(process, session, Detached(), now)

    def died(self, process: ProcessId, now: float) -> None:
        """A process is dead, proved by its pidfd; or a member has left, proved by its descriptor."""
        known = self._processes.remove(process)
        if known is None:
            return
        self._collector.died(process, now)
        held = self._books.slots_held(process)
        self._delivery.happened(process, known.session, Died(), now)
        self._processes.forget(process)
        log.info("process %s (%s) died with %d slots", process, known.label or "no label", held)
        self._delivery.heard(process)

    def find_gone(self, now: float) -> None:
        """Members that have left although their process lives."""
        for process in self._processes.gone(now):
            log.info("process %s lives, and what was attached there is gone", process)
            self.died(process, now)

    def is_needed_by_others(self, process: ProcessId | None) -> bool:
        """Whether another process than this one is attached, or holds anything."""
        return any(
            known.errand is not None or self._books.slots_held(known.process)
            for known in self._processes
            if known.process != process
        )

    def forget_who_holds_nothing(self) -> None:
        """When the server leaves in order: the next one need not hear a process that has said it holds nothing."""
        for known in self._processes:
            if known.session and not self._books.slots_held(known.process):
                self._processes.forget(known.process)
