"""The server's own files: the lock that makes it the only one, its socket, and the address file.

Cleaners of temporary directories remove files of living servers, and people remove whole directories.
`look_after` puts back what vanished; where another server has meanwhile taken the place, ours must leave.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from pathlib import Path

import msgspec

from mppool._version import __version__
from mppool.errors import ConfigurationError, ServerUnavailable
from mppool.ids import own_process
from mppool.rendezvous import liveness
from mppool.rendezvous.paths import Address, ManagerPaths, read_address

log = logging.getLogger(__name__)

BACKLOG = 4096
"""Connects beyond it would fail with EAGAIN; the kernel caps it at net.core.somaxconn."""
_CLAIM_INTERVAL_S = 0.002
ADDRESS_BYTES = 512
"""An address file is always so long, filled up with blanks."""


class Rendezvous:
    """Where clients find this server. Not thread-safe: it belongs to the loop's thread.

    The mutable state is: the descriptor of the alive lock, the listening socket, the published address.
    """

    def __init__(self, paths: ManagerPaths) -> None:
        self.paths = paths
        self.listener: socket.socket | None = None
        self.address: Address | None = None
        self._lock = -1
        self._socket_file: tuple[int, int] | None = None

    def claim(self, patience_s: float) -> None:
        """Take the alive lock, held until `close`. ServerUnavailable if a living server has it.

        A server that was just killed holds its lock until the kernel has closed all its files, and one that
        leaves until it has left, so it is given time.
        """
        self.paths.prepare()
        deadline = time.monotonic() + patience_s
        while True:
            # Opened again each time: a lock file that was replaced meanwhile is not the one to have.
            self._lock = _open_lock(self.paths.alive_lock)
            if _try_lock(self._lock) and _leads_to(self.paths.alive_lock, self._lock):
                return
            os.close(self._lock)
            self._lock = -1
            address = read_address(self.paths)
            is_served = address is not None and liveness.lives(address.server)
            if is_served or time.monotonic() >= deadline:
                who = f" with pid {address.server.pid}" if address else ""
                raise ServerUnavailable(
                    f"a server{who} already serves manager {self.paths.name!r} in {self.paths.runtime_dir}: "
                    "connect to it instead of starting another"
                )
            time.sleep(_CLAIM_INTERVAL_S)

    def last_epoch(self) -> int:
        """Epoch of the last server here; 0 if none is known.

        Kept in the lock file, which outlives journals: numbers of grants must not come again, also not
        after an orderly leave.
        """
        text = os.pread(self._lock, 32, 0).strip()
        return int(text) if text.isdigit() else 0

    def _remember_epoch(self, epoch: int) -> None:
        os.pwrite(self._lock, f"{epoch:<31}\n".encode("ascii"), 0)

    def listen(self, epoch: int) -> None:
        """Open the socket. Sockets of earlier servers are removed: the lock proves that they are dead."""
        self._remember_epoch(epoch)
        for stale in self.paths.runtime_dir.glob(f"{self.paths.socket_prefix}*"):
            stale.unlink(missing_ok=True)
        path = self.paths.socket(epoch)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.setblocking(False)
            listener.bind(os.fspath(path))
            path.chmod(0o600)
            listener.listen(BACKLOG)
            self._socket_file = _file_identity(path)
        except BaseException:
            listener.close()
            raise
        self.listener = listener  # the one before, if any, is the caller's to empty and close
        self.address = Address(own_process(), epoch, path.name, __version__)

    def publish(self) -> None:
        """Replace the address file, in one step, after the socket listens.

        The file already has its blocks, so that this succeeds where the disk is full: the file that was
        replaced becomes the next spare one.
        """
        assert self.address is not None
        spare, before = self._spare_address(), self.paths.directory / "address.before"
        write_in_place(spare, msgspec.json.encode(self.address).ljust(ADDRESS_BYTES))
        _link_again(self.paths.address, before)
        spare.replace(self.paths.address)
        try:
            if before.exists():
                before.replace(spare)
            else:
                write_in_place(spare, bytes(ADDRESS_BYTES))
        except OSError as error:
            log.info("there is no spare address file yet: %s", error.strerror)

    def _spare_address(self) -> Path:
        spare, before = (
            self.paths.directory / "address.spare",
            self.paths.directory / "address.before",
        )
        if before.exists() and not spare.exists():  # the last server was killed in between
            before.replace(spare)
        return spare

    def look_after(self) -> bool:
        """Put back what vanished. False if another server has taken the place, or none can be had."""
        assert self.address is not None
        try:
            self.paths.prepare()
        except ConfigurationError as error:
            log.error("the runtime directory is lost: %s", error)
            return False
        if not self._keep_lock():
            return False
        if _file_identity(self.paths.socket(self.address.epoch)) != self._socket_file:
            log.info("the socket vanished and is put back")
            self.listen(self.address.epoch)
            self.publish()
        elif not self._is_published():
            log.info("the address file vanished and is put back")
            self.publish()
        for path in self.paths.kept:
            try:
                os.utime(path)  # cleaners of temporary directories go by age
            except FileNotFoundError:
                log.debug("%s is not there", path)
        return True

    def _keep_lock(self) -> bool:
        if _leads_to(self.paths.alive_lock, self._lock):
            return True
        descriptor = _open_lock(self.paths.alive_lock)
        if not (_try_lock(descriptor) and _leads_to(self.paths.alive_lock, descriptor)):
            os.close(descriptor)
            log.info("the lock file was replaced, and another server holds it")
            return False
        log.info("the lock file vanished and is put back")
        os.close(self._lock)
        self._lock = descriptor
        if self.address is not None:
            self._remember_epoch(self.address.epoch)
        return True

    def _is_published(self) -> bool:
        try:
            return read_address(self.paths) == self.address
        except (ConfigurationError, OSError) as error:
            log.warning("%s", error)
            return False

    def withdraw(self) -> None:
        """Let nobody find this server any more. Files that are another server's stay."""
        if self.address is None:
            return
        if self._is_published():
            self.paths.address.replace(self._spare_address())  # not removed: its blocks are kept
        path = self.paths.socket(self.address.epoch)
        if _file_identity(path) == self._socket_file:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Give up socket and lock: another server may start."""
        if self.listener is not None:
            self.listener.close()
            self.listener = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def write_in_place(path: Path, content: bytes) -> None:
    """Write from the start of a file, which is made where it is missing."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))
    finally:
        os.close(descriptor)


def _link_again(path: Path, other: Path) -> None:
    """Give a file a second name, where there is one and the file system knows such."""
    other.unlink(missing_ok=True)
    try:
        os.link(path, other, follow_symlinks=False)
    except OSError as error:
        log.debug("%s: %s", path, error)


def _open_lock(path: Path) -> int:
    # The same file lock as filelock's (flock), without its import: that costs 20 ms of every start.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _file_identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _leads_to(path: Path, descriptor: int) -> bool:
    mine = os.fstat(descriptor)
    return _file_identity(path) == (mine.st_dev, mine.st_ino)
