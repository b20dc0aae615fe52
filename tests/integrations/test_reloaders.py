"""Reloaders of development servers: nothing of ours in the parent, one server over all reloads (hazard 18)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mppool import PoolManager
from tests.helpers import ROOT, free_port, is_alive, wait_until
from tests.integrations.webserver import WebServer, children_of, session_of
from tests.integrations.witness import Witness

CAP = 2
LINGER_S = 60.0  # longer than a reload takes on a busy machine

FLASK = """
import os
from flask import Flask
from tests.integrations.witness_app import ACTIONS

VERSION = 1
app = Flask(__name__)

@app.get("/<action>")
def act(action):
    return {"pid": os.getpid(), "code": VERSION, **ACTIONS["/" + action]()}

if __name__ == "__main__":
    import sys
    app.run(debug=True, port=int(sys.argv[1]))
"""

DJANGO = """
import os, sys
from django.conf import settings
from django.http import JsonResponse
from django.urls import path
from tests.integrations.witness_app import ACTIONS

VERSION = 1
settings.configure(DEBUG=True, SECRET_KEY="none", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"])

def act(request, action):
    return JsonResponse({"pid": os.getpid(), "code": VERSION, **ACTIONS["/" + action]()})

urlpatterns = [path("<action>", act)]

if __name__ == "__main__":
    from django.core.management import execute_from_command_line
    execute_from_command_line(sys.argv)
"""

UVICORN = """
import json, os
from tests.integrations.witness_app import ACTIONS, pool

VERSION = 1

async def app(scope, receive, send):
    assert scope["type"] == "http"
    async with pool.acheckout() as session:
        session.ask()
    answer = {"pid": os.getpid(), "code": VERSION, **ACTIONS[scope["path"]]()}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})
