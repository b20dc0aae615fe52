"""How the death of a process is proved, and which process is at the other end of a socket.

A pidfd is a handle on one process: it becomes readable at its death and never means its pid's next
owner. The end of a connection proves nothing, because a forked child may hold a copy of the socket, and a
living process may have closed its own.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from mppool.errors import ConfigurationError
from mppool.ids import ProcessId, birth_of, own_process, witness_name

SO_PEERPIDFD = 77
"""Linux 6.5 and later; the socket module does not name it yet."""

_UCRED = struct.Struct("3i")  # struct ucred, see unix(7)


@dataclass(frozen=True)
class Peer:
    """What the kernel says about the other end, at the time it connected."""

    pid: int
    uid: int


def peer_of(connection: socket.socket) -> Peer:
    """Credentials of the process that connected. Its pid is 0 if it lives in another pid namespace."""
    pid, uid, _gid = _UCRED.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    )
    return Peer(pid, uid)


def watch_peer(connection: socket.socket, process: ProcessId) -> int | None:
    """A pidfd of the process that connected, or None if it is dead or is not `process`."""
    try:
        pidfd = connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError as error:
        # Only ENOPROTOOPT says that the kernel is older; anything else is about this peer.
        if error.errno == errno.ENOPROTOOPT:
            return watch_process(process)
        if error.errno in {errno.ESRCH, errno.EINVAL, errno.ENODATA}:
            return None
        raise
    os.set_inheritable(pidfd, False)
    return _verified(pidfd, process)


def watch_process(process: ProcessId) -> int | None:
    """A pidfd of the process, or None if it is dead. Any user's process may be watched."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except (ProcessLookupError, ValueError, OverflowError):
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:  # not a pid, or a thread's
            return None
        raise
    return _verified(pidfd, process)


def is_dead(pidfd: int) -> bool:
    """Whether the process behind the pidfd has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def lives(process: ProcessId) -> bool:
    """Whether exactly this process, not its pid's next owner, is alive."""
    try:
        pidfd = watch_process(process)
    except OSError:  # no descriptor to be had, or the call is forbidden: /proc says it, too
        return birth_of(process.pid) == process.birth
    if pidfd is None:
        return False
    os.close(pidfd)
    return True


def check_watching() -> None:
    """Raises ConfigurationError, which says the way out, where processes cannot be watched or told apart."""
    own_process()
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}:
            return  # that is another matter, and passes
        reason = error.strerror if isinstance(error, OSError) else "this Python does not know it"
        raise ConfigurationError(
            f"mppool cannot watch processes here: the system call pidfd_open fails ({reason}). It needs Linux 5.3 or "
            "newer, and a seccomp profile (of the container, of systemd's SystemCallFilter=) that allows "
            "pidfd_open; or set MPPOOL_ALONE=1: then each process pools for itself alone"
        ) from error


def _verified(pidfd: int, process: ProcessId) -> int | None:
    """The pidfd, if it is a living process's with that birth; else it is closed.

    The pid cannot have changed hands between the two looks if the process behind the pidfd lives after
    the second. A living process without a birth is one that /proc hides (hidepid=, and a process that has
    changed its user): it counts as the one that is meant, because its slots must not be given away.
    """
    if birth_of(process.pid) in {process.birth, None} and not is_dead(pidfd):
        return pidfd
    os.close(pidfd)
    return None


def can_be_witnessed(process: ProcessId) -> bool:
    """Whether a descriptor tells whether this member is there; else only the death of its process does."""
    return bool(process.member & 1)


def is_witnessed(process: ProcessId) -> bool:
    """Whether a living process has its member's descriptor open. True also where that cannot be seen.

    False is a proof: a forked child has a table of its own, and a stopped process keeps what it has open.
    """
    wanted = f"/memfd:{witness_name(process.member)} "
    directory = f"/proc/{process.pid}/fd"
    try:
        for descriptor in os.listdir(directory):
            try:
                if os.readlink(f"{directory}/{descriptor}").startswith(wanted):
                    return True
            except FileNotFoundError:
                continue  # closed meanwhile
        # The main thread may have ended before the others; then /proc shows no descriptors.
        state = Path(f"/proc/{process.pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return True
    return state in b"ZXx" or birth_of(process.pid) != process.birth
