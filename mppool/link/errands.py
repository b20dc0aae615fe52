"""What the background thread does for its process: reads errands, collects what leaked, attaches again."""

from __future__ import annotations

import select
from time import monotonic

from mppool.errors import PoolError, ProtocolError
from mppool.link.channel import ErrandChannel
from mppool.link.protocol import Process
from mppool.link.session import ServerSession
from mppool.logs import Log
from mppool.process.background import BackgroundThread
from mppool.wire.messages import Goodbye, WantReport

log = Log("mppool")

_RECEIVE_BYTES = 65536
_LOOK_FOR_SUCCESSOR_S = 0.25
_LONGEST_PAUSE_S = 2.0
_ATTACH_PATIENCE_S = 5.0


class Errands:
    """The work of the background thread; see `Work`. Its own state belongs to that thread.

    _attach_at: when the next server is looked for. _pause: between two looks.
    """

    def __init__(self, process: Process, session: ServerSession, thread: BackgroundThread) -> None:
        self._process = process
        self._session = session
        self._thread = thread
        self._attach_at = 0.0
        self._pause = 0.0
        self.reporter = process.reporter(session.outgoing.send_message)

    def turn(self) -> None:
        """See Work."""
        channel = self._session.outgoing.channel
        if channel is None:
            self._without_channel()
            return
        for message in channel.early:
            self._handle(channel, message)
        channel.early.clear()
        wanted = select.POLLIN | (select.POLLOUT if channel.unsent else 0)
        events = self._thread.sleep(self._process.seconds_left(), channel.sock.fileno(), wanted)
        self._look_around()
        if events & select.POLLOUT:
            self._session.outgoing.push_more(channel)
        if events & ~select.POLLOUT:
            self._receive(channel)

    def failed(self) -> None:
        """See Work. The next session begins with an inventory."""
        self._session.drop()

    def ended(self) -> None:
        """See Work. Every release looks after the thread from now on, and starts another one."""
        self._session.drop()
        self._process.is_deaf()

    def _receive(self, channel: ErrandChannel) -> None:
        try:
            data = channel.sock.recv(_RECEIVE_BYTES)
            messages = channel.reader.feed(data)
        except BlockingIOError:
            return
        except (OSError, ProtocolError) as error:
            if self._session.outgoing.channel is not channel:
                return  # another thread has detached meanwhile, and closed it
            log.warning("manager %r: lost the server: %s", self._process.name, error)
            self._session.lost(channel)
            return
        for message in messages:
            self._handle(channel, message)
        if not data:  # with anything unread, the end of a Unix socket would have been an error
            self._session.lost(channel, heard=True)

    def _handle(self, channel: ErrandChannel, message: object) -> None:
        if isinstance(message, WantReport):
            self.reporter.asked(message.request, brief=message.brief, survey=message.survey)
        elif isinstance(message, Goodbye):
            self._session.farewell = True
            self._process.server_leaves()
        else:
            self._process.deliver(message, channel.session)

    def _without_channel(self) -> None:
        """Attach to the next server, and start it if the last one did not leave in order."""
        self._look_around()
        if not self._session.wants_successor():
            self._session.hide_if_idle()
            self._pause = 0.0
            self._sleep(None)
            return
        if monotonic() >= self._attach_at and self._try_to_attach():
            self._pause = 0.0
            return
        self._sleep(max(0.0, self._attach_at - monotonic()))

    def _try_to_attach(self) -> bool:
        farewell = self._session.farewell
        if self._session.is_leased:
            farewell = False  # without a server nobody would renew what other machines count on
        try:
            if self._session.ensure(monotonic() + _ATTACH_PATIENCE_S, start=not farewell):
                return True
        except (PoolError, OSError) as error:
            log.warning("manager %r: no server yet: %s", self._process.name, error)
        self._pause = (
            _LOOK_FOR_SUCCESSOR_S if farewell else min(max(self._pause * 2, 0.05), _LONGEST_PAUSE_S)
        )
        self._attach_at = monotonic() + self._pause
        return False

    def _sleep(self, seconds: float | None) -> None:
        """For so long (None: no limit), but not beyond what the process has planned."""
        limits = [limit for limit in (seconds, self._process.seconds_left()) if limit is not None]
        self._thread.sleep(min(limits, default=None))

    def _look_around(self) -> None:
        self.reporter.look(monotonic())
        self._process.look_around()
