"""The way from a process to the books of a server."""

from __future__ import annotations

import socket
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec

from mppool.core.decisions import Grant, Refuse
from mppool.core.events import Abandoned, Checkout, Event
from mppool.core.tokens import WantToken
from mppool.errors import PoolError, ServerUnavailable
from mppool.ids import ProcessId, Ticket, is_stopped
from mppool.link.connection import (
    ASK_GRACE_S,
    ASK_PATIENCE_S,
    SESSION_PAUSE_S,
    Connection,
    ServerStopped,
    SessionLost,
)
from mppool.link.errands import Errands
from mppool.link.session import CONTROL_DEADLINE_S, ServerSession
from mppool.link.troubles import pool_errors_only
from mppool.logs import Log
from mppool.process.background import BackgroundThread
from mppool.process.executor import let_others
from mppool.process.fork import close_quietly, make_immortal, notice_fork
from mppool.wire.messages import Done, Failed, Message, Rejected, Stats, WantStats

if TYPE_CHECKING:
    from collections.abc import Callable

    from mppool.link.protocol import Process
    from mppool.rendezvous.locator import ServerLocator

log = Log("mppool")

COMMAND_GRACE_S = 0.25
"""How long the server may take to answer a command whose caller has less time."""

ANSWER_GRACE_S = 0.1
"""A server that lives answers at once. A thread that has just attached to it may ask, however long that took."""


