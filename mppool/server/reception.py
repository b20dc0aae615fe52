"""Who may talk to this server, and who is attached: introductions, sessions, rejections, attachments.

What is refused here never reaches the books.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable

import msgspec

from mppool._version import __version__
from mppool.core.books import Books
from mppool.core.events import Attach, Declaration
from mppool.errors import ConfigurationError, ProtocolError
from mppool.ids import ProcessId, Session, own_process
from mppool.options import checked_name, checked_options
from mppool.rendezvous import liveness
from mppool.server import handshake
from mppool.server.connection import Connection
from mppool.server.members import Members
from mppool.server.residents import Resident
from mppool.wire.messages import PROTOCOL, Failed, Hello, Rejected, ToServer, Welcome

log = logging.getLogger(__name__)

SESSION_BITS = 32
LEAVING = Rejected("leaving", "this server is leaving: start the next one")


class Reception:
    """It belongs to the loop's thread.

    residents: the `Dispatcher` owns them; whoever attaches is entered here.
    longest_linger: seconds, of all who ever introduced themselves as users.
    leaving: nobody is let in any more.
    """

    def __init__(
        self,
        manager: str,
        books: Books,
        members: Members,
        residents: dict[ProcessId, Resident],
        watch: Callable[[ProcessId, int], None],
    ) -> None:
        self.residents = residents
        self.longest_linger = 0.0
        self.leaving = False
        self._manager, self._books, self._members = manager, books, members
        self._watch = watch
        self._own = own_process()
        self._sessions = 0

    def introduced(self, connection: Connection, hello: ToServer) -> None:
        """Welcome or reject whoever says his first word."""
        if not isinstance(hello, Hello):
            raise ProtocolError(f"a {type(hello).__name__} before Hello")
        check_seconds(hello.linger)
        peer = liveness.peer_of(connection.socket)
        rejected = handshake.refusal(hello, peer, self._manager)
        is_call = rejected is None and hello.role == "call"
        if is_call and self._books.session_of(hello.process) != hello.session:
            rejected = session_is_over(hello.process, hello.session)
        if rejected is None and hello.role == "errand":
            connection.pidfd = liveness.watch_peer(connection.socket, hello.process)
            if connection.pidfd is None:
                rejected = handshake.birth_refusal(hello.process)
        if rejected is None and self.leaving:
            rejected = LEAVING
        if rejected is not None:
            self.reject(connection, rejected)
            return
        session = self._new_session() if hello.role == "errand" else hello.session
        # One object for all connections of a process: what is the same is found faster than what is equal.
        resident = self.residents.get(hello.process)
        process = hello.process if resident is None else resident.process
        connection.welcomed(hello.role, process, session)
        if hello.role != "control":  # whoever only looks does not say how long it is to stay
            self.longest_linger = max(self.longest_linger, hello.linger)
        connection.send(Welcome(PROTOCOL, self._books.epoch, session, self._own, __version__))

    def reject(self, connection: Connection, rejected: Rejected) -> None:
        """Say so, and part."""
        log.info("%s rejected (%s): %s", connection, rejected.reason, rejected.text)
        connection.send(rejected)
        connection.part()

    def attached(self, connection: Connection, attach: Attach) -> Resident | None:
        """Make the connection its process's errand channel; None if it was refused.

        The process is on file and watched before it can be granted anything.
        """
        process = connection.process
        assert process is not None
        if connection.role != "errand" or (
            connection.pidfd is None and not self.is_errand(connection)
        ):
            raise ProtocolError("an Attach on a connection that is no errand channel")
        for declaration in attach.declarations:
            check_declaration(declaration)
        resident = self.residents.get(process)
        if resident is not None and resident.session > connection.session:
            text = "a later session of this process is attached"
            self.reject(connection, Rejected("session", text))
            return None
        if self.leaving:
            self.reject(connection, LEAVING)
            return None
        try:
            self._members.add(process)
        except OSError as error:
            log.error("process %s cannot be put on file: %s", process, error)
            connection.send(Failed(f"the server cannot write to its directory: {error.strerror}"))
            connection.part()
            return None
        if resident is None:
            assert connection.pidfd is not None
            try:
                self._watch(process, connection.pidfd)
            except OSError as error:
                # Nobody would notice its death. It stays on file: it holds nothing.
                log.error("process %s cannot be watched: %s", process, error)
                connection.send(Failed(f"the server cannot watch this process: {error.strerror}"))
                connection.part()
                return None
            resident = Resident(process, connection.pidfd)
            connection.pidfd = None
            self.residents[process] = resident
        elif connection.pidfd is not None:
            os.close(connection.pidfd)
            connection.pidfd = None
        before, resident.errand = resident.errand, connection
        if before is not None and before is not connection:
            before.break_off("its process has attached anew")
        resident.session, resident.label = connection.session, attach.label
        return resident

    def is_errand(self, connection: Connection) -> bool:
        """Whether its process can be told things on this connection."""
        resident = self.residents.get(connection.process) if connection.process else None
        return resident is not None and resident.errand is connection

    def _new_session(self) -> Session:
        self._sessions += 1
        return Session(self._books.epoch << SESSION_BITS | self._sessions)


def session_is_over(process: ProcessId, session: Session) -> Rejected:
    """Nothing is taken in under an old session."""
    return Rejected("session", f"session {session} of process {process} is over: attach again")


def check_seconds(seconds: float | None) -> None:
    """Refuse what is no duration. What is not a number would upset every later comparison of times."""
    if seconds is not None and not 0.0 <= seconds < math.inf:
        raise ProtocolError(f"{seconds} is no number of seconds")


def check_declaration(declaration: Declaration) -> None:
    """Refuse what no mppool declares: the books take options at their word."""
    check_seconds(declaration.age)
    try:
        checked_name("pool", declaration.pool)
        checked_options(declaration.pool, msgspec.structs.asdict(declaration.options))
    except ConfigurationError as error:
        raise ProtocolError(str(error)) from error
