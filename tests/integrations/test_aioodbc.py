"""AioodbcRecipe over PostgreSQL's and SQLite's ODBC drivers."""

from __future__ import annotations

import asyncio
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mppool import ConfigurationError, InProcessManager, OpenFailed, PoolManager
from mppool.aioodbc import AioodbcRecipe
from tests.aio.things import take_all
from tests.helpers import ROOT, wait_until
from tests.integrations.postgresql import Database
from tests.secrecy import MARK

pytest.importorskip("aioodbc")


async def scalar(connection: Any, query: str) -> Any:
    cursor = await connection.execute(query)
    return (await cursor.fetchone())[0]


def test_a_connection_is_given_back_clean_and_used_again(postgresql: Database) -> None:
    with InProcessManager() as manager:
        pool = manager.apool("p", AioodbcRecipe(postgresql.connection_string), max_size=1)

        async def main() -> None:
            async with pool.checkout() as connection:
                await connection.execute("create table t (n int)")
                connection.autocommit = False
                await connection.execute("insert into t values (1)")
            assert postgresql.states() == ["idle"]
            async with pool.checkout() as again:
                assert again is connection
                assert await scalar(again, "select to_regclass('t') is null") in (True, "1")

        asyncio.run(main())
    wait_until(lambda: not postgresql.session_pids(), "the end of the session")


def test_ended_sessions_are_replaced_before_anybody_gets_one(postgresql: Database) -> None:
    with InProcessManager() as manager:
        recipe = AioodbcRecipe(postgresql.connection_string)
        pool = manager.apool("p", recipe, max_size=2, check_idle_for=0.0)

        async def main() -> None:
            for lease in await take_all(pool, 2):
                await scalar(lease.resource, "select 1")
                await lease.release()
            await asyncio.to_thread(postgresql.end_sessions)
            for lease in await take_all(pool, 2):
                assert await scalar(lease.resource, "select 1") == 1
                await lease.release()
            assert (await pool.stats())["counters"]["unhealthy"] == 1

        asyncio.run(main())


def test_a_loop_that_is_closed_without_a_word_leaves_no_session(postgresql: Database) -> None:
    with InProcessManager() as manager:
        pool = manager.apool("p", AioodbcRecipe(postgresql.connection_string), max_size=2)

        async def main() -> None:
            for lease in await take_all(pool, 2):
                await lease.release()

        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        first = postgresql.session_pids()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        asyncio.run(main())
        assert first
        assert wait_until(
            lambda: not first & postgresql.session_pids(), "the end of what the loop had"
        )


def test_a_close_that_is_cancelled_is_not_done_once_more_by_the_finalizer() -> None:
    """The executor may be closing: pyodbc 5.1 crashed where aioodbc's finalizer closed at the same time."""

    class Closing:
        closed = False
        _conn: object | None = object()

        async def close(self) -> None:
            await asyncio.Event().wait()

    async def main() -> None:
        connection = Closing()
        closing = asyncio.create_task(AioodbcRecipe("Driver=any").close(connection))
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert connection._conn is None

    asyncio.run(main())


def test_the_cap_holds_over_processes(sqlite_odbc: str, runtime_dir: Path) -> None:
    """The script of the page, beside a process that has all but one."""
    page = (ROOT / "docs" / "asyncio.md").read_text()
    found = re.search(r"```python title=aioodbc\n(.*?)```", page, re.DOTALL)
    assert found
    pool = PoolManager("shop").apool("orders", AioodbcRecipe(sqlite_odbc), max_size=8)

    async def main() -> None:
        leases = await take_all(pool, 8)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", "-c", found[1],
            env={**os.environ, "ODBC_STRING": sqlite_odbc, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        assert (process.returncode, out) == (1, b"")
        assert b"CheckoutTimeout" in err
        await leases.pop().discard()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", "-c", found[1],
            env={**os.environ, "ODBC_STRING": sqlite_odbc, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        assert (out, err) == (b"42\n", b"")
        for lease in leases:
            await lease.release()

    asyncio.run(main())


def test_no_secret_is_told() -> None:
    recipe = AioodbcRecipe(f"Driver=no such driver;UID=me;PWD={MARK}")
    assert MARK not in repr(recipe) + recipe.fingerprint()
    assert pickle.loads(pickle.dumps(recipe)).fingerprint() == recipe.fingerprint()
    with InProcessManager() as manager:

        async def main() -> None:
            with pytest.raises(OpenFailed) as caught:
                await manager.apool("p", recipe).checkout()
            assert MARK not in str(caught.value) + str(caught.value.__cause__)

        asyncio.run(main())


@pytest.mark.parametrize(
    ("string", "more"),
    [(1, {}), ("", {}), ("DSN=x", {"login_timeout": 0}), ("DSN=x", {"check_query": " "})],
)
def test_what_cannot_be_meant_is_refused(string: Any, more: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        AioodbcRecipe(string, **more)
