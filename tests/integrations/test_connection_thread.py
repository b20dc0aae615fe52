"""The thread in which the calls of one ODBC connection run."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from mppool import InProcessManager
from mppool.aioodbc import AioodbcRecipe
from mppool.odbc import driver_manager
from mppool.odbc.connection_thread import ConnectionThread, call_in_turn, close_without_loop
from tests.integrations.postgresql import Database

pytest.importorskip("aioodbc")


class Thing:
    """A cursor: tells in which thread its last reference was dropped."""

    dropped_in: list[str]

    def __init__(self) -> None:
        self.dropped_in = []

    def __del__(self) -> None:
        self.dropped_in.append(threading.current_thread().name)


def _same(thing: Thing) -> Thing:
    return thing


@pytest.fixture
def thread(monkeypatch: pytest.MonkeyPatch) -> ConnectionThread:
    monkeypatch.setattr(driver_manager, "load", lambda: SimpleNamespace(Cursor=Thing))
    return ConnectionThread()


def test_a_call_waits_for_the_one_before_also_if_nobody_waits_for_that(
    thread: ConnectionThread,
) -> None:
    go_on, seen = threading.Event(), []

    def statement() -> None:
        go_on.wait(10)
        seen.append("statement")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        first = loop.run_in_executor(thread, statement)
        second = loop.run_in_executor(thread, lambda: seen.append("rollback"))
        await asyncio.sleep(0)
        first.cancel()
        go_on.set()
        await second

    asyncio.run(main())
    assert seen == ["statement", "rollback"]


def test_the_last_reference_to_a_cursor_is_dropped_in_its_thread(thread: ConnectionThread) -> None:
    cursor = thread.submit(Thing).result()
    dropped_in = cursor.dropped_in
    assert thread.submit(_same, cursor).result() is cursor  # as its `execute` does
    thread.submit(int).result()
    del cursor
    assert dropped_in == []
    thread.submit(int).result()
    assert [name.rpartition("_")[0] for name in dropped_in] == ["mppool-odbc"]


def test_a_cursor_that_is_in_use_stays(thread: ConnectionThread) -> None:
    cursors = [thread.submit(Thing).result() for _ in range(3)]
    thread.submit(int).result()
    assert [cursor.dropped_in for cursor in cursors] == [[], [], []]


def test_its_thread_ends_with_it() -> None:
    executor = ConnectionThread()
    thread = executor.submit(threading.current_thread).result()
    del executor
    thread.join(10)
    assert not thread.is_alive()


def test_a_close_without_the_loop_waits_for_the_call_that_runs(thread: ConnectionThread) -> None:
    go_on = threading.Event()
    seen: list[str] = []

    def statement() -> None:
        go_on.wait(10)
        seen.append("statement")

    below = SimpleNamespace(close=lambda: seen.append("close"))
    connection = SimpleNamespace(_executor=thread, _conn=below)
    thread.submit(statement)
    threading.Timer(0.05, go_on.set).start()
    close_without_loop(connection)
    close_without_loop(connection)
    assert seen == ["statement", "close"]
    assert connection._conn is None


def test_a_close_without_the_loop_and_without_the_thread(thread: ConnectionThread) -> None:
    seen: list[str] = []
    connection = SimpleNamespace(
        _executor=thread, _conn=SimpleNamespace(close=lambda: seen.append("close"))
    )
    thread.shutdown()
    close_without_loop(connection)
    assert seen == ["close"]


def test_an_executor_of_the_application_stays() -> None:
    own = object()
    connection = SimpleNamespace(_executor=own)
    call_in_turn(connection)
    assert connection._executor is own


def test_a_cancelled_statement_is_waited_for_and_its_session_used_again(
    postgresql: Database,
) -> None:
    """Its rollback comes after it: two threads in one connection made psqlODBC crash."""

    async def sleep(connection: Any) -> None:
        await (await connection.execute("select pg_sleep(0.2)")).fetchall()

    async def use(pool: Any) -> None:
        async with pool.checkout() as connection:
            await sleep(connection)

    async def main() -> None:
        pool = manager.apool("p", AioodbcRecipe(postgresql.connection_string), max_size=1)
        async with pool.checkout() as connection:
            sessions = postgresql.session_pids()
        for pause in (0.0, 0.01, 0.05, 0.2):
            using = asyncio.create_task(use(pool))
            await asyncio.sleep(pause)
            using.cancel()
            await asyncio.wait([using])
        async with pool.checkout() as again:
            assert again is connection
            assert postgresql.session_pids() == sessions
            cursor = await again.execute("select 1")
            assert (await cursor.fetchone())[0] == 1

    with InProcessManager() as manager:
        asyncio.run(main())
