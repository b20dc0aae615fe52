"""A real Redis for tests: on a port of its own, killed at the end. $MPPOOL_TEST_REDIS names another program, such as Valkey's."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

from tests.helpers import component_is_missing, free_port, wait_until

PROGRAMS = ("redis-server", "valkey-server")


class RedisServer:
    """One redis-server. `start` after `kill` makes a new one, with what it has saved, which is nothing by default."""

    def __init__(self, directory: Path, *arguments: str, rules: Path | None = None) -> None:
        """rules: the configuration of a sentinel, which this is then."""
        named = os.environ.get("MPPOOL_TEST_REDIS", "")
        self.program = next(filter(None, map(shutil.which, (named, *PROGRAMS))), None)
        if self.program is None:
            component_is_missing("there is no redis-server (Debian: redis-server)")
        try:
            import redis  # noqa: F401
        except ImportError:
            component_is_missing("the Python package redis is missing")
        self._directory = directory
        self._arguments = (*arguments, "--save", "", "--appendonly", "no")
        self._rules: tuple[str, ...] = ()
        if rules is not None:
            self._rules, self._arguments = (str(rules),), ("--sentinel",)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.start()
        except BaseException:
            self.kill()
            raise

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self, **more: Any) -> Any:
        import redis

        return redis.Redis(host="127.0.0.1", port=self.port, **more)

    def ask(self, *command: Any) -> Any:
        """Carry out one command, over a connection of its own."""
        with self.client() as client:
            return client.execute_command(*command)

    def start(self) -> None:
        assert self.program is not None
        log = self._directory / "redis.log"
        self._process = subprocess.Popen(
            [
                self.program, *self._rules, "--port", str(self.port), "--bind", "127.0.0.1",
                "--dir", str(self._directory), "--logfile", str(log), *self._arguments,
            ],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(self._listens, f"redis-server listens; see {log}")

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "redis-server has ended; its log says why"
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
