"""The one background thread of a member: reads errands, collects what leaked, attaches anew.

It sleeps in poll() until the server speaks, somebody wakes it, or a timer is due; with nothing to do it
never wakes up.
"""

from __future__ import annotations

import math
import select
import threading
from time import monotonic
from typing import TYPE_CHECKING

from mppool.errors import PoolError, ProtocolError
from mppool.logs import Log, handed_to
from mppool.process.locks import LazyLock, release_own
from mppool.process.wakeup import WakeUp
from mppool.wire.messages import Goodbye, WantReport

if TYPE_CHECKING:
    from mppool.link.channel import ErrandChannel
    from mppool.link.server_link import ServerLink
    from mppool.worker.member import Member

log = Log("mppool")

_RECEIVE_BYTES = 65536
_LOOK_FOR_SUCCESSOR_S = 0.25
_LONGEST_PAUSE_S = 2.0


class Errands:
    """The thread, and how to wake it.

    _starting: guards the start of the thread; nothing else happens while it is held.
    """

    _starting = LazyLock()

    def __init__(self, member: Member, link: ServerLink) -> None:
        self._member = member
        self._link = link
        self.running = threading.Lock()  # held by the thread for its life
        self._wake_up: WakeUp | None = None
        self._thread: threading.Thread | None = None
        self._ended = False  # the thread is about to end, and hears nothing any more
        self._attach_at = 0.0
        self._pause = 0.0
        self.reporter = member.reporter(link.outgoing.send_message)

    def descriptors(self) -> list[int]:
        """What a forked child must close."""
        return [] if self._wake_up is None else self._wake_up.descriptors()

    def ensure_running(self) -> None:
        """Start the thread if there is none, else have it look at the new channel."""
        with self._starting:
            if self._thread is None or self._ended or not self._thread.is_alive():
                self._ended = False
                self._make_wake_up()
                self._thread = threading.Thread(
                    target=self._run, name=f"mppool-errands-{self._member.name}", daemon=True
                )
                self._thread.start()
        self.wake()

    def prepare(self) -> None:
        """Have what the thread needs, before there is a session. OSError where there is no descriptor left."""
        with self._starting:
            self._make_wake_up()

    def _make_wake_up(self) -> None:
        """Caller holds `_starting`."""
        if self._wake_up is None:
            self._wake_up = WakeUp()

    def is_missing(self) -> bool:
        """Whether the thread has ended, which nothing but an exit within it can do."""
        return self._thread is not None and not self.running.locked()

    def interrupted(self) -> None:
        """The calling thread was interrupted somewhere in here, and has left."""
        release_own(self._starting)

    def wake(self) -> None:
        """Have the thread look around."""
        wake_up = self._wake_up
        if wake_up is not None:
            wake_up.set()

    def _run(self) -> None:
        if not self.running.acquire(blocking=False):
            return  # there is one; whoever started this one was interrupted and did not know
        try:
            with handed_to(self._member.chores.add):  # the others wait for this thread
                while True:
                    self._guarded_turn()
        finally:
            # Nobody hears the server any more (rule 6): every release looks after it, and starts another thread.
            self._drop_channel()
            for face in list(self._member.faces.values()):
                face.line.set_contended(True)
            self._ended = True
            self.running.release()

    def _guarded_turn(self) -> None:
        try:
            self._turn()
        except Exception:
            # A bug must not end the thread: the others wait for what it brings.
            log.exception("manager %r: the errand thread goes on after an error", self._member.name)
            self._drop_channel()

    def revive(self) -> None:
        """Start the thread again after it has ended; where none can be had, the next one who comes tries again."""
        try:
            self.ensure_running()
        except RuntimeError as error:
            log.warning("manager %r: no background thread: %s", self._member.name, error)

    def _turn(self) -> None:
        assert self._wake_up is not None
        channel = self._link.outgoing.channel
        if channel is None:
            self._without_channel()
            return
        for message in channel.early:
            self._handle(channel, message)
        channel.early.clear()
        poller = select.poll()
        poller.register(self._wake_up.fd, select.POLLIN)
        poller.register(
            channel.sock.fileno(), select.POLLIN | (select.POLLOUT if channel.unsent else 0)
        )
        ready = dict(poller.poll(self._milliseconds(None)))
        if self._wake_up.fd in ready:
            self._wake_up.clear()
        self._look_around()
        events = ready.get(channel.sock.fileno(), 0)
        if events & select.POLLOUT:
            self._link.outgoing.push_more(channel)
        if events & ~select.POLLOUT:
            self._receive(channel)

    def _receive(self, channel: ErrandChannel) -> None:
        try:
            data = channel.sock.recv(_RECEIVE_BYTES)
            messages = channel.reader.feed(data)
        except BlockingIOError:
            return
        except (OSError, ProtocolError) as error:
            log.warning("manager %r: lost the server: %s", self._member.name, error)
            self._link.lost(channel)
            return
        for message in messages:
            self._handle(channel, message)
        if not data:  # with anything unread, the end of a Unix socket would have been an error
            self._link.lost(channel, heard=True)

    def _handle(self, channel: ErrandChannel, message: object) -> None:
        if isinstance(message, WantReport):
            self.reporter.asked(message.request)
        elif isinstance(message, Goodbye):
            self._link.farewell = True
            self._member.server_leaves()
        else:
            self._member.deliver(message, channel.session)

    def _without_channel(self) -> None:
        """Attach to the next server, and start it if the last one did not leave in order."""
        self._look_around()
        if not (self._member.needs_books() or self._link.unheard):
            self._pause = 0.0
            self._sleep(None)
            return
        if monotonic() >= self._attach_at and self._try_to_attach():
            self._pause = 0.0
            return
        self._sleep(max(0.0, self._attach_at - monotonic()))

    def _try_to_attach(self) -> bool:
        farewell = self._link.farewell
        try:
            if self._link.ensure_session(monotonic() + 5.0, start=not farewell):
                return True
        except (PoolError, OSError) as error:
            log.warning("manager %r: no server yet: %s", self._member.name, error)
        self._pause = (
            _LOOK_FOR_SUCCESSOR_S if farewell else min(max(self._pause * 2, 0.05), _LONGEST_PAUSE_S)
        )
        self._attach_at = monotonic() + self._pause
        return False

    def _drop_channel(self) -> None:
        channel = self._link.outgoing.channel
        if channel is not None:
            self._link.lost(channel)

    def _sleep(self, seconds: float | None) -> None:
        assert self._wake_up is not None
        poller = select.poll()
        poller.register(self._wake_up.fd, select.POLLIN)
        if poller.poll(self._milliseconds(seconds)):
            self._wake_up.clear()

    def _milliseconds(self, seconds: float | None) -> float | None:
        """How long to sleep: so many seconds (None: no limit), but not beyond what the housekeeper plans."""
        left = self._member.housekeeper.seconds_left(monotonic())
        limits = [limit for limit in (seconds, left) if limit is not None]
        return math.ceil(min(limits) * 1000) if limits else None

    def _look_around(self) -> None:
        self._member.collect_leaked()
        now = monotonic()
        self.reporter.look(now)
        self._member.housekeeper.run(now)
