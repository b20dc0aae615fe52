"""Finds a host, or starts one, as the server is found and started (see mppool.rendezvous.launch).

    connect ---- there ----> done
       | not there
    take the lock of this host, look again, start, wait for one byte, give the lock back
    connect

That there is one host for each place is only a matter of thrift: the books keep the cap, also over two.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import time
from typing import TYPE_CHECKING

import msgspec

from mppool._version import __version__
from mppool.errors import ConfigurationError, ServerUnavailable
from mppool.logs import Log
from mppool.rendezvous import interpreter
from mppool.rendezvous.liveness import peer_of
from mppool.rendezvous.readiness import READY, REFUSED
from mppool.rendezvous.shielded import shielded
from mppool.rendezvous.spawning import answer_of, bootstrap, reap, spawn

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mppool.hosting.travel import Luggage
    from mppool.rendezvous.paths import ManagerPaths

log = Log("mppool.hosting")

STARTED_VARIABLE = "MPPOOL_STARTED_AS_HOST"
"""Set in a host: importing the application there must not start another."""

START_PATIENCE_S = 30.0
"""How long a host may take to import the application, on a machine that is very busy."""

_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.002, 0.05
_LONGEST_LOG = 1_000_000

_BOOTSTRAP = bootstrap("mppool.hosting.__main__", "sys.path[:] =")


class Surroundings:
    """Where a host is at home: what this process had when it declared the pool."""

    def __init__(self) -> None:
        self.search_path = [os.path.abspath(one) if one == "" else one for one in sys.path]
        self.environment = dict(os.environ)


class Place:
    """Where the hosts of one pool are found, by all processes that open the same in it."""

    def __init__(self, paths: ManagerPaths, pool: str, fingerprint: str, values: str) -> None:
        """fingerprint: sealed, for part of it is seen in the names of files."""
        self._paths = paths
        told_apart = [paths.name, pool, fingerprint, values, sys.version, __version__]
        text = "\0".join(told_apart)
        self._digest = hashlib.sha256(text.encode()).hexdigest()[:12]

    def socket(self, number: int) -> Path:
        """Of one host. In the runtime directory, because its path must be short."""
        return self._paths.runtime_dir / f"h-{self._digest}-{number:x}"

    def lock(self, number: int) -> Path:
        """Of the processes that start it; never unlinked."""
        return self._paths.directory / f"host-{self._digest}-{number:x}.lock"

    @property
    def log(self) -> Path:
        """Standard output and error of all hosts of the manager."""
        return self._paths.directory / "hosts.log"


def connect(path: Path, manager: str) -> socket.socket | None:
    """A connected, blocking socket; None: nobody listens there."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.setblocking(
            False
        )  # a host that is stopped, with a full backlog, must not block us
        connection.connect(os.fspath(path))
        connection.setblocking(True)
        owner = peer_of(connection).uid
        if owner != os.geteuid():
            raise ConfigurationError(
                f"manager {manager!r}: the host at {path} belongs to user {owner}, and this process runs as user "
                f"{os.geteuid()}; choose another directory with runtime_dir="
            )
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        connection.close()
        return None
    except BlockingIOError:
        connection.close()
        raise TimeoutError("the host's backlog is full: it is stopped, or overloaded") from None
    except BaseException:
        connection.close()
        raise
    return connection


def find_or_start(
    paths: ManagerPaths,
    place: Place,
    number: int,
    around: Surroundings,
    packed: Callable[[], Luggage],
    deadline: float | None,
) -> socket.socket:
    """A socket connected to one host of a pool, which is started if there is none.

    packed: what it is told at its start. deadline: monotonic; None: it may take as long as a start may.
    Raises ServerUnavailable with the reason, TimeoutError at the deadline, ConfigurationError where the recipe cannot be
    used there.
    """
    pause = _FIRST_LOOK_S
    until = time.monotonic() + START_PATIENCE_S
    while True:
        connection = connect(place.socket(number), paths.name)
        if connection is not None:
            return connection
        if shielded(lambda: _start_locked(paths, place, number, around, packed)):
            continue
        now = time.monotonic()
        if deadline is not None and now >= deadline:
            raise TimeoutError("another process is starting the host")
        if now >= until:
            raise ServerUnavailable(
                f"manager {paths.name!r}: no host could be reached or started within {START_PATIENCE_S:g} s; the log "
                f"of hosts is {place.log}"
            )
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_LOOK_S)


def _start_locked(
    paths: ManagerPaths,
    place: Place,
    number: int,
    around: Surroundings,
    packed: Callable[[], Luggage],
) -> bool:
    """Start the host under its lock. False: somebody else has the lock."""
    import filelock

    lock = filelock.FileLock(place.lock(number), timeout=0, mode=0o600, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return False
    try:
        there = connect(place.socket(number), paths.name)
        if there is None:
            _start(paths, place, number, around, packed())
        else:
            there.close()
        return True
    finally:
        lock.release()


def _start(
    paths: ManagerPaths, place: Place, number: int, around: Surroundings, luggage: Luggage
) -> None:
    if os.environ.get(STARTED_VARIABLE):
        raise ConfigurationError(
            f"pool {luggage.pool!r}: this process is a host, which starts no other; a recipe must not check out of a "
            "hosted pool, and the application's script needs its `if __name__ == '__main__':`"
        )
    interpreter.check_startable(paths.name)
    _bound_log(place.log)
    reading, writing = os.pipe()
    feeding, fed = os.pipe()
    arguments = [
        interpreter.python(), "-c", _BOOTSTRAP, msgspec.json.encode(around.search_path).decode(),
        os.fspath(paths.runtime_dir), paths.name, os.fspath(place.socket(number)), str(number + 1),
    ]  # fmt: skip
    environment = {**around.environment, STARTED_VARIABLE: "1"}
    try:
        try:
            child = spawn(arguments, environment, feeding, place.log, writing)
        except OSError as error:
            raise ServerUnavailable(
                f"manager {paths.name!r}: a host could not be started with {interpreter.python()}: {error}"
            ) from error
        finally:
            os.close(writing)
            os.close(feeding)
        answer: bytes | None = None
        try:
            _feed(fed, msgspec.msgpack.encode(luggage))
            answer = answer_of(reading, time.monotonic() + START_PATIENCE_S)
        finally:
            reap(child, patient=answer is not None)
    finally:
        os.close(reading)
    if answer == READY:
        return
    if answer is not None and answer.startswith(REFUSED):
        text = answer.removeprefix(REFUSED).decode(errors="replace")
        raise ConfigurationError(f"pool {luggage.pool!r}: the host cannot use the recipe: {text}")
    raise ServerUnavailable(
        f"manager {paths.name!r}: the host of pool {luggage.pool!r} did not start; see {place.log}"
    )


def _feed(descriptor: int, data: bytes) -> None:
    """Write it all, and close. A host that has ended reads nothing, and its answer says so."""
    with os.fdopen(descriptor, "wb") as pipe:
        try:
            pipe.write(data)
            pipe.flush()
        except BrokenPipeError:
            log.debug("the host has ended before it had read what it was told")


def _bound_log(path: Path) -> None:
    try:
        if path.stat().st_size > _LONGEST_LOG:
            os.truncate(path, 0)
    except FileNotFoundError:
        pass
