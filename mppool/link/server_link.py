"""The way from a member to the books: over a server, or within this process."""

from __future__ import annotations

import socket
import threading
import weakref
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec

from mppool.core.decisions import Grant, Refuse
from mppool.core.events import Abandoned, Checkout, Event
from mppool.core.tokens import WantToken
from mppool.errors import PoolError, ServerUnavailable
from mppool.ids import ProcessId, Session, Ticket, is_stopped
from mppool.link.channel import ErrandChannel, Outgoing
from mppool.link.connection import (
    ASK_GRACE_S,
    SESSION_PAUSE_S,
    Connection,
    OlderServer,
    SessionLost,
    introduce,
)
from mppool.link.errands import Errands
from mppool.link.troubles import LACKING, no_answer, pool_errors_only
from mppool.link.witness import Witness
from mppool.logs import Log
from mppool.process.executor import let_others
from mppool.process.fork import close_quietly, make_immortal, notice_fork, prepare
from mppool.process.locks import LazyLock, release_own
from mppool.wire.framing import process_side_reader
from mppool.wire.messages import (
    PROTOCOL,
    Attached,
    Done,
    Failed,
    Hello,
    Leave,
    Message,
    Rejected,
    Role,
    Stats,
    WantStats,
)

if TYPE_CHECKING:
    from mppool.rendezvous.locator import ServerLocator
    from mppool.worker.member import Member

log = Log("mppool")

CONTROL_DEADLINE_S = 5.0
"""How long a command or a look at the statistics waits for the server."""

COMMAND_GRACE_S = 0.25
"""How long the server may take to answer a command whose caller has less time."""

START_GRACE_S = 1.0
"""A first checkout with a very short timeout may still start the server: that is work, not waiting."""

ANSWER_GRACE_S = 0.1
"""A server that lives answers at once; whoever has just attached to it may ask, whatever time it took."""


LACKING_PATIENCE_S = 0.5
"""How long descriptors may be lacking before that is an error."""


