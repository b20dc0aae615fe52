"""The books of a manager, and the parts of the server that serve them, put together."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from mppool.core.books import Books
from mppool.ids import ProcessId
from mppool.rendezvous.paths import ManagerPaths
from mppool.server.collecting import Collector
from mppool.server.connection import Connection
from mppool.server.delivery import Delivery
from mppool.server.departures import Departures, restore
from mppool.server.dispatch import Dispatcher
from mppool.server.handshake import Admission
from mppool.server.journal import Journal
from mppool.server.journal_writer import JournalWriter
from mppool.server.members import Members
from mppool.server.processes import ProcessRegistry
from mppool.server.sessions import Sessions
from mppool.wire.messages import Goodbye, Leave

if TYPE_CHECKING:
    from mppool.machines.settings import Settings
    from mppool.server.leasing import Leasing


log = logging.getLogger(__name__)


class Service:
    """It has no state of its own: each part owns its. It belongs to the loop's thread, and knows no socket."""

    def __init__(
        self,
        paths: ManagerPaths,
        journal: Journal,
        members: Members,
        *,
        watch: Callable[[ProcessId, int], None],
        unwatch: Callable[[int], None],
        leave: Callable[[], None],
        machines: Settings | None,
        wake: Callable[[], None],
    ) -> None:
        """watch, unwatch: see ProcessRegistry. leave: has the loop leave in order.

        machines: the Redis over which machines share caps. wake: has the loop look at its deadlines, from any thread.
        """
        self._journal, self._members = journal, members
        self._leave = leave
        self.leasing: Leasing | None = None
        self.books = Books(journal.epoch, jitter=random.random)
        self.processes = ProcessRegistry(members, watch=watch, unwatch=unwatch)
        self.sessions = Sessions(
            paths.name, self.books, self.processes, Admission(paths, machines).refusal
        )
        self.collector = Collector(paths.name, self.books, self.processes)
        self._writer = JournalWriter(journal)
        self._delivery = Delivery(self.books, self._writer, self.processes)
        if machines is not None:
            self._share_caps(paths, machines, wake)
        self.departures = Departures(self.books, self.processes, self.collector, self._delivery)
        self.dispatcher = Dispatcher(
            self.books, self.sessions, self.collector, self._delivery, leave=self._leave_asked
        )

    def _share_caps(
        self, paths: ManagerPaths, machines: Settings, wake: Callable[[], None]
    ) -> None:
        from mppool.server.leasing import Leasing  # and what calls Redis: most servers need neither

        self.leasing = Leasing(machines, paths, self.books.epoch, wake)
        self.leasing.serve(self.books, self.collector, self.processes, self._delivery)
        self.collector.machines = self.leasing.snapshot

    def restore(self, now: float) -> None:
        """Take over what the previous server left."""
        restore(self.books, self._journal, self._writer, self.processes, now)
        if self.leasing is not None:
            self.leasing.tick(
                now
            )  # before any process is heard: what they declare has a share from the first

    def tick(self, now: float) -> None:
        """Carry out what has become due."""
        due = self.books.next_deadline(now)
        if due is not None and due <= now:
            self._delivery.carry_out(self.books.tick(now), now)
        if self.leasing is not None:
            self.leasing.tick(now)
        self.collector.tick(now)
        self.departures.find_gone(now)

    def deadline(self, now: float) -> float:
        """When `tick` is wanted next; infinity if only something that happens can change anything."""
        due = self.books.next_deadline(now)
        at = min(self.collector.deadline(), self.processes.deadline())
        if self.leasing is not None:
            at = min(at, self.leasing.deadline(now))
        return at if due is None or at < due else due

    def look_around(self, now: float) -> None:
        """Every few seconds: member files that vanished, and what could not be written at the time."""
        self.processes.look_around(now)
        self._writer.pay()

    def say_goodbye(self) -> None:
        """Tell all processes that the server is leaving; none is let in from now on."""
        self.sessions.leaving = True
        self.processes.tell_all(Goodbye())

    def forget_all(self) -> None:
        """Nobody holds anything: the next server starts with nothing."""
        try:
            self._journal.clear()
            self._members.clear()
        except OSError as error:
            log.warning("the journal cannot be cleared, and is removed: %s", error)
            self._remove_files()

    def _remove_files(self) -> None:
        """Where they cannot be removed either, the next server reads what is there."""
        try:
            self._members.clear()  # first: where members are and no journal is, all of them have to be heard
            self._journal.remove()
        except OSError as error:
            log.warning("what is on file stays for the next server: %s", error)

    def leave_files(self) -> None:
        """Somebody holds something, or may: the next server reads what is there."""
        self._writer.pay()
        self.departures.forget_who_holds_nothing()

    def close(self) -> None:
        """The server has said everything to everybody, and ends."""
        if self.leasing is not None:
            self.leasing.close(is_sure=not self._journal.torn)

    def _leave_asked(self, connection: Connection, leave: Leave) -> bool:
        """A process asks this server to leave; False: it stays, for others need it."""
        if leave.unless_needed and self.departures.is_needed_by_others(connection.process):
            return False
        self._leave()
        return True
