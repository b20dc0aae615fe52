"""The tests' own tools: a fixture that would not notice what is left behind proves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import _end_servers
from tests.helpers import ChildFailed, Fork, is_alive, processes_using, wait_until

HOLDER = (
    "import sys, time; file = open(sys.argv[1], 'w'); print('ready', flush=True); time.sleep(60)"
)


@pytest.fixture
def holder(runtime_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds a file in the runtime directory open."""
    yield from _hold(runtime_dir)


@pytest.fixture
def server(runtime_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The same, with a server's name."""
    yield from _hold(runtime_dir, "mppool.server")


def _hold(directory: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", HOLDER, str(directory / "file"), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


def test_a_runtime_directory_is_private_short_and_known_to_children(runtime_dir: Path) -> None:
    assert runtime_dir.stat().st_mode & 0o777 == 0o700
    assert len(str(runtime_dir)) < 30
    assert os.environ["MPPOOL_RUNTIME_DIR"] == str(runtime_dir)
    assert processes_using(runtime_dir) == {}


def test_a_process_that_still_uses_the_directory_is_reported_and_ended(
    holder: subprocess.Popen[bytes], runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.conftest.PATIENCE", 0.5)
    assert list(processes_using(runtime_dir)) == [holder.pid]
    assert [str(holder.pid) in problem for problem in _end_servers(runtime_dir)] == [True]
    assert holder.wait() == -9


def test_a_server_is_asked_to_leave(server: subprocess.Popen[bytes], runtime_dir: Path) -> None:
    assert _end_servers(runtime_dir) == []
    assert server.wait() == -15


def test_a_fork_gives_back_a_value_an_error_or_word_of_its_death() -> None:
    assert Fork(divmod, 7, 2).result() == (3, 1)
    with pytest.raises(ChildFailed, match="ZeroDivisionError"):
        Fork(divmod, 7, 0).result()
    with pytest.raises(ChildFailed, match="died"):
        Fork(os._exit, 3).result()


def test_a_wait_ends_with_what_it_waited_for_or_fails() -> None:
    answers = [0, 0, 7]
    assert wait_until(lambda: answers.pop(0), "seven") == 7
    with pytest.raises(pytest.fail.Exception, match=r"the end of time"):
        wait_until(lambda: False, "the end of time", timeout=0.02)


def test_a_zombie_is_not_alive() -> None:
    child = Fork(int)
    wait_until(lambda: not is_alive(child.pid), "the child to end")
    assert child.result() == 0
    assert is_alive(os.getpid())
