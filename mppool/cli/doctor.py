"""`mppool doctor`: whether mppool can work here, and what is wrong. It changes nothing."""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import os
import platform
import socket
import time
from typing import TYPE_CHECKING

from mppool._version import __version__
from mppool.cli import output
from mppool.cli.environment import Finding, surroundings
from mppool.cli.failing import FAULT, OK
from mppool.cli.finding import (
    living_members,
    managers_in,
    members_of,
    runtime_directory,
    stats_of,
)
from mppool.errors import ConfigurationError, PoolError
from mppool.ids import own_process
from mppool.rendezvous.alone import is_alone
from mppool.rendezvous.launch import START_PATIENCE_S, server_pid
from mppool.rendezvous.liveness import SO_PEERPIDFD, check_watching
from mppool.rendezvous.paths import check_trust, read_address
from mppool.rendezvous.world import boot_id
from mppool.stats import words
from mppool.stats.advice import advise

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from pathlib import Path

    from mppool.rendezvous.paths import ManagerPaths

_MANY_FETCHES = 5
"""So many tokens are no accident."""
_LOOK_INTERVAL_S = 0.02


def doctor(options: argparse.Namespace) -> int:
    """`mppool doctor`."""
    table, verdict = report(options.runtime_dir)
    output.show([table], rich=output.is_rich(options.plain))
    print(f"\n{verdict}")
    return FAULT if any(level == "FAULT" for level, *_ in table.rows) else OK


def report(runtime_dir: str | None) -> tuple[output.Table, str]:
    """All findings as a table, and what they come to."""
    table = output.Table(f"mppool {__version__}", ("", "what", "found"))
    for finding in examine(runtime_dir):
        table.add(*finding)
    faults = sum(level == "FAULT" for level, *_ in table.rows)
    return (
        table,
        f"{words.counted(faults, 'fault', 'faults')} found" if faults else "no fault found",
    )


def examine(runtime_dir: str | None) -> Iterator[Finding]:
    """All findings, in the order in which people ask."""
    yield from _platform()
    yield from _kernel()
    yield from surroundings()
    yield from _alone()
    yield from _odbc()
    yield from _extras()
    try:
        directory = runtime_directory(runtime_dir)
    except ConfigurationError as error:
        yield Finding("FAULT", "runtime directory", str(error))
        return
    finding = _directory(directory)
    yield finding
    if finding.level == "ok":
        for paths in managers_in(directory):
            yield from _manager(paths)
        yield from _stray_sockets(directory)


def _platform() -> Iterator[Finding]:
    text = f"Python {platform.python_version()}, {platform.system()} {platform.release()}"
    yield Finding("ok", "platform", text)


def _alone() -> Iterator[Finding]:
    if is_alone():
        text = "each process pools for itself alone: MPPOOL_ALONE is set"
        yield Finding("note", "sharing", text)


def _kernel() -> Iterator[Finding]:
    try:
        check_watching()
    except ConfigurationError as error:
        yield Finding("FAULT", "pidfd", str(error))
    else:
        yield Finding("ok", "pidfd", "processes can be watched")
    left, right = socket.socketpair()
    try:
        os.close(left.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD))
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            yield Finding("FAULT", "SO_PEERPIDFD", f"{error}")
        else:
            text = "this kernel has none (Linux 6.5 and later do); pidfd and the time of birth are used instead"
            yield Finding("note", "SO_PEERPIDFD", text)
    else:
        yield Finding("ok", "SO_PEERPIDFD", "the peer of a connection is known for certain")
    finally:
        left.close()
        right.close()
    yield _proc()


def _proc() -> Finding:
    try:
        text = f"this process is {own_process()}"
    except ConfigurationError as error:
        return Finding("FAULT", "/proc", str(error))
    options = _mount_options("/proc")
    hidden = [one for one in options if one.startswith("hidepid=") and one[8:] not in {"0", "off"}]
    less = []
    if hidden:
        less.append(
            f"{hidden[0]}: only the pid of a hidden process is known (one that changed its user), so a server that "
            "takes over may count its slots until the next owner of that pid ends"
        )
    if not boot_id():
        less.append(
            "the boot id is not visible (subset=pid): only births of processes tell a journal from an older boot's"
        )
    return Finding("note" if less else "ok", "/proc", "; ".join([text, *less]))


def _mount_options(place: str) -> list[str]:
    """Of the file system that is seen at a place; empty where that is not known."""
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="replace") as mounts:
            found = [line.split() for line in mounts]
    except OSError:
        return []
    seen = [fields[3] for fields in found if len(fields) > 3 and fields[1] == place]
    return seen[-1].split(",") if seen else []


def _odbc() -> Iterator[Finding]:
    from mppool.odbc import driver_manager

    try:
        module = driver_manager.load()
        drivers = sorted(module.drivers())
    except ConfigurationError as error:
        yield Finding("note", "ODBC", f"not available: {error}")
        return
    yield Finding("ok", "ODBC", f"pyodbc {module.version}, driver-manager pooling is off")
    if drivers:
        yield Finding("ok", "ODBC drivers", ", ".join(drivers))
    else:
        text = "none is installed (SQLite's, on Debian and Ubuntu: apt-get install libsqliteodbc)"
        yield Finding("note", "ODBC drivers", text)


