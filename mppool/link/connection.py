"""Call connections: one exchange at a time, with a deadline.

A connection on which anything went wrong between sending and receiving is closed, so that no reply is
ever read by the wrong call.
"""

from __future__ import annotations

import _socket
import math
import select
import socket
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

from mppool.core.events import Event
from mppool.errors import ConfigurationError, ProtocolError
from mppool.ids import Session, Ticket
from mppool.process.fork import own_mark
from mppool.wire.framing import FrameReader, encode, process_side_reader
from mppool.wire.messages import Hello, Message, Rejected, Welcome

_RECEIVE_BYTES = 65536
_LONGEST_POLL_MS = 1_000_000_000
_AT_ONCE_MS = 10
"""A server that lives has answered by then, or the machine is busy."""

ASK_GRACE_S = 0.25
"""How long the books may take to answer although the timeout is shorter."""

ASK_PATIENCE_S = 0.5
"""So long a thread that could be served by its neighbours waits for the books to answer."""

SESSION_PAUSE_S = 0.01
"""Between a session that was lost and the next try: the server may be saying farewell."""


class SessionLost(Exception):
    """The server is gone, or does not know this session any more: attach again and ask again."""


class ServerStopped(TimeoutError):
    """The server cannot answer (SIGSTOP, a debugger)."""


class OlderServer(Exception):
    """The server is of an older release and does not speak our protocol: ask it to leave (rule 11)."""

    def __init__(self, protocol: int) -> None:
        """protocol: the newest that it speaks."""
        super().__init__(f"the server speaks protocol {protocol} at most")
        self.protocol = protocol


class Connection:
    """A connection of one thread at a time. The thread that took it owns it until it gives it back.

    ticket: of the last checkout that was made here. Its answer may have been Queued, and its thread may
        still wait; but the server cancels it when this connection ends, whichever thread was using it by then.
        So that thread must ask again: see `orphans`.
    orphans: where the ticket is left when the connection ends, also when its owner was interrupted and
        forgot it (a finalizer may only append to a deque).

    poll: its own, for what comes; None: it is gevent's.

    Every wait is a poll with the time that is left: the interpreter counts that down where signals interrupt it.
    (A receive with SO_RCVTIMEO is begun again by each signal, and never ends where they come more often.)
    gevent's sockets wait by themselves.
    """

    __slots__ = (
        "__weakref__",
        "_mark",
        "_orphans",
        "_reader",
        "poll",
        "session",
        "sock",
        "ticket",
    )

    def __init__(
        self, sock: socket.socket, session: Session, orphans: deque[Ticket] | None = None
    ) -> None:
        self._mark = own_mark()
        self.ticket: Ticket | None = None
        self._orphans = orphans
        self.sock = sock
        self.session = session
        self._reader: FrameReader[Any] = process_side_reader()
        self.poll: select.poll | None = None
        if isinstance(sock, _socket.socket):
            sock.setblocking(False)
            self.poll = select.poll()
            self.poll.register(sock.fileno(), select.POLLIN)

    def close(self) -> None:
        """End it for good: a forked child may hold a copy of the descriptor, so it is shut down first."""
        if not self._mark[0]:
            return  # our parent speaks on it
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the server was faster
        self.sock.close()
        self._leave_ticket()

    def __del__(self) -> None:
        if self.sock.fileno() >= 0:
            self.close()

    def _leave_ticket(self) -> None:
        if self.ticket is not None and self._orphans is not None:
            self._orphans.append(self.ticket)
        self.ticket = None

    def exchange(
        self,
        message: Event | Message,
        deadline: float | None,
        is_stopped: Callable[[], bool] | None = None,
    ) -> Any:
        """Send a message and return the next one that comes.

        Raises TimeoutError at the deadline (None: waits for ever), SessionLost if the server is gone. After
        any exception the connection is closed.

        is_stopped: asked where no answer comes at once (with gevent, whose sockets wait by themselves, in any case).
            A server that is stopped is not waited for.
        """
        poll = self.poll
        try:
            frame = encode(message)
            try:
                sent = 0 if poll is None else self.sock.send(frame)
            except BlockingIOError:  # the server does not read just now
                sent = 0
            if sent < len(frame):
                self._send(frame[sent:], deadline)
            if is_stopped is None:
                self._wait(poll, deadline)
            elif poll is None or not poll.poll(_AT_ONCE_MS):
                self._wait_unless(is_stopped, poll, deadline)
            while True:
                try:
                    data = self.sock.recv(_RECEIVE_BYTES)
                except BlockingIOError:  # there was nothing after all
                    self._wait(poll, deadline)
                    continue
                if not data:
                    raise SessionLost("the server closed the connection")
                messages = self._reader.feed(data)
                if len(messages) == 1:
                    return messages[0]
                if messages:
                    raise ProtocolError(
                        "the server sent two answers to one call; this is a bug in mppool"
                    )
                self._wait(poll, deadline)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                raise SessionLost(str(error)) from error
            raise

    def send(self, message: Event | Message, deadline: float | None) -> None:
        """Send one message whole."""
        self._send(encode(message), deadline)

    def _send(self, frame: bytes, deadline: float | None) -> None:
        while frame:
            if self.poll is None:
                self._wait(None, deadline)
            try:
                frame = frame[self.sock.send(frame) :]
            except BlockingIOError:  # the server does not read just now
                writable = select.poll()
                writable.register(self.sock.fileno(), select.POLLOUT)
                self._wait(writable, deadline)

    def _wait_unless(
        self, is_stopped: Callable[[], bool], poll: select.poll | None, deadline: float | None
    ) -> None:
        """Wait, but not for a server that is stopped."""
        if is_stopped():
            raise ServerStopped("the server is stopped")
        self._wait(poll, deadline)

    def _wait(self, poll: select.poll | None, deadline: float | None) -> None:
        """Wait until the socket is ready, or have gevent's next operation end at the deadline."""
        while True:
            left = None
            if deadline is not None:
                left = deadline - monotonic()
                if left <= 0:
                    raise TimeoutError("the server did not answer in time")
            if poll is None:
                self.sock.settimeout(left)
                return
            if poll.poll(None if left is None else min(math.ceil(left * 1000), _LONGEST_POLL_MS)):
                return


def introduce(
    connection: Connection,
    hello: Hello,
    deadline: float | None,
    is_stopped: Callable[[], bool] | None = None,
) -> Welcome:
    """The handshake. is_stopped: see Connection.exchange.

    Raises SessionLost if the server is leaving, OlderServer if it is of an older release that does not
    speak our protocol, ProtocolError if it refuses otherwise.
    """
    answer = connection.exchange(hello, deadline, is_stopped)
    if isinstance(answer, Welcome):
        return answer
    connection.close()
    if isinstance(answer, Rejected) and answer.reason in ("session", "leaving"):
        raise SessionLost(answer.text)
    if isinstance(answer, Rejected) and answer.reason == "manager":
        raise ConfigurationError(f"manager {hello.manager!r}: {answer.text}")
    if isinstance(answer, Rejected) and (answer.newest_protocol or hello.protocol) < hello.protocol:
        assert answer.newest_protocol is not None
        raise OlderServer(answer.newest_protocol)
    text = answer.text if isinstance(answer, Rejected) else f"it answered {type(answer).__name__}"
    raise ProtocolError(
        f"manager {hello.manager!r}: the server does not serve this process: {text}"
    )