class ServerLink:
    """Over a server.

    _attaching: held while a session is made, which is I/O, bounded by each caller's deadline. It guards
        nothing else, and whoever holds it may take the others.
    outgoing: the errand channel, with the lock that guards it.
    _idle: call connections that nobody uses (atomic operations).
    _connections: all that are open, for a forked child to close.
    _orphans: tickets of checkouts that the server may have cancelled because their connection ended.
    farewell: the last server has said goodbye, so nobody starts the next one without need.
    unheard: the journal may count slots of ours that we have given back: a word that the last server has
        not read is lost with it. Its successor waits for our inventory, also where that is empty.

    The locks are reentrant so that `interrupted` can free those that its thread still owns.
    """

    _attaching = LazyLock()

    def __init__(self, member: Member, server: ServerLocator) -> None:
        self._member = member
        self.manager_name = member.name
        self._server = server
        self._was_attached = False
        self._is_prepared = False
        self._inherited: set[int] = set()
        self.seen = b""
        self._start()

    def _start(self) -> None:
        ServerLink._attaching.forget(self)
        self.outgoing = Outgoing(self._member, self.wake)
        self._idle: deque[Connection] = deque()
        self._connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._orphans: deque[Ticket] = deque()
        self.farewell = False
        self.unheard = False
        self.errands = Errands(self._member, self)
        self.witness = Witness()

    def after_fork_in_child(self) -> None:
        """See Link."""
        # Also those that other threads were using: their frames do not exist here, their descriptors do.
        connections = list(self._connections)
        found = {connection.sock.fileno() for connection in connections}
        # Noted before anything is forgotten, and closed afterwards: this may be interrupted, and done again.
        self._inherited |= (found | set(self.errands.descriptors())) - {-1}
        self._inherited |= set(self.witness.descriptors())
        self._server.hide_life()
        make_immortal((connections, self.outgoing, self.errands, self.witness, self._attaching))
        self._start()
        close_quietly(self._inherited)

    def _prepare(self) -> None:
        """What a child may need is there as a whole before any thread begins to talk, or not at all."""
        if not self._is_prepared:
            prepare(self._server.prepare, process_side_reader)
            self._is_prepared = True

    # --- attaching ---------------------------------------------------------------------------------------

    def ensure_session(self, deadline: float | None, *, start: bool = True) -> bool:
        """Be attached to a server. False: there is none, and none was to be started.

        Raises TimeoutError at the deadline, ServerUnavailable if none can be started.
        """
        notice_fork()
        self._prepare()
        if self._member.holdings.session is not None:
            return True
        wait = -1.0 if deadline is None else max(0.0, deadline - monotonic())
        if deadline is not None and self.outgoing.channel is None and not self._was_attached:
            wait = max(wait, START_GRACE_S)
        attaching = self._attaching  # in a child forked from here, the attribute names another lock
        if not attaching.acquire(timeout=wait):
            raise TimeoutError("another thread is still looking for the server")
        try:
            return self._member.holdings.session is not None or self._attach(deadline, start)
        except BaseException:
            self._revive()  # it may have been interrupted with the session just made
            raise
        finally:
            attaching.release()

    def _attach(self, deadline: float | None, start: bool) -> bool:
        pause, lacking_until = 0.002, monotonic() + LACKING_PATIENCE_S
        while True:
            patience = (
                monotonic() + 30.0
                if deadline is None
                else max(deadline, monotonic() + START_GRACE_S)
            )
            try:
                sock = self._server.connect(patience) if start else self._server.look()
                if sock is None:
                    return False
                self._make_session(self._connection(sock, Session(0)), deadline)
            except SessionLost:  # it left, or died, in this very moment
                if not start:
                    return False
            except OlderServer as older:
                self._replace(older.protocol, patience)
            except OSError as error:
                # Another thread may just have taken the last descriptor, and give it back.
                if error.errno not in LACKING or monotonic() >= lacking_until:
                    raise
            else:
                return True
            if deadline is not None and monotonic() >= deadline:
                raise TimeoutError("no server stayed long enough to attach to")
            threading.Event().wait(pause)
            pause = min(pause * 2, 0.1)

    def _replace(self, protocol: int, deadline: float) -> None:
        """A server of an older release is in the way: it leaves, its journal stays, ours goes on with it."""

        def ask_to_leave() -> None:
            self.control(Leave(), deadline, protocol=protocol, only_older=True)

        log.info(
            "manager %r: the server speaks protocol %d, and this release %d: it is asked to leave, and "
            "one of this release takes its books over",
            self._member.name, protocol, PROTOCOL,
        )  # fmt: skip
        self._server.replace(ask_to_leave, deadline)

    def _make_session(self, connection: Connection, deadline: float | None) -> None:
        patience = (
            monotonic() + CONTROL_DEADLINE_S
            if deadline is None
            else max(deadline, monotonic() + 0.05)
        )
        holdings = self._member.holdings
        try:
            self.errands.prepare()
            self.witness.show()
            welcome = introduce(connection, self._hello("errand", Session(0)), patience)
            self._server.show_life()
            self._member.seal()
            with holdings.lock:
                attach = self._member.attachment()
            channel = ErrandChannel(connection)
            channel.session, channel.server = welcome.session, welcome.server
            connection.send(attach, patience)
            while not self._is_attached(channel, patience):
                continue
            channel.sock.setblocking(False)
        except OSError as error:
            connection.close()
            if isinstance(error, TimeoutError) and deadline is not None:
                raise
            if error.errno in LACKING:
                raise  # another server would not change that
            raise SessionLost(str(error)) from error
        except BaseException:
            connection.close()
            raise
        self.farewell = self.unheard = False
        for face in list(self._member.faces.values()):
            face.line.set_contended(False)  # the server says so anew
        self.outgoing.begin(channel)
        self._was_attached = True
        try:
            self.errands.ensure_running()
        except RuntimeError:  # no thread can be had: a session without one would be deaf
            self.lost(channel)
            raise
        self.flush()

    def _connection(self, sock: socket.socket, session: Session) -> Connection:
        connection = Connection(sock, session, self._orphans)
        self._connections.add(connection)
        return connection

    def _is_attached(self, channel: ErrandChannel, deadline: float) -> bool:
        left = deadline - monotonic()
        if left <= 0:
            raise TimeoutError("the server did not take over the inventory in time")
        channel.sock.settimeout(left)
        data = channel.sock.recv(65536)
        if not data:
            raise SessionLost("the server closed the connection")
        done = False
        for message in channel.reader.feed(data):
            if isinstance(message, Attached):
                done = True
            elif isinstance(message, Failed):
                raise ServerUnavailable(f"manager {self._member.name!r}: {message.text}")
            else:
                channel.early.append(message)
        return done

    def _hello(self, role: Role, session: Session, protocol: int = PROTOCOL) -> Hello:
        process = self.witness.process()
        return Hello(protocol, self._server.name, process, role, session, self._server.linger)

    def lost(self, channel: ErrandChannel, *, heard: bool = False, detached: bool = False) -> None:
        """The errand channel ended. Called by the errand thread, or by whoever ends it.

        heard: the server has closed it, and had read everything that was said on it.
        detached: this process ends it, and the server has confirmed everything that was said.
        """
        if not self.outgoing.end(channel):
            return
        holdings = self._member.holdings
        lost = channel.unsent or channel.lost_words
        said_all = not (lost or holdings.outbox or holdings.table)
        self.unheard = not (detached or (self.farewell and heard and said_all))
        channel.connection.close()
        while self._idle:
            self._idle.pop().close()
        self._member.session_lost()

    @pool_errors_only
    def fingerprint_secret(self) -> bytes:
        """See Link."""
        return self._server.fingerprint_secret()

    def detach(self, deadline: float) -> bool:
        """See Link. What was said on the errand channel has been taken in before it is closed."""
        channel = self.outgoing.channel
        if channel is None or self._member.holdings.session is None:
            return True
        try:
            self.call(Abandoned(self._member.next_ticket()), deadline)
        except (SessionLost, TimeoutError, PoolError, OSError) as error:
            log.info("manager %r: could not detach in order: %s", self._member.name, error)
            return False
        with self._member.holdings.lock:
            if self._member.needs_books() or self._member.holdings.outbox:
                return False
        self.lost(channel, detached=True)
        return True

    # --- talking -----------------------------------------------------------------------------------------

    def call(self, event: Event, deadline: float | None) -> Any:
        """See Link. Raises SessionLost, TimeoutError, ServerUnavailable."""
        holdings = self._member.holdings
        if holdings.session is None:
            self.ensure_session(deadline)
            if deadline is not None:
                # Starting a server was no waiting either: there must be time to ask it.
                deadline = max(deadline, monotonic() + ANSWER_GRACE_S)
        if not self.errands.running.locked():
            self.errands.ensure_running()
        if holdings.outbox:
            self.flush(deadline)
        session = holdings.session
        if session is None:
            raise SessionLost("the server has just gone")
        connection = self._take_connection(session, deadline)
        if self._orphans:
            self.retry_orphans()
        ticket = connection.ticket
        if isinstance(event, (Checkout, WantToken)):
            ticket = event.ticket
        answer = connection.exchange(event, deadline)
        return self._answered(connection, ticket, answer)

    def ask_at_once(self, event: Checkout) -> Any:
        """See Link. It passes as few functions as can be (decision 11)."""
        holdings = self._member.holdings
        session = holdings.session
        if session is None or holdings.outbox or self._orphans or not self.errands.running.locked():
            return None
        try:
            connection = self._idle.pop()
        except IndexError:
            return None
        if connection.session != session or connection.poll is None:
            self._idle.append(connection)  # the long way knows what to do with it
            return None
        deadline = monotonic() + ASK_GRACE_S
        answer = connection.exchange(event, deadline, self.is_stopped)
        if type(answer) is not Refuse:
            return self._answered(connection, event.ticket, answer)
        connection.ticket = event.ticket
        self._idle.append(connection)
        return answer

    def _answered(self, connection: Connection, ticket: Ticket | None, answer: Any) -> Any:
        """Take in what was answered on a connection, which is idle then. Raises SessionLost."""
        kind = type(answer)
        if kind is Rejected:
            connection.close()
            raise SessionLost(answer.text)
        connection.ticket = ticket
        session = connection.session
        if kind is Grant and not self._member.register(answer, session):
            raise SessionLost("the session ended while the grant was on its way")
        # Not earlier: if this thread is interrupted before the grant is registered, the connection ends
        # with it, and that is why the server asks what became of the grant.
        self._idle.append(connection)
        return answer

    def _take_connection(self, session: Session, deadline: float | None) -> Connection:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._new_connection(session, deadline)
            if connection.session == session:
                return connection
            connection.close()

    def _new_connection(self, session: Session, deadline: float | None) -> Connection:
        sock = self._server.look(deadline)
        if sock is None:
            raise SessionLost("the server has just gone")
        connection = self._connection(sock, session)
        introduce(connection, self._hello("call", session), deadline)
        return connection

    def flush(self, deadline: float | None = None) -> None:
        """See Link, and Outgoing.flush."""
        if self.errands.is_missing():
            self.errands.revive()
        self.outgoing.flush(deadline)

    def connected_server(self) -> ProcessId | None:
        """The server that this process is attached to."""
        notice_fork()
        channel = self.outgoing.channel
        return None if channel is None else channel.server

    @pool_errors_only
    def is_stopped(self) -> bool:
        """See Link."""
        connected = self.connected_server()
        pid = self._server.pid() if connected is None else connected.pid
        return pid is not None and is_stopped(pid)

    def wake(self) -> None:
        """See Link."""
        self.errands.wake()

    @pool_errors_only
    def ensure_thread(self) -> None:
        """See Link."""
        notice_fork()
        self.errands.ensure_running()

    def tidy(self) -> None:
        """See Link."""
        self.retry_orphans()
        self.flush()

    def retry_orphans(self) -> None:
        """Threads whose place in the queue ended with a connection that somebody else broke ask again."""
        while self._orphans:
            try:
                self._member.retry(self._orphans.popleft())
            except IndexError:
                return

    def interrupted(self) -> None:
        """See Link."""
        release_own(self._attaching, self.outgoing.lock())
        self.errands.interrupted()
        self._revive()

    def _revive(self) -> None:
        if self._member.holdings.session is not None:
            self.errands.ensure_running()

    def attend(self) -> None:
        """See Link."""
        try:
            self.ensure_session(monotonic() + CONTROL_DEADLINE_S, start=False)
        except (ServerUnavailable, TimeoutError) as error:
            log.debug("manager %r: %s", self._member.name, error)

    # --- commands ----------------------------------------------------------------------------------------

    @pool_errors_only
    def command(self, event: Event, deadline: float | None = None) -> Any:
        """See Link. Raises PoolError with the server's reason, ServerUnavailable if it does not answer."""
        notice_fork()
        patience = CONTROL_DEADLINE_S
        if deadline is not None:
            patience = min(patience, max(deadline - monotonic(), COMMAND_GRACE_S))
        deadline = monotonic() + patience
        while True:
            try:
                answer = self.call(event, deadline)
            except (SessionLost, TimeoutError) as error:
                if monotonic() >= deadline:
                    raise ServerUnavailable(
                        f"manager {self._member.name!r}: the server has not carried out a "
                        f"{type(event).__name__} within {patience:.2g} s ({error}); try again, "
                        "or look at it with `mppool doctor`"
                    ) from error
                threading.Event().wait(SESSION_PAUSE_S)
                continue
            if isinstance(answer, Failed):
                raise PoolError(answer.text)
            return None if isinstance(answer, Done) else answer

    @pool_errors_only
    def control(
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
        notice_fork()
        self._prepare()
        sock = self._server.look(deadline)
        if sock is None:
            return None
        connection = self._connection(sock, Session(0))
        try:
            welcome = introduce(connection, self._hello("control", Session(0), protocol), deadline)
            if only_older and welcome.protocol >= PROTOCOL:
                return None
            return connection.exchange(message, deadline)
        except SessionLost:
            return None
        except TimeoutError as error:
            raise no_answer(self._member.name) from error
        except OlderServer as older:
            return self.control(message, deadline, protocol=older.protocol, only_older=only_older)
        finally:
            connection.close()

    def stats(self) -> dict[str, Any]:
        """See Link. An empty dict where there is no server."""
        notice_fork()
        with self.errands.reporter.on_behalf_of_a_hook():
            answer = self.control(WantStats(self.seen), monotonic() + CONTROL_DEADLINE_S)
        if not isinstance(answer, Stats):
            return {}
        self.seen = answer.seen or self.seen
        for pool, parts in answer.resources.items():
            for part in parts:
                answer.stats["pools"][pool]["resources"] += msgspec.msgpack.decode(part)
                let_others()
        return answer.stats
