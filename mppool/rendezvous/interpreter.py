"""Which interpreter becomes the server, and what it is given: never the application once more.

`sys.executable` is not an interpreter where Python is a guest (uwsgi) or was packed up with a program (PyInstaller,
Nuitka). Started "as the server", such a program would run the application again, which would start the next one.
"""

from __future__ import annotations

import os
import re
import sys

import msgspec

from mppool.errors import ConfigurationError

PYTHON_VARIABLE = "MPPOOL_PYTHON"
STARTED_VARIABLE = "MPPOOL_STARTED_AS_SERVER"
"""Set in what is started as a server, so that it never starts another, whatever it turns out to be."""

_KEPT_VARIABLES = frozenset({"PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH"})
_KEPT_PREFIXES = ("LC_", "MPPOOL_")
_INTERPRETER = re.compile(r"python|pypy|graalpy", re.IGNORECASE)


def check_startable(manager: str) -> None:
    """Raises ConfigurationError, which says the way out, where this process cannot start a server."""
    why = _why_not()
    if why is not None:
        raise ConfigurationError(
            f"manager {manager!r}: no server can be started from this process: {why}. Set ${PYTHON_VARIABLE} to "
            f"a Python {sys.version_info[0]}.{sys.version_info[1]} interpreter that has mppool installed, or have "
            "another process start the server, or set MPPOOL_ALONE=1 (then this process pools for itself alone)"
        )


def _why_not() -> str | None:
    if os.environ.get(STARTED_VARIABLE):
        return "it was itself started as a server, by an mppool that took its program for a Python interpreter"
    if os.environ.get(PYTHON_VARIABLE):
        return None
    if is_frozen():
        return f"it is a frozen program, so {sys.executable or 'its file'} need not be a Python interpreter"
    if not sys.executable:
        return "sys.executable is empty, so it is not known where there is a Python interpreter"
    names = (os.path.basename(sys.executable), os.path.basename(os.path.realpath(sys.executable)))
    if not any(map(_INTERPRETER.search, names)):
        where = "it runs in uwsgi, and " if "uwsgi" in sys.modules else ""
        return f"{where}sys.executable is {sys.executable}, which does not have the name of a Python interpreter"
    return None


def is_frozen() -> bool:
    """Whether this is a program of PyInstaller, cx_Freeze, py2exe, Nuitka or PyOxidizer."""
    main = sys.modules.get("__main__")
    return bool(
        getattr(sys, "frozen", False)
        or getattr(sys, "oxidized", False)
        or hasattr(sys, "_MEIPASS")
        or hasattr(main, "__compiled__")
        or "__compiled__" in globals()
    )


def python() -> str:
    """The interpreter for the server."""
    return os.environ.get(PYTHON_VARIABLE) or sys.executable


def arguments() -> list[str]:
    """The command line up to the code: the interpreter, and what it is not to read.

    Where our own modules lie in an archive that only this program can read, it needs its site-packages.
    """
    without_site = [] if is_frozen() else ["-S"]
    return [python(), "-I", *without_site, "-c"]


def locations(*, client_of_redis: bool = False) -> str:
    """Directories (or archives) that mppool and what it needs were imported from, as JSON.

    -I leaves out PYTHONPATH, the user's site and the current directory, so they must be named.
    """
    import importlib.util

    import filelock

    own = sys.modules[
        __name__.partition(".")[0]
    ]  # an import of it would be one of everything above
    found: list[str] = []
    places = [package.__path__[0] for package in (own, msgspec, filelock)]
    client = importlib.util.find_spec("redis") if client_of_redis else None
    if client is not None:
        places += client.submodule_search_locations or ()
    for place in places:
        location = os.path.dirname(os.path.abspath(place))
        if location not in found:
            found.append(location)
    return msgspec.json.encode(found).decode()


def environment() -> dict[str, str]:
    """What the server keeps of the environment: it may outlive its starter by days.

    Not the rest: it may hold secrets, and sockets and duties that were handed to the starter alone.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT_VARIABLES or name.startswith(_KEPT_PREFIXES)
    }
    if is_frozen():
        # PyInstaller has put its own libraries there, which another interpreter must not load.
        before = os.environ.get("LD_LIBRARY_PATH_ORIG")
        kept.pop("LD_LIBRARY_PATH", None)
        kept.update({} if before is None else {"LD_LIBRARY_PATH": before})
    kept[STARTED_VARIABLE] = "1"
    return kept
