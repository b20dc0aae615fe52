"""Accepts connections, and stops for a moment where descriptors are short.

A peer of the wrong user is turned away here; all others are unidentified until they introduce themselves.
"""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Callable, Iterator

from mppool.rendezvous import liveness
from mppool.rendezvous.claim import Rendezvous
from mppool.server.connection import Connection
from mppool.server.handshake import user_is_allowed
from mppool.server.poller import READ, Poller
from mppool.wire.messages import Rejected

log = logging.getLogger(__name__)

ACCEPT_PAUSE_S = 0.1
"""After running out of descriptors, how long no connection is accepted."""
ACCEPTS_AT_ONCE = 64
HANDSHAKE_S = 2.0
"""A peer that has not introduced itself by then is dropped."""


class Acceptor:
    """It belongs to the loop's thread.

    _unidentified: connections that have not introduced themselves, in the order in which they came.
    _accept_at: while descriptors are short, when the next one may come in.
    _is_short: descriptors are, and that was said.
    """

    def __init__(
        self,
        rendezvous: Rendezvous,
        poller: Poller[Connection | Callable[[], None]],
        *,
        entered: Callable[[Connection], None],
        wants_attention: Callable[[Connection], None],
    ) -> None:
        """entered: told of each connection that is let in. wants_attention: see Connection."""
        self._rendezvous, self._poller = rendezvous, poller
        self._entered, self._wants_attention = entered, wants_attention
        self._unidentified: dict[Connection, None] = {}
        self._accept_at: float | None = None
        self._is_short = False

    def __bool__(self) -> bool:
        """Whether a peer has come that may need the server, and has not said so yet."""
        return bool(self._unidentified)

    def identified(self, connection: Connection) -> None:
        """It has introduced itself."""
        del self._unidentified[connection]

    def ended(self, connection: Connection) -> bool:
        """A connection is closed. Whether it was unidentified."""
        if connection not in self._unidentified:
            return False
        del self._unidentified[connection]
        return True

    def overdue(self, now: float) -> Iterator[Connection]:
        """Those that have had their time and said nothing."""
        for connection in list(self._unidentified):
            if connection.accepted_at + HANDSHAKE_S > now:
                return
            yield connection

    def deadline(self) -> float:
        """When to ask for `overdue`, or call `resume`, next; infinity if there is no need."""
        due = math.inf if self._accept_at is None else self._accept_at
        for connection in self._unidentified:
            return min(due, connection.accepted_at + HANDSHAKE_S)
        return due

    def open(self) -> None:
        """Accept from now on. OSError where that is impossible."""
        self._accept_at = None
        if self._rendezvous.listener is not None:
            self._poller.register(self._rendezvous.listener.fileno(), self.accept)

    def resume(self, now: float) -> None:
        """Accept again, where the pause is over."""
        if self._accept_at is not None and now >= self._accept_at:
            self.open_again()

    def open_again(self) -> None:
        """Accept again, after a pause; where that is impossible, after another one."""
        try:
            self.open()
        except OSError as error:
            log.warning("no connection is accepted: %s", error.strerror)
            self._accept_at = time.monotonic() + ACCEPT_PAUSE_S

    def accept(self) -> None:
        """Let in all that are in the backlog."""
        if self._rendezvous.listener is not None:
            self._accept_from(self._rendezvous.listener)

    def change_listener(self, before: socket.socket) -> None:
        """The socket's file had vanished: no client finds the old one any more."""
        self._accept_from(before)
        if self._accept_at is None:
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
            try:
                self._begin(accepted)
            except Exception:
                log.exception("a connection could not be taken; serving on")

    def _begin(self, accepted: socket.socket) -> None:
        """A new connection; only the right user's is kept."""
        connection = Connection(accepted, time.monotonic(), self._wants_attention)
        peer = liveness.peer_of(accepted)
        connection.peer_pid = peer.pid
        refusal = user_is_allowed(peer)
        if refusal is not None:
            log.warning("user %d, pid %d: rejected", peer.uid, peer.pid)
            connection.send(refusal)
            accepted.close()
            return
        self._entered(connection)
        self._unidentified[connection] = None
        try:
            self._poller.register(accepted.fileno(), connection)
        except OSError as error:  # ENOSPC, ENOMEM
            # This one is refused, and all others are served on. It stays unidentified until its time is over:
            # a process that needs the server has come, and will come again.
            log.warning("%s is refused, because it cannot be heard: %s", connection, error.strerror)
            text = f"the server cannot take another connection: {error.strerror}"
            connection.send(Rejected("capacity", text))
        else:
            connection.registered = READ

    def _pause(self, error: OSError, listener: socket.socket) -> None:
        """Out of descriptors: peers that wait stay in the backlog; silent ones are dropped early."""
        if not self._is_short:
            self._is_short = True
            log.warning("no connection is accepted until this is over: %s", error.strerror)
        now = time.monotonic()
        if self._accept_at is None:
            self._poller.unregister(listener.fileno())
        self._accept_at = now + ACCEPT_PAUSE_S
        for connection in list(self._unidentified):
            if connection.accepted_at < now - ACCEPT_PAUSE_S:
                connection.break_off("it said nothing, and descriptors are short")
