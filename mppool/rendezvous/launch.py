"""Finds the server, or starts it. The only part of the server that clients use.

    connect ---- there ----> done
       | not there
    take the start lock, look again, start, wait for one byte, give the lock back
       | another one has the lock: look again every few milliseconds; one try at the lock between looks
    connect

The start lock only keeps a crowd from starting a crowd. That there is one server is the alive lock's
doing: a server that was started beside a living one leaves at once. So a start lock that is never given back
(its holder was killed while a forked child kept a copy of the descriptor) delays, but stops nobody.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mppool.errors import ConfigurationError, ServerUnavailable
from mppool.logs import Log
from mppool.rendezvous import interpreter, liveness
from mppool.rendezvous.interpreter import PYTHON_VARIABLE
from mppool.rendezvous.paths import RUNTIME_DIR_VARIABLE, ManagerPaths, read_address
from mppool.rendezvous.readiness import ANOTHER, READY, REFUSED, NotReadyYet
from mppool.rendezvous.shielded import shielded
from mppool.rendezvous.spawning import READINESS_DESCRIPTOR, answer_of, bootstrap, reap, spawn

if TYPE_CHECKING:
    from mppool.machines.settings import Settings

log = Log(__name__)

# Not the application's generator: it may have seeded that one, and count on its numbers.
_chance = random.SystemRandom()

START_PATIENCE_S = 10.0
"""How long a start may take, on a machine that is very busy, before it counts as failed."""
LOCK_PATIENCE_S = 5.0
"""How long the start lock may be in other hands while no server appears."""
_LEAVING_PATIENCE_S = 0.5
_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.002, 0.025
_LOG_TAIL_BYTES = 2000

_BOOTSTRAP = bootstrap("mppool.server.__main__", "sys.path +=")


def connect(paths: ManagerPaths, deadline: float | None = None) -> socket.socket | None:
    """A connected, blocking socket, or None where no server is there.

    deadline: monotonic; until then is tried again while the server's backlog is full. NotReadyYet
    if it stays full.
    """
    address = read_address(paths)
    if address is None:
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # Not blocking: a connect to a stopped server with a full backlog would block for ever.
        connection.setblocking(False)
        while True:
            try:
                connection.connect(os.fspath(paths.runtime_dir / address.socket))
                break
            except BlockingIOError:
                _wait_or_give_up(paths, deadline)
        connection.setblocking(True)
        _check_owner(connection, paths)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        connection.close()
        return None
    except BaseException:
        connection.close()
        raise
    return connection


class _ForServer(NamedTuple):
    """What a new server is told. machines: over a pipe, because there may be a password in it."""

    linger: float
    machines: Settings | None


def find_or_start(
    paths: ManagerPaths, *, linger: float, deadline: float, machines: Settings | None = None
) -> socket.socket:
    """A socket connected to the one server of these paths, which is started if there is none.

    linger: seconds that a new server stays without clients. deadline: monotonic. machines: where it shares caps.
    Raises ServerUnavailable with the reason, NotReadyYet where that is the deadline, ConfigurationError for a directory
    that cannot be trusted.
    """
    paths.prepare()
    pause = _FIRST_LOOK_S
    lock_patience = time.monotonic() + LOCK_PATIENCE_S
    while True:
        connection = connect(paths, deadline)
        if connection is not None:
            return connection
        whatever = time.monotonic() > lock_patience
        if _start_locked(paths, _ForServer(linger, machines), deadline, whatever=whatever):
            continue
        if time.monotonic() >= deadline:
            raise NotReadyYet(
                f"manager {paths.name!r}: no server could be reached or started in the time that was left; "
                f"somebody else is starting one, or a server in {paths.runtime_dir} does not answer"
            )
        time.sleep(min(pause * _chance.uniform(0.5, 1.0), max(0.0, deadline - time.monotonic())))
        pause = min(pause * 2, _LONGEST_LOOK_S)


def replace(
    paths: ManagerPaths,
    ask_to_leave: Callable[[], None],
    *,
    linger: float,
    deadline: float,
    machines: Settings | None = None,
) -> None:
    """Have a server of an older release leave, and start ours before an older client starts another.

    Where somebody else is starting or replacing it, nothing is done: look again.
    """
    told = _ForServer(linger, machines)
    _start_locked(paths, told, deadline, whatever=False, beforehand=ask_to_leave)


def server_pid(paths: ManagerPaths) -> int | None:
    """Pid of the server that the address file names, if it lives."""
    address = read_address(paths)
    # A zombie is dead: where process 1 reaps late or never, it keeps its pid and its birth.
    if address is None or not liveness.lives(address.server):
        return None
    return address.server.pid


def _check_owner(connection: socket.socket, paths: ManagerPaths) -> None:
    """Refuse a server of another user: a directory in a place for everybody may be anybody's trap."""
    user = liveness.peer_of(connection).uid
    if os.geteuid() != user:  # root, too: it would believe what it is told
        raise ConfigurationError(
            f"the server in the runtime directory {paths.runtime_dir} belongs to user {user}, and this "
            f"process runs as user {os.geteuid()}; choose another directory with runtime_dir= or "
            f"${RUNTIME_DIR_VARIABLE}"
        )


