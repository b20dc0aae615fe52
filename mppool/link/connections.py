"""How this process comes by connections to the server, and keeps those that no thread uses just now."""

from __future__ import annotations

import socket
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from mppool.core.events import Event
from mppool.ids import Session, Ticket
from mppool.link.connection import Connection, OlderServer, SessionLost, introduce
from mppool.link.troubles import no_answer
from mppool.link.witness import Witness
from mppool.process.fork import prepare
from mppool.wire.framing import process_side_reader
from mppool.wire.messages import PROTOCOL, Hello, Message, Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from mppool.rendezvous.locator import ServerLocator


class Connections:
    """All connections of this process to the server.

    idle: call connections that no thread uses (atomic operations).
    orphans: tickets of checkouts that the server may have cancelled because their connection ended.
    _all: those that are open, for a forked child to close.
    """

    def __init__(self, locator: ServerLocator, witness: Witness) -> None:
        self._locator = locator
        self._witness = witness
        self.idle: deque[Connection] = deque()
        self.orphans: deque[Ticket] = deque()
        self._all: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._is_prepared = False

    def all(self) -> list[Connection]:
        """All that are open, also those that other threads use."""
        return list(self._all)

    def prepare(self) -> None:
        """What a child may need is there as a whole before any thread begins to talk, or not at all."""
        if not self._is_prepared:
            prepare(self._locator.prepare, process_side_reader)
            self._is_prepared = True

    def hello(self, role: Role, session: Session, protocol: int = PROTOCOL) -> Hello:
        """How this process introduces itself."""
        process = self._witness.process()
        machines = "" if role == "control" else self._locator.machines_fingerprint()
        linger = self._locator.linger
        return Hello(protocol, self._locator.name, process, role, session, linger, machines)

    def wrap(self, sock: socket.socket, session: Session) -> Connection:
        """A connection on a socket that has just been connected."""
        connection = Connection(sock, session, self.orphans)
        self._all.add(connection)
        return connection

    def take(
        self,
        session: Session,
        deadline: float | None,
        is_stopped: Callable[[], bool] | None = None,
    ) -> Connection:
        """A call connection of this session. The caller owns it, and appends it to `idle` afterwards.

        is_stopped: see Connection.exchange.
        """
        while True:
            try:
                connection = self.idle.pop()
            except IndexError:
                return self._new(session, deadline, is_stopped)
            if connection.session == session:
                return connection
            connection.close()

    def _new(
        self, session: Session, deadline: float | None, is_stopped: Callable[[], bool] | None
    ) -> Connection:
        sock = self._locator.look(deadline)
        if sock is None:
            raise SessionLost("the server has just gone")
        connection = self.wrap(sock, session)
        introduce(connection, self.hello("call", session), deadline, is_stopped)
        return connection

    def close_idle(self) -> None:
        """The session is over: so are its call connections."""
        while self.idle:
            self.idle.pop().close()

    def ask(
        self,
        message: Event | Message,
        deadline: float,
        *,
        protocol: int = PROTOCOL,
        only_older: bool = False,
    ) -> Any:
        """An exchange with the server, if there is one, without a session. None if there is none.

        Raises ServerUnavailable if it does not answer.

        protocol: to speak; a server of an older release is spoken to in the newest that it knows.
        only_older: say nothing to a server that is as new as this release.
        """
        self.prepare()
        sock = self._locator.look(deadline)
        if sock is None:
            return None
        connection = self.wrap(sock, Session(0))
        try:
            hello = self.hello("control", Session(0), protocol)
            welcome = introduce(connection, hello, deadline)
            if only_older and welcome.protocol >= PROTOCOL:
                return None
            return connection.exchange(message, deadline)
        except SessionLost:
            return None
        except TimeoutError as error:
            raise no_answer(self._locator.name) from error
        except OlderServer as older:
            return self.ask(message, deadline, protocol=older.protocol, only_older=only_older)
        finally:
            connection.close()
