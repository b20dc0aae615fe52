"""The server's one thread: epoll, non-blocking sockets, deadlines.

Nothing here blocks and nothing here decides. A connection that misbehaves, or for which our own code
fails, is dropped; all others are served on.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from mppool.errors import ProtocolError
from mppool.ids import ProcessId
from mppool.rendezvous import liveness
from mppool.rendezvous.claim import Rendezvous
from mppool.rendezvous.paths import ManagerPaths
from mppool.rendezvous.world import boot_id, check_no_other_world, pid_namespace_inode
from mppool.server.acceptor import Acceptor
from mppool.server.connection import Connection
from mppool.server.journal import Journal
from mppool.server.members import Members
from mppool.server.poller import NOT_READ, NOT_WRITE, READ, WRITE, Poller
from mppool.server.removals import Removals
from mppool.server.service import Service
from mppool.wire.messages import Rejected, ToServer

if TYPE_CHECKING:
    from mppool.machines.settings import Settings

log = logging.getLogger(__name__)

LOOK_AROUND_S = 2.0
"""How often the server looks whether its files are still there, where nothing tells it that they are not."""
FIRST_CLIENT_S = 2.0
"""The process that started the server gets at least so long to connect, whatever linger says."""
FAREWELL_S = 0.5
"""After Goodbye, how long processes may say what they close."""
BUSY_TURNS = 8
"""While there is a peer to serve, deadlines are looked at only every so many turns: looking takes as long as
deciding, and a turn takes far less than a millisecond."""
LEAST_LINGER_S = 0.05
"""Where no process asks for any linger: how often the server looks whether all have gone."""


class Server:
    """The server of one manager: `serve_forever` returns after an orderly leave.

    The mutable state is: the connections, those among them that need attention, and the few deadlines
    below; the `Acceptor` knows which are unidentified. `leave` may be called from any thread and from signal handlers;
    everything else belongs to the thread that serves.
    """

    def __init__(
        self,
        paths: ManagerPaths,
        *,
        linger: float,
        keep_up: Callable[[int, int], None] | None = None,
        machines: Settings | None = None,
    ) -> None:
        """linger: seconds to stay when nobody needs the server.

        machines: the Redis over which machines share caps; None: none do.
        keep_up: called every few seconds, with how many processes and pools there are.
        """
        self.paths, self._machines, self._linger = paths, machines, linger
        self._keep_up = keep_up
        self._rendezvous = Rendezvous(paths)
        self._poller: Poller[Connection | Callable[[], None]] = Poller()
        self._wake_reading, self._wake_writing = socket.socketpair()
        self._wake_reading.setblocking(False)
        self._wake_writing.setblocking(False)
        self._open_things = contextlib.ExitStack()  # closed in reverse
        self._open_things.callback(self._rendezvous.close)
        for thing in (self._wake_reading, self._wake_writing, self._poller):
            self._open_things.callback(thing.close)
        self._connections: set[Connection] = set()
        self._attention: list[Connection] = []  # broken, parting, or with something to send
        self._acceptor = Acceptor(
            self._rendezvous,
            self._poller,
            entered=self._connections.add,
            wants_attention=self._attention.append,
        )
        self._welcome = 0  # connections that have introduced themselves
        self._had_clients = False
        self._idle_since: float | None = None
        self._look_at = 0.0
        self._farewell_until: float | None = None
        self._asked_to_leave = False
        self._is_open = False
        self._superseded = False
        self._busy_turns = 0  # since the deadlines were looked at
        self._is_crowded = True  # whether somebody may have become ready while the last was served
        self._due: float | None = None  # the next deadline; None: it may have changed

    @property
    def address(self) -> str:
        """Path of the socket, once open."""
        published = self._rendezvous.address
        return str(self.paths.socket(published.epoch)) if published else str(self.paths.address)

    @property
    def wake_up_descriptor(self) -> int:
        """For signal.set_wakeup_fd: a byte written here wakes the loop."""
        return self._wake_writing.fileno()

    def open(self, *, patience_s: float = 2.0) -> None:
        """Become the server: lock, journal, socket, address. ServerUnavailable if there is one already.

        ConfigurationError where none can work: see `check_watching` and `check_no_other_world`.

        A Server that could not be opened is of no further use.
        """
        if self._is_open:
            return
        try:
            liveness.check_watching()
            self._rendezvous.claim(patience_s)
            check_no_other_world(self.paths)
            self._open_books()
            self._rendezvous.listen(self._journal.epoch)
            self._acceptor.open()
            self._poller.register(self._wake_reading.fileno(), self._woken)
            self._rendezvous.publish()
            self._watch_files()
        except BaseException:
            self._rendezvous.withdraw()
            self._release()
            raise
        now = monotonic()
        self._idle_since = now
        self._look_at = now + LOOK_AROUND_S
        self._is_open = True
        log.info("serving manager %r at %s", self.paths.name, self.address)

    def _open_books(self) -> None:
        """Continue the journal and restore the books from it."""
        self._journal = Journal(self.paths.journal, last_epoch=self._rendezvous.last_epoch())
        self._open_things.callback(self._journal.close)
        self._members = Members(self.paths.members, f"{boot_id()} {pid_namespace_inode()}")
        self._service = Service(
            self.paths,
            self._journal,
            self._members,
            watch=self._watch,
            unwatch=self._unwatch,
            leave=self.leave,
            machines=self._machines,
            wake=self._wake_up,
        )
        self._open_things.callback(self._service.processes.close)
        self._service.restore(monotonic())

    def _watch_files(self) -> None:
        self._removals = Removals()
        self._open_things.callback(self._removals.close)
        self._removals.watch(self.paths)
        if self._removals.descriptor is not None:
            self._poller.register(self._removals.descriptor, self._something_removed)

    def _something_removed(self) -> None:
        at = self._removals.noticed()  # later with each removal, until there is quiet
        if self._farewell_until is None:
            self._look_at = at

    def leave(self) -> None:
        """Ask the loop to leave in order; returns at once. For any thread and any signal handler."""
        self._asked_to_leave = True
        self._wake_up()

    def _wake_up(self) -> None:
        """Have the loop look at its deadlines; for any thread and any signal handler."""
        try:
            self._wake_writing.send(b"\0")
        except (BlockingIOError, OSError):
            pass  # full: it is awake; closed: it has left

    def serve_forever(self) -> None:
        """Serve until asked to leave, or until nobody has needed the server for `linger`.

        In the foreground Ctrl-C ends it, too.
        """
        self.open()
        orderly = False
        try:
            while not self._has_left():
                self._turn()
            orderly = True
        except KeyboardInterrupt:
            log.info("interrupted")
        finally:
            self._say_goodbye()
            # After an interrupt in the middle the books may differ from the journal: the journal is believed.
            self._close(keep_journal=not orderly)

    # --- one turn -----------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Serve the peers that are ready. Where there is none, or after some turns, look at the deadlines, too.

        No look is needed where the next deadline is still known, or a peer is alone on our only CPU (decision 0107).
        """
        looks_first = (self._due is None and self._is_crowded) or self._poller.alertness.is_awake
        ready = self._poller.at_once() if looks_first and self._busy_turns < BUSY_TURNS else None
        if ready:
            self._busy_turns += 1
            self._serve_ready(ready)
        else:
            self._busy_turns = 0
            self._keep_deadlines()
        if self._attention:
            self._due = None
            self._attend(monotonic())
        if self._asked_to_leave:
            self._due = None
            self._say_goodbye()

    def _keep_deadlines(self) -> None:
        """Wait until somebody is ready or something is due, and see to it."""
        now = monotonic()
        deadline = self._due
        if deadline is None:
            deadline = self._due = self._next_deadline(now)
        ready = self._poller.wait(deadline - now if deadline > now else 0.0)
        self._is_crowded = len(ready) > 1 or not self._poller.has_one_cpu
        self._serve_ready(ready)
        now = monotonic()
        if now >= deadline:
            if self._attention:
                self._attend(now)
            self._do_what_is_due(now)
            self._due = None

    def _do_what_is_due(self, now: float) -> None:
        """Whatever is due: of the books, of silent peers, of our own files, of idleness."""
        self._guarded(self._service.tick, now)
        self._drop_silent(now)
        self._acceptor.resume(now)
        if now >= self._look_at:
            self._look_at = now + LOOK_AROUND_S
            self._guarded(self._look_around)
        if not self._asked_to_leave:
            self._linger_out(now)

    def _serve_ready(self, ready: list[tuple[Connection | Callable[[], None], int]]) -> None:
        """Calls come last: what a process said on its errand channel before it called is taken in first.

        Else a process that gives a resource back and asks again could be refused although a slot is free.
        """
        if len(ready) > 1:
            ready.sort(key=_comes_last)
        for concerned, events in ready:
            if isinstance(concerned, Connection):
                self._ready(concerned, events)
            else:
                self._due = None
                self._guarded(concerned)

    def _next_deadline(self, now: float) -> float:
        due = min(self._service.deadline(now), self._look_at, self._acceptor.deadline())
        if self._farewell_until is not None:
            due = min(due, self._farewell_until)
        if self._idle_since is not None:
            due = min(due, self._idle_since + self._patience())
        return due

    def _guarded(self, function: Callable[..., None], *arguments: object) -> None:
        """Run it; a failure of ours is logged and does not end the server."""
        try:
            function(*arguments)
        except Exception:
            log.exception("%s failed; serving on", getattr(function, "__name__", function))

    # --- connections ----------------------------------------------------------------------------------------------

    def _ready(self, connection: Connection, events: int) -> None:
        """A connection can be read or written."""
        now = monotonic()
        try:
            if connection.unsent and events & NOT_READ:
                connection.flush()
            if events & NOT_WRITE:
                for message in connection.receive():
                    if connection.role is None:
                        self._due = None
                        self._introduced(connection, message)
                    elif not self._service.dispatcher.said(connection, message, now):
                        self._due = None
                    if connection.is_done:
                        break
        except ProtocolError as error:
            self._due = None
            log.warning("%s sent what the protocol does not allow: %s", connection, error)
            connection.send(Rejected("malformed", str(error)))
            connection.part()
        except Exception:
            self._due = None
            log.exception("%s is dropped: serving it failed", connection)
            connection.break_off("serving it failed")

    def _introduced(self, connection: Connection, message: ToServer) -> None:
        """It has said its first word: if that was to the point, the server knows it from now on."""
        self._service.sessions.introduced(connection, message)
        if connection.role is not None:
            self._acceptor.identified(connection)
            self._welcome += 1
            self._had_clients = True
            self._idle_since = None

    def _attend(self, now: float) -> None:
        """Drop what is broken or done with; wait for writability where, and only where, it is wanted."""
        while self._attention:  # the end of one connection may break another
            connection = self._attention.pop()
            if connection not in self._connections:
                continue
            if connection.is_done:
                self._drop(connection, now)
                continue
            wanted = READ | WRITE if connection.unsent else READ
            if wanted != connection.registered:
                self._want(connection, wanted)

    def _want(self, connection: Connection, events: int) -> None:
        try:
            self._poller.modify(connection.socket.fileno(), events)
        except OSError as error:
            connection.break_off(f"it cannot be listened to: {error}")
        else:
            connection.registered = events

    def _drop(self, connection: Connection, now: float) -> None:
        log.debug("%s is closed: %s", connection, connection.broken or "said goodbye")
        self._connections.discard(connection)
        self._poller.unregister(connection.socket.fileno())
        connection.socket.close()
        if not self._acceptor.ended(connection):
            self._welcome -= 1
        self._guarded(self._service.departures.ended, connection, now)
        if not self._welcome:
            self._idle_since = now

    def _drop_silent(self, now: float) -> None:
        for connection in self._acceptor.overdue(now):
            log.info("%s is dropped: it did not introduce itself", connection)
            self._drop(connection, now)

    # --- deaths and wake-ups ----------------------------------------------------------------------------------------

    def _watch(self, process: ProcessId, pidfd: int) -> None:
        self._poller.register(pidfd, lambda: self._service.departures.died(process, monotonic()))

    def _unwatch(self, pidfd: int) -> None:
        self._poller.unregister(pidfd)

    def _woken(self) -> None:
        try:
            self._wake_reading.recv(4096)
        except (BlockingIOError, InterruptedError):
            pass  # there was nothing left to read

    # --- leaving ------------------------------------------------------------------------------------------------------

    def _patience(self) -> float:
        """How long no process must have needed the server before it leaves."""
        least = LEAST_LINGER_S if self._had_clients else FIRST_CLIENT_S
        return max(self._linger, self._service.sessions.longest_linger, least)

    def _linger_out(self, now: float) -> None:
        """Leave if no process is connected, none is coming, and none that lives holds anything."""
        if self._idle_since is None or now < self._idle_since + self._patience():
            return
        if self._acceptor or self._welcome or self._service.books.slots_held():
            self._idle_since = now
            return
        # A process that connects from here on finds no address; one that has connected is in the backlog.
        self._rendezvous.withdraw()
        self._acceptor.accept()
        if self._acceptor:
            self._idle_since = now
            self._guarded(self._look_around)  # puts the address back
            return
        log.info("nobody has needed this server for %.1f s", self._patience())
        self._say_goodbye()

    def _look_around(self) -> None:
        """Put back files that vanished; leave where another server has taken the place."""
        before = self._rendezvous.listener
        if not self._rendezvous.look_after():
            self._superseded = True
            self.leave()
            return
        if before is not None and before is not self._rendezvous.listener:
            self._acceptor.change_listener(before)
        if not self._journal.is_in_place():
            log.info("the journal vanished and is put back")
            self._journal.put_back()
        self._service.look_around(monotonic())
        if self._keep_up is not None:
            self._keep_up(len(self._service.processes), len(self._service.books.pools))
        self._removals.watch(self.paths)

    def _say_goodbye(self) -> None:
        if self._farewell_until is not None:
            return
        self._farewell_until = monotonic() + FAREWELL_S
        self._look_at = math.inf  # what is removed from now on is removed by us, or not wanted back
        self._rendezvous.withdraw()
        self._service.say_goodbye()
        self._acceptor.accept()  # peers in the backlog are told, too

    def _has_left(self) -> bool:
        """Whether everything is said: no process is left that could still give something back."""
        if self._farewell_until is None:
            return False
        if monotonic() >= self._farewell_until:
            return True
        if self._acceptor or any(connection.unsent for connection in self._connections):
            return False
        attached = any(connection.role == "errand" for connection in self._connections)
        return not attached or not self._service.books.slots_held()

    def _close(self, *, keep_journal: bool) -> None:
        """Close everything. The journal stays in any case while living processes hold slots, or may: see `Journal.torn`."""
        held, torn = self._service.books.slots_held(), self._journal.torn
        files_are_ours = not keep_journal and not self._superseded
        if files_are_ours and (held or torn):
            self._service.leave_files()
        elif files_are_ours:
            self._service.forget_all()
        self._service.close()
        log.info("left in order; %s", f"{held} slots are held on" if held else "nothing is held")
        self._release()
        self._is_open = False

    def _release(self) -> None:
        """Close all descriptors, the alive lock last: behind it the next server is waiting."""
        for connection in self._connections:
            connection.socket.close()
        self._connections.clear()
        self._open_things.close()


def _comes_last(ready: tuple[Connection | Callable[[], None], int]) -> bool:
    return isinstance(ready[0], Connection) and ready[0].role == "call"
