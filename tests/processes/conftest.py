"""Fixtures for tests with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mppool import PoolManager
from tests.helpers import ROOT, Fork
from tests.processes.witness import Witness


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    """A counting echo server that knows nothing of mppool."""
    # Not below tmp_path: its name may be too long for a socket.
    import tempfile

    with tempfile.TemporaryDirectory(prefix="mppw-", dir="/tmp") as directory:
        made = Witness(Path(directory) / "w")
        yield made
        made.end()


@pytest.fixture
def manager(runtime_dir: Path) -> PoolManager:
    """A manager of this test alone. Its server leaves as soon as nobody is connected."""
    return PoolManager("t", linger=0.0)


@pytest.fixture
def fork() -> Iterator[Callable[..., Fork]]:
    """Makes children by os.fork; those that still live at the end are killed."""
    made: list[Fork] = []

    def make(function: Callable[..., Any], *arguments: Any) -> Fork:
        made.append(Fork(function, *arguments))
        return made[-1]

    yield make
    for child in made:
        try:
            os.kill(child.pid, signal.SIGCONT)
        except ProcessLookupError:
            pass
        child.kill()


@pytest.fixture
def python() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts unrelated interpreters that find mppool and tests; those that still live are killed."""
    made: list[subprocess.Popen[str]] = []

    def make(code: str, *arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        made.append(
            subprocess.Popen(
                # Forking a process that has threads is what this is about.
                [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, *arguments],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return made[-1]

    yield make
    for process in made:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