class ServerLink:
    """Over a server; see Link. It talks; that there is somebody to talk to is the session's business.

    thread, errands: a forked child makes others. `_inherited`: descriptors that such a child must still close.
    """

    def __init__(self, process: Process, locator: ServerLocator) -> None:
        self._process = process
        self.manager_name = process.name
        self.locator = locator
        self._inherited: set[int] = set()
        self.seen = b""
        self.machine = "" if locator.machines is None else socket.gethostname()
        self.thread = BackgroundThread(process.name, process.do_soon)
        self.session = ServerSession(process, locator, self.thread)
        self._start()

    def _start(self) -> None:
        self._inventory = self._process.inventory
        self._connections = self.session.connections
        self.flush: Callable[[], None] = self.session.outgoing.flush
        self.errands = Errands(self._process, self.session, self.thread)
        self.thread.does(self.errands)

    def after_fork_in_child(self) -> None:
        """See Link."""
        # Noted before anything is forgotten, and closed afterwards: this may be interrupted, and done again.
        descriptors, objects = self.session.inherited()
        self._inherited |= descriptors
        self.locator.hide_life()
        make_immortal((objects, self.thread, self.errands))
        self.thread = BackgroundThread(self._process.name, self._process.do_soon)
        self.session.start(self.thread)
        self._start()
        close_quietly(self._inherited)

    def ensure_session(self, deadline: float | None, *, start: bool = True) -> bool:
        """Be attached to a server; see ServerSession.ensure."""
        notice_fork()
        return self.session.ensure(deadline, start=start)

    # --- talking -----------------------------------------------------------------------------------------

    def call(self, event: Event, deadline: float | None) -> Any:
        """See Link. Raises SessionLost, TimeoutError, ServerUnavailable."""
        inventory = self._inventory
        # Who has little time is not to spend it on a server that is stopped.
        is_short = type(event) is Checkout and (
            event.timeout is not None and event.timeout < ASK_PATIENCE_S
        )
        if inventory.session is None:
            if is_short and self.is_stopped():
                raise ServerStopped("the server is stopped")
            self.ensure_session(deadline)
            inventory = self._inventory  # in a child that has just been noticed it is another one
            if deadline is not None:
                # The start of a server does not count as waiting: there must be time to ask it.
                deadline = max(deadline, monotonic() + ANSWER_GRACE_S)
        if not self.thread.running.locked():
            self.thread.ensure_running()
        if inventory.outbox:
            self.session.outgoing.flush(deadline)
        session = inventory.session
        if session is None:
            raise SessionLost("the server has just gone")
        is_stopped = self.is_stopped if is_short else None
        connection = self._connections.take(session, deadline, is_stopped)
        if self._connections.orphans:
            self.retry_orphans()
        ticket = connection.ticket
        if isinstance(event, (Checkout, WantToken)):
            ticket = event.ticket
        answer = connection.exchange(event, deadline, is_stopped)
        return self._answered(connection, ticket, answer)

    def ask_at_once(self, event: Checkout) -> Any:
        """See Link. It passes as few functions as can be (decision 11)."""
        inventory, connections = self._inventory, self._connections
        session = inventory.session
        if (
            session is None
            or inventory.outbox
            or connections.orphans
            or not self.thread.running.locked()
        ):
            return None
        try:
            connection = connections.idle.pop()
        except IndexError:
            return None
        if connection.session != session or connection.poll is None:
            connections.idle.append(connection)  # the long way knows what to do with it
            return None
        deadline = monotonic() + ASK_GRACE_S
        answer = connection.exchange(event, deadline, self.is_stopped)
        if type(answer) is not Refuse:
            return self._answered(connection, event.ticket, answer)
        connection.ticket = event.ticket
        connections.idle.append(connection)
        return answer

    def _answered(self, connection: Connection, ticket: Ticket | None, answer: Any) -> Any:
        """Take in what was answered on a connection, which is idle then. Raises SessionLost."""
        kind = type(answer)
        if kind is Rejected:
            connection.close()
            raise SessionLost(answer.text)
        connection.ticket = ticket
        session = connection.session
        if kind is Grant and not self._process.register(answer, session):
            raise SessionLost("the session ended while the grant was on its way")
        # Not earlier: if this thread is interrupted before the grant is registered, the connection ends
        # with it, and that is why the server asks what became of the grant.
        self._connections.idle.append(connection)
        return answer

    def retry_orphans(self) -> None:
        """Threads whose place in the queue ended with a connection that another thread broke ask again."""
        orphans = self._connections.orphans
        while orphans:
            try:
                self._process.retry(orphans.popleft())
            except IndexError:
                return

    # --- the server, and the background thread -----------------------------------------------------------

    @pool_errors_only
    def fingerprint_secret(self) -> bytes:
        """See Link."""
        return self.locator.fingerprint_secret()

    def connected_server(self) -> ProcessId | None:
        """The server that this process is attached to."""
        notice_fork()
        channel = self.session.outgoing.channel
        return None if channel is None else channel.server

    @pool_errors_only
    def is_stopped(self) -> bool:
        """See Link."""
        connected = self.connected_server()
        pid = self.locator.pid() if connected is None else connected.pid
        return pid is not None and is_stopped(pid)

    def wake(self) -> None:
        """See Link."""
        self.thread.wake()

    @pool_errors_only
    def ensure_thread(self) -> None:
        """See Link."""
        notice_fork()
        self.thread.ensure_running()

    def tidy(self) -> None:
        """See Link."""
        self.retry_orphans()
        self.flush()

    def interrupted(self) -> None:
        """See Link."""
        self.session.interrupted()

    def attend(self) -> None:
        """See Link."""
        try:
            self.ensure_session(monotonic() + CONTROL_DEADLINE_S, start=False)
        except (ServerUnavailable, TimeoutError) as error:
            log.debug("manager %r: %s", self.manager_name, error)

    def detach(self, deadline: float) -> bool:
        """See Link. What was said on the errand channel has been taken in before it is closed."""
        channel = self.session.outgoing.channel
        if channel is None or self._inventory.session is None:
            return True
        try:
            self.call(Abandoned(self._process.next_ticket()), deadline)
        except (SessionLost, TimeoutError, PoolError, OSError) as error:
            log.info("manager %r: could not detach in order: %s", self.manager_name, error)
            return False
        with self._inventory.lock:
            if self._process.needs_books() or self._inventory.outbox:
                return False
        self.session.lost(channel, detached=True)
        return True

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
                        f"manager {self.manager_name!r}: the server has not carried out a "
                        f"{type(event).__name__} within {patience:.2g} s ({error}); try again, "
                        "or look at it with `mppool doctor`"
                    ) from error
                threading.Event().wait(SESSION_PAUSE_S)
                continue
            if isinstance(answer, Failed):
                raise PoolError(answer.text)
            return None if isinstance(answer, Done) else answer

    @pool_errors_only
    def control(self, message: Event | Message, deadline: float) -> Any:
        """An exchange with the server, if there is one, without a session; see Connections.ask."""
        notice_fork()
        return self._connections.ask(message, deadline)

    def stats(self, *, survey: bool = False) -> dict[str, Any]:
        """See Link. An empty dict where there is no server."""
        notice_fork()
        with self.errands.reporter.on_behalf_of_a_hook():
            answer = self.control(WantStats(self.seen, survey), monotonic() + CONTROL_DEADLINE_S)
        if not isinstance(answer, Stats):
            return {}
        self.seen = answer.seen or self.seen
        for pool, parts in answer.resources.items():
            for part in parts:
                answer.stats["pools"][pool]["resources"] += msgspec.msgpack.decode(part)
                let_others()
        return answer.stats
