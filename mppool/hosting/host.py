"""A host: accepts streams, watches the processes at their other ends, and leaves when nobody is there any more."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import select
import socket
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

from mppool.hosting.keeping import KEPT_S, Kept, may_be_kept
from mppool.hosting.pipes import Turns
from mppool.hosting.session import Session
from mppool.logs import Log
from mppool.rendezvous.liveness import peer_of
from mppool.stats.pins import Pins

if TYPE_CHECKING:
    from pathlib import Path

    from mppool.worker.pool import Pool

log = Log("mppool.hosting")

BACKLOG = 512
LOOK_S = 1.0
"""How often a host looks for leases that are quiet, and whether its socket is still there."""
FIRST_WORKER_S = 2.0
"""The process that started the host gets at least so long to connect, whatever linger says."""
IDLE_STREAM_S = 120.0
"""A stream without a lease is closed after so long: the worker makes another when it needs one."""
_LEAST_LOOK_S = 0.02
LONGEST_LOG = 1_000_000


def bound_log() -> None:
    """Keep what this process prints within bounds; all hosts of a manager share the file."""
    try:
        if os.fstat(2).st_size > LONGEST_LOG:
            os.ftruncate(2, 0)
    except OSError as error:
        log.debug("the log cannot be shortened: %s", error)


def resident_bytes() -> int:
    """How much memory this process has."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


