"""The tests' own servers are shared by all xdist workers of a run, and end with it, however it ends."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import ROOT, component_is_missing, is_alive, processes_using, wait_until
from tests.integrations.postgresql import what_is_missing

FIXTURES = """
from tests.integrations.conftest import odbc_drivers, postgresql, postgresql_server
"""

SUITE = """
import json, os, signal, time
from pathlib import Path
import pytest

SEEN = Path(os.environ["SEEN"])

@pytest.mark.parametrize("number", range(6))
def test_a_database_of_my_own(number, postgresql, postgresql_server, mppool_manager):
    assert len(postgresql.states()) == 0
    place = json.loads((mppool_manager.directory / "shared" / "postgresql.json").read_text())
    assert place["port"] == postgresql_server.port
    with SEEN.open("a") as seen:
        seen.write(f"{os.getpid()} {place['port']} {place['keeper']} {mppool_manager.directory}\\n")
    if os.environ["AND_THEN"] == "killed" and number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    deadline = time.monotonic() + 30
    while os.environ["AND_THEN"] == "interrupted" and time.monotonic() < deadline:
        time.sleep(0.01)
"""


class Run:
    """A pytest of its own."""

    def __init__(self, directory: Path, and_then: str, *arguments: str) -> None:
        missing = what_is_missing()
        if missing:
            component_is_missing(missing)
        (directory / "conftest.py").write_text(FIXTURES)
        (directory / "test_suite.py").write_text(SUITE)
        self._seen = directory / "seen"
        self._seen.touch()
        kept = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
        environment = {
            "PYTHONPATH": str(ROOT),
            "SEEN": str(self._seen),
            "AND_THEN": and_then,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # hypothesis alone takes seconds
        }
        plugins = ["-p", "mppool.integrations.pytest_plugin"]
        if "-n" in arguments:
            plugins += ["-p", "xdist"]
        self.output = directory / "output"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "pytest",
                    "-q",
                    "-p",
                    "no:cacheprovider",
                    *plugins,
                    *arguments,
                ],
                cwd=directory,
                env={**kept, **environment},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def directories(self) -> set[Path]:
        """Of the run's manager, where it is still there."""
        return {path for line in self._lines() if (path := Path(line[3]).parent).exists()}

    def seen(self) -> list[list[int]]:
        """For each test: pid of the worker, port of the server, pid of its keeper."""
        return [[int(one) for one in line[:3]] for line in self._lines()]

    def _lines(self) -> list[list[str]]:
        return [line.split() for line in self._seen.read_text().splitlines()]


@pytest.fixture
def runs() -> Iterator[list[Run]]:
    made: list[Run] = []
    yield made
    for run in made:
        if run.process.poll() is None:
            os.killpg(run.process.pid, signal.SIGKILL)
            run.process.wait()
        # A killed process tidies nothing up.
        for directory in run.directories():
            users = functools.partial(processes_using, directory)
            wait_until(lambda users=users: not users(), "the manager to linger out")
            shutil.rmtree(directory)


def all_ends(run: Run) -> None:
    """Of more than one, where for a moment nobody had a seat, because a worker was killed."""
    for port, keeper in {(port, keeper) for _, port, keeper in run.seen()}:
        wait_until(lambda keeper=keeper: not is_alive(keeper), "the end of the keeper")
        left = subprocess.run(
            ["pgrep", "-f", f"postgres .*-p {port} "], capture_output=True, check=False
        )
        assert not left.stdout


@pytest.mark.parametrize("arguments", [("-n", "2"), ("-p", "no:xdist")])
def test_one_server_serves_a_run_and_ends_with_it(
    arguments: tuple[str, ...], tmp_path: Path, runs: list[Run]
) -> None:
    runs.append(run := Run(tmp_path, "goes on", *arguments))
    assert run.process.wait(100) == 0, run.output.read_text()
    assert len(run.seen()) == 6
    assert len({pid for pid, _, _ in run.seen()}) == (2 if arguments == ("-n", "2") else 1)
    (keeper,) = {keeper for _, _, keeper in run.seen()}
    assert not is_alive(keeper), "the one that leaves last waits"
    all_ends(run)
    assert not run.directories()


def test_a_worker_that_is_killed_keeps_no_seat(tmp_path: Path, runs: list[Run]) -> None:
    runs.append(run := Run(tmp_path, "killed", "-n", "2"))
    assert run.process.wait(100) == 1, run.output.read_text()
    assert "5 passed" in run.output.read_text()
    all_ends(run)


@pytest.mark.parametrize(
    ("how", "arguments"),
    [("Ctrl-C", ("-n", "2")), ("Ctrl-C", ("-p", "no:xdist")), ("all are killed", ("-n", "2"))],
)
def test_a_run_that_is_broken_off_leaves_no_server(
    how: str, arguments: tuple[str, ...], tmp_path: Path, runs: list[Run]
) -> None:
    runs.append(run := Run(tmp_path, "interrupted", *arguments))
    wait_until(run.seen, "the first test")
    os.killpg(run.process.pid, signal.SIGINT if how == "Ctrl-C" else signal.SIGKILL)
    run.process.wait(100)
    all_ends(run)
    assert how != "Ctrl-C" or not run.directories()
    assert len(run.seen()) <= 2  # nobody has waited for the end of a test
