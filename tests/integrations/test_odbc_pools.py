"""OdbcRecipe in a pool, over real databases; sessions are counted by PostgreSQL, not by mppool."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mppool import InProcessManager, OpenFailed, PoolManager
from mppool.odbc import OdbcRecipe
from tests.helpers import Fork, wait_until
from tests.integrations.postgresql import Database

CAP = 3


@pytest.fixture(params=["one process", "many processes"])
def manager(request: pytest.FixtureRequest, runtime_dir: Path) -> Iterator[Any]:
    """Each kind of manager in turn."""
    if request.param == "one process":
        yield InProcessManager()
    else:
        yield request.getfixturevalue("shared")


@pytest.fixture
def shared(runtime_dir: Path) -> Iterator[PoolManager]:
    """A manager that processes share."""
    manager = PoolManager("test")
    yield manager
    manager.shutdown()


@contextmanager
def witness(database: Database) -> Iterator[list[int]]:
    """Numbers of sessions, as PostgreSQL and the kernel count them, looked at again and again."""
    seen: list[int] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.append(database.held())
            time.sleep(0.002)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def test_threads_together_never_have_more_sessions_than_the_cap(
    manager: Any, postgresql: Database
) -> None:
    pool = manager.pool("shop", OdbcRecipe(postgresql.connection_string), max_size=CAP)

    def work(number: int) -> None:
        for turn in range(20):
            with pool.checkout(timeout=20) as connection:
                wanted = number * 1000 + turn
                assert connection.execute("select ?::int", wanted).fetchone()[0] == wanted

    with witness(postgresql) as seen, ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
        wait_until(lambda: max(seen, default=0) > 0, "the witness to see a session")
    assert max(seen) <= CAP
    pool.close()
    wait_until(lambda: not postgresql.session_pids(), "all sessions to be closed")


def test_the_next_caller_sees_nothing_of_what_was_not_committed(
    manager: Any, sqlite_odbc: str
) -> None:
    pool = manager.pool("shop", OdbcRecipe(sqlite_odbc), max_size=1)
    with pool.checkout() as connection:
        connection.execute("create table thing (x int)")
        connection.commit()
    with pool.checkout() as connection:
        connection.execute("insert into thing values (1)")
        connection.autocommit = False
    with pool.checkout() as connection:
        assert connection.execute("select count(*) from thing").fetchone()[0] == 0
    assert pool.stats()["counters"]["opened"] == 1


def test_a_refused_login_fails_with_its_sqlstate_and_without_the_password(
    manager: Any, postgresql: Database
) -> None:
    text = postgresql.connection_string.replace("PWD=unused", "PWD=hunter2")
    text = text.replace(f"Database={postgresql.name}", "Database=no_hunter2")
    pool = manager.pool("shop", OdbcRecipe(text), max_size=1)
    with pytest.raises(OpenFailed) as refused:
        pool.checkout(timeout=5)
    assert refused.value.__cause__ is not None
    assert refused.value.__cause__.args[0] == "08001"
    assert "08001" in str(refused.value)
    error: BaseException | None = refused.value
    while error is not None:
        assert "hunter2" not in str(error)
        error = error.__cause__ or error.__context__


def test_a_missing_driver_says_which_there_are(manager: Any, odbc_drivers: list[str]) -> None:
    pool = manager.pool("shop", OdbcRecipe("Driver=No Such Driver;PWD=hunter2"), max_size=1)
    with pytest.raises(OpenFailed, match="SQLite3") as refused:
        pool.checkout(timeout=5)
    assert "hunter2" not in str(refused.value)


def test_a_session_that_was_ended_is_not_handed_out_twice(
    manager: Any, postgresql: Database
) -> None:
    pool = manager.pool("shop", OdbcRecipe(postgresql.connection_string), max_size=1)
    with pool.checkout() as connection:
        connection.execute("select 1").fetchall()
        postgresql.end_sessions()
        # The rollback on release fails: the connection is discarded, its slot free again.
    with pool.checkout(timeout=20) as connection:
        assert connection.execute("select 2").fetchone()[0] == 2


def test_forked_children_share_the_cap_and_leave_the_parents_sessions_alone(
    shared: PoolManager, postgresql: Database
) -> None:
    pool = shared.pool("shop", OdbcRecipe(postgresql.connection_string), max_size=CAP)

    gate, opener = os.pipe()

    def work(number: int) -> int:
        os.read(gate, 1)
        right = 0
        for turn in range(50):
            with pool.checkout(timeout=30) as connection:
                wanted = number * 1000 + turn
                right += connection.execute("select ?::int", wanted).fetchone()[0] == wanted
        return right

    with pool.checkout() as connection:
        mine = connection.execute("select pg_backend_pid()").fetchone()[0]
        # The witness is a thread that uses ODBC. It starts when the children are there: forked in the
        # middle of a call they would inherit a lock of libodbc's that nobody ever unlocks.
        children = [Fork(work, number) for number in range(4)]
        try:
            with witness(postgresql) as seen:
                os.write(opener, bytes(len(children)))
                assert [child.result(timeout=40) for child in children] == [50] * 4
        finally:
            for child in children:
                child.kill()
            os.close(gate)
            os.close(opener)
        assert connection.execute("select pg_backend_pid()").fetchone()[0] == mine
    assert max(seen) <= CAP


def _checkout_in_spawned_child(pool: Any) -> int:
    with pool.checkout(timeout=20) as connection:
        return int(connection.execute("select pg_backend_pid()").fetchone()[0])


def test_a_pool_travels_to_a_spawned_child(shared: PoolManager, postgresql: Database) -> None:
    pool = shared.pool("shop", OdbcRecipe(postgresql.connection_string), max_size=CAP)
    with multiprocessing.get_context("spawn").Pool(1) as children:
        there = children.apply(_checkout_in_spawned_child, (pool,))
    assert there > 0
    with pool.checkout(timeout=20) as connection:
        assert connection.execute("select pg_backend_pid()").fetchone()[0] != there
