"""The independent witness: a process that counts open connections, and knows nothing of mppool's books.

    worker                                   witness
      before it opens a connection
        connect, "open"         ----------->  drops every session whose other end is gone,
        waits                                 then counts this one: now, and the highest ever
        <-----------------------  "seen"
      opens the connection, uses it ...
      closes the connection
        closes the socket       ----------->  (end of file) one less

A session counts from before the connection is opened until after it is closed, so the count is never
too low; and it counts only while a living process holds its other end: when a process dies the kernel
closes its sockets before anybody can learn of the death. No session is missed, because nothing is
sampled: the worker waits until it was counted.

The witness ends when its standard input ends, so it cannot outlive the demonstration.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections import Counter, deque

import msgspec

_OPEN, _ASK, _SEEN = b"open", b"ask", b"seen"
_LONGEST = 65536
_UCRED = struct.Struct("3i")  # struct ucred, see unix(7)
_PATIENCE_S = 20.0
_REMEMBERED = 200


# --- what workers do ---------------------------------------------------------------------------------------


def _connect(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(_PATIENCE_S)
        connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


class Session:
    """One open connection, as the witness sees it."""

    def __init__(self, address: str) -> None:
        self._socket = _connect(address)
        try:
            self._socket.send(_OPEN)
            if self._socket.recv(_LONGEST) != _SEEN:
                raise ConnectionError("the witness has gone")
        except BaseException:
            self._socket.close()
            raise

    def end(self) -> None:
        """The connection is closed."""
        self._socket.close()


class Seen(msgspec.Struct, frozen=True):
    """What the witness has seen. Times are those of the monotonic clock, which all processes share.

    now, by_pid: sessions at this moment, and whose they are. peak: most at one time. total: ever opened.
    opened, ended: time and pid of the last ones.
    """

    now: int
    peak: int
    total: int
    by_pid: dict[int, int]
    opened: list[tuple[float, int]]
    ended: list[tuple[float, int]]


# --- what the demonstration does ---------------------------------------------------------------------------


class Witness:
    """The witness process, as the demonstration sees it."""

    def __init__(self, address: str) -> None:
        self.address = address
        # A session of its own: Ctrl-C is for the demonstration, which then ends it.
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self.stop()
            raise ConnectionError("the witness did not start")

    def seen(self) -> Seen:
        """What it has seen until now."""
        with _connect(self.address) as connection:
            connection.send(_ASK)
            return msgspec.json.decode(connection.recv(_LONGEST), type=Seen)

    def stop(self) -> None:
        """End it, and wait until it has ended."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


# --- what the witness does ---------------------------------------------------------------------------------


class _Book:
    """What the witness keeps."""

    def __init__(self) -> None:
        self.sessions: dict[int, tuple[socket.socket, int]] = {}
        self.peak = self.total = 0
        self.opened: deque[tuple[float, int]] = deque(maxlen=_REMEMBERED)
        self.ended: deque[tuple[float, int]] = deque(maxlen=_REMEMBERED)

    def open(self, connection: socket.socket, pid: int) -> None:
        self.drop_ended()
        self.sessions[connection.fileno()] = connection, pid
        self.total += 1
        self.peak = max(self.peak, len(self.sessions))
        self.opened.append((time.monotonic(), pid))

    def drop_ended(self) -> None:
        """Look at all sessions now: an end that has happened is never overtaken by an opening."""
        poller = select.poll()
        for descriptor in self.sessions:
            poller.register(descriptor, select.POLLRDHUP)
        for descriptor, _ in poller.poll(0):
            self.end(descriptor)

    def end(self, descriptor: int) -> None:
        _, pid = self.sessions.pop(descriptor)
        self.ended.append((time.monotonic(), pid))

    def seen(self) -> bytes:
        self.drop_ended()
        by_pid = Counter(pid for _, pid in self.sessions.values())
        return msgspec.json.encode(
            Seen(len(self.sessions), self.peak, self.total, by_pid, [*self.opened], [*self.ended])
        )


def _serve(address: str) -> None:
    """Until standard input ends."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen(1024)
    os.write(1, b"ready\n")
    book = _Book()
    connections: dict[int, socket.socket] = {}
    poller = select.epoll()
    for descriptor in (0, listener.fileno()):
        poller.register(descriptor, select.EPOLLIN)
    while True:
        for descriptor, _ in poller.poll():
            if descriptor == 0:
                return  # nothing is ever written to it: this is its end
            if descriptor == listener.fileno():
                connection, _ = listener.accept()
                connections[connection.fileno()] = connection
                poller.register(connection.fileno(), select.EPOLLIN)
            elif not _hear(connections[descriptor], book):
                book.sessions.pop(descriptor, None)
                poller.unregister(descriptor)
                connections.pop(descriptor).close()


def _hear(connection: socket.socket, book: _Book) -> bool:
    """Take in one message; False at the end of the connection."""
    try:
        message = connection.recv(_LONGEST)
        if message == _OPEN:
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            book.open(connection, _UCRED.unpack(credentials)[0])
            connection.send(_SEEN)
        elif message == _ASK:
            connection.send(book.seen())
    except OSError:
        message = b""  # its process died in this very moment
    if not message and connection.fileno() in book.sessions:
        book.end(connection.fileno())
    return bool(message)


if __name__ == "__main__":
    _serve(sys.argv[1])
