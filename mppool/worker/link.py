"""The way from a member to the books: over a server, or within this process."""

from __future__ import annotations

import logging
import socket
import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from mppool.core.decisions import Grant
from mppool.core.events import Event
from mppool.errors import PoolError
from mppool.ids import Session, own_process
from mppool.wire.framing import FrameReader, encode, process_side_reader
from mppool.wire.messages import (
    PROTOCOL,
    Attached,
    Done,
    Failed,
    Hello,
    Message,
    Role,
)
from mppool.worker.calls import Connection, SessionLost, introduce
from mppool.worker.errands import Errands
from mppool.worker.fork import bury, close_quietly

if TYPE_CHECKING:
    from mppool.worker.holdings import Holdings
    from mppool.worker.member import Member

log = logging.getLogger("mppool")

CONTROL_DEADLINE_S = 5.0
"""How long a command or a look at the statistics waits for the server."""

START_GRACE_S = 1.0
"""A first checkout with a very short timeout may still start the server: that is work, not waiting."""


class Link(Protocol):
    """How a member reaches its books."""

    def call(self, event: Event, deadline: float | None) -> Any:
        """The books' answer. A Grant is registered with the member already."""

    def flush(self, deadline: float | None = None) -> None:
        """Pass on the member's outbox, without waiting for anybody."""

    def wake(self) -> None:
        """Have the background thread look around; safe in a finalizer."""

    def command(self, event: Event) -> Any:
        """Carry out a command; what the books answered."""

    def stats(self) -> dict[str, Any]:
        """The statistics of everything."""

    def after_fork_in_child(self) -> None:
        """Forget everything of the parent, without a byte being sent."""


class ErrandChannel:
    """The one connection on which the server speaks unasked.

    Its incoming side belongs to the errand thread. `unsent` belongs to whoever holds the link's `_sending`.
    """

    def __init__(self, connection: Connection) -> None:
        self.sock = connection.sock
        self.session = connection.session
        self.reader: FrameReader[Any] = process_side_reader()
        self.early: list[Any] = []
        self.unsent = bytearray()


class Server(Protocol):
    """What a link must know of the server; given by floor 4, which knows both wings."""

    name: str
    linger: float

    def connect(self, deadline: float) -> socket.socket:
        """A connection to the server, which is started if there is none. Raises ServerUnavailable."""

    def look(self) -> socket.socket | None:
        """A connection to the server, if there is one."""