def _extras() -> Iterator[Finding]:
    for package, use, extra in (
        ("rich", "tables with lines and colours", "cli"),
        ("textual", "the screen of mppool top", "cli"),
        ("gunicorn", "mppool demo", "demo"),
    ):
        if importlib.util.find_spec(package) is None:
            text = f"not installed; for {use}: pip install 'mppool[{extra}]'"
            yield Finding("note", package, text)


def _directory(directory: Path) -> Finding:
    try:
        check_trust(directory)
    except FileNotFoundError:
        return Finding("note", "runtime directory", f"{directory}: made by the first checkout")
    except ConfigurationError as error:
        return Finding("FAULT", "runtime directory", str(error))
    return Finding("ok", "runtime directory", str(directory))


# --- managers ------------------------------------------------------------------------------------------------


def _manager(paths: ManagerPaths) -> Iterator[Finding]:
    subject = f"manager {paths.name}"
    locked = _stays_locked(paths)
    pid = server_pid(paths)
    if pid is not None:
        yield from _server(paths, subject, pid)
    elif locked:
        yield Finding(
            "FAULT",
            subject,
            f"some process holds {paths.alive_lock}, but no living server has published its address; "
            f"look at its log, {paths.log}",
        )
    else:
        yield _no_server(paths, subject)
    dead = set(members_of(paths)) - set(living_members(paths))
    if dead and pid is None:
        left = words.counted(len(dead), "file of a dead process is", "files of dead processes are")
        text = f"{left} left; the next server removes them"
        yield Finding("note", subject, text)


def _server(paths: ManagerPaths, subject: str, pid: int) -> Iterator[Finding]:
    from mppool.manager import PoolManager

    try:
        stats = stats_of(PoolManager(paths.name, runtime_dir=paths.runtime_dir), survey=True)
    except (PoolError, TimeoutError) as error:
        yield Finding("FAULT", subject, f"server {pid} does not answer: {error}; see {paths.log}")
        return
    if stats is None:
        yield _no_server(paths, subject)
        return
    processes, pools = stats["processes"], stats["pools"]
    assert isinstance(processes, list)
    assert isinstance(pools, dict)
    text = f"server {pid} serves {words.processes(len(processes))} and {words.counted(len(pools), 'pool', 'pools')}"
    silent = [str(one["pid"]) for one in processes if one["stale"]]
    if silent:
        text += f"; no answer from {', '.join(silent)} (stopped?)"
    broken = [name for name, pool in pools.items() if pool["breaker"] != "closed"]
    if broken:
        text += f"; opening fails at present in {', '.join(broken)}"
    costly = _token_costs(stats.get("token_costs"))
    text += costly
    closed = [name for name, pool in pools.items() if pool["closed"]]
    if closed:
        text += f"; closed until somebody declares it again: {', '.join(closed)}"
    noted = silent or broken or costly or closed
    yield Finding("note" if noted else "ok", subject, text)
    for name, pool in pools.items():
        for one in advise(pool, time.time()):
            yield Finding("note", f"pool {name}, {one['about']}", one["text"])


_ADVICE = {
    "OnBehalfOfCredential": "one for each request? give the checkout identity=, and keep the credential",
    "AzureCliCredential": "starts a program for each token; name it with identity=, or use it only to develop",
    "ChainedTokenCredential": "tries one after the other, perhaps a program; name it with identity=",
    "DefaultAzureCredential": "tries one after the other, perhaps a program; name it with identity=",
}


def _token_costs(costs: object) -> str:
    """Tokens that each process fetches for itself, where that takes time."""
    if not isinstance(costs, list):
        return ""
    return "".join(
        f"; {one['fetches']} tokens of {one['kind']} were fetched for one process alone, in "
        f"{one['seconds'] / max(1, one['fetches']):.2g} s each"
        + (f" ({_ADVICE[one['kind']]})" if one["kind"] in _ADVICE else "")
        for one in costs
        if one["fetches"] >= _MANY_FETCHES
    )


def _no_server(paths: ManagerPaths, subject: str) -> Finding:
    address = read_address(paths)
    if address is None:
        return Finding("ok", subject, "no server runs, and nobody needs one")
    living = living_members(paths)
    text = f"server {address.server.pid} died without leaving; the next checkout starts another"
    if living:
        text += f", which goes on with what {words.counted(len(living), 'living process holds', 'living processes hold')}"
    return Finding("note", subject, text)


def _stays_locked(paths: ManagerPaths) -> bool:
    """Whether the alive lock is held all the time that a start may take, and no living server has an address.

    A server that starts holds the lock before it has an address, and one that leaves holds it for longer.
    """
    until = time.monotonic() + START_PATIENCE_S
    while server_pid(paths) is None and _is_locked(paths.alive_lock):
        if time.monotonic() >= until:
            return True
        time.sleep(_LOOK_INTERVAL_S)
    return False


def _is_locked(path: Path) -> bool:
    """Whether somebody holds the lock. It is taken, shared and for an instant, to see that."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _stray_sockets(directory: Path) -> Iterator[Finding]:
    used = {
        address.socket
        for paths in managers_in(directory)
        if (address := read_address(paths)) is not None
    }
    prefixes = {paths.socket_prefix for paths in managers_in(directory)}
    for name in sorted(os.listdir(directory)):
        if name.startswith("s-") and name not in used:
            known = any(name.startswith(prefix) for prefix in prefixes)
            text = "the next server of its manager removes it" if known else "it can be removed"
            yield Finding("note", "socket without server", f"{directory / name}: {text}")
