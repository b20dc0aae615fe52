"""The attachment of a process to a server: made, lost, made again. All of its state is here.

    no session --- ensure: connect, Hello, Attach(inventory) ---> session --- lost, detach ---> no session

A session begins and ends under two locks, that of the channel and that of the inventory, so that no event is
said under another session than the one in which it happened (rule 2).
"""

from __future__ import annotations

import math
import threading
from time import monotonic

from mppool.errors import ServerUnavailable
from mppool.ids import Session
from mppool.link.channel import ErrandChannel, Outgoing
from mppool.link.connection import Connection, OlderServer, SessionLost, introduce
from mppool.link.connections import Connections
from mppool.link.protocol import Process
from mppool.link.troubles import LACKING
from mppool.link.witness import Witness
from mppool.logs import Log
from mppool.process.background import BackgroundThread
from mppool.process.locks import LazyLock, release_own
from mppool.rendezvous.locator import ServerLocator
from mppool.wire.messages import PROTOCOL, Attached, Failed, Leave

log = Log("mppool")

CONTROL_DEADLINE_S = 5.0
"""How long a command or a look at the statistics waits for the server."""

START_GRACE_S = 1.0
"""A first checkout with a very short timeout may still start the server: that is work, not waiting."""

LACKING_PATIENCE_S = 0.5
"""How long descriptors may be lacking, from the first time on, before that is an error."""

LONGEST_START_S = 30.0
"""How long a caller without a timeout waits for one try to find or start a server."""