def _wait_or_give_up(paths: ManagerPaths, deadline: float | None) -> None:
    if deadline is None or time.monotonic() >= deadline:
        raise NotReadyYet(
            f"manager {paths.name!r}: the server's backlog is full; it is stopped or overloaded"
        )
    time.sleep(_FIRST_LOOK_S)


def _start_locked(
    paths: ManagerPaths,
    told: _ForServer,
    deadline: float,
    *,
    whatever: bool,
    beforehand: Callable[[], None] | None = None,
) -> bool:
    """Start a server under the start lock. True if one is there now, ours or another.

    False if somebody else has the lock, if the alive lock is still held by a server that cannot be
    reached, or if ours takes very long. whatever: start without the lock. beforehand: done under the lock.
    """
    return shielded(
        lambda: _start_under_lock(paths, told, deadline, whatever=whatever, beforehand=beforehand)
    )


def _start_under_lock(
    paths: ManagerPaths,
    told: _ForServer,
    deadline: float,
    *,
    whatever: bool,
    beforehand: Callable[[], None] | None,
) -> bool:
    import filelock

    # A lock object of its own for every attempt: it belongs to this call, not to a thread, and a child
    # that is forked meanwhile never finds it.
    lock = filelock.FileLock(paths.start_lock, timeout=0, mode=0o600, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if not whatever:
            return False
    try:
        if beforehand is not None:
            beforehand()
            _wait_until_gone(paths, min(deadline, time.monotonic() + _LEAVING_PATIENCE_S))
        if server_is_there(paths):
            return True
        return _start(paths, told, deadline)
    finally:
        if lock.is_locked:
            lock.release()


def _wait_until_gone(paths: ManagerPaths, until: float) -> None:
    """A server that was asked to leave withdraws its address at once, or was not asked after all."""
    while server_is_there(paths) and time.monotonic() < until:
        time.sleep(_FIRST_LOOK_S)


def server_is_there(paths: ManagerPaths) -> bool:
    """Whether a connect succeeds now."""
    connection = connect(paths)
    if connection is None:
        return False
    connection.close()
    return True


def _start(paths: ManagerPaths, told: _ForServer, deadline: float) -> bool:
    """Start a server and wait until it listens (True), has found another one, or takes very long (False)."""
    interpreter.check_startable(paths.name)
    log_size = paths.log.stat().st_size if paths.log.exists() else 0
    reading, writing = os.pipe()  # neither is inheritable
    try:
        try:
            child = _spawn(paths, told, writing)
        except OSError as error:
            raise ServerUnavailable(
                f"manager {paths.name!r}: the server could not be started with {interpreter.python()}: {error}; set "
                f"${PYTHON_VARIABLE} to a Python interpreter that can import mppool's dependencies"
            ) from error
        finally:
            os.close(writing)
        answer: bytes | None = None
        try:
            until = min(deadline, time.monotonic() + START_PATIENCE_S)
            answer = answer_of(reading, until)
        finally:  # also when interrupted: no zombie stays behind
            reap(child, patient=answer is not None)
    finally:
        os.close(reading)
    if answer == READY:
        return True
    if answer == ANOTHER:
        return False
    if answer is not None and answer.startswith(REFUSED):
        raise ConfigurationError(
            f"manager {paths.name!r}: {answer.removeprefix(REFUSED).decode(errors='replace')}"
        )
    if answer is None:  # it goes on starting
        if time.monotonic() < deadline:
            return False
        raise NotReadyYet(
            f"manager {paths.name!r}: the server was started but is not ready yet; allow for more time"
        )
    raise ServerUnavailable(
        f"manager {paths.name!r}: the server did not start. Its log, {paths.log}, ends with:\n"
        f"{_log_tail(paths.log, log_size)}"
    )


def _spawn(paths: ManagerPaths, told: _ForServer, writing: int) -> int:
    """Start the interpreter that becomes the server; the pid of its short-lived first process."""
    locations = interpreter.locations(client_of_redis=told.machines is not None)
    arguments = [
        *interpreter.arguments(), _BOOTSTRAP, locations,
        str(READINESS_DESCRIPTOR), os.fspath(paths.runtime_dir), paths.name, repr(float(told.linger)),
    ]  # fmt: skip
    secrets = None if told.machines is None else _told_in_secret(told.machines)
    try:
        return spawn(arguments, interpreter.environment(), secrets, paths.log, writing)
    finally:
        if secrets is not None:
            os.close(secrets)


def _told_in_secret(machines: Settings) -> int:
    """A descriptor for the standard input of the server. What it reads there nobody sees in a list of processes."""
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)  # it fits: an URL is shorter than a pipe is long
        os.write(writing, machines.packed())
    finally:
        os.close(writing)
    return reading


def _log_tail(path: Path, start: int) -> str:
    """The text that was added to the log since it had `start` bytes, at most the last _LOG_TAIL_BYTES."""
    try:
        with path.open("rb") as log_file:
            end = log_file.seek(0, os.SEEK_END)
            start = start if start <= end else 0
            log_file.seek(max(start, end - _LOG_TAIL_BYTES))
            return log_file.read().decode(errors="replace").strip() or "(nothing)"
    except OSError as error:
        return f"(it cannot be read: {error})"
