"""pyodbc, imported on first use, with the driver manager's own pooling off.

With `Pooling=Yes` in odbcinst.ini unixODBC keeps sessions that were closed and hands them to
callers that connect with the same string: sessions that no cap counts, authenticated as those who opened
them. It reads that setting when a process allocates its first ODBC environment, and nothing takes
it back afterwards; `pyodbc.pooling = False` does not either. So before that moment the driver
manager is shown a private copy of the file that says `Pooling=No`.

Pooling needs both: the switch, and a `CPTimeout` above 0 in the section of the driver. Where no
section has one, which is how distributions ship, there is nothing to turn off.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from mppool.errors import ConfigurationError
from mppool.logs import Log
from mppool.process.fork import call_in_children
from mppool.rendezvous.paths import likely_runtime_dir, private_directory

logger = Log("mppool.odbc")

# Guards `_pyodbc` and `_private`, and that the driver manager is prepared once. Held while pyodbc
# is imported and its environment allocated; nothing else is done under it.
_lock = threading.Lock()
_pyodbc: ModuleType | None = None
_private: PrivateIni | None = None
_too_late = False


def _renew_lock() -> None:
    # Another thread may have held it at the fork.
    global _lock
    _lock = threading.Lock()


call_in_children(_renew_lock)


def load() -> ModuleType:
    """The module pyodbc, with driver-manager pooling off. Cheap from the second call on.

    Raises ConfigurationError, which says what to install, where pyodbc or libodbc is missing.
    """
    global _pyodbc
    module = _pyodbc
    if module is None:
        with _lock:
            if _pyodbc is None:
                module = _import()
                _turn_pooling_off(module)
                _pyodbc = module
            module = _pyodbc
    if _private is not None:
        _private.put_back()
    return module


def keeps_closed_sessions() -> bool:
    """Whether the driver manager pools sessions of its own, and it was too late to turn that off.

    It tells them apart by their connection strings alone: with access tokens, those must differ.
    """
    return _too_late


def _import() -> ModuleType:
    try:
        return importlib.import_module("pyodbc")
    except ModuleNotFoundError as error:
        if error.name != "pyodbc":
            raise
        raise ConfigurationError(
            "OdbcRecipe needs pyodbc, which is not installed: pip install 'mppool[odbc]' (and the "
            "driver manager unixodbc: apt-get install unixodbc)"
        ) from error
    except ImportError as error:
        raise ConfigurationError(
            f"pyodbc cannot be loaded: {error}. Its wheel brings no driver manager: install "
            "unixodbc (Debian, Ubuntu: apt-get install unixodbc)"
        ) from error


def _turn_pooling_off(module: ModuleType) -> None:
    global _private, _too_late
    vars(module)["pooling"] = False
    system, user = (
        _ini_directory() / _ini_name(),
        Path(os.environ.get("HOME", "/home"), ".odbcinst.ini"),
    )
    text = _read(system)
    both = text + "\n" + _read(user)
    if not keeps_sessions(both):
        return
    if says_pooling(both):
        _private = PrivateIni(system.parent, without_pooling(text))
        _private.put_back()
        with _environment(ODBCSYSINI=str(_private.directory), ODBCINSTINI=PrivateIni.NAME):
            in_time = _allocate_environment(module)
    else:
        in_time = _allocate_environment(module)
    _too_late = not in_time
    if not in_time:
        logger.warning(
            "this process used ODBC before mppool did, and %s (or %s) lets the driver manager pool "
            "connections (CPTimeout), which can no longer be turned off here: sessions that mppool "
            "closes may stay open, so max_size is not exact at the database; connections that are opened "
            "with access tokens get an APP of their own, so that nobody is handed another's. Set Pooling=No "
            "there, or open the first connection through mppool.",
            system,
            user,
        )


def _allocate_environment(module: ModuleType) -> bool:
    """Make pyodbc allocate its ODBC environment; False if it had done so before.

    pyodbc does not say whether it has one. But it reads its own attribute `pooling` exactly when it
    allocates it, and the class of a module may be exchanged to see that.
    """
    reads: list[bool] = []

    class Watched(ModuleType):
        @property
        def pooling(self) -> bool:
            reads.append(True)
            return False

    original = module.__class__
    module.__class__ = Watched
    try:
        module.drivers()
    finally:
        module.__class__ = original
    return bool(reads)


# --- odbcinst.ini --------------------------------------------------------------------------------

_SECTION = re.compile(r"^\s*\[(?P<name>[^\]]*)\]")
_SETTING = re.compile(r"^\s*(?P<name>[^=;#\[]+?)\s*=\s*(?P<value>.*?)\s*$")


def _settings(text: str) -> Iterator[tuple[str, str, str]]:
    """Section, name and value of each setting; section and name in lower case."""
    section = ""
    for line in text.splitlines():
        if found := _SECTION.match(line):
            section = found["name"].strip().lower()
        elif found := _SETTING.match(line):
            yield section, found["name"].lower(), found["value"]


def says_pooling(text: str) -> bool:
    """Whether an odbcinst.ini turns the driver manager's pooling on."""
    # unixODBC takes 1, and what begins with y or on. The first setting counts.
    values = [
        value for section, name, value in _settings(text) if (section, name) == ("odbc", "pooling")
    ]
    return bool(values) and values[0].lower().startswith(("1", "y", "on"))


