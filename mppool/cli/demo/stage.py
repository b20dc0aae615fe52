"""The directory in which the demonstration happens, and that nothing of it is left at the end."""

from __future__ import annotations

import logging
import os
import select
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from mppool.manager import PoolManager
from mppool.rendezvous.paths import manager_paths

log = logging.getLogger("mppool.demo")

_PATIENCE_S = 5.0


class Stage:
    """A temporary directory with the runtime directory, the database, the log of gunicorn."""

    def __init__(self, runtime_dir: str | None) -> None:
        # Not $TMPDIR: sockets lie in it, and their paths must be short.
        self.directory = Path(tempfile.mkdtemp(prefix="mppool-demo-", dir="/tmp"))
        self._is_guest = runtime_dir is not None
        self.runtime_dir = Path(runtime_dir).absolute() if runtime_dir else self.directory / "r"
        # In a directory that others use too the name must be nobody else's.
        self.name = f"demo-{os.getpid()}" if self._is_guest else "demo"
        self.manager = PoolManager(self.name, runtime_dir=self.runtime_dir)
        self.database = self.directory / "demo.db"
        self.log = self.directory / "gunicorn.log"

    def leave(self) -> list[str]:
        """End the server, remove the directory. What was still there, and had to be killed, as texts."""
        try:
            self.manager.shutdown()
        except Exception:
            log.exception("the server did not leave in order")
        deadline = time.monotonic() + _PATIENCE_S
        while (servers := self._servers()) and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in servers:
            end_process(pid, signal.SIGKILL)
        if self._is_guest:
            shutil.rmtree(manager_paths(self.name, self.runtime_dir).directory, ignore_errors=True)
        shutil.rmtree(self.directory)
        return [f"server {pid}" for pid in servers]

    def _servers(self) -> list[int]:
        """Servers of this manager that run, also such as no address file names any more."""
        directory = os.fspath(manager_paths(self.name, self.runtime_dir).directory)
        pids = map(int, filter(str.isdigit, os.listdir("/proc")))
        return [
            pid
            for pid in pids
            if _is_server(pid)
            and any(link.path.startswith(directory + os.sep) for link in links_of(pid))
        ]


class Link(NamedTuple):
    """A descriptor of a process."""

    pid: int
    descriptor: str
    path: str


def links_of(pid: int) -> list[Link]:
    """The open descriptors of a process; none if it is gone, or another user's."""
    found: list[Link] = []
    try:
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            try:
                path = os.readlink(f"/proc/{pid}/fd/{descriptor}")
            except FileNotFoundError:
                continue  # closed while we looked
            found.append(Link(pid, descriptor, path))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        pass  # it ended while we looked
    return found


def _is_server(pid: int) -> bool:
    """Of any manager: by its title, or by its command line, which it has in its first seconds."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    return raw.startswith(b"mppool: ") or b"mppool.server.__main__" in raw


def end_process(pid: int, number: signal.Signals, patience_s: float = _PATIENCE_S) -> float | None:
    """Send a signal to this process, not to the pid's next owner, and wait for its end.

    The monotonic time at which it was seen dead, or None if it was dead before, or lives on.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        signal.pidfd_send_signal(pidfd, number)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return time.monotonic() if poll.poll(patience_s * 1000) else None
    except ProcessLookupError:
        return None
    finally:
        os.close(pidfd)
