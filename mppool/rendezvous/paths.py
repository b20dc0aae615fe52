"""Where the files of a manager lie, and whether that place can be trusted.

<runtime directory>/          0700, owned by the effective user
    secret,fingerprints       what fingerprints are hashed with, made once
    odbc,<hash>/              the private odbcinst.ini, see mppool.odbc.driver_manager
    s-<hash>-<epoch>          the socket of a living server (here, because its path must be short)
    h-<hash>-<number>         the socket of a host
    <manager name>/
        address               which server serves now; replaced atomically
        start.lock            held by the process that is starting a server; never unlinked
        alive.lock            held by the server for life; never unlinked
        journal               who holds which slot
        machine               this machine's identity, and its last lease, where machines share caps
        living                a byte for each attached process, locked while it lives
        log, log.1            of the server, bounded
        members/              one file per attached process
        host-<hash>-<n>.lock  held by a process that starts a host; never unlinked
        hosts.log             of all hosts
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mppool.errors import ConfigurationError
from mppool.ids import ProcessId, sha256_of
from mppool.options import checked_name

RUNTIME_DIR_VARIABLE = "MPPOOL_RUNTIME_DIR"
SYSTEM_TEMPORARY_DIR = "/tmp"  # noqa: S108 - not $TMPDIR: shells, services and tox would disagree
SUN_PATH_BYTES = 107
"""What sockaddr_un.sun_path holds apart from its NUL, see unix(7)."""
_LONGEST_SOCKET_NAME = len("s-") + 12 + len("-") + 8
_SOCKET_NAME = re.compile(r"s-[0-9a-f]{12}-[0-9a-f]{8}")
_HOST_NAME = re.compile(r"h-[0-9a-f]{12}-[0-9a-f]{1,8}")
_LONGEST_ADDRESS = 4096
_SECRET_BYTES = 32


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
        """Lock of the processes that start a server."""
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

    @property
    def living(self) -> Path:
        """Each process that has attached holds a lock on one byte of it."""
        return self.directory / "living"

    @property
    def machine(self) -> Path:
        """Who this machine is to others, and since when its last lease counts."""
        return self.directory / "machine"

    @property
    def secret(self) -> Path:
        """What fingerprints are hashed with, of all managers of the directory."""
        return self.runtime_dir / "secret,fingerprints"  # a comma: no manager has such a name

    @property
    def kept(self) -> list[Path]:
        """What must not look old to cleaners, also where nobody writes to it."""
        return [
            self.runtime_dir,
            self.directory,
            self.address,
            self.alive_lock,
            self.living,
            self.secret,
        ]

    def socket(self, epoch: int) -> Path:
        """The socket of the server with this epoch.

        In the runtime directory under a hash, because the manager's name may have 64 letters and a
        socket's whole path at most 107.
        """
        return self.runtime_dir / f"{self.socket_prefix}{epoch & 0xFFFFFFFF:08x}"

    @property
    def socket_prefix(self) -> str:
        """How the names of this manager's sockets begin."""
        return f"s-{sha256_of(self.name.encode())[:12]}-"

    def prepare(self) -> None:
        """Make the directories where they are missing, and refuse such as others could tamper with."""
        private_directory(self.runtime_dir)
        private_directory(self.directory)
        private_directory(self.members)


def named_by_environment() -> str | None:
    """The directory that the environment names, if it names one.

    A relative name is made absolute where it is first seen, in the environment itself: this process may change
    its directory later, as daemons do, and its children must meet where it meets.
    """
    named = os.environ.get(RUNTIME_DIR_VARIABLE)
    if named and not os.path.isabs(named):
        named = os.environ[RUNTIME_DIR_VARIABLE] = os.path.abspath(named)
    return named or None


def likely_runtime_dir(runtime_dir: str | os.PathLike[str] | None = None) -> str:
    """The runtime directory for this argument, environment and effective user."""
    given = os.fspath(runtime_dir) if runtime_dir is not None else named_by_environment()
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


def private_directory(path: Path) -> None:
    """Make the directory with mode 0700 if it is missing, then check that it is ours and nobody else's."""
    try:
        _make(path)
    except OSError as error:
        raise ConfigurationError(
            f"the runtime directory {path} cannot be used: {error.strerror or error}; choose another with "
            f"runtime_dir= or ${RUNTIME_DIR_VARIABLE}"
        ) from error
    check_trust(path)


def _make(path: Path) -> None:
    """The directory and those above it, as far as they are missing, all with mode 0700."""
    try:
        path.mkdir(0o700)
    except FileExistsError:
        return
    except FileNotFoundError:
        _make(path.parent)
        _make(path)
    else:
        path.chmod(0o700)  # the umask may have taken some of it


