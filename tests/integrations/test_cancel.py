"""`lease.cancel()` ends what runs on a connection, from any thread; a lease that is killed is cancelled first (A18)."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from mppool import InProcessManager, Lease, StaleLease
from mppool.dbapi import DbApiRecipe
from mppool.psycopg import PsycopgRecipe
from tests.helpers import PATIENCE, wait_until
from tests.integrations.postgresql import Database


class User(threading.Thread):
    """A thread in the middle of something."""

    def __init__(self, do: Callable[[], object]) -> None:
        super().__init__()
        self._do = do
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._do()
        except BaseException as error:
            self.error = error

    def ended_with(self) -> BaseException | None:
        self.join(PATIENCE)
        assert not self.is_alive()
        return self.error


def conninfo(database: Database) -> str:
    return f"host=127.0.0.1 port={database.port} dbname={database.name} user=postgres"


def is_asleep(database: Database) -> bool:
    return "active" in database.states()


def test_a_statement_of_another_thread_ends_with_the_drivers_error(postgresql: Database) -> None:
    manager = InProcessManager()
    pool = manager.pool("orders", PsycopgRecipe(conninfo(postgresql)), max_size=1)
    lease: Lease[Any] = pool.checkout()
    (backend,) = postgresql.session_pids()
    user = User(lambda: lease.resource.execute("select pg_sleep(600)"))
    wait_until(lambda: is_asleep(postgresql), "the statement")
    assert lease.cancel() is True
    assert isinstance(user.ended_with(), psycopg.errors.QueryCanceled)
    assert lease.resource.closed is False  # until it is released
    lease.release()
    # Its connection is not given to the next one: the database may hear of a cancel late.
    with pool.checkout() as connection:
        assert connection.execute("select pg_backend_pid()").fetchone()[0] != backend
    manager.close()


def test_a_lease_that_is_killed_is_cancelled_before_it_is_closed(postgresql: Database) -> None:
    manager = InProcessManager()
    pool = manager.pool(
        "orders", PsycopgRecipe(conninfo(postgresql)), max_size=1, max_lease_kill=0.2
    )
    lease: Lease[Any] = pool.checkout()
    user = User(lambda: lease.resource.execute("select pg_sleep(600)"))
    assert isinstance(user.ended_with(), psycopg.Error)
    wait_until(lambda: not postgresql.held(), "the end of the session")
    assert not is_asleep(postgresql)
    wait_until(lambda: pool.stats()["counters"]["killed"] == 1, "the end of the lease")
    with pytest.raises(StaleLease):
        lease.cancel()
    lease.release()
    manager.close()


def test_sqlite_is_interrupted() -> None:
    manager = InProcessManager()
    pool = manager.pool("orders", DbApiRecipe(sqlite3.connect, ":memory:"), max_size=1)
    lease: Lease[Any] = pool.checkout()
    endless = (
        "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"
    )
    begun = threading.Event()
    lease.resource.create_function("begun", 0, begun.set)
    user = User(lambda: lease.resource.execute(f"select begun(), ({endless})").fetchall())
    assert begun.wait(PATIENCE)
    # An interrupt before the statement runs is forgotten by SQLite.
    while user.is_alive():
        assert lease.cancel()
        user.join(0.01)
    assert isinstance(user.ended_with(), sqlite3.OperationalError)
    lease.release()
    manager.close()