def keeps_sessions(text: str) -> bool:
    """Whether a driver's section in an odbcinst.ini lets closed sessions be kept."""
    return any(
        name == "cptimeout" and not re.match(r"[+-]?0*(\D|$)", value)
        for _, name, value in _settings(text)
    )


def without_pooling(text: str) -> str:
    """The same odbcinst.ini with pooling off."""
    lines, section = ["[ODBC]", "Pooling=No"], ""
    rest: list[str] = []
    for line in text.splitlines():
        if found := _SECTION.match(line):
            section = found["name"].strip().lower()
            if section == "odbc":
                continue
        if section != "odbc":
            rest.append(line)
        elif not re.match(r"\s*pooling\s*=", line, re.IGNORECASE):
            lines.append(line)  # the section's other settings, tracing for one, stay
    return "\n".join([*lines, *rest]) + "\n"


def _ini_directory() -> Path:
    if configured := os.environ.get("ODBCSYSINI"):
        return Path(configured)
    # Which directory it is was decided when unixODBC was compiled. /etc is every distribution's
    # choice.
    for directory in ("/etc", "/usr/local/etc", "/usr/local/unixODBC/etc"):
        if Path(directory, _ini_name()).exists():
            return Path(directory)
    return Path("/etc")


def _ini_name() -> str:
    return os.environ.get("ODBCINSTINI") or "odbcinst.ini"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return ""
    except OSError as error:
        logger.warning("%s cannot be read (%s): taken as empty", path, error)
        return ""


class PrivateIni:
    """A directory with the private odbcinst.ini, and with the names of data sources as they were.

    unixODBC looks drivers up in it at every connect, so it must stay, and nobody else may write to it: a user that
    can has a library of its choice loaded here. So it lies in the runtime directory, and is looked at before
    every use. It is named after its content and shared by all processes of the user: nobody needs to remove
    it, and it does not multiply.
    """

    NAME = "odbcinst.ini"

    def __init__(self, original: Path, text: str) -> None:
        self._original = original
        self._content = text.encode("utf-8", errors="surrogateescape")
        digest = hashlib.blake2b(self._content + b"\0" + os.fsencode(original), digest_size=8)
        self._parent = Path(os.path.abspath(likely_runtime_dir()))
        # A comma: no manager has such a name.
        self.directory = self._parent / f"odbc,{digest.hexdigest()}"

    def put_back(self) -> None:
        """See to it that everything is there and as it was written: cleaners take files away.

        Raises ConfigurationError if others can write to the directory.
        """
        private_directory(self._parent)
        private_directory(self.directory)
        for name in ("odbc.ini", "ODBCDataSources"):
            _link(self.directory / name, self._original / name)
        target = self.directory / self.NAME
        if _own_content(target) == self._content:
            return
        descriptor, temporary = tempfile.mkstemp(dir=self.directory)
        with os.fdopen(descriptor, "wb") as file:
            file.write(self._content)
        os.replace(temporary, target)


def _own_content(path: Path) -> bytes | None:
    """What a file of this user holds that only this user may write to; None for any other, or none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        trusted = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
        return file.read() if trusted and not found.st_mode & 0o022 else None


def _link(link: Path, target: Path) -> None:
    """Have the link lead to the target, and nowhere else."""
    try:
        if os.readlink(link) == os.fspath(target):
            return
        link.unlink()
    except FileNotFoundError:
        pass  # it is made now
    except OSError as error:
        logger.debug("%s is not a symbolic link: %s", link, error)
        link.unlink()
    try:
        link.symlink_to(target)
    except FileExistsError:
        logger.debug("another process made %s first", link)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables that are only seen inside: children never inherit them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
