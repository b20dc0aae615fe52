"""Where pids mean something, and a sign of life that is seen from elsewhere.

A pid and a time of birth name a process within one boot and one pid namespace. Two containers with one directory
cannot look each other's processes up. But a lock on a file is seen from everywhere: so each process that attaches
locks one byte of the file `living`, at a place that says its namespace and its pid, and the kernel takes the lock
back at its death. A server that finds the lock of another namespace does not start: what it found in the journal
would mean nothing to it, and void it must not be.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from mppool.errors import ConfigurationError
from mppool.logs import Log

if TYPE_CHECKING:
    from mppool.rendezvous.paths import ManagerPaths

log = Log("mppool")

_PID_BITS = 22  # pid_max is 2**22 at most, see proc_sys_kernel(5)
_FLOCK = struct.Struct("hhqqi4x")  # struct flock, see fcntl_locking(2)


def boot_id() -> str:
    """Names the running boot of this machine, see random(4); "" where /proc shows processes only (subset=pid)."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError as error:
        log.info("the boot is not known: %s", error)
        return ""
    return text.strip()


def may_be_one_boot(one: str, other: str) -> bool:
    """Whether two names of boots can be of the same.

    Where one is not known, yes: what the dead have left is found out by their births, and must not be forgotten
    while they may live.
    """
    return one == other or not one or not other


def pid_namespace_inode() -> int:
    """Names the pid namespace in which this process's pids mean something, see pid_namespaces(7)."""
    return os.stat("/proc/self/ns/pid").st_ino


class SignOfLife:
    """The lock of this process in `living`; a forked child has none.

    The lock belongs to the process: it ends as soon as anything in the process closes any descriptor of that file.
    So a process has one such descriptor, which all of its members use, and which is never closed (decision 42).
    """

    def __init__(self, paths: ManagerPaths) -> None:
        """OSError where that cannot be had."""
        self._path = paths.living
        descriptor = _own_descriptor(self._path)
        if descriptor is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self._path, flags, 0o600)
        self._descriptor = descriptor
        place = pid_namespace_inode() << _PID_BITS | os.getpid()
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)

    def is_seen(self) -> bool:
        """Whether the path still leads to the file that is locked.

        A program may have closed descriptors that it did not know, and the number may be another file's by now.
        """
        try:
            return self._descriptor in _leading_to(self._path, [self._descriptor])
        except OSError:
            return False


def _own_descriptor(path: Path) -> int | None:
    """A descriptor of this process for that file, whichever copy of this library opened it."""
    try:
        descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
        found = _leading_to(path, descriptors)
    except FileNotFoundError:
        return None
    return found[0] if found else None


def _leading_to(path: Path, descriptors: list[int]) -> list[int]:
    """Those of the descriptors that are open for the file at this path. FileNotFoundError where there is none."""
    there = os.stat(path, follow_symlinks=False)
    found = []
    for descriptor in descriptors:
        try:
            mine = os.fstat(descriptor)
        except OSError:  # it was closed meanwhile
            continue
        if (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino):
            found.append(descriptor)
    return found


def check_no_other_world(paths: ManagerPaths) -> None:
    """Raises ConfigurationError where a process of another pid namespace lives that has attached here."""
    own_descriptor = _own_descriptor(
        paths.living
    )  # of a process that serves, and has pools of its own
    try:
        descriptor = (
            os.open(paths.living, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            if own_descriptor is None
            else own_descriptor
        )
    except FileNotFoundError:
        return
    own = pid_namespace_inode()
    try:
        below = _is_locked(descriptor, 0, own << _PID_BITS)
        above = _is_locked(descriptor, own + 1 << _PID_BITS, 0)
    finally:
        if own_descriptor is None:
            os.close(descriptor)
    if below or above:
        raise ConfigurationError(
            f"processes of another pid namespace (container) use manager {paths.name!r} in {paths.runtime_dir}, and "
            "nobody here can tell which of them live: give each container its own MPPOOL_RUNTIME_DIR, or share one "
            "pid namespace between them"
        )


def _is_locked(descriptor: int, start: int, length: int) -> bool:
    """Whether another process holds a lock there; length 0: up to the end."""
    wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, wanted)
    except OSError as error:
        if error.errno in {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}:
            return False  # a file system without locks
        raise
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
