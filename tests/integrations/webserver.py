"""Web servers, started as users start them, and asked over http."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from tests.helpers import PATIENCE, is_alive, wait_until


def control_socket(place: Path) -> list[str]:
    """Where gunicorn puts its control socket, for its command line. Nothing in releases that have none (before 25)."""
    from gunicorn.config import KNOWN_SETTINGS

    known = any(setting.name == "control_socket" for setting in KNOWN_SETTINGS)
    return ["--control-socket", str(place)] if known else []


class UnixConnection(http.client.HTTPConnection):
    """http over a socket in the file system."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@final
class WebServer:
    """A web server in a session of its own. Everything in that session is ended by `stop`."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        address: Path | int,
        log: Path | None = None,
    ) -> None:
        """address: the path of a unix socket, or a port of 127.0.0.1. log: in `directory` without it."""
        self.address = address
        self.log = log or directory / f"web-{threading.get_native_id()}-{os.urandom(3).hex()}.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def __enter__(self) -> WebServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        print(f"--- {self.log}\n{self.text()}")  # pytest shows it where a test failed

    def text(self) -> str:
        """What it has said so far."""
        return self.log.read_text(errors="replace")

    def ask(self, path: str, timeout: float = PATIENCE) -> Any:
        """The JSON that it answers. Raises OSError, http.client.HTTPException or Refused."""
        connection = (
            http.client.HTTPConnection("127.0.0.1", self.address, timeout=timeout)
            if isinstance(self.address, int)
            else UnixConnection(self.address, timeout)
        )
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read().decode(errors="replace")
        finally:
            connection.close()
        if answer.status != 200:
            raise Refused(f"{path}: {answer.status} {body}")
        return json.loads(body)

    def ask_until(self, path: str, wanted: Any = None, *, timeout: float = PATIENCE) -> Any:
        """Ask again while nothing answers, or while the answer is not one that `wanted` accepts."""

        def attempt() -> Any:
            if self.process.poll() is not None:
                raise AssertionError(
                    f"the web server ended with {self.process.returncode}\n{self.text()}"
                )
            try:
                answer = self.ask(path)
            except (OSError, http.client.HTTPException):
                return None
            return answer if wanted is None or wanted(answer) else None

        return wait_until(attempt, f"an answer from {path}", timeout=timeout, interval=0.03)

    def send(self, number: int, pid: int | None = None) -> None:
        os.kill(pid or self.pid, number)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it in order and take its exit status; whatever is left of its session is killed."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(10.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            for pid in session_of(self.pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue


class Refused(AssertionError):
    """An answer that is not 200."""


@final
class Load:
    """Threads that ask for a path again and again, and remember who answered and what went wrong."""

    def __init__(self, server: WebServer, path: str, threads: int = 3) -> None:
        self._server = server
        self._path = path
        self._stop = threading.Event()
        self.refused: list[str] = []
        self.broken: list[str] = []
        self.answers = 0
        self.pids: set[int] = set()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                answer = self._server.ask(self._path)
            except Refused as error:
                self.refused.append(str(error))
            except (OSError, http.client.HTTPException) as error:
                self.broken.append(f"{type(error).__name__}: {error}")
                self._stop.wait(0.02)
            else:
                self.answers += 1
                self.pids.add(answer["pid"])

    def more(self, answers: int = 10) -> None:
        """Wait for so many more answers."""
        before = self.answers
        wait_until(
            lambda: self.answers >= before + answers,
            f"{answers} more answers; refused {self.refused}, broken {self.broken}",
        )


def children_of(pid: int) -> list[int]:
    """Its living children (zombies are none)."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return [child for child in found if is_alive(child)]


def session_of(session: int) -> Iterable[int]:
    """All processes of a session."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                yield int(entry.name)
