"""The examples, run as a user would run them."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.helpers import ROOT, is_alive, wait_until
from tests.integrations.conftest import odbc_drivers, sqlite_odbc  # noqa: F401
from tests.integrations.webserver import control_socket

EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.timeout(180)  # whole programs, on a machine that may be busy


@pytest.fixture
def environment(runtime_dir: Path, sqlite_odbc: str, tmp_path: Path) -> Mapping[str, str]:  # noqa: F811
    return {
        **os.environ,
        "SHOP_DATABASE": str(tmp_path / "shop.db"),
        "MPPOOL_RUNTIME_DIR": str(runtime_dir),
    }


def run(environment: Mapping[str, str], *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def test_plain_script(environment: Mapping[str, str]) -> None:
    script = str(EXAMPLES / "plain_script.py")
    assert run(environment, script).startswith("3 pieces ordered")
    assert run(environment, script).startswith("6 pieces ordered")


def test_process_pool(environment: Mapping[str, str]) -> None:
    said = run(environment, str(EXAMPLES / "process_pool.py"))
    assert "squares: [0, 1, 4, 9, 16, 25, 36, 49, 64, 81]" in said
    assert said.count("3 cubed is 27") == 2


def test_gunicorn(environment: Mapping[str, str], tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "gunicorn", "-c", str(EXAMPLES / "gunicorn" / "gunicorn.conf.py"),
        "--chdir", str(EXAMPLES / "gunicorn"), "--bind", f"127.0.0.1:{port}", "app:application",
    ]  # fmt: skip
    command[3:3] = control_socket(tmp_path / "control")
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as gunicorn:
        try:
            answers = {wait_until(lambda: answer(port), "an answer") for _ in range(20)}
        finally:
            gunicorn.send_signal(signal.SIGTERM)
            gunicorn.wait(20)
    assert all(one.startswith("SQLite 3.") for one in answers)
    assert gunicorn.returncode == 0
    assert not is_alive(gunicorn.pid)


def answer(port: int) -> str | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read().decode()
    except ConnectionError:
        return None
    finally:
        connection.close()


def test_tox(runtime_dir: Path, tmp_path: Path) -> None:
    """Without a network: what its environments would install, they find where we have it."""
    pytest.importorskip("tox")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    search_path = os.pathsep.join([sysconfig.get_path("purelib"), str(ROOT)])
    version = f"py{sys.version_info.major}{sys.version_info.minor}"
    done = subprocess.run(
        [
            sys.executable, "-m", "tox", "run-parallel", "--conf", str(EXAMPLES / "tox" / "tox.ini"),
            "--workdir", str(tmp_path / "work"), "-f", version, "--parallel-no-spinner",
            "-x", "testenv.deps=", "-x", f"testenv.set_env+=PYTHONPATH={search_path}",
            "--", "-p", "no:cacheprovider",
        ],
        env={**kept, "MPPOOL_RUNTIME_DIR": str(runtime_dir), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    for suite in ("orders", "reports"):
        assert f"{version}-{suite}: OK" in done.stdout
    assert (runtime_dir / "shop-tests").is_dir(), "the environments did not meet"
