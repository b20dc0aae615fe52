"""A real gunicorn, started as users start it, on a port that the kernel chose."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mppool.cli.demo.stage import end_process
from mppool.cli.failing import FAULT, CommandFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mppool.cli.demo.kinds import Kind
    from mppool.cli.demo.stage import Stage

_GRACEFUL_S = 10


def require_gunicorn() -> None:
    """CommandFailed, which says what to install, where there is no gunicorn."""
    if importlib.util.find_spec("gunicorn") is None:
        raise CommandFailed(
            "the demonstration runs gunicorn, which is not installed: pip install 'mppool[demo]'",
            FAULT,
        )


class WebServer:
    """gunicorn --preload in a session of its own: Ctrl-C is for the demonstration."""

    def __init__(
        self,
        stage: Stage,
        kind: Kind,
        *,
        workers: int,
        threads: int,
        environment: Mapping[str, str],
    ) -> None:
        self._log = stage.log
        self._ever: set[int] = set()
        # Made here and passed on, so that no other program takes the port in between.
        with (
            socket.create_server(("127.0.0.1", 0), backlog=2048) as listener,
            stage.log.open("wb") as log,
        ):
            self.port: int = listener.getsockname()[1]
            self._master = subprocess.Popen(
                [
                    sys.executable, "-m", "gunicorn", "--preload",
                    "--workers", str(workers), "--threads", str(threads),
                    "--bind", f"fd://{listener.fileno()}", "--graceful-timeout", str(_GRACEFUL_S),
                    "--config", str(Path(__file__).with_name("gunicorn_conf.py")),
                    "--worker-class", kind.worker_class,
                    f"{kind.module}:application",
                ],
                cwd=stage.directory,
                env={**os.environ, **environment, "MPPOOL_RUNTIME_DIR": str(stage.runtime_dir)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )  # fmt: skip

    def workers(self) -> set[int]:
        """Pids of the living workers: the master's children."""
        found = {pid for pid in _pids() if _parent_of(pid) == self._master.pid}
        self._ever |= found
        return found

    def check(self) -> None:
        """CommandFailed, with the end of its log, if gunicorn has ended."""
        if self._master.poll() is not None:
            raise CommandFailed(
                f"gunicorn ended with status {self._master.returncode}:\n{self.log_tail()}", FAULT
            )

    def log_tail(self, lines: int = 20) -> str:
        """What it said last."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def reload(self) -> None:
        """HUP: new workers, the old ones finish what they are doing."""
        self._master.send_signal(signal.SIGHUP)

    def stop(self) -> list[str]:
        """TERM, and where that does not help KILL; what had to be killed, as texts."""
        killed = []
        self.workers()
        if self._master.poll() is None:
            self._master.terminate()
            try:
                self._master.wait(_GRACEFUL_S + 5)
            except subprocess.TimeoutExpired:
                self._master.kill()
                self._master.wait()
                killed.append(f"gunicorn {self._master.pid}")
        for pid in self._ever:
            # A worker sees that its master has gone, and ends; its pid may be another's by then.
            if _is_worker_left(pid, str(self._log.parent)):
                end_process(pid, signal.SIGKILL)
                killed.append(f"worker {pid}")
        return killed


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _parent_of(pid: int) -> int | None:
    """The parent of a living process; None for a dead one and for a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, parent = text.rpartition(")")[2].split()[:2]
    return None if state == "Z" else int(parent)


def _is_worker_left(pid: int, directory: str) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/cwd") == directory
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