class Host:
    """`serve` runs in the main thread until the host has to leave.

    The mutable state is: the sessions by number, each with its thread, and what is watched. `leave` may be called from
    signal handlers and any thread. _lock guards `_sessions` and `_watched`.
    """

    def __init__(self, pool: Pool[Any], path: Path, linger: float) -> None:
        """linger: seconds to stay when no worker is connected (the longest that one asked for)."""
        self._pool = pool
        self._path = path
        self._linger = linger
        self._epoch = random.getrandbits(53)
        self._numbers = itertools.count(1)
        self._kept: Kept | None = None
        if may_be_kept(pool._local.recipe, pool.options):
            self._kept = Kept(call_in_all=self._call_in, call_in_one=lambda: self._call_in(most=1))
            pool._local.idle.on_contended = self._kept.contended
        self._turns = Turns()
        self._looks_for_kept = False
        self._pins = pool._local.pins = Pins()
        self._lock = threading.Lock()
        self._sessions: dict[int, Session] = {}
        self._watched: dict[int, Session] = {}
        self._epoll = select.epoll()
        self._wake_reading, self._wake_writing = socket.socketpair()
        self._leaving = False
        self._accepts = True
        self._had_workers = False
        self._idle_since = monotonic()
        self._inode = 0

    def listen(self) -> None:
        """Be found by workers. What a dead host has left at the path is replaced."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid():x}"[-23:])
        temporary.unlink(missing_ok=True)
        self._listener.bind(os.fspath(temporary))
        temporary.chmod(0o600)
        self._listener.listen(BACKLOG)
        self._listener.setblocking(False)
        self._inode = temporary.stat().st_ino
        temporary.rename(self._path)
        self._wake_reading.setblocking(False)
        self._wake_writing.setblocking(False)
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._epoll.register(self._wake_reading.fileno(), select.EPOLLIN)

    @property
    def wake_up_descriptor(self) -> int:
        """For signal.set_wakeup_fd."""
        return self._wake_writing.fileno()

    def leave(self) -> None:
        """Leave as soon as no lease is out."""
        self._leaving = True
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_writing.send(b"\0")

    def serve(self) -> None:
        """Until nobody has been connected for `linger`, or somebody has said that the host must leave."""
        look_at = monotonic() + LOOK_S
        while not self._is_over():
            now = monotonic()
            for descriptor, _ in self._epoll.poll(self._patience(now, look_at)):
                self._ready(descriptor)
            now = monotonic()
            self._look_for_quiet(now)
            self._look_for_kept(now)
            if now >= look_at:
                look_at = now + LOOK_S
                self._look_around(now)
        self._withdraw()

    # --- one turn -----------------------------------------------------------------------------------------------

    def _patience(self, now: float, look_at: float) -> float:
        due = look_at
        if not self._sessions:
            due = min(due, self._idle_since + self._longest_linger())
        longest = self._pool.options.max_quiet
        if longest is not None and self._sessions:
            due = min(due, now + max(_LEAST_LOOK_S, longest / 4))
        if self._looks_for_kept:
            due = min(due, now + KEPT_S / 2)
        return max(_LEAST_LOOK_S, due - now)

    def _longest_linger(self) -> float:
        return self._linger if self._had_workers else max(self._linger, FIRST_WORKER_S)

    def _make_way(self) -> None:
        """Another one is started for the next caller. What is out here goes on; what lies idle is closed."""
        if not self._was_removed():
            self._path.unlink(missing_ok=True)
        if self._kept is not None:
            self._kept.contended(True)  # nothing is kept any more
        self._pool.close_idle()

    def _is_over(self) -> bool:
        if self._leaving:
            self._make_way()
            with self._lock:
                sessions = list(self._sessions.values())
            busy = [one for one in sessions if one.has_lease or one.is_running]
            for session in sessions:
                if session not in busy:
                    session.worker_is_gone()  # it finds or starts another host
            return not busy
        idle_for = monotonic() - self._idle_since
        return not self._sessions and idle_for >= self._longest_linger()

    def _ready(self, descriptor: int) -> None:
        if descriptor == self._listener.fileno():
            self._accept()
        elif descriptor == self._wake_reading.fileno():
            with contextlib.suppress(BlockingIOError):
                self._wake_reading.recv(4096)
        else:
            self._unwatch(descriptor)
            with self._lock:
                session = self._watched.pop(descriptor, None)
            if session is not None:
                session.worker_is_gone()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("no worker can be let in for a moment: %s", error)
                self._pause_accepting()
                return
            connection.setblocking(True)
            if self._leaving or peer_of(connection).uid not in (os.geteuid(), 0):
                connection.close()
                continue
            try:
                self._begin(connection)
            # No descriptor, or thread, is left; those that are here go on.
            except (OSError, RuntimeError) as error:
                log.warning("a worker cannot be let in: %s", error)
                connection.close()

    def _pause_accepting(self) -> None:
        """Until the next look around: it would be ready again at once."""
        self._unwatch(self._listener.fileno())
        self._accepts = False

    def _accept_again(self) -> None:
        if not self._accepts:
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)
            self._accepts = True

    def _begin(self, connection: socket.socket) -> None:
        session = Session(
            connection,
            next(self._numbers),
            self._pool,
            self._epoch,
            watch=self._watch_process,
            leave=self._leave_unless_needed,
            session_of=self._sessions.get,
            tell_of_kept=self._something_is_kept,
            is_leaving=lambda: self._leaving,
            kept=self._kept,
            pins=self._pins,
            turns=self._turns,
        )
        self._had_workers = True
        with self._lock:
            self._sessions[session.number] = session
            self._watched[connection.fileno()] = session
        try:
            self._epoll.register(connection.fileno(), select.EPOLLRDHUP)
            threading.Thread(
                target=self._serve, args=(session,), name="mppool-host", daemon=True
            ).start()
        except BaseException:
            with self._lock:
                del self._sessions[session.number], self._watched[connection.fileno()]
            raise

    def _serve(self, session: Session) -> None:
        descriptor = session.connection.fileno()
        try:
            session.serve()
        except Exception:
            log.exception("a stream ended with an error")
        finally:
            with self._lock:
                self._sessions.pop(session.number, None)
                if self._watched.get(descriptor) is session:
                    del self._watched[descriptor]
                self._linger = max(self._linger, session.linger)
                if session.pidfd is not None:
                    self._watched.pop(session.pidfd, None)
                    os.close(session.pidfd)  # which ends its registration too
                if not self._sessions:
                    self._idle_since = monotonic()
            self._wake()

    def _watch_process(self, session: Session) -> None:
        """Its death is noticed also where a forked child has a copy of the stream."""
        assert session.pidfd is not None
        with self._lock:
            self._watched[session.pidfd] = session
        self._epoll.register(session.pidfd, select.EPOLLIN)

    def _unwatch(self, descriptor: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._epoll.unregister(descriptor)

    # --- now and then ---------------------------------------------------------------------------------------------

    def _look_around(self, now: float) -> None:
        self._accept_again()
        with self._lock:
            sessions = list(self._sessions.values())
        seen: set[Any] = set()
        for session in sessions:
            session.cancel_for_the_gone()
            is_unused = not session.has_lease and not session.is_running
            # Where resources are kept open, one stream of each worker stays, so that the host does.
            is_needed = self._pool.options.min_size and session.process not in seen
            seen.add(session.process)
            if is_unused and not is_needed and now - session.last_heard > IDLE_STREAM_S:
                session.worker_is_gone()
        if self._was_removed():
            self.leave()
        if not self._leaving and (why := self._is_worn_out()):
            log.info("pool %r: the host makes way for a new one: %s", self._pool.name, why)
            self.leave()
        bound_log()

    def _is_worn_out(self) -> str:
        """Why this host has lent, or grown, enough; "": it has not."""
        options = self._pool.options
        if options.host_max_uses is not None:
            local = self._pool._local
            uses = local.past_uses + sum(entry.uses for entry in local.entries())
            if uses >= options.host_max_uses:
                return f"it has lent {uses} times (host_max_uses={options.host_max_uses})"
        if options.host_max_memory is not None:
            mebibytes = resident_bytes() >> 20
            if mebibytes > options.host_max_memory:
                return f"it has {mebibytes} MiB (host_max_memory={options.host_max_memory})"
        return ""

    def _look_for_quiet(self, now: float) -> None:
        """Leases whose worker has said nothing for `max_quiet` end."""
        longest = self._pool.options.max_quiet
        if longest is None:
            return
        with self._lock:
            sessions = list(self._sessions.values())
        for session in sessions:
            session.end_if_quiet(now, longest)

    def _something_is_kept(self) -> None:
        """Called by the threads of sessions."""
        if not self._looks_for_kept:
            self._looks_for_kept = True
            self._wake()

    def _look_for_kept(self, now: float) -> None:
        """What is kept, and not used for long, lies idle from then on."""
        if not self._looks_for_kept:
            return
        self._looks_for_kept = False  # first: what is kept from now on says so
        with self._lock:
            sessions = list(self._sessions.values())
        for session in sessions:
            since = session.is_kept_since()
            if since is not None and (now - since < KEPT_S or not session.call_in()):
                self._looks_for_kept |= session.is_kept_since() is not None

    def _call_in(self, most: int | None = None) -> None:
        """End leases that are kept for workers which have not taken them: so many, or all."""
        if not self._pool._local.idle.lent_ahead:
            return
        with self._lock:
            sessions = list(self._sessions.values())
        for session in sessions:
            if session.is_kept_since() is not None and session.call_in() and most is not None:
                most -= 1
                if most <= 0:
                    return

    def _was_removed(self) -> bool:
        """Whether somebody has removed our socket, or another host has put its own in its place."""
        try:
            return self._path.stat().st_ino != self._inode
        except OSError:
            return True

    def _leave_unless_needed(self, asking: Session) -> bool:
        """A worker that has ended its use asks. True: no other process is connected, and the host leaves."""
        with self._lock:
            others = [one for one in self._sessions.values() if one.process != asking.process]
        if others:
            return False
        self.leave()
        return True

    def _withdraw(self) -> None:
        """Nobody finds us any more. A worker that has just connected finds the stream closed, and looks again."""
        if not self._was_removed():
            self._path.unlink(missing_ok=True)
        self._leaving = True
        self._accept()
        self._listener.close()
