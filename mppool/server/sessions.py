"""Who may talk to this server, and under which session: introductions, rejections, attachments.

A peer that is refused here never reaches the books.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import msgspec

from mppool._version import __version__
from mppool.core.books import Books
from mppool.core.events import Attach, Declaration
from mppool.errors import ConfigurationError, ProtocolError
from mppool.ids import ProcessId, Session, own_process
from mppool.options import checked_name, checked_options, checked_whole
from mppool.rendezvous import liveness
from mppool.server import handshake
from mppool.server.connection import Connection
from mppool.server.processes import CannotRegister, KnownProcess, ProcessRegistry
from mppool.wire.messages import PROTOCOL, Failed, Hello, Rejected, ToServer, Welcome

log = logging.getLogger(__name__)

SESSION_BITS = 32
LEAVING = Rejected("leaving", "this server is leaving: start the next one")


class Sessions:
    """It belongs to the loop's thread.

    longest_linger: seconds, of all that ever introduced themselves as users.
    leaving: no peer is let in any more.
    _given: how many sessions this server has given.
    """

    def __init__(
        self,
        manager: str,
        books: Books,
        processes: ProcessRegistry,
        admit: Callable[[Hello], Rejected | None] = lambda hello: None,
    ) -> None:
        """admit: see Admission."""
        self.longest_linger = 0.0
        self.leaving = False
        self._manager, self._books, self._processes = manager, books, processes
        self._own = own_process()
        self._admit = admit
        self._given = 0

    def introduced(self, connection: Connection, hello: ToServer) -> None:
        """Welcome or reject a peer that says its first word."""
        if not isinstance(hello, Hello):
            raise ProtocolError(f"a {type(hello).__name__} before Hello")
        check_seconds(hello.linger)
        rejected = self._refusal(connection, hello)
        if rejected is not None:
            self.reject(connection, rejected)
            return
        session = self._new_session() if hello.role == "errand" else hello.session
        # One object for all connections of a process: what is the same is found faster than what is equal.
        known = self._processes.get(hello.process)
        process = hello.process if known is None else known.process
        connection.welcomed(hello.role, process, session)
        if (
            hello.role != "control"
        ):  # a peer that only looks does not say how long the server is to stay
            self.longest_linger = max(self.longest_linger, hello.linger)
        connection.send(Welcome(PROTOCOL, self._books.epoch, session, self._own, __version__))

    def _refusal(self, connection: Connection, hello: Hello) -> Rejected | None:
        """Why the peer may not come in. Where a process may, its death can be noticed from here on."""
        peer = liveness.peer_of(connection.socket)
        rejected = handshake.refusal(hello, peer, self._manager)
        if rejected is not None:
            return rejected
        rejected = self._admit(hello)
        if rejected is not None:
            return rejected
        if hello.role == "call" and self._books.session_of(hello.process) != hello.session:
            return session_is_over(hello.process, hello.session)
        if hello.role == "errand":
            connection.pidfd = liveness.watch_peer(connection.socket, hello.process)
            if connection.pidfd is None:
                return handshake.birth_refusal(hello.process)
        return LEAVING if self.leaving else None

    def reject(self, connection: Connection, rejected: Rejected) -> None:
        """Say so, and part."""
        log.info("%s rejected (%s): %s", connection, rejected.reason, rejected.text)
        connection.send(rejected)
        connection.part()

    def attached(self, connection: Connection, attach: Attach) -> KnownProcess | None:
        """Make the connection its process's errand channel; None if it was refused."""
        process = connection.process
        assert process is not None
        is_new = connection.pidfd is not None
        if connection.role != "errand" or not (is_new or self._processes.is_errand(connection)):
            raise ProtocolError("an Attach on a connection that is not an errand channel")
        for declaration in attach.declarations:
            check_declaration(declaration)
        known = self._processes.get(process)
        if known is not None and known.session > connection.session:
            text = "a later session of this process is attached"
            self.reject(connection, Rejected("session", text))
            return None
        if self.leaving:
            self.reject(connection, LEAVING)
            return None
        try:
            return self._processes.attach(connection, attach.label)
        except CannotRegister as error:
            connection.send(Failed(str(error)))
            connection.part()
            return None

    def is_over(self, connection: Connection) -> bool:
        """Whether the session of a call connection is over; if so, that was said."""
        process, session = connection.process, connection.session
        assert process is not None
        if self._books.session_of(process) == session:
            return False
        self.reject(connection, session_is_over(process, session))
        return True

    def _new_session(self) -> Session:
        self._given += 1
        return Session(self._books.epoch << SESSION_BITS | self._given)


def session_is_over(process: ProcessId, session: Session) -> Rejected:
    """Nothing is taken in under an old session."""
    return Rejected("session", f"session {session} of process {process} is over: attach again")


def check_seconds(seconds: float | None) -> None:
    """Refuse what is not a duration. NaN, say, would upset every later comparison of times."""
    if seconds is not None and not 0.0 <= seconds < math.inf:
        raise ProtocolError(f"{seconds} is not a number of seconds, 0 or more")


def check_declaration(declaration: Declaration) -> None:
    """Refuse what no mppool declares: the books take options at their word."""
    check_seconds(declaration.age)
    said, name = declaration.budget, declaration.options.budget
    if (None if said is None else said.budget) != name:
        raise ProtocolError(f"pool {declaration.pool!r:.100} names a budget that is not declared")
    try:
        checked_name("pool", declaration.pool)
        if said is not None:
            check_seconds(said.age)
            checked_whole(f"budget {said.budget!r:.100}: max_size", said.max_size, 1)
        checked_options(declaration.pool, msgspec.structs.asdict(declaration.options))
    except ConfigurationError as error:
        raise ProtocolError(str(error)) from error
