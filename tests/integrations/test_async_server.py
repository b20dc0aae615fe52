"""Starlette under uvicorn with four workers, asyncpg and a cap of eight, over a real PostgreSQL; docs/asyncio.md."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mppool import PoolManager
from mppool.asyncpg import AsyncpgRecipe
from tests.aio.things import take_all
from tests.helpers import ROOT, free_port, is_alive, wait_until
from tests.integrations.postgresql import Database
from tests.integrations.webserver import Load, WebServer, children_of

CAP = 8

APPLICATION = """
import asyncio
import os
import random

from mppool import PoolManager
from mppool.asyncpg import AsyncpgRecipe
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

manager = PoolManager("shop")
orders = manager.apool("orders", AsyncpgRecipe(os.environ["DATABASE_URL"]), max_size=8)


async def work():
    async with orders.checkout(timeout=40.0) as connection:
        return await connection.fetchval("select 42 from pg_sleep(0.003)")


async def show(request):
    # Some give up, wherever they are.
    patience = random.choice([None, None, None, random.random() / 100])
    try:
        answer = await asyncio.wait_for(work(), patience)
    except asyncio.TimeoutError:
        answer = None
    return JSONResponse({"pid": os.getpid(), "answer": answer})


app = Starlette(routes=[Route("/", show)])
"""


def block(title: str) -> str:
    """The code of that title on the page."""
    page = (ROOT / "docs" / "asyncio.md").read_text()
    found = re.search(rf"```python title={title}\n(.*?)```", page, re.DOTALL)
    assert found, title
    return found[1]


@pytest.fixture
def environment(postgresql: Database, runtime_dir: Path, tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "DATABASE_URL": f"postgresql://postgres@127.0.0.1:{postgresql.port}/{postgresql.name}",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), sysconfig.get_path("purelib")]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@contextmanager
def counted(database: Database) -> Iterator[list[int]]:
    """How many sessions had a client, looked at again and again."""
    seen: list[int] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            seen.append(database.held())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


@contextmanager
def served(
    application: str, tmp_path: Path, environment: dict[str, str], *more: str
) -> Iterator[WebServer]:
    pytest.importorskip("asyncpg")
    (tmp_path / "application.py").write_text(application)
    port = free_port()
    command = [
        *(sys.executable, "-m", "uvicorn", "--workers", "4", "--port", str(port)),
        *("--lifespan", "off", "--log-level", "warning", *more, "application:app"),
    ]
    with WebServer(command, directory=tmp_path, environment=environment, address=port) as server:
        server.ask_until("/")
        yield server


def test_the_script_of_the_page(environment: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("asyncpg")
    with PoolManager("shop") as manager:
        manager.start()  # its timeout is that of a person whose machine does nothing else
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", block("script")],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=100,
        )  # fmt: skip
    assert (done.stdout, done.stderr) == ("42\n", "")


def test_the_application_of_the_page(
    environment: dict[str, str], tmp_path: Path, postgresql: Database
) -> None:
    with served(block("application"), tmp_path, environment) as server:
        assert server.ask("/") == 42
        assert 1 <= postgresql.held() <= CAP


@pytest.mark.timeout(300)
def test_eight_sessions_whoever_is_cancelled_or_killed(
    environment: dict[str, str], tmp_path: Path, postgresql: Database
) -> None:
    manager = PoolManager("shop")
    threads = 12
    with counted(postgresql) as seen, served(APPLICATION, tmp_path, environment) as server:
        with Load(server, "/", threads) as load:
            load.more(600)
            labels = [one["label"] for one in manager.stats()["processes"]]
            assert all(re.fullmatch(r"uvicorn worker \d+", label) for label in labels), labels
            mppool_server = manager.server_pid
            assert mppool_server is not None
            os.kill(mppool_server, signal.SIGKILL)
            load.more(600)
            assert not load.broken
            worker = next(pid for pid in children_of(server.pid) if pid in load.pids)
            os.kill(worker, signal.SIGKILL)
            wait_until(lambda: not is_alive(worker), "the end of the worker")
            load.more(800)
        assert asyncio.run(all_at_once(manager, environment["DATABASE_URL"])) == CAP
    assert not load.refused
    assert len(load.broken) <= threads  # in flight in the worker that was killed
    assert len(load.pids) >= 4
    assert max(seen) == CAP


async def all_at_once(manager: PoolManager, url: str) -> int:
    """How many sessions can be had at one time: no slot was lost."""
    pool = manager.apool("orders", AsyncpgRecipe(url), max_size=CAP)
    leases = await take_all(pool, CAP)
    try:
        return len({lease.resource.get_server_pid() for lease in leases})
    finally:
        for lease in leases:
            await lease.release()
