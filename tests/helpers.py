"""What tests of several floors use: waiting for conditions, children, and looking for what is left behind."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest

from tests import secrecy

T = TypeVar("T")

ROOT = Path(__file__).parent.parent

# Long enough for a busy machine; a condition that holds ends the wait at once.
PATIENCE = 40.0


def wait_until(
    condition: Callable[[], T], what: str, *, timeout: float = PATIENCE, interval: float = 0.005
) -> T:
    """Wait for the condition to give something true, and return that. Fails the test after `timeout`."""
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout} s: {what}")
        time.sleep(interval)


def free_port() -> int:
    """A port on which nobody listens just now.

    The kernel gives none of these to outgoing connections: it could give away what it had named as free.
    """
    candidates = random.SystemRandom()
    while True:
        port = candidates.randrange(20_000, 32_768)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def component_is_missing(reason: str) -> NoReturn:
    """A real component is not here: skip with the reason; fail where CI promises to have everything."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"CI=true, and {reason}", pytrace=False)
    pytest.skip(reason)


# --- children ---------------------------------------------------------------------------------------


class ChildFailed(AssertionError):
    """What ran in a child raised, or the child died; the message holds its traceback."""


class Fork:
    """A child made by a plain os.fork that runs one function; `result()` waits for what it returned.

    The child leaves by os._exit: no atexit handler, no fixture and no finalizer of the parent runs in it.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            _run_and_leave(writing, function, arguments)
        os.close(writing)
        self._reading = reading
        self._reaped = False

    def result(self, timeout: float = PATIENCE) -> Any:
        """What the function returned. Raises ChildFailed with the child's traceback."""
        try:
            wait_until(self._has_ended, f"the end of child {self.pid}", timeout=timeout)
            with os.fdopen(self._reading, "rb", closefd=False) as pipe:
                answer = pipe.read()
        finally:
            self.kill()
            os.close(self._reading)
        if not answer:
            raise ChildFailed(f"child {self.pid} died without an answer")
        succeeded, value = pickle.loads(answer)
        if not succeeded:
            raise ChildFailed(value)
        return value

    def kill(self) -> None:
        """SIGKILL, where the child still lives, and take its exit status."""
        if not self._reaped:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self._reaped = True

    def _has_ended(self) -> bool:
        # An answer larger than the pipe would keep the child from ending: answers are small.
        if not self._reaped:
            self._reaped = os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
        return self._reaped


def _run_and_leave(
    writing: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> NoReturn:
    try:
        try:
            answer = pickle.dumps((True, function(*arguments)))
        except BaseException:
            answer = pickle.dumps((False, traceback.format_exc()))
        os.write(writing, answer)
    finally:
        os._exit(0)


def run_python(
    code: str, *, timeout: float = PATIENCE, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter that finds mppool and tests. Fails the test if it does not exit with 0."""
    search_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        # Unbuffered, whatever the environment says: much of this code ends with os._exit.
        env={
            **os.environ,
            "PYTHONPATH": search_path,
            "PYTHONUNBUFFERED": "1",
            **(environment or {}),
        },
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    secrecy.WATCH.see("what a process printed", done.stdout + done.stderr)
    if done.returncode:
        pytest.fail(f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


# --- what is left behind ----------------------------------------------------------------------------


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


def is_server(command: str) -> bool:
    """Whether this is the command line of a server: as it was started, or as it shows what it serves."""
    return "mppool.server" in command or command.startswith("mppool: ")


def processes_using(directory: Path) -> dict[int, str]:
    """Other processes that name the directory in their command line or hold a file in it open."""
    prefix = f"{directory}/"
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(directory) in command or _holds_file(entry, prefix):
                found[int(entry.name)] = command.strip()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended while we looked, or is another user's
    return found


def _holds_file(process: Path, prefix: str) -> bool:
    for descriptor in (process / "fd").iterdir():
        try:
            if os.readlink(descriptor).startswith(prefix):
                return True
        except FileNotFoundError:
            continue  # closed while we looked
    return False
