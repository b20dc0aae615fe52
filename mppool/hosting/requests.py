"""The requests of one stream at its host's end, and their answers."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from mppool.hosting import frames
from mppool.hosting.pipes import HostPipes, Turns, from_socket
from mppool.logs import Log

log = Log("mppool.hosting")

_READ_BYTES, _SMALL, _BIG = frames.READ_BYTES, frames.SMALL, frames.BIG
_HEAD, _REST = frames.REQUEST.size, frames.REST_OF_ANSWER
_head, _answer = frames.REQUEST.unpack_from, frames.ANSWER.pack
_BELL = frames.REQUEST.pack(0, 0)


class Gone(Exception):
    """The worker has closed the stream, or is dead."""


class Requests:
    """Reads requests and sends answers. It belongs to the thread of its stream; any thread may `end` it.

    is_over: the worker is gone; what is read from then on means nothing. _number: of the last request. _surplus: what has
    come of the next one.
    """

    def __init__(self, connection: socket.socket, turns: Turns) -> None:
        """turns: of all streams of the host."""
        self._connection, self._turns = connection, turns
        self._pipes: HostPipes | None = None
        self._read: Any = connection.recv
        self._write: Any = connection.sendall
        self._number = 0
        self._surplus = b""
        self.is_over = False

    def read(self) -> Any:
        """The next request. Raises Gone, or OSError."""
        data = self._surplus
        if data:
            self._surplus = b""
        else:  # nearly always
            data = self._read(_READ_BYTES)
            if self.is_over:
                raise Gone
        while len(data) < _HEAD:
            data += self._more()
        length, self._number = _head(data)
        end = length + _HEAD
        if len(data) == end:
            return data[_HEAD:]
        if length & _BIG:
            self._surplus = data[_HEAD:]
            return from_socket(self._connection, length ^ _BIG)
        if self._pipes is None and len(data) < end:
            return from_socket(self._connection, length, data[_HEAD:])
        while len(data) < end:
            data += self._more()
        # A release is not waited for, so the next request may come with it.
        self._surplus = data[end:]
        return data[_HEAD:end]

    def _more(self) -> bytes:
        more: bytes = self._read(_READ_BYTES)
        if not more or self.is_over:
            raise Gone
        return more

    def send(self, kind: int, body: bytes) -> None:
        """Answer the last request. Raises Gone."""
        length = _REST + len(body)
        try:
            if (length <= _SMALL and kind != frames.MORE) or self._pipes is None:
                self._write(_answer(length, self._number, kind) + body)
            else:  # further rows too, however few: they are not waited for, and could fill the pipe
                self._write(_answer(length | _BIG, self._number, kind))
                self._connection.sendall(body)
        except OSError as error:  # not the resource's: nobody is there to be told
            raise Gone from error

    def send_first(self, kind: int, body: bytes, more: list[int], *, has_pipes: bool) -> None:
        """The first answer, with the worker's ends of pipes, where there are any, and more descriptors. Raises Gone."""
        pipes = self._made_pipes() if has_pipes else None
        descriptors = more if pipes is None else [*pipes.theirs, *more]
        data = _answer(_REST + len(body), self._number, kind) + body
        try:
            if socket.send_fds(self._connection, [data], descriptors) != len(data):
                raise Gone  # its first bytes do not fit: nobody reads there
        except BaseException as error:
            if pipes is not None:
                pipes.close()
            if isinstance(error, OSError):
                raise Gone from error
            raise
        if pipes is None:
            return
        pipes.sent()
        self._read, self._write = pipes.read, pipes.write
        self._pipes = pipes
        if self.is_over:  # looked at after the pipes were there: see `end`
            raise Gone

    def _made_pipes(self) -> HostPipes | None:
        try:
            return HostPipes(self._turns)
        except OSError as error:
            log.warning("a worker's requests travel over its socket, without pipes: %s", error)
            return None

    def end(self) -> None:
        """The worker has gone: no thread waits any longer for a request, or for the worker to read."""
        self.is_over = True
        # A forked child may have copies of the descriptors, so that nobody sees an end of file.
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        if self._pipes is not None:
            self._pipes.ring(_BELL)

    def close(self) -> None:
        """For good, by the thread of the stream."""
        self._connection.close()
        if self._pipes is not None:
            self._pipes.close()
