"""The books of a manager, and the parts of the server that serve them, put together."""

from __future__ import annotations

import random
from collections.abc import Callable

from mppool.core.books import Books
from mppool.ids import ProcessId
from mppool.server.collecting import Collector
from mppool.server.connection import Connection
from mppool.server.delivery import Delivery
from mppool.server.departures import Departures, restore
from mppool.server.dispatch import Dispatcher
from mppool.server.journal import Journal
from mppool.server.journal_writer import JournalWriter
from mppool.server.members import Members
from mppool.server.processes import ProcessRegistry
from mppool.server.sessions import Sessions
from mppool.wire.messages import Goodbye, Leave


class Service:
    """It has no state of its own: each part owns its. It belongs to the loop's thread, and knows no socket."""

    def __init__(
        self,
        manager: str,
        journal: Journal,
        members: Members,
        *,
        watch: Callable[[ProcessId, int], None],
        unwatch: Callable[[int], None],
        leave: Callable[[], None],
    ) -> None:
        """watch, unwatch: see ProcessRegistry. leave: has the loop leave in order."""
        self._journal = journal
        self._leave = leave
        self.books = Books(journal.epoch, jitter=random.random)
        self.processes = ProcessRegistry(members, watch=watch, unwatch=unwatch)
        self.sessions = Sessions(manager, self.books, self.processes)
        self.collector = Collector(manager, self.books, self.processes)
        self._writer = JournalWriter(journal)
        self._delivery = Delivery(self.books, self._writer, self.processes)
        self.departures = Departures(self.books, self.processes, self.collector, self._delivery)
        self.dispatcher = Dispatcher(
            self.books, self.sessions, self.collector, self._delivery, leave=self._leave_asked
        )

    def restore(self, now: float) -> None:
        """Take over what the previous server left."""
        restore(self.books, self._journal, self._writer, self.processes, now)

    def tick(self, now: float) -> None:
        """Carry out what has become due."""
        due = self.books.next_deadline(now)
        if due is not None and due <= now:
            self._delivery.carry_out(self.books.tick(now), now)
        self.collector.tick(now)
        self.departures.find_gone(now)

    def deadline(self, now: float) -> float:
        """When `tick` is wanted next; infinity if only something that happens can change anything."""
        due = self.books.next_deadline(now)
        at = min(self.collector.deadline(), self.processes.deadline())
        return at if due is None or at < due else due

    def look_around(self, now: float) -> None:
        """Every few seconds: member files that vanished, and what could not be written at the time."""
        self.processes.look_around(now)
        self._writer.pay()

    def say_goodbye(self) -> None:
        """Tell all processes that the server is leaving; none is let in from now on."""
        self.sessions.leaving = True
        self.processes.tell_all(Goodbye())

    def _leave_asked(self, connection: Connection, leave: Leave) -> bool:
        """A process asks this server to leave; False: it stays, for others need it."""
        if leave.unless_needed and self.departures.is_needed_by_others(connection.process):
            return False
        self._leave()
        return True
