"""The errand channel: the one connection on which the server speaks unasked, and the process does not wait."""

from __future__ import annotations

import socket
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

from mppool.ids import ProcessId
from mppool.link.connection import Connection
from mppool.logs import Log
from mppool.process.locks import Releasable
from mppool.wire.framing import FrameReader, encode, process_side_reader
from mppool.wire.messages import Message

if TYPE_CHECKING:
    from mppool.link.protocol import Inventory
    from mppool.process.background import BackgroundThread

log = Log("mppool")


class ErrandChannel:
    """One attachment's channel.

    Its incoming side belongs to the errand thread. `unsent` and `lost_words` belong to the owner of Outgoing's
    `_sending`.

    lost_words: something could not be sent, so the server has not heard everything that was said here.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.sock = connection.sock
        self.session = connection.session
        self.reader: FrameReader[Any] = process_side_reader()
        self.server: ProcessId | None = None
        self.early: list[Any] = []
        self.unsent = bytearray()
        self.lost_words = False


class Outgoing:
    """Which channel there is, and what goes out on it.

    _sending: guards `channel` and its outgoing side; held during sends that cannot block. Its owner
        may take the inventory's lock. It is reentrant so that an interrupted thread can free it.
    _sender: the thread that sends just now; a finalizer that runs within its sending must not overtake it.
    """

    def __init__(self, inventory: Inventory, thread: BackgroundThread) -> None:
        """thread: hears the answers, and sends what could not be sent at once."""
        self._inventory = inventory
        self._thread = thread
        self._sending = threading.RLock()
        self._sender: int | None = None
        self.channel: ErrandChannel | None = None

    def begin(self, channel: ErrandChannel) -> None:
        """A session begins. A thread that is just sending does not take an event of it for the channel before."""
        inventory = self._inventory
        with self._sending, inventory.lock:
            self.channel = channel
            inventory.begin(channel.session)

    def end(self, channel: ErrandChannel) -> bool:
        """The session of this channel is over; False if that is known already."""
        inventory = self._inventory
        with self._sending, inventory.lock:
            if self.channel is not channel:
                return False
            self.channel = None
            inventory.end()
            return True

    def lock(self) -> Releasable:
        """What an interrupted thread may still own."""
        return self._sending

    def flush(self, deadline: float | None = None) -> None:
        """Send the outbox. With a deadline: wait for another thread that is sending just now.

        Call this after every append to the outbox. The thread that is sending looks at the outbox again before it
        returns, so no event is stranded. In a child of the process that owns the outbox nothing is sent. Raises
        TimeoutError at the deadline.
        """
        inventory = self._inventory
        if not inventory.mark[0]:
            return
        if self._thread.has_ended:
            self._thread.revive()
        while inventory.outbox and inventory.session is not None:
            if self._sender == threading.get_ident():
                return
            if deadline is None:
                if not self._sending.acquire(blocking=False):
                    return
            elif not self._sending.acquire(timeout=max(0.0, deadline - monotonic())):
                raise TimeoutError("another thread is still sending to the server")
            try:
                self._sender = threading.get_ident()
                self._send_outbox(inventory)
            finally:
                self._sender = None
                self._sending.release()

    def _send_outbox(self, inventory: Inventory) -> None:
        """Caller holds `_sending`."""
        channel = self.channel
        if channel is None:
            return
        try:
            while inventory.outbox:
                channel.unsent += encode(inventory.outbox.popleft())
            self._push(channel)
        except BaseException:
            # Half a frame may be on its way; the next session begins with an inventory.
            self._break(channel)
            raise

    def _push(self, channel: ErrandChannel) -> None:
        """Send what is unsent as far as it goes; the errand thread does the rest. Caller holds `_sending`."""
        try:
            sent = channel.sock.send(channel.unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            channel.lost_words = True
            channel.unsent.clear()  # the errand thread sees the end of the channel too
            return
        del channel.unsent[:sent]
        if channel.unsent:
            self._thread.wake()

    def push_more(self, channel: ErrandChannel) -> None:
        """The channel takes more again. Called by the errand thread."""
        with self._sending:
            if channel.unsent:
                self._push(channel)
        self.flush()  # a thread that found us sending has left its events to us

    def send_message(self, message: Message) -> None:
        """Send a message that is not an event."""
        with self._sending:
            channel = self.channel
            if channel is not None:
                channel.unsent += encode(message)
                self._push(channel)
        self.flush()

    def _break(self, channel: ErrandChannel) -> None:
        try:
            channel.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            log.debug("the errand channel was gone already")
