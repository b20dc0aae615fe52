"""Asynchronous engines over one pool for all processes: asyncpg, psycopg and aioodbc, over a real PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pytest
from sqlalchemy import create_engine, exc, text
from sqlalchemy.dialects import registry
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from mppool import ConfigurationError, PoolManager
from mppool.integrations.sqlalchemy import shared_async_pool
from tests.helpers import ROOT, free_port, wait_until
from tests.integrations.postgresql import Database
from tests.integrations.test_async_server import counted
from tests.integrations.webserver import Load, WebServer

Make = Callable[..., AsyncEngine]


@pytest.fixture
def manager(runtime_dir: Path) -> PoolManager:
    return PoolManager("shop", linger=0.2)


@pytest.fixture(params=["asyncpg", "psycopg", "aioodbc"])
def make(request: pytest.FixtureRequest, postgresql: Database, manager: PoolManager) -> Make:
    pytest.importorskip(request.param)
    where = f"postgres@127.0.0.1:{postgresql.port}/{postgresql.name}"
    if request.param == "aioodbc":
        module = "tests.integrations.aioodbc_dialect"
        registry.register("postgresql.aioodbc", module, "PostgresqlOverAioodbc")
        where = f"?odbc_connect={quote_plus(postgresql.connection_string)}"
    url = f"postgresql+{request.param}://{where}"
    kind = shared_async_pool(manager, "db")
    return lambda **options: create_async_engine(url, poolclass=kind, **options)


async def one(engine: AsyncEngine, statement: str = "select 1") -> Any:
    async with engine.connect() as connection:
        return (await connection.execute(text(statement))).scalar()


def test_a_connection_is_used_again(make: Make, postgresql: Database) -> None:
    async def main() -> None:
        engine = make(pool_size=2, max_overflow=0)
        first = await one(engine, "select pg_backend_pid()")
        assert await one(engine, "select pg_backend_pid()") == first
        assert engine.pool.status().startswith("Pool size: 2  Connections in pool: 1")
        async with engine.begin() as connection:
            await connection.execute(text("create table t (n int)"))
        async with engine.connect() as connection:
            await connection.execute(text("insert into t values (1)"))  # rolled back
        assert await one(engine, "select count(*) from t") == 0
        await engine.dispose()
        # A backend is seen for a moment after its client has closed.
        gone = "the end of the sessions"
        await asyncio.to_thread(wait_until, lambda: not postgresql.session_pids(), gone)

    asyncio.run(main())


def test_tasks_wait_for_each_other_and_block_no_loop(make: Make, postgresql: Database) -> None:
    async def main() -> None:
        engine = make(pool_size=2, max_overflow=1)
        await asyncio.gather(*(one(engine, "select pg_sleep(0.01)") for _ in range(30)))
        assert len(postgresql.session_pids()) <= 3
        held = [await engine.connect() for _ in range(3)]
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        heart = asyncio.ensure_future(turn())
        waiting = asyncio.ensure_future(one(engine))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        assert turns > 10
        heart.cancel()
        for connection in held:
            await connection.close()
        assert await waiting == 1
        await engine.dispose()

    asyncio.run(main())


def test_a_timeout_is_sqlalchemys(make: Make) -> None:
    async def main() -> None:
        engine = make(pool_size=1, max_overflow=0, pool_timeout=0.5)
        while True:  # to start the server and to connect may take longer on a busy machine
            try:
                first = await engine.connect()
                break
            except exc.TimeoutError:
                continue
        with pytest.raises(exc.TimeoutError, match="QueuePool limit of size 1 overflow 0"):
            await one(engine)
        await first.close()
        await engine.dispose()

    asyncio.run(main())


def test_cancelled_tasks_lose_nothing(make: Make, postgresql: Database) -> None:
    async def main() -> None:
        engine = make(pool_size=2, max_overflow=0)
        for pause in (0.0, 0.001, 0.003, 0.01, 0.03):
            tasks = [asyncio.ensure_future(one(engine, "select pg_sleep(0.02)")) for _ in range(6)]
            await asyncio.sleep(pause)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.wait(tasks)
        held = [await engine.connect() for _ in range(2)]
        for connection in held:
            assert (await connection.execute(text("select 1"))).scalar() == 1
            await connection.close()
        assert len(postgresql.session_pids()) <= 2
        await engine.dispose()

    asyncio.run(main())


def test_ended_sessions_are_replaced_by_a_ping(make: Make, postgresql: Database) -> None:
    async def main() -> None:
        engine = make(pool_size=2, max_overflow=0, pool_pre_ping=True)
        held = [await engine.connect() for _ in range(2)]
        for connection in held:
            await connection.close()
        await asyncio.to_thread(postgresql.end_sessions)
        for _ in range(3):
            assert await one(engine) == 1
        await engine.dispose()

    asyncio.run(main())


def test_loops_one_after_the_other_use_one_engine(make: Make, postgresql: Database) -> None:
    engine = make(pool_size=2, max_overflow=0)
    for _ in range(3):
        assert asyncio.run(one(engine)) == 1
        wait_until(lambda: not postgresql.session_pids(), "the end of the loop's sessions")


def test_a_blocking_engine_is_refused(make: Make, manager: PoolManager) -> None:
    with pytest.raises(exc.ArgumentError):
        create_engine("sqlite://", poolclass=shared_async_pool(manager, "other"))
    with pytest.raises(ConfigurationError, match="pool_size"):
        shared_async_pool(manager, "db", max_size=3)


def test_uvicorn_workers_share_the_cap(
    postgresql: Database, runtime_dir: Path, tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "sqlalchemy.md").read_text()
    found = re.search(r"```python title=asyncio\n(.*?)```", page, re.DOTALL)
    assert found
    (tmp_path / "shop.py").write_text(found[1])
    environment = {
        **os.environ,
        "DATABASE_URL": f"postgresql+asyncpg://postgres@127.0.0.1:{postgresql.port}/{postgresql.name}",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), sysconfig.get_path("purelib")]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    port = free_port()
    command = [
        *(sys.executable, "-m", "uvicorn", "--workers", "4", "--port", str(port)),
        *("--lifespan", "off", "--log-level", "warning", "shop:app"),
    ]
    with (
        counted(postgresql) as seen,
        WebServer(command, directory=tmp_path, environment=environment, address=port) as server,
    ):
        server.ask_until("/")
        with Load(server, "/", 8) as load:
            load.more(150)
    assert not load.refused
    assert not load.broken
    assert 1 <= max(seen) <= 5
