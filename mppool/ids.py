"""Names for the things that cross process boundaries.

None of them is an `id()`, an address or a bare pid: all of those are recycled while somebody still
remembers the old owner.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NewType

import msgspec

# Not hashlib: that brings OpenSSL along, which costs every process 3.6 MB, and 2 ms when it starts. And not where they are
# used: a child that is forked while a thread imports something may find half of it.
try:
    from _blake2 import blake2b

    if sys.version_info >= (3, 12):
        from _sha2 import sha256  # type: ignore[import-not-found, unused-ignore]
    else:
        from _sha256 import sha256  # type: ignore[import-not-found, unused-ignore]
except ImportError:  # another Python than CPython
    from hashlib import blake2b, sha256

# The number of a grant: the epoch of the server that gave it in the upper bits, a sequence in the lower
# ones. It is never given twice, also not by the next server, so a message about an old grant can be told
# from one about a new grant of the same slot.
GrantNumber = NewType("GrantNumber", int)

# Names one waiting checkout of one process. Never reused within a process.
Ticket = NewType("Ticket", int)

# One attachment of one process to one server. A process that attaches again gets a new one, and what
# was said under the old one is void.
Session = NewType("Session", int)

SEQUENCE_BITS = 32


def grant_number(epoch: int, sequence: int) -> GrantNumber:
    """The number of the `sequence`-th grant of the server with this epoch."""
    return GrantNumber(epoch << SEQUENCE_BITS | sequence)


def epoch_of(number: GrantNumber) -> int:
    """Of the server that gave this number."""
    return number >> SEQUENCE_BITS


class GrantNumbers:
    """The numbers of one server's grants, one after the other. epoch: counts the servers of one manager."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self._sequence = 0

    def next(self) -> GrantNumber:
        """A number that was never given."""
        self._sequence += 1
        return grant_number(self.epoch, self._sequence)


class ProcessId(msgspec.Struct, frozen=True, array_like=True, order=True, cache_hash=True):
    """A process: its pid and its time of birth, in clock ticks since boot (the pid alone is recycled).

    member: random, where there may be several copies of mppool in the process, or one after the other: a
        subinterpreter, modules that were loaded twice, a program that the process has exec'ed. The books of one
        are not the books of another. 0: of an older release, or of a server. Odd: a descriptor is open for as
        long as the member is there, see `witness_name`.
    """

    pid: int
    birth: int
    member: int = 0

    def __str__(self) -> str:
        return f"{self.pid}@{self.birth}"


def witness_name(member: int) -> str:
    """The name of the memory file that a member keeps open; exec closes it, and a fork does not take it along.

    It is seen in /proc/PID/fd, and tells a process that lives from a member that lives.
    """
    return f"mppool-member-{member:x}"


def birth_of(pid: int) -> int | None:
    """Birth of a process in clock ticks since boot, or None if there is none, or none to be seen."""
    try:
        return _stat(str(pid))[1]
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # the last: hidepid=1
        return None


def _stat(directory: str) -> tuple[int, int]:
    """Pid and birth, as /proc says.

    Source: fields 1 and 22 (starttime) of /proc/PID/stat, see proc(5). The second field may hold blanks and
    brackets, so fields are counted from the last bracket.
    """
    # Bytes: a codec would be imported at its first use, and a fork may fall into the middle of that.
    text = Path(f"/proc/{directory}/stat").read_bytes()
    return int(text.partition(b" ")[0]), int(text.rpartition(b")")[2].split()[19])


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped (SIGSTOP, a debugger), so that it does nothing before it is continued.

    Source: field 3 (state) of /proc/PID/stat, see proc(5).
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split(maxsplit=1)[0] in ("T", "t")


def own_process() -> ProcessId:
    """The ProcessId of the calling process. Elsewhere than on Linux a process keeps its own books, for itself."""
    pid = os.getpid()
    if sys.platform != "linux":
        return ProcessId(pid, 0)
    try:
        seen, birth = _stat("self")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        seen, birth = None, 0
    if seen != pid:  # /proc is not mounted, or shows another pid namespace
        from mppool.errors import ConfigurationError

        what = "cannot be read" if seen is None else f"says that this is process {seen}, not {pid}"
        raise ConfigurationError(
            f"/proc/self/stat {what}: mppool needs a /proc of its own pid namespace to tell "
            "processes apart; mount proc in this container or chroot"
        )
    return ProcessId(pid, birth)


def key_of(fingerprint: str, identity: str | None) -> str:
    """The key of a resource: what is opened, and for whom. Only equal keys are interchangeable."""
    return fingerprint if identity is None else f"{fingerprint}\0{identity}"


def sha256_of(data: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return str(sha256(data).hexdigest())


def sealed_with(secret: bytes, fingerprint: str) -> str:
    """A hash that says nothing of the fingerprint to those who do not know the secret."""
    if not secret:
        return fingerprint
    return "k:" + blake2b(fingerprint.encode(), key=secret, digest_size=16).hexdigest()


def identity_of(key: str) -> str | None:
    """The identity part of a key."""
    return key.partition("\0")[2] or None