class ServerLink:
    """Over a server.

    _attaching: held while a session is made, which is I/O, bounded by each caller's deadline. It guards
        nothing else, and whoever holds it may take the holdings' lock.
    _sending: guards the outgoing side of the errand channel; held during sends that cannot block.
    _idle: call connections that nobody uses (atomic operations).
    """

    def __init__(self, member: Member, server: Server) -> None:
        self._member = member
        self._server = server
        self._start()

    def _start(self) -> None:
        self._attaching = threading.Lock()
        self._sending = threading.Lock()
        self._idle: deque[Connection] = deque()
        self.channel: ErrandChannel | None = None
        self.farewell = False
        self.errands = Errands(self._member, self)

    def after_fork_in_child(self) -> None:
        """See Link."""
        inherited = [connection.sock.fileno() for connection in self._idle]
        if self.channel is not None:
            inherited.append(self.channel.sock.fileno())
        inherited += self.errands.descriptors()
        bury((self._idle, self.channel, self.errands, self._attaching, self._sending))
        close_quietly([descriptor for descriptor in inherited if descriptor >= 0])
        self._start()

    # --- attaching ---------------------------------------------------------------------------------------

    def ensure_session(self, deadline: float | None, *, start: bool = True) -> bool:
        """Be attached to a server. False: there is none, and none was to be started.

        Raises TimeoutError at the deadline, ServerUnavailable if none can be started.
        """
        if self._member.holdings.session is not None:
            return True
        wait = -1.0 if deadline is None else max(0.0, deadline - monotonic())
        if not self._attaching.acquire(timeout=wait):
            raise TimeoutError("another thread is still looking for the server")
        try:
            return self._member.holdings.session is not None or self._attach(deadline, start)
        finally:
            self._attaching.release()

    def _attach(self, deadline: float | None, start: bool) -> bool:
        pause = 0.002
        while True:
            patience = (
                monotonic() + 30.0
                if deadline is None
                else max(deadline, monotonic() + START_GRACE_S)
            )
            sock = self._server.connect(patience) if start else self._server.look()
            if sock is None:
                return False
            try:
                self._make_session(Connection(sock, Session(0)), deadline)
            except SessionLost:  # it left, or died, in this very moment
                if not start:
                    return False
            else:
                return True
            if deadline is not None and monotonic() >= deadline:
                raise TimeoutError("no server stayed long enough to attach to")
            threading.Event().wait(pause)
            pause = min(pause * 2, 0.1)

    def _make_session(self, connection: Connection, deadline: float | None) -> None:
        patience = (
            monotonic() + CONTROL_DEADLINE_S
            if deadline is None
            else max(deadline, monotonic() + 0.05)
        )
        welcome = introduce(connection, self._hello("errand", Session(0)), patience)
        holdings = self._member.holdings
        with holdings.lock:
            attach = self._member.attachment()
        channel = ErrandChannel(connection)
        channel.session = welcome.session
        try:
            connection.send(attach, patience)
            while not self._is_attached(channel, patience):
                continue
        except OSError as error:
            connection.sock.close()
            if isinstance(error, TimeoutError):
                raise
            raise SessionLost(str(error)) from error
        except BaseException:
            connection.sock.close()
            raise
        channel.sock.setblocking(False)
        self.farewell = False
        with holdings.lock:
            self.channel = channel
            holdings.session = channel.session
        self.errands.ensure_running()
        self.flush()

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
            else:
                channel.early.append(message)
        return done

    def _hello(self, role: Role, session: Session) -> Hello:
        return Hello(PROTOCOL, self._server.name, own_process(), role, session, self._server.linger)

    def lost(self, channel: ErrandChannel) -> None:
        """The errand channel ended. Called by the errand thread."""
        holdings = self._member.holdings
        with holdings.lock:
            if self.channel is not channel:
                return
            self.channel = None
            holdings.session = None
        channel.sock.close()
        while self._idle:
            self._idle.pop().sock.close()
        self._member.session_lost()

    # --- talking -----------------------------------------------------------------------------------------

    def call(self, event: Event, deadline: float | None) -> Any:
        """See Link. Raises SessionLost, TimeoutError, ServerUnavailable."""
        answer, session = self._exchange(event, deadline)
        if isinstance(answer, Grant) and not self._member.register(answer, session):
            raise SessionLost("the session ended while the grant was on its way")
        return answer

    def _exchange(self, message: Event | Message, deadline: float | None) -> tuple[Any, Session]:
        self.ensure_session(deadline)
        holdings = self._member.holdings
        self.flush(deadline)
        session = holdings.session
        if session is None:
            raise SessionLost("the server has just gone")
        connection = self._take_connection(session, deadline)
        answer = connection.exchange(message, deadline)
        self._idle.append(connection)
        return answer, session

    def _take_connection(self, session: Session, deadline: float | None) -> Connection:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._new_connection(session, deadline)
            if connection.session == session:
                return connection
            connection.sock.close()

    def _new_connection(self, session: Session, deadline: float | None) -> Connection:
        sock = self._server.look()
        if sock is None:
            raise SessionLost("the server has just gone")
        connection = Connection(sock, session)
        introduce(connection, self._hello("call", session), deadline)
        return connection

    def flush(self, deadline: float | None = None) -> None:
        """See Link. With a deadline: wait for another thread that is sending just now.

        Whoever appends to the outbox calls this; the one who is sending looks again before he leaves, so
        nothing is left lying.
        """
        holdings = self._member.holdings
        while holdings.outbox and holdings.session is not None:
            if deadline is None:
                if not self._sending.acquire(blocking=False):
                    return
            elif not self._sending.acquire(timeout=max(0.0, deadline - monotonic())):
                raise TimeoutError("another thread is still sending to the server")
            try:
                self._send_outbox(holdings)
            finally:
                self._sending.release()

    def _send_outbox(self, holdings: Holdings) -> None:
        """Caller holds `_sending`."""
        channel = self.channel
        if channel is None:
            return
        try:
            while holdings.outbox:
                channel.unsent += encode(holdings.outbox.popleft())
            self.push(channel)
        except BaseException:
            # Half a frame may be on its way; the next session begins with an inventory.
            self._break(channel)
            raise

    def push(self, channel: ErrandChannel) -> None:
        """Send what is unsent as far as it goes; the errand thread does the rest. Holder of `_sending` only."""
        try:
            sent = channel.sock.send(channel.unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            channel.unsent.clear()  # the errand thread sees the end of the channel too
            return
        del channel.unsent[:sent]
        if channel.unsent:
            self.wake()

    def push_more(self, channel: ErrandChannel) -> None:
        """The channel takes more again. Called by the errand thread."""
        with self._sending:
            if channel.unsent:
                self.push(channel)

    def send_message(self, message: Message) -> None:
        """Send something that is no event on the errand channel. Called by the errand thread."""
        with self._sending:
            channel = self.channel
            if channel is not None:
                channel.unsent += encode(message)
                self.push(channel)

    def _break(self, channel: ErrandChannel) -> None:
        try:
            channel.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            log.debug("the errand channel was gone already")

    def wake(self) -> None:
        """See Link."""
        self.errands.wake()

    # --- commands ----------------------------------------------------------------------------------------

    def command(self, event: Event) -> Any:
        """See Link. Raises PoolError with the server's reason if it cannot be done."""
        deadline = monotonic() + CONTROL_DEADLINE_S
        while True:
            try:
                answer, _ = self._exchange(event, deadline)
            except SessionLost:
                if monotonic() >= deadline:
                    raise TimeoutError("the server went away again and again") from None
                continue
            if isinstance(answer, Failed):
                raise PoolError(answer.text)
            return None if isinstance(answer, Done) else answer

    def control(self, message: Event | Message, deadline: float) -> Any:
        """An exchange with the server, if there is one, without a session. None if there is none."""
        sock = self._server.look()
        if sock is None:
            return None
        connection = Connection(sock, Session(0))
        try:
            introduce(connection, self._hello("control", Session(0)), deadline)
            return connection.exchange(message, deadline)
        except SessionLost:
            return None
        finally:
            connection.sock.close()

    def stats(self) -> dict[str, Any]:
        """See Link. An empty dict where there is no server."""
        from mppool.wire.messages import Stats, WantStats

        answer = self.control(WantStats(), monotonic() + CONTROL_DEADLINE_S)
        return answer.stats if isinstance(answer, Stats) else {}