class ServerSession:
    """This process as a client of its manager's server.

    _attaching: held while a session is made, which is I/O, bounded by each caller's deadline. It guards
        nothing else, and its owner may take the other locks. It is reentrant, so that `interrupted` can free it.
    outgoing: the errand channel, with the lock that guards it.
    farewell: the last server has said goodbye, so that no process starts the next one without need.
    unheard: the journal may count slots of ours that we have given back: a word that the last server has
        not read is lost with it. Its successor waits for our inventory, also where that is empty.
    """

    _attaching = LazyLock()

    def __init__(self, process: Process, locator: ServerLocator, thread: BackgroundThread) -> None:
        self._process = process
        self._locator = locator
        self._was_attached = False
        self.start(thread)

    def start(self, thread: BackgroundThread) -> None:
        """Begin with nothing: at first, and in a forked child, also where a thread is just in here."""
        ServerSession._attaching.forget(self)
        self._thread = thread
        self.witness = Witness()
        self.connections = Connections(self._locator, self.witness)
        self.outgoing = Outgoing(self._process.inventory, thread)
        self.farewell = False
        self.unheard = False

    def inherited(self) -> tuple[set[int], tuple[object, ...]]:
        """In a forked child: descriptors to close, and objects that must never be finalized."""
        # Also those that other threads were using: their frames do not exist here, their descriptors do.
        connections = self.connections.all()
        descriptors = {connection.sock.fileno() for connection in connections}
        descriptors |= {*self._thread.descriptors(), *self.witness.descriptors()}
        kept = (connections, self.connections, self.outgoing, self.witness, self._attaching)
        return descriptors - {-1}, kept

    # --- made ----------------------------------------------------------------------------------------------

    def ensure(self, deadline: float | None, *, start: bool = True) -> bool:
        """Be attached to a server. False: there is none, and none was to be started.

        Raises TimeoutError at the deadline, ServerUnavailable if none can be started. Call notice_fork before.
        """
        self.connections.prepare()
        if self._process.inventory.session is not None:
            return True
        wait = -1.0 if deadline is None else max(0.0, deadline - monotonic())
        if deadline is not None and self.outgoing.channel is None and not self._was_attached:
            wait = max(wait, START_GRACE_S)
        attaching = self._attaching  # in a child forked from here, the attribute names another lock
        if not attaching.acquire(timeout=wait):
            raise TimeoutError("another thread is still looking for the server")
        try:
            return self._process.inventory.session is not None or self._attach(deadline, start)
        except BaseException:
            self.revive()  # it may have been interrupted with the session just made
            raise
        finally:
            self.hide_if_idle()
            attaching.release()

    def hide_if_idle(self) -> None:
        """Without a session, and with nothing that the books must hear of, this member need not be waited for.

        A server that finds a damaged journal grants nothing before all have attached that may hold something.
        """
        attaching = self._attaching
        if not attaching.acquire(blocking=False):
            return  # its owner attaches, or comes here
        try:
            inventory = self._process.inventory
            if inventory.session is None and not (inventory.table or self.unheard):
                self.witness.hide()
        finally:
            attaching.release()

    def _attach(self, deadline: float | None, start: bool) -> bool:
        """Caller holds `_attaching`, as for all that follow."""
        pause, lacking_until = 0.002, math.inf
        while True:
            patience = (
                monotonic() + LONGEST_START_S
                if deadline is None
                else max(deadline, monotonic() + START_GRACE_S)
            )
            try:
                sock = self._locator.connect(patience) if start else self._locator.look()
                if sock is None:
                    return False
                self._make(self.connections.wrap(sock, Session(0)), deadline)
            except SessionLost:  # the server left, or died, in this very moment
                if not start:
                    return False
            except OlderServer as older:
                self._replace(older.protocol, patience)
            except OSError as error:
                # Another thread may just have taken the last descriptor, and give it back.
                if error.errno not in LACKING or monotonic() >= lacking_until:
                    raise
                lacking_until = min(lacking_until, monotonic() + LACKING_PATIENCE_S)
            else:
                return True
            if deadline is not None and monotonic() >= deadline:
                raise TimeoutError("no server stayed long enough to attach to")
            threading.Event().wait(pause)
            pause = min(pause * 2, 0.1)

    def _replace(self, protocol: int, deadline: float) -> None:
        """A server of an older release is in the way: it leaves, its journal stays, ours goes on with it."""

        def ask_to_leave() -> None:
            self.connections.ask(Leave(), deadline, protocol=protocol, only_older=True)

        log.info(
            "manager %r: the server speaks protocol %d, and this release %d: it is asked to leave, and "
            "one of this release takes its books over",
            self._process.name, protocol, PROTOCOL,
        )  # fmt: skip
        self._locator.replace(ask_to_leave, deadline)

    def _make(self, connection: Connection, deadline: float | None) -> None:
        patience = (
            monotonic() + CONTROL_DEADLINE_S
            if deadline is None
            else max(deadline, monotonic() + 0.05)
        )
        try:
            channel = self._shake_hands(connection, patience)
        except OSError as error:
            connection.close()
            if isinstance(error, TimeoutError) and deadline is not None:
                raise
            if error.errno in LACKING:
                raise  # another server would not change that
            raise SessionLost(str(error)) from error
        except BaseException:
            connection.close()
            raise
        self._begin(channel)

    def _shake_hands(self, connection: Connection, patience: float) -> ErrandChannel:
        """Introduce this process, and have the server take over its inventory."""
        self._thread.prepare()
        self.witness.show()
        hello = self.connections.hello("errand", Session(0))
        welcome = introduce(connection, hello, patience)
        self._locator.show_life()
        self._process.seal()
        with self._process.inventory.lock:
            attach = self._process.attachment()
        channel = ErrandChannel(connection)
        channel.session, channel.server = welcome.session, welcome.server
        connection.send(attach, patience)
        while not self._is_attached(channel, patience):
            continue
        channel.sock.setblocking(False)
        return channel

    def _is_attached(self, channel: ErrandChannel, deadline: float) -> bool:
        left = deadline - monotonic()
        if left <= 0:
            raise TimeoutError("the server did not take over the inventory in time")
        channel.sock.settimeout(left)
        data = channel.sock.recv(65536)
        if not data:
            raise SessionLost("the server closed the connection")
        done = False
        for message in channel.reader.feed(data):
            if isinstance(message, Attached):
                done = True
            elif isinstance(message, Failed):
                raise ServerUnavailable(f"manager {self._process.name!r}: {message.text}")
            else:
                channel.early.append(message)
        return done

    def _begin(self, channel: ErrandChannel) -> None:
        self.farewell = self.unheard = False
        self._process.session_begins()
        self.outgoing.begin(channel)
        self._was_attached = True
        try:
            self._thread.ensure_running()
        except RuntimeError:  # no thread can be had: a session without one would be deaf
            self.lost(channel)
            raise
        self.outgoing.flush()

    # --- lost ----------------------------------------------------------------------------------------------

    def lost(self, channel: ErrandChannel, *, heard: bool = False, detached: bool = False) -> None:
        """The errand channel has ended. Called by the background thread, or by the thread that ends it.

        heard: the server has closed it, and had read everything that was said on it.
        detached: this process ends it, and the server has confirmed everything that was said.
        """
        if not self.outgoing.end(channel):
            return
        inventory = self._process.inventory
        lost = channel.unsent or channel.lost_words
        said_all = not (lost or inventory.outbox or inventory.table)
        self.unheard = not (detached or (self.farewell and heard and said_all))
        channel.connection.close()
        self.connections.close_idle()
        self._process.session_lost()

    def drop(self) -> None:
        """End the session, if there is one."""
        channel = self.outgoing.channel
        if channel is not None:
            self.lost(channel)

    @property
    def is_leased(self) -> bool:
        """Whether what is held here is leased from other machines, so that a server must renew the lease."""
        return self._locator.machines is not None

    def wants_successor(self) -> bool:
        """Whether this process must attach again although no thread asks for that."""
        return self._process.needs_books() or self.unheard

    # --- emergencies ---------------------------------------------------------------------------------------

    def interrupted(self) -> None:
        """The calling thread was interrupted somewhere in here, and has left."""
        release_own(self._attaching, self.outgoing.lock())
        self._thread.interrupted()
        self.revive()

    def revive(self) -> None:
        """A session has a thread that hears what the server says."""
        if self._process.inventory.session is not None:
            self._thread.ensure_running()
