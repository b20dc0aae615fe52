"""Health, as probes ask for it: over WSGI and ASGI, and from the command line."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.validate import validator

import pytest

from mppool import InProcessManager, OpenFailed, Pool, PoolManager
from mppool.integrations import asgi, wsgi
from tests.helpers import ROOT, free_port, run_python, wait_until


class Database:
    """May be down."""

    is_up = True

    def __call__(self) -> object:
        if not self.is_up:
            raise ConnectionRefusedError("the database is down")
        return object()


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
def manager(runtime_dir: Path) -> Iterator[PoolManager]:
    manager = PoolManager("shop")
    yield manager
    manager.shutdown()


@pytest.fixture
def orders(manager: PoolManager, database: Database) -> Pool[object]:
    return manager.pool("orders", database, max_size=1, check_idle_for=None)


def break_it(pool: Pool[object], database: Database) -> None:
    database.is_up = False
    pool.close_idle()
    with pytest.raises(OpenFailed):
        pool.checkout(timeout=5)


def test_asking_starts_no_server_and_opens_nothing(
    manager: PoolManager, orders: Pool[object]
) -> None:
    assert manager.health() == {
        "status": "ok", "reasons": [], "pools": {"orders": {"status": "ok", "reasons": []}},
    }  # fmt: skip
    assert orders.health() == {"status": "ok", "reasons": []}
    assert manager.server_pid is None


def test_a_pool_that_has_nothing_and_cannot_open_is_down(
    manager: PoolManager, orders: Pool[object], database: Database
) -> None:
    with orders.checkout():
        pass
    break_it(orders, database)
    assert orders.health()["status"] == "down"
    whole = manager.health()
    assert whole["status"] == "down"
    assert whole["reasons"] == ["orders: nothing is open, and opening fails at present"]
    database.is_up = True

    def heals() -> bool:
        try:
            orders.checkout(timeout=5).release()
        except OpenFailed:
            return False
        return orders.health()["status"] == "ok"

    wait_until(heals, "a pool that is well")


def test_a_pool_that_is_full_while_others_wait_is_degraded(orders: Pool[object]) -> None:
    with orders.checkout():
        waiting = threading.Thread(target=lambda: orders.checkout(timeout=30).release())
        waiting.start()
        found = wait_until(
            lambda: (one := orders.health())["status"] == "degraded" and one, "a degraded pool"
        )
        assert found["reasons"] == ["all 1 are taken, and 1 wait"]
    waiting.join()


def test_a_server_that_does_not_answer_is_down(manager: PoolManager, orders: Pool[object]) -> None:
    with orders.checkout():
        pass
    pid = manager.server_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        assert manager.health()["status"] == "down"
        assert orders.health()["status"] == "down"
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_closed_pool_is_down(manager: PoolManager, orders: Pool[object]) -> None:
    with orders.checkout():
        pass
    orders.close()
    assert orders.health()["reasons"] == ["it is closed in this process"]
    assert manager.health()["status"] == "ok"  # other processes go on


def test_a_manager_of_one_process_has_health_too(database: Database) -> None:
    with InProcessManager() as manager:
        pool = manager.pool("orders", database, max_size=1)
        assert pool.health()["status"] == "ok"
        database.is_up = False
        with pytest.raises(OpenFailed):
            pool.checkout(timeout=5)
        assert manager.health()["status"] == "down"


# --- applications ----------------------------------------------------------------------------------------


class Quiet(WSGIRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


def asked(url: str, method: str = "GET") -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, method=method), timeout=20
        ) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_over_wsgi(manager: PoolManager, orders: Pool[object], database: Database) -> None:
    application = validator(wsgi.health(manager))
    with make_server("127.0.0.1", 0, application, handler_class=Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/"
        status, body = asked(url)
        assert (status, json.loads(body)["status"]) == (200, "ok")
        assert asked(url, "HEAD") == (200, b"")
        break_it(orders, database)
        status, body = asked(url)
        assert (status, json.loads(body)["status"]) == (503, "down")
        server.shutdown()
        thread.join()


def test_over_asgi(manager: PoolManager, orders: Pool[object], database: Database) -> None:
    uvicorn = pytest.importorskip("uvicorn")
    port = free_port()
    config = uvicorn.Config(
        asgi.health(manager), host="127.0.0.1", port=port, lifespan="on", log_level="warning"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        wait_until(lambda: server.started, "a server")
        status, body = asked(f"http://127.0.0.1:{port}/")
        assert (status, json.loads(body)["status"]) == (200, "ok")
        break_it(orders, database)
        status, body = asked(f"http://127.0.0.1:{port}/")
        assert (status, json.loads(body)["status"]) == (503, "down")
    finally:
        server.should_exit = True
        thread.join()


# --- the command -----------------------------------------------------------------------------------------


def mppool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mppool", "health", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)


def test_the_command_has_an_exit_status_for_probes(
    manager: PoolManager, orders: Pool[object], database: Database
) -> None:
    done = mppool("shop")
    assert (done.returncode, done.stdout) == (0, "ok: no pool is in use at present\n")
    with orders.checkout():
        pass
    assert (mppool("shop").stdout, mppool("shop").returncode) == ("ok\n", 0)
    lease = orders.checkout()
    waiting = threading.Thread(target=lambda: orders.checkout(timeout=30).release())
    waiting.start()
    wait_until(lambda: orders.health()["status"] == "degraded", "a degraded pool")
    assert mppool("shop").returncode == 0
    assert mppool("shop", "--strict").returncode == 1
    lease.release()
    waiting.join()
    break_it(orders, database)
    done = mppool("shop", "--json")
    assert (done.returncode, json.loads(done.stdout)["status"]) == (1, "down")
    assert "opening fails" in mppool("shop").stdout


# --- the page --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("title", ["wsgi", "asgi"])
def test_the_page(runtime_dir: Path, title: str) -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    found = re.search(rf"```python title={title}\n(.*?)```", page, re.DOTALL)
    assert found
    ask = {
        "wsgi": """
from wsgiref.util import setup_testing_defaults
environ = {"PATH_INFO": "/health"}
setup_testing_defaults(environ)
print(b"".join(application(environ, lambda status, headers: print(status))))
""",
        "asgi": """
from starlette.testclient import TestClient
answer = TestClient(application).get("/health")
print(answer.status_code, "OK", answer.content)
""",
    }[title]
    if title == "asgi":
        pytest.importorskip("fastapi")
        pytest.importorskip("httpx")
    said = run_python(found[1] + ask).stdout
    assert "200 OK" in said
    assert '"status": "ok"' in said


def test_the_page_on_logs() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    found = re.search(r"```python title=logs\n(.*?)```", page, re.DOTALL)
    assert found
    use = """
from mppool import InProcessManager
pool = InProcessManager().pool("orders", object)
lease = pool.checkout()
for _ in range(3):
    lease.release()
"""
    (line,) = map(json.loads, run_python(found[1] + use).stderr.splitlines())
    assert (line["level"], line["pool"]) == ("WARNING", "orders")
    assert "released a second time" in line["text"]