"""


class Reloader(NamedTuple):
    needs: str
    code: str
    command: Callable[[int], Sequence[str]]


RELOADERS = {
    "flask --debug": Reloader(
        "flask", FLASK, lambda port: ["-m", "flask", "--app", "site1", "run", "--debug", "-p", str(port)]
    ),
    "werkzeug in a script": Reloader("flask", FLASK, lambda port: ["site1.py", str(port)]),
    "django runserver": Reloader(
        "django", DJANGO, lambda port: ["site1.py", "runserver", "--skip-checks", str(port)]
    ),
    "uvicorn --reload": Reloader(
        "uvicorn",
        UVICORN,
        lambda port: ["-m", "uvicorn", "site1:app", "--reload", "--lifespan=off", "--port", str(port)],
    ),
}  # fmt: skip


@pytest.fixture
def witness(runtime_dir: Path) -> Iterator[Witness]:
    with Witness(runtime_dir / "db") as witness:
        yield witness


def has_a_trace_of_ours(pid: int) -> str | None:
    """What a process that uses a pool has and one that merely imports the application has not."""
    threads = os.listdir(f"/proc/{pid}/task")
    if len(threads) > 1:
        return f"{len(threads)} threads"
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            leads_to = os.readlink(descriptor)
        except FileNotFoundError:
            continue
        if "eventfd" in leads_to or "mppt-" in leads_to:
            return f"a descriptor of {leads_to}"
    return None


class Changed:
    """A change that is made known again now and then.

    A reloader that looks at times of modification overlooks what was changed before its first look.
    """

    def __init__(self, site: Path, version: int) -> None:
        self._site = site
        self._version = version
        self._again_at = time.monotonic() + 4

    def is_loaded(self, answer: dict[str, Any]) -> bool:
        """Whether the answer came from the changed code."""
        if answer["code"] == self._version:
            return True
        if time.monotonic() > self._again_at:
            os.utime(self._site)
            self._again_at = time.monotonic() + 4
        return False


@pytest.mark.parametrize("kind", RELOADERS)
def test_one_server_over_all_reloads(
    kind: str, witness: Witness, runtime_dir: Path, tmp_path: Path
) -> None:
    reloader = RELOADERS[kind]
    pytest.importorskip(reloader.needs)
    site = tmp_path / "site1.py"
    site.write_text(reloader.code)
    # Werkzeug would watch all that can be imported with it, where it is installed; on a machine where much is written
    # there at the same time, the kernel's queue overflows, and the change that counts is lost.
    (tmp_path / "watchdog.py").write_text("raise ImportError")
    port = free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "WITNESS": str(witness.path),
        "APP_CAP": str(CAP),
        "APP_LINGER": str(LINGER_S),
    }
    command = [sys.executable, *reloader.command(port)]
    manager = PoolManager("shop", runtime_dir=runtime_dir)
    with WebServer(command, directory=tmp_path, environment=environment, address=port) as web:
        child = web.ask_until("/use")["pid"]
        pid, epoch = manager.server_pid, manager.stats()["epoch"]
        assert pid is not None
        for version in (2, 3):
            before = child
            site.write_text(
                site.read_text().replace(f"VERSION = {version - 1}", f"VERSION = {version}")
            )
            changed = Changed(site, version)
            answer = web.ask_until("/use", changed.is_loaded)
            child = answer["pid"]
            assert child != before
            assert web.pid != child
            assert has_a_trace_of_ours(web.pid) is None
            look = web.ask("/look")
            assert [one["pid"] for one in look["stats"]["processes"]] == [child]
            assert look["server"] == pid
        # Books, counters and with them everything that the server keeps have survived.
        assert look["stats"]["epoch"] == epoch
        assert look["stats"]["pools"]["orders"]["counters"]["opened"] >= 3
        assert web.ask("/fill")["leases"] == CAP
        assert witness.pids() == {child}
        assert witness.peak <= CAP
        assert pid not in children_of(child)
        os.killpg(web.pid, signal.SIGINT)  # Ctrl-C
        web.process.wait(40)
        wait_until(lambda: not list(session_of(web.pid)), "the end of everything in its session")
        # The server lingers, but does not keep the port.
        assert is_alive(pid)
        with socket.create_server(("127.0.0.1", port)):
            pass
    manager.shutdown()  # it would linger for long
    wait_until(lambda: not is_alive(pid), "the server to leave")
    assert manager.server_pid is None
    assert not witness.sessions()


STARTS_AT_IMPORT = """
import os, multiprocessing
from multiprocessing.managers import BaseManager
from werkzeug._reloader import run_with_reloader
started = os.open(os.environ["STARTED"], os.O_WRONLY | os.O_APPEND)
if os.environ["KIND"] == "naive":
    manager = BaseManager(ctx=multiprocessing.get_context("fork"))
    manager.start()
    os.write(started, f"{manager._process.pid}\\n".encode())
else:
    from mppool import PoolManager
    manager = PoolManager("t", linger=0.0)
    pool = manager.pool("p", object, max_size=1)
def main():
    if os.environ["KIND"] != "naive":
        with pool.checkout(timeout=20):
            os.write(started, f"{manager.server_pid}\\n".encode())
    os._exit(0)
run_with_reloader(main)
"""


@pytest.mark.parametrize(("kind", "servers"), [("naive", 2), ("ours", 1)])
def test_hazard_18_importing_the_application_in_the_reloaders_parent_starts_nothing(
    kind: str, servers: int, runtime_dir: Path, tmp_path: Path
) -> None:
    """The stand-in: a server that is started by import is started twice, and once for nobody."""
    pytest.importorskip("werkzeug")
    site, started = tmp_path / "site1.py", tmp_path / "started"
    site.write_text(STARTS_AT_IMPORT)
    started.touch()
    outside = {name: value for name, value in os.environ.items() if "WERKZEUG" not in name}
    environment = {**outside, "PYTHONPATH": str(ROOT), "KIND": kind, "STARTED": str(started)}
    try:
        # Not through pipes: the stand-in's servers inherit them, and would keep them open.
        subprocess.run(
            [sys.executable, str(site)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=40,
            check=True,
        )
    finally:
        pids = [int(line) for line in started.read_text().split()]
        for pid in pids:
            if kind == "naive" and is_alive(pid):
                os.kill(pid, signal.SIGKILL)
    assert len(pids) == servers
