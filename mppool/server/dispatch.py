"""Routes what processes say to the books, and what the books decide to journal and processes.

No clock, no epoll here: the loop tells the time, delivers messages, ends and deaths, and drops
connections that `broken` marks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar

from mppool.core.books import Books
from mppool.core.events import (
    Attach,
    Checkout,
    ClosePool,
    Declare,
    Drain,
    Opened,
    Reset,
    Resize,
    ResizeBudget,
    WantReady,
)
from mppool.core.tokens import ForgetTokens, WantToken, is_answer
from mppool.errors import ProtocolError
from mppool.server.collecting import Collector
from mppool.server.connection import Connection
from mppool.server.delivery import Delivery
from mppool.server.sessions import LEAVING, Sessions, check_declaration, check_seconds
from mppool.wire.messages import (
    Attached,
    Done,
    Failed,
    Hello,
    Leave,
    Report,
    ToServer,
    WantStats,
)

log = logging.getLogger(__name__)


class Dispatcher:
    """All that is said passes here. It has no state of its own, and belongs to the loop's thread."""

    def __init__(
        self,
        books: Books,
        sessions: Sessions,
        collector: Collector,
        delivery: Delivery,
        *,
        leave: Callable[[Connection, Leave], bool],
    ) -> None:
        """leave: told that a process asks the server to leave; False: it stays."""
        self._books, self._sessions = books, sessions
        self._collector, self._delivery = collector, delivery
        self._leave = leave

    def said(self, connection: Connection, message: ToServer, now: float) -> bool:
        """Take in one message of a peer that has introduced itself. ProtocolError for what has no place here.

        True: it was answered, and changed nothing; nothing else is due than before.
        """
        connection.ticket = (
            None  # a peer that goes on talking has read the answer to its last checkout
        )
        kind = type(message)
        if type(message) is Checkout and connection.role == "call" and not self._sessions.leaving:
            # Hosts ask again and again without waiting. Most of that is refused, with nothing to write down and
            # nobody else to be told.
            assert connection.process is not None
            refuse = self._books.refuses_at_once(
                connection.process, connection.session, message, now
            )
            if refuse is not None:
                connection.ticket = message.ticket
                connection.send(refuse)
                return True
        if self._sessions.leaving and kind is not Leave and connection.role != "errand":
            self._sessions.reject(connection, LEAVING)
            return False
        self._handlers.get(kind, Dispatcher._event)(self, connection, message, now)
        return False

    def _hello(self, connection: Connection, hello: Hello, now: float) -> None:
        raise ProtocolError("a second Hello")

    def _report(self, connection: Connection, report: Report, now: float) -> None:
        self._collector.reported(connection, report, now)

    def _want_stats(self, connection: Connection, wanted: WantStats, now: float) -> None:
        self._collector.saw(wanted.seen)
        self._collector.wanted(connection, now, survey=wanted.survey)

    def _leave_asked(self, connection: Connection, leave: Leave, now: float) -> None:
        if self._leave(connection, leave):
            connection.send(Done())
        else:
            connection.send(Failed("other processes are attached"))

    def _attach(self, connection: Connection, attach: Attach, now: float) -> None:
        """Take over an inventory."""
        known = self._sessions.attached(connection, attach)
        if known is None:
            return
        process = known.process
        self._collector.saw(attach.seen)
        decisions = self._books.apply(process, connection.session, attach, now)
        connection.send(Attached(connection.session))
        self._delivery.carry_out(decisions, now, adopted={item.number for item in attach.held})
        log.info(
            "process %s (%s) attached with %d slots",
            process,
            attach.label or "no label",
            len(attach.held),
        )
        self._delivery.heard(process)

    def _command(
        self,
        connection: Connection,
        event: Resize | ResizeBudget | Reset | Drain | ClosePool | WantReady | ForgetTokens,
        now: float,
    ) -> None:
        """A command from anybody; answered by Done, Draining, Readiness or Failed."""
        process = connection.process
        assert process is not None
        try:
            decisions = self._books.command(process, event, now)
        except KeyError:
            assert not isinstance(event, ForgetTokens)
            if connection.role != "errand":
                if isinstance(event, ResizeBudget):
                    what = f"budget {event.budget!r:.100}"
                else:
                    what = f"pool {event.pool!r:.100}"
                connection.send(Failed(f"no process has declared a {what}"))
            return
        wants_figure = isinstance(event, (Drain, WantReady)) and connection.role != "errand"
        answered = self._delivery.carry_out(
            decisions, now, reply_to=connection if wants_figure else None
        )
        if not answered and connection.role != "errand":
            connection.send(Done())

    def _question(self, connection: Connection, event: Checkout | WantToken, now: float) -> None:
        """A question, which is answered at once on the same connection."""
        if connection.role != "call":
            raise ProtocolError(f"a {type(event).__name__} on {connection}")
        if event.timeout:
            check_seconds(event.timeout)
        process, ticket = connection.process, event.ticket
        assert process is not None
        connection.ticket = ticket
        decisions = self._books.apply(process, connection.session, event, now)
        if (
            len(decisions) == 1
            and decisions[0][0] == process
            and is_answer(decisions[0][1], ticket)
        ):
            connection.send(decisions[0][1])  # nothing to write down, and nobody else to be told
            return
        answered = self._delivery.carry_out(decisions, now, reply_to=connection, ticket=ticket)
        if not answered and not self._sessions.is_over(connection):
            connection.send(Failed(f"ticket {ticket} was answered already"))

    def _event(self, connection: Connection, event: ToServer, now: float) -> None:
        """What happened in a process; on a call connection it is answered by Done."""
        process = connection.process
        assert process is not None
        if connection.role == "control":
            raise ProtocolError(f"a {type(event).__name__} on a control connection")
        if isinstance(event, Declare):
            check_declaration(event.declaration)
        elif isinstance(event, Opened):
            check_seconds(event.seconds)
        on_call = connection.role == "call"
        if on_call and self._sessions.is_over(connection):
            return
        decisions = self._books.apply(process, connection.session, event, now)  # type: ignore[arg-type]
        if decisions:
            self._delivery.carry_out(decisions, now)
        if on_call:
            connection.send(Done())

    # A table, and not a chain of isinstance: that is slow where the metaclass is not `type`.
    _handlers: ClassVar[dict[type, Callable[[Dispatcher, Connection, Any, float], None]]] = {
        Checkout: _question,
        WantToken: _question,
        Attach: _attach,
        **dict.fromkeys(
            (Resize, ResizeBudget, Reset, Drain, ClosePool, WantReady, ForgetTokens), _command
        ),
        Hello: _hello,
        Report: _report,
        WantStats: _want_stats,
        Leave: _leave_asked,
    }
