"""Where the files of a manager lie, and whether that place can be trusted.

<runtime directory>/          0700, owned by the effective user
    s-<hash>-<epoch>          the socket of a living server (here, for its path must be short)
    <manager name>/
        address               which server serves now; replaced atomically
        start.lock            held by whoever is starting a server; never unlinked
        alive.lock            held by the server for life; never unlinked
        journal               who holds which slot
        log, log.1            of the server, bounded
        members/              one file per attached process
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mppool.errors import ConfigurationError
from mppool.ids import ProcessId
from mppool.options import checked_name

RUNTIME_DIR_VARIABLE = "MPPOOL_RUNTIME_DIR"
SYSTEM_TEMPORARY_DIR = "/tmp"  # noqa: S108 - not $TMPDIR: shells, services and tox would disagree
SUN_PATH_BYTES = 107
"""What sockaddr_un.sun_path holds besides its NUL, see unix(7)."""
_LONGEST_SOCKET_NAME = len("s-") + 12 + len("-") + 8


@dataclass(frozen=True)
class ManagerPaths:
    """The files of one manager. Making one does no I/O; `prepare` makes and checks the directories."""

    runtime_dir: Path
    name: str

    @property
    def directory(self) -> Path:
        """Everything of this manager but its socket."""
        return self.runtime_dir / self.name

    @property
    def address(self) -> Path:
        """Names the serving process and its socket."""
        return self.directory / "address"

    @property
    def start_lock(self) -> Path:
        """Lock of those who start a server."""
        return self.directory / "start.lock"

    @property
    def alive_lock(self) -> Path:
        """Lock of the server itself."""
        return self.directory / "alive.lock"

    @property
    def journal(self) -> Path:
        """What the next server must know."""
        return self.directory / "journal"

    @property
    def log(self) -> Path:
        """The server's standard output and error."""
        return self.directory / "log"

    @property
    def members(self) -> Path:
        """One file per attached process."""
        return self.directory / "members"

    def socket(self, epoch: int) -> Path:
        """The socket of the server with this epoch.

        In the runtime directory under a hash, because the manager's name may have 64 letters and a
        socket's whole path at most 107.
        """
        return self.runtime_dir / f"{self.socket_prefix}{epoch & 0xFFFFFFFF:08x}"

    @property
    def socket_prefix(self) -> str:
        """How the names of this manager's sockets begin."""
        return f"s-{hashlib.sha256(self.name.encode()).hexdigest()[:12]}-"

    def prepare(self) -> None:
        """Make the directories where they are missing, and refuse such as others could tamper with."""
        _private_directory(self.runtime_dir)
        _private_directory(self.directory)
        _private_directory(self.members)


def likely_runtime_dir(runtime_dir: str | os.PathLike[str] | None = None) -> str:
    """The runtime directory for this argument, environment and effective user."""
    given = (
        os.fspath(runtime_dir) if runtime_dir is not None else os.environ.get(RUNTIME_DIR_VARIABLE)
    )
    return given or os.path.join(SYSTEM_TEMPORARY_DIR, f"mppool-{os.geteuid()}")


def manager_paths(name: str, runtime_dir: str | os.PathLike[str] | None = None) -> ManagerPaths:
    """The paths of a manager for the *effective* user of the calling process, without I/O.

    Ask again after a fork: a root master's workers may run as somebody else.
    """
    checked_name("manager", name)
    path = Path(os.path.abspath(likely_runtime_dir(runtime_dir)))
    length = len(os.fsencode(path)) + 1 + _LONGEST_SOCKET_NAME
    if length > SUN_PATH_BYTES:
        raise ConfigurationError(
            f"the runtime directory {path} is too long: sockets in it would have paths of {length} bytes, and "
            f"the system allows {SUN_PATH_BYTES}; choose a directory at least {length - SUN_PATH_BYTES} bytes "
            f"shorter with runtime_dir= or ${RUNTIME_DIR_VARIABLE}"
        )
    return ManagerPaths(path, name)


def _private_directory(path: Path) -> None:
    """Make the directory with mode 0700 if it is missing, then check that it is ours and nobody else's."""
    try:
        try:
            path.mkdir(0o700)
            path.chmod(0o700)  # the umask may have taken some of it
        except FileExistsError:
            pass
        except FileNotFoundError:
            path.parent.mkdir(0o700, parents=True, exist_ok=True)
            path.mkdir(0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise ConfigurationError(
            f"the runtime directory {path} cannot be used: {error.strerror or error}; choose another with "
            f"runtime_dir= or ${RUNTIME_DIR_VARIABLE}"
        ) from error
    problem = distrust(path, found)
    if problem is not None:
        raise ConfigurationError(
            f"the runtime directory {path} cannot be trusted: {problem}, or choose another with "
            f"runtime_dir= or ${RUNTIME_DIR_VARIABLE}"
        )


def distrust(path: Path, found: os.stat_result) -> str | None:
    """Why a directory with this lstat cannot be trusted, and what to do; None if it can."""
    if stat.S_ISLNK(found.st_mode):
        return "it is a symbolic link; name the directory that it leads to"
    if not stat.S_ISDIR(found.st_mode):
        return "it is not a directory; remove it"
    if found.st_uid != os.geteuid():
        return f"it belongs to user {found.st_uid}, and this process runs as user {os.geteuid()}; run as that user"
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        return f"its mode is {mode:04o}, so others can get at it; run: chmod 700 {path}"
    return None


class Address(msgspec.Struct, frozen=True):
    """The contents of the address file: who serves, and where. New fields need a default."""

    server: ProcessId
    epoch: int
    socket: str
    version: str


def read_address(paths: ManagerPaths) -> Address | None:
    """What the address file says, or None if there is none or it is damaged. Its server may be dead."""
    try:
        return msgspec.json.decode(paths.address.read_bytes(), type=Address)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, msgspec.MsgspecError):
        return None  # written by something else; the next server replaces it
