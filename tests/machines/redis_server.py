"""A real Redis for tests: on a socket or port of its own, killed at the end."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

from tests.helpers import component_is_missing, wait_until


class RedisServer:
    """One redis-server. `start` after `kill` makes it anew, with what it has saved, which is nothing by default."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.program = shutil.which("redis-server") or shutil.which("valkey-server")
        if self.program is None:
            component_is_missing("there is no redis-server (Debian: redis-server)")
        try:
            import redis  # noqa: F401
        except ImportError:
            component_is_missing("the Python package redis is missing")
        self._directory = directory
        self._arguments = arguments
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port: int = sock.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self, **more: Any) -> Any:
        import redis

        return redis.Redis(host="127.0.0.1", port=self.port, **more)

    def start(self) -> None:
        assert self.program is not None
        log = self._directory / "redis.log"
        self._process = subprocess.Popen(
            [
                self.program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                "--dir", str(self._directory), "--logfile", str(log), *self._arguments,
            ],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(self._listens, f"redis-server listens; see {log}")

    def _listens(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
