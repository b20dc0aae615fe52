"""What `mppool doctor` sees around the pools: clock, limits, versions, and variables that change how mppool works."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import resource
import time
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Level = Literal["ok", "note", "FAULT"]

_FEW_DESCRIPTORS = 1024
"""Less than what systems give by default. A server needs two or three for each process, and two for each waiting thread."""
_FIRST_RELEASE = 1_760_000_000
"""October 2025, in seconds since 1970. A clock that is earlier is wrong."""
_CLOCK_ERROR = 5
"""What adjtimex returns where nothing keeps the clock right (TIME_ERROR)."""

NEEDED = ("msgspec", "filelock")
USED = (
    *("SQLAlchemy", "Django", "psycopg", "asyncpg", "aioodbc", "mssql-python", "pyodbc", "PyMySQL", "oracledb"),
    *("azure-identity", "redis", "prometheus-client", "opentelemetry-api", "gunicorn", "uvicorn", "gevent"),
    *("rich", "textual"),
)  # fmt: skip
"""What mppool works with, where it is installed."""

OURS = ("MPPOOL_RUNTIME_DIR", "MPPOOL_PYTHON", "MPPOOL_ALONE", "MPPOOL_MACHINE_LEASE")
RELOADERS = ("WERKZEUG_RUN_MAIN", "RUN_MAIN", "PPP_WERKZEUG_WORKAROUND")


class Finding(NamedTuple):
    """What one look found. Only a FAULT makes the exit status 1."""

    level: Level
    subject: str
    text: str


def surroundings(environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Everything of a machine and its interpreter that is not a pool."""
    yield clock()
    yield descriptors()
    yield from versions()
    yield from variables(environment)


def clock() -> Finding:
    """Tokens, and leases of machines, end by the wall clock. Waits do not: they use the monotonic one."""
    if time.time() < _FIRST_RELEASE:
        text = f"it is {time.strftime('%Y-%m-%d')} here, so tokens seem valid that are not: set the clock"
        return Finding("FAULT", "clock", text)
    if _is_kept_right() is False:
        text = (
            "nothing keeps it right (no time service has told the kernel so): where access tokens are used, or redis=, "
            "run one, such as chrony or systemd-timesyncd; in a container the host's counts"
        )
        return Finding("note", "clock", text)
    return Finding("ok", "clock", "it is plausible, and waits do not depend on it")


def _is_kept_right() -> bool | None:
    """Whether a time service has told the kernel that the clock is right; None: it cannot be asked."""
    try:
        # Nothing is set: the first field, the modes, is 0. The structure has 208 bytes.
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    except (AttributeError, OSError):
        return None
    return None if state < 0 else state != _CLOCK_ERROR


def descriptors() -> Finding:
    """How many files a process may have open; a server raises its own limit as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{_count(soft)} for each process, {_count(hard)} for the server"
    if 0 <= hard < _FEW_DESCRIPTORS:
        return Finding(
            "note", "open files", f"{text}: raise the hard limit (ulimit -Hn, LimitNOFILE=) for many processes"
        )  # fmt: skip
    return Finding("ok", "open files", text)


def _count(limit: int) -> str:
    return "any number" if limit == resource.RLIM_INFINITY else str(limit)


def versions() -> Iterator[Finding]:
    """What is installed of what mppool needs, or can use."""
    for title, names in (("needs", NEEDED), ("works with", USED)):
        found = [f"{name} {version}" for name in names if (version := _version_of(name))]
        yield Finding("ok", title, ", ".join(found) or "none of its extras is installed")
    if _version_of("eventlet"):
        text = "not supported where it has patched the standard library: use gevent, or workers with threads"
        yield Finding("note", "eventlet", text)


def _version_of(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def variables(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Settings that somebody may have forgotten. The command sees its own environment, not the application's."""
    ours = [f"{name}={environment[name]}" for name in OURS if environment.get(name)]
    if ours:
        text = f"{', '.join(ours)}: the processes of a manager must have the same"
        yield Finding("ok", "environment", text)
    for name in RELOADERS:
        if name in environment:
            text = (
                f"{name}={environment[name]} is set here: unset it outside of a reloader. Reloaders set it in the child "
                "that serves; mppool itself does not look at it"
                if name != "PPP_WERKZEUG_WORKAROUND"
                else f"{name} is set: pools of mppool.compat.proxypatternpool fill at the first get, not at their creation"
            )
            yield Finding("note", "environment", text)
