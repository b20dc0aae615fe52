"""The server's door: accepts connections, and stops for a moment where descriptors are short.

Who has the wrong user is turned away here; all others are strangers until they introduce themselves.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable

from mppool.rendezvous import liveness
from mppool.rendezvous.claim import Rendezvous
from mppool.server.connection import Connection
from mppool.server.handshake import user_is_allowed
from mppool.server.poller import READ, Poller
from mppool.wire.messages import Rejected

log = logging.getLogger(__name__)

ACCEPT_PAUSE_S = 0.1
"""After running out of descriptors, how long no one is accepted."""
ACCEPTS_AT_ONCE = 64


class Door:
    """It belongs to the loop's thread.

    strangers: connections that have not introduced themselves, in the order in which they came. The
        `Server` takes them out when they do, or end.
    accept_at: while descriptors are short, when the next one may come in.
    """

    def __init__(
        self,
        rendezvous: Rendezvous,
        poller: Poller[Connection | Callable[[], None]],
        connections: set[Connection],
        attention: list[Connection],
        guarded: Callable[..., None],
    ) -> None:
        """connections, attention: the `Server` owns them; whoever comes in is entered."""
        self.strangers: dict[Connection, None] = {}
        self.accept_at: float | None = None
        self._rendezvous, self._poller = rendezvous, poller
        self._connections, self._attention = connections, attention
        self._guarded = guarded
        self._is_short = False  # of descriptors

    def open(self) -> None:
        """Accept from now on. OSError where that is impossible."""
        self.accept_at = None
        if self._rendezvous.listener is not None:
            self._poller.register(self._rendezvous.listener.fileno(), self.accept)

    def open_again(self) -> None:
        """Accept again, after a pause; where that is impossible, after another one."""
        try:
            self.open()
        except OSError as error:
            log.warning("nobody new is accepted: %s", error.strerror)
            self.accept_at = time.monotonic() + ACCEPT_PAUSE_S

    def accept(self) -> None:
        """Let in whoever is in the backlog."""
        if self._rendezvous.listener is not None:
            self._accept_from(self._rendezvous.listener)

    def change_listener(self, before: socket.socket) -> None:
        """The socket's file had vanished: nobody finds the old one any more."""
        self._accept_from(before)
        if self.accept_at is None:
            self._poller.unregister(before.fileno())
        before.close()
        self.open_again()

    def _accept_from(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                accepted, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # EMFILE, mostly
                self._pause(error, listener)
                return
            self._is_short = False
            self._guarded(self._begin, accepted)

    def _begin(self, accepted: socket.socket) -> None:
        """A new connection; only the right user's is kept."""
        connection = Connection(accepted, time.monotonic(), self._attention)
        peer = liveness.peer_of(accepted)
        connection.peer_pid = peer.pid
        refusal = user_is_allowed(peer)
        if refusal is not None:
            log.warning("user %d, pid %d: rejected", peer.uid, peer.pid)
            connection.send(refusal)
            accepted.close()
            return
        self._connections.add(connection)
        self.strangers[connection] = None
        try:
            self._poller.register(accepted.fileno(), connection)
        except OSError as error:  # ENOSPC, ENOMEM
            # This one is refused, and all others are served on. It stays a stranger until its time is over:
            # somebody who needs the server has come, and will come again.
            log.warning("%s is refused, for it cannot be heard: %s", connection, error.strerror)
            text = f"the server cannot take another connection: {error.strerror}"
            connection.send(Rejected("capacity", text))
        else:
            connection.registered = READ

    def _pause(self, error: OSError, listener: socket.socket) -> None:
        """Out of descriptors: those who wait stay in the backlog; the silent are dropped early."""
        if not self._is_short:
            self._is_short = True
            log.warning("nobody new is accepted until this is over: %s", error.strerror)
        now = time.monotonic()
        if self.accept_at is None:
            self._poller.unregister(listener.fileno())
        self.accept_at = now + ACCEPT_PAUSE_S
        for stranger in list(self.strangers):
            if stranger.accepted_at < now - ACCEPT_PAUSE_S:
                stranger.break_off("it said nothing, and descriptors are short")
