"""One connection of the server: frames in, frames out, never blocking."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable

import msgspec

from mppool.ids import ProcessId, Session, Ticket
from mppool.wire.framing import MAX_FRAME_BYTES, encode, server_side_reader
from mppool.wire.messages import Role, ToServer

log = logging.getLogger(__name__)

RECEIVE_BYTES = 65536
MAX_UNSENT_BYTES = MAX_FRAME_BYTES + 4 * 1024 * 1024
"""A peer that lets more than this pile up does not read, and is dropped."""


class Connection:
    """A peer's socket with what is half read and half sent. It belongs to the loop's thread.

    role, process, session: None or 0 until the peer has introduced itself.
    ticket: of the last checkout that was made here; what an interrupted call leaves behind.
    is_done: nothing more may be read from it, because it is broken, or because a last word was sent (a peer
        that does not read may miss it). It is not dropped where that is found, which may be deep in serving
        another one, but by the loop: `wants_attention` tells it.
    broken: why it must be dropped, or None.
    registered: the events that the loop waits for.
    """

    __slots__ = (
        "_wants_attention",
        "accepted_at",
        "broken",
        "is_done",
        "peer_pid",
        "pidfd",
        "process",
        "reader",
        "registered",
        "role",
        "session",
        "socket",
        "ticket",
        "unsent",
    )

    def __init__(
        self,
        connection: socket.socket,
        accepted_at: float,
        wants_attention: Callable[[Connection], None],
    ) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.accepted_at = accepted_at
        self._wants_attention = wants_attention
        self.reader = server_side_reader()
        self.unsent = bytearray()
        self.role: Role | None = None
        self.process: ProcessId | None = None
        self.session = Session(0)
        self.ticket: Ticket | None = None
        self.pidfd: int | None = None
        self.peer_pid = 0
        self.broken: str | None = None
        self.is_done = False
        self.registered = 0

    def __str__(self) -> str:
        return f"{self.role or 'unknown'} connection of {self.process or f'pid {self.peer_pid}'}"

    def welcomed(self, role: Role, process: ProcessId, session: Session) -> None:
        """The peer has introduced itself: larger frames are allowed."""
        self.role, self.process, self.session = role, process, session
        self.reader.limit = MAX_FRAME_BYTES

    def close_pidfd(self) -> None:
        """The process behind it is watched already, or not any more."""
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None

    def break_off(self, reason: str) -> None:
        """It must be dropped, unsent or not."""
        if self.broken is None:
            self.broken = reason
            self.is_done = True
            self._wants_attention(self)

    def part(self) -> None:
        """The last word was sent: close it."""
        self.is_done = True
        self._wants_attention(self)

    def send(self, *messages: msgspec.Struct) -> None:
        """Send now what can be sent, keep the rest. Failures show in `broken`."""
        if self.broken is not None:
            return
        frame = encode(messages[0]) if len(messages) == 1 else b"".join(map(encode, messages))
        if self.unsent:
            self.unsent += frame
            if len(self.unsent) > MAX_UNSENT_BYTES:
                self.break_off("it does not read what it is sent")
            return
        try:
            sent = self.socket.send(frame)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self.break_off(f"sending failed: {error}")
            return
        if sent < len(frame):
            self.unsent += memoryview(frame)[sent:]
            self._wants_attention(self)

    def flush(self) -> None:
        """Send more of what is unsent."""
        try:
            sent = self.socket.send(self.unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.break_off(f"sending failed: {error}")
            return
        del self.unsent[:sent]
        if not self.unsent:
            self._wants_attention(self)

    def receive(self) -> list[ToServer]:
        """The messages that have arrived; the end shows in `broken`. ProtocolError for garbage."""
        if self.is_done:
            return []
        try:
            data = self.socket.recv(RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError as error:
            self.break_off(f"receiving failed: {error}")
            return []
        if not data:
            pending = self.reader.pending
            self.break_off(
                f"it ended within a frame, {pending} bytes of it read" if pending else "it ended"
            )
            return []
        return self.reader.feed(data)