def check_trust(path: Path) -> None:
    """Raises ConfigurationError for a directory that others could tamper with, FileNotFoundError for none."""
    try:
        problem = distrust(path, path.lstat())
    except FileNotFoundError:
        raise
    except OSError as error:
        problem = error.strerror or str(error)
    if problem is not None:
        raise ConfigurationError(
            f"the runtime directory {path} cannot be trusted: {problem}; or choose another with "
            f"runtime_dir= or ${RUNTIME_DIR_VARIABLE}"
        )


def distrust(path: Path, found: os.stat_result) -> str | None:
    """Why a directory with this lstat cannot be trusted, and what to do; None if it can."""
    if stat.S_ISLNK(found.st_mode):
        return "it is a symbolic link; name the directory that it leads to"
    if not stat.S_ISDIR(found.st_mode):
        return "it is not a directory; name one, or a path where one can be made"
    if found.st_uid != os.geteuid():
        return f"it belongs to user {found.st_uid}, and this process runs as user {os.geteuid()}; run as that user"
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        return f"its mode is {mode:04o}, so others can get at it; {_way_out(path)}"
    above = os.stat(path.parent)
    if above.st_mode & 0o1002 == 0o002:
        return (
            f"anybody may remove it, because the mode of {path.parent} is {stat.S_IMODE(above.st_mode):04o}; "
            "name one that lies elsewhere"
        )
    return None


def _way_out(path: Path) -> str:
    """Advice for a directory of this user that others can enter: what others use as well is not to be closed."""
    if all(_is_of_mppool(entry) for entry in path.iterdir()):
        return f"run: chmod 700 {shlex.quote(os.fspath(path))}"
    return f"name a directory of its own, such as {path / 'mppool'}"


def _is_of_mppool(entry: Path) -> bool:
    manager = entry if entry.is_dir() else entry.parent
    is_socket = _SOCKET_NAME.fullmatch(entry.name) or _HOST_NAME.fullmatch(entry.name)
    return bool(is_socket) or (manager / "alive.lock").exists()


def fingerprint_secret(paths: ManagerPaths) -> bytes:
    """What the fingerprints of recipes are hashed with: random, made once for each runtime directory.

    A fingerprint is made of a connection string with its password, and lies in the journal: without the secret nobody can try
    passwords out on a copy of that.
    """
    paths.prepare()
    path = paths.secret
    try:
        return _read_secret(path) or _make_secret(path)
    except OSError as error:
        if error.errno in _LACKING | _FULL:
            raise
        raise ConfigurationError(
            f"{path} cannot be had: {error.strerror or error}; choose another directory with runtime_dir= or "
            f"${RUNTIME_DIR_VARIABLE}"
        ) from error


def _read_secret(path: Path) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        secret = os.read(descriptor, _SECRET_BYTES)
    finally:
        os.close(descriptor)
    if len(secret) == _SECRET_BYTES:
        return secret
    path.unlink()  # damaged
    return None


def _make_secret(path: Path) -> bytes:
    """Make it, or take that of a process that was faster."""
    import tempfile

    descriptor, temporary = tempfile.mkstemp(prefix="secret,", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.urandom(_SECRET_BYTES))
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass  # another process was faster
    finally:
        os.unlink(temporary)
    secret = _read_secret(path)
    if secret is None:
        raise OSError("somebody removes it")
    return secret


class Address(msgspec.Struct, frozen=True):
    """The contents of the address file: who serves, and where. New fields need a default."""

    server: ProcessId
    epoch: int
    socket: str
    version: str


_LACKING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""What says nothing of a file or directory: it would be wrong to advise that it is removed."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

_address_decoder = msgspec.json.Decoder(Address)


def read_address(paths: ManagerPaths) -> Address | None:
    """What the address file says, or None if there is none or it is damaged. Its server may be dead.

    Raises ConfigurationError where the file or its directory could be somebody else's: also root follows no
    address that another user wrote. OSError where the system is short of something: that passes.
    """
    try:
        for directory in (paths.runtime_dir, paths.directory):
            check_trust(directory)
        # Not blocking: for a FIFO that somebody put there.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(paths.address, flags)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in _LACKING:
            raise
        raise ConfigurationError(
            f"{paths.address} cannot be read: {error.strerror}; remove it, or choose another directory with "
            f"runtime_dir= or ${RUNTIME_DIR_VARIABLE}"
        ) from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise ConfigurationError(
                f"{paths.address} is not a file of user {os.geteuid()}; remove it, or choose another directory "
                f"with runtime_dir= or ${RUNTIME_DIR_VARIABLE}"
            )
        content = os.read(descriptor, _LONGEST_ADDRESS)
    finally:
        os.close(descriptor)
    try:
        address = _address_decoder.decode(content)
    except (ValueError, msgspec.MsgspecError):
        return None  # written by something else; the next server replaces it
    return address if _SOCKET_NAME.fullmatch(address.socket) else None
