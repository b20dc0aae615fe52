"""The living processes that the server knows: attached ones, and those that only the journal tells of."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator

import msgspec

from mppool.ids import ProcessId, Session
from mppool.rendezvous import liveness
from mppool.server.absentees import Absentees
from mppool.server.connection import Connection
from mppool.server.members import Members

log = logging.getLogger(__name__)


class KnownProcess:
    """One living process.

    errand: its channel once it has attached, None while it cannot be told anything.
    pidfd: becomes readable at its death.
    session: its last attachment; 0: only the journal tells of it.
    """

    __slots__ = ("errand", "label", "pidfd", "process", "session")

    def __init__(self, process: ProcessId, pidfd: int) -> None:
        self.process = process
        self.pidfd = pidfd
        self.session = Session(0)
        self.errand: Connection | None = None
        self.label = ""

    def is_ready(self) -> bool:
        """Whether it can be told something, and has read what it was sent before."""
        errand = self.errand
        return errand is not None and errand.broken is None and not errand.unsent


class CannotRegister(Exception):
    """A process cannot be put on file, or its death could not be noticed. Its text is for the process."""


class ProcessRegistry:
    """Who lives, and how each is told something. It belongs to the loop's thread.

    The mutable state is: the processes by their ids, with their pidfds, which are watched as long as they are
    here; and which of them may have left although their process lives (`Absentees`).
    """

    def __init__(
        self,
        members: Members,
        *,
        watch: Callable[[ProcessId, int], None],
        unwatch: Callable[[int], None],
    ) -> None:
        """watch: has the loop wait for a death, by a pidfd. OSError where that is impossible."""
        self._members = members
        self._watch, self._unwatch = watch, unwatch
        self._known: dict[ProcessId, KnownProcess] = {}
        self._absentees = Absentees()

    def __iter__(self) -> Iterator[KnownProcess]:
        return iter(self._known.values())

    def __len__(self) -> int:
        return len(self._known)

    def get(self, process: ProcessId | None) -> KnownProcess | None:
        """What is known of a process; None: it is dead, or has never attached."""
        return self._known.get(process) if process is not None else None

    # --- beginning -----------------------------------------------------------------------------------------

    def living_members(self) -> set[ProcessId]:
        """All that have ever attached to a server of this manager, and live."""
        return self._members.living()

    def watch(self, process: ProcessId) -> bool:
        """Know a process that is not connected. False if it is dead."""
        if process in self._known:
            return True
        pidfd = liveness.watch_process(process)
        if pidfd is None:
            return False
        self._known[process] = KnownProcess(process, pidfd)
        self._watch(process, pidfd)
        return True

    def attach(self, connection: Connection, label: str) -> KnownProcess:
        """Make the connection its process's errand channel. CannotRegister where that is impossible.

        The process is on file and watched before it can be granted anything.
        """
        process = connection.process
        assert process is not None
        known = self._known.get(process)
        self._put_on_file(process)
        if known is None:
            known = self._begin_to_watch(connection)
        else:
            connection.close_pidfd()
        before, known.errand = known.errand, connection
        if before is not None and before is not connection:
            before.break_off("its process has attached again")
        known.session, known.label = connection.session, label
        return known

    def _put_on_file(self, process: ProcessId) -> None:
        try:
            self._members.add(process)
        except OSError as error:
            log.error("process %s cannot be put on file: %s", process, error)
            text = f"the server cannot write to its directory: {error.strerror}"
            raise CannotRegister(text) from error

    def _begin_to_watch(self, connection: Connection) -> KnownProcess:
        process, pidfd = connection.process, connection.pidfd
        assert process is not None
        assert pidfd is not None
        try:
            self._watch(process, pidfd)
        except OSError as error:
            # Its death would not be noticed. It stays on file: it holds nothing.
            log.error("process %s cannot be watched: %s", process, error)
            text = f"the server cannot watch this process: {error.strerror}"
            raise CannotRegister(text) from error
        known = self._known[process] = KnownProcess(process, pidfd)
        connection.pidfd = None
        return known

    # --- while it lives ------------------------------------------------------------------------------------

    def is_errand(self, connection: Connection) -> bool:
        """Whether its process can be told things on this connection."""
        known = self.get(connection.process)
        return known is not None and known.errand is connection

    def tell(self, process: ProcessId, *messages: msgspec.Struct) -> None:
        """Send these on the process's errand channel, where there is one; its next inventory says the rest."""
        known = self._known.get(process)
        if known is not None and known.errand is not None:
            known.errand.send(*messages)

    def tell_all(self, message: msgspec.Struct) -> None:
        """Send it to all that can be told something."""
        for process in self._known:
            self.tell(process, message)

    def detached(self, connection: Connection, now: float) -> None:
        """Its errand channel has ended: look soon whether it is still there."""
        process = connection.process
        assert process is not None
        self._known[process].errand = None
        self._absentees.lost_channel(process, now)

    def look_around(self, now: float) -> None:
        """Every few seconds: put back member files that vanished, and look for processes that have left."""
        for process in self._known:
            self._members.add(process)
        self._absentees.look_at_all(self._without_channel(), now)

    def gone(self, now: float) -> list[ProcessId]:
        """Those of whom it was found just now that they have left although their process lives."""
        return self._absentees.gone(self._without_channel(), now)

    def deadline(self) -> float:
        """When to ask for `gone` next; infinity if none is in doubt."""
        return self._absentees.deadline()

    def _without_channel(self) -> set[ProcessId]:
        return {known.process for known in self if known.errand is None}

    # --- ending --------------------------------------------------------------------------------------------

    def remove(self, process: ProcessId) -> KnownProcess | None:
        """It is dead, or has left. What was known of it; None: that was known already."""
        known = self._known.pop(process, None)
        if known is None:
            return None
        self._unwatch(known.pidfd)
        os.close(known.pidfd)
        if known.errand is not None:
            known.errand.break_off("its process died")
            known.errand = None
        return known

    def forget(self, process: ProcessId) -> None:
        """The next server need not hear it: it holds nothing."""
        self._members.remove(process)

    def close(self) -> None:
        """Stop watching."""
        for known in self:
            self._unwatch(known.pidfd)
            os.close(known.pidfd)
        self._known.clear()
