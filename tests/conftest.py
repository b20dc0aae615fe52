"""Fixtures for all floors."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from mppool import logs
from tests import secrecy
from tests.helpers import PATIENCE, is_alive, is_server, processes_using

# Examples are bounded in number; how long one takes says more about the machine than about the code.
settings.register_profile("mppool", deadline=None)
settings.load_profile("mppool")

secrecy.install()

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every program that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, None, None]:
    """After all fixtures have ended: a test fails where a secret was seen in it."""
    yield
    if seen := secrecy.WATCH.take():
        pytest.fail("a secret was seen in\n" + "\n".join(seen), pytrace=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests/simulation/test_fresh_seeds.py has done, in whichever worker."""
    parts = [
        value
        for kind in ("passed", "failed")
        for report in terminalreporter.stats.get(kind, ())
        for name, value in report.user_properties
        if name == "simulated"
    ]
    if parts:
        seeds, seconds, faults, cpu_s = (
            sum(part[place] for part in parts) for place in range(1, 5)
        )
        terminalreporter.section("simulated")
        terminalreporter.write_line(
            f"{seconds / 3600:.1f} hours, {faults} faults, {seeds} seeds in {cpu_s:.0f} s of a CPU; "
            f"seeds from {', '.join(str(part[0]) for part in parts)} on"
        )


@pytest.fixture(autouse=True)
def every_line_is_new() -> None:
    """What an earlier test had logged does not keep a line of this one from being logged."""
    logs.hear_everything()


@pytest.fixture
def runtime_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory for this test alone, also for the processes that it starts.

    Its name is short, for sockets in it. At the end servers in it are asked to leave (SIGTERM), and the
    test fails if one does not, or if any other process still uses the directory.
    """
    directory = Path(tempfile.mkdtemp(prefix="mppt-", dir="/tmp"))
    monkeypatch.setenv("MPPOOL_RUNTIME_DIR", str(directory))
    yield directory
    secrecy.WATCH.see_files(directory)
    _start_no_more(directory)
    problems = _end_servers(directory)
    secrecy.WATCH.see_files(directory)  # what they have written while they left
    shutil.rmtree(directory)
    if problems:
        pytest.fail("left behind:\n" + "\n".join(problems))


def _start_no_more(directory: Path) -> None:
    """No errand thread of this process starts another server there, as it does after a server was killed."""
    managers = sys.modules.get("mppool.manager")
    for member in managers.members() if managers else ():
        server = getattr(member.link, "locator", None)  # none with MPPOOL_ALONE
        if server is not None and server.likely_directory() == os.path.realpath(directory):
            member.link.session.farewell = True
            with member.link.session._attaching:
                pass  # what it was just starting is there now


def _end_servers(directory: Path) -> list[str]:
    problems: list[str] = []
    asked: set[int] = set()
    began = time.monotonic()
    # Twice: a server that is just being started forks, and one look can miss parent and child.
    while users := processes_using(directory) or processes_using(directory):
        waited = time.monotonic() - began
        for pid, command in users.items():
            if is_server(command) or "mppool.hosting" in command:
                if pid not in asked:
                    asked.add(pid)
                    _kill(pid, signal.SIGTERM)
                elif waited > PATIENCE:
                    problems.append(
                        f"server {pid} did not leave within {PATIENCE:g} s of SIGTERM: {command}"
                    )
                    _kill(pid, signal.SIGKILL)
            elif (
                waited > PATIENCE
            ):  # before, it may just be ending: what is left behind stays for ever
                problems.append(f"process {pid} still used the runtime directory: {command}")
                _kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return problems


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it has just left by itself
    deadline = time.monotonic() + 1.0
    while number is signal.SIGKILL and is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.005)
