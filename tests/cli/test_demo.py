"""The demonstration, short: every promise kept, nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mppool.cli.demo.load import Death, Failure, Load
from mppool.cli.demo.result import Result
from mppool.cli.demo.witness import Seen, Session, Witness
from tests.helpers import Fork, processes_using, wait_until

DEMO = [sys.executable, "-m", "mppool", "demo", "--plain"]


@pytest.fixture(autouse=True)
def _gunicorn() -> None:
    pytest.importorskip("gunicorn")


def test_every_promise_is_kept(runtime_dir: Path) -> None:
    done = subprocess.run(
        [*DEMO, "--seconds", "6"], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every promise was kept." in done.stdout
    assert re.search(r"failures +0 ", done.stdout)
    peak = re.search(r"peak of open connections, by the witness +(\d+) ", done.stdout)
    assert peak is not None
    assert 0 < int(peak[1]) <= 5
    directory = re.search(r"--runtime-dir (/tmp/mppool-demo-\w+)", done.stdout)
    assert directory is not None
    assert not Path(directory[1]).exists()


@pytest.mark.parametrize("kind", ["hosts", "sqlalchemy", "asyncio"])
def test_the_other_ways_to_use_a_pool_keep_every_promise(runtime_dir: Path, kind: str) -> None:
    done = subprocess.run(
        [*DEMO, f"--{kind}", "--seconds", "3", "--workers", "2"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every promise was kept." in done.stdout
    assert done.stderr == ""
    if kind == "hosts":
        assert re.search(r"slots moved between workers +0 ", done.stdout)
        assert "(host): " in done.stdout


def test_sqlalchemy_brings_its_own_database(runtime_dir: Path) -> None:
    done = subprocess.run(
        [*DEMO, "--sqlalchemy", "--connection-string", "Driver=SQLite3"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "--sqlalchemy does not go with --connection-string" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_nothing(runtime_dir: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [*DEMO, "--seconds", "50", "--runtime-dir", str(runtime_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        for line in demo.stdout:
            if "SIGKILL for worker" in line or "requests/s" in line:
                break
        demo.send_signal(number)
        rest, complaints = demo.stdout.read(), demo.stderr.read()
        assert demo.wait(40) == 130
    assert complaints == ""
    assert "BROKEN" not in rest
    wait_until(lambda: not processes_using(runtime_dir), "the end of everything")
    # The directory is the user's, and so is the secret of its fingerprints.
    assert {path.name for path in runtime_dir.iterdir()} <= {"secret,fingerprints"}


def test_a_database_that_cannot_be_opened(runtime_dir: Path) -> None:
    done = subprocess.run(
        [*DEMO, "--connection-string", "Driver=None;PWD=verysecret"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 1
    assert "the database cannot be opened" in done.stderr
    assert "verysecret" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_without_an_odbc_driver_it_says_so_and_uses_sqlite3(
    runtime_dir: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [*DEMO, "--seconds", "3", "--workers", "2"],
        env={**os.environ, "ODBCSYSINI": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Using Python's own sqlite3" in done.stdout
    assert "libsqliteodbc" in done.stdout


_PLANTED = """
from mppool.cli import main
from mppool.cli.demo import setting

honest = setting.environment
setting.environment = lambda **given: honest(**{**given, "cap": 8})
raise SystemExit(main(["demo", "--plain", "--seconds", "3"]))
"""


def test_a_pool_that_opens_too_many_is_found_out(runtime_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PLANTED], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 1
    assert re.search(r"by the witness +[678] +<= 5 +BROKEN", done.stdout)


# --- the witness ------------------------------------------------------------------------------------------


def test_the_witness_counts_only_what_a_living_process_holds(tmp_path: Path) -> None:
    witness = Witness(str(tmp_path / "w"))
    try:
        first, second = Session(witness.address), Session(witness.address)
        assert (witness.seen().now, witness.seen().peak) == (2, 2)
        assert witness.seen().by_pid == {os.getpid(): 2}
        first.end()
        child = Fork(_open_and_wait, witness.address)
        wait_until(lambda: child.pid in witness.seen().by_pid, "the child's session")
        child.kill()
        third = Session(witness.address)
        seen = witness.seen()
        assert (seen.now, seen.peak, seen.total) == (2, 2, 4)
        second.end()
        third.end()
        assert witness.seen().now == 0
    finally:
        witness.stop()


def _open_and_wait(address: str) -> None:
    session = Session(address)
    signal.pause()
    session.end()


def test_only_requests_inside_the_killed_worker_are_counted_apart() -> None:
    load = Load(1, 0)
    inside = Failure(started=1.0, ended=2.01, lost=True, text="reset")
    others = [
        Failure(started=1.0, ended=2.01, lost=False, text="status 500"),
        Failure(started=2.1, ended=2.2, lost=True, text="sent after its end"),
        Failure(started=1.0, ended=1.5, lost=True, text="broke before the kill"),
        Failure(started=1.0, ended=9.0, lost=True, text="broke much later"),
    ]
    load.failures = [inside, *others]
    assert load.judge([Death(killed_at=2.0, gone_at=2.005)]) == (others, [inside])
    assert load.judge([]) == ([inside, *others], [])


def test_a_broken_promise_is_named() -> None:
    result = Result(cap=5, seconds=1.0, answered=10, capacity=4)
    result.witness = Seen(now=0, peak=6, total=9, by_pid={}, opened=[], ended=[])
    result.failures = [Failure(0.0, 1.0, False, "status 500")]
    result.left_behind = ["server 7"]
    result.table()
    broken = "; ".join(result.broken)
    for what in ("failures: 1", "by the witness: 6", "at the end: 4", "left behind: server 7"):
        assert what in broken
