"""What ties a lease to its session in a host is named and counted."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from mppool import PoolManager
from mppool.cli.looking import _pins
from mppool.cli.top.drawing import _pin_lines
from mppool.dbapi import DbApiRecipe
from mppool.hosting.pins import left_by
from mppool.odbc import OdbcRecipe
from mppool.stats.pins import CURSOR, SETTING, TABLE, TRANSACTION, Pins
from tests.helpers import wait_until


def test_they_are_counted_by_lease_and_their_seconds_go_on() -> None:
    pins = Pins()
    pins.begins(1, TRANSACTION, 10.0)
    pins.begins(1, TRANSACTION, 11.0)  # it goes on
    pins.begins(2, CURSOR, 11.0)
    assert pins.figures(13.0)[TRANSACTION] == (1, 3.0)
    pins.ends(1, TRANSACTION, 14.0)
    pins.begins(1, TRANSACTION, 20.0)  # another one in the same lease
    pins.begins(1, TABLE, 20.0)
    pins.lease_ends(1, 21.0)
    pins.ends(1, TRANSACTION, 30.0)
    assert pins.figures(31.0) == {
        TRANSACTION: (1, 5.0),
        CURSOR: (1, 20.0),
        TABLE: (1, 1.0),
        SETTING: (0, 0.0),
    }


@pytest.mark.parametrize(
    ("statement", "left"),
    [
        ("select 1", None),
        ("update t set a = 1", None),
        ("create temporary table t (id int)", TABLE),
        ("CREATE TEMP TABLE t AS SELECT 1", TABLE),
        ("create table #t (id int)", TABLE),
        ("select a into #t from b", TABLE),
        ("set search_path to x", SETTING),
        ("SET LOCAL search_path TO x", None),
        ("set transaction isolation level serializable", None),
        ("pragma foreign_keys = on", SETTING),
        ("pragma table_info(t)", None),
        ("/* set x */ select 2", None),
        ("select pg_advisory_lock(1)", SETTING),
    ],
)
def test_what_a_statement_leaves(statement: str, left: str | None) -> None:
    assert left_by(statement) == left


def leases(pool: Any) -> dict[str, int]:
    return {reason: pin["leases"] for reason, pin in pool.stats()["pins"].items()}


def test_a_host_tells_of_all_of_them(manager: PoolManager, tmp_path: Path) -> None:
    recipe = DbApiRecipe(sqlite3.connect, str(tmp_path / "data.db"))
    pool = manager.pool("p", recipe, max_size=1, placement="host")
    none = {TRANSACTION: 0, CURSOR: 0, TABLE: 0, SETTING: 0}
    with pool.checkout() as connection:
        connection.execute("select 1").fetchall()
    assert leases(pool) == none
    with pool.checkout() as connection:
        connection.execute("create temporary table t (id int)")
        connection.executemany("insert into t values (?)", [(n,) for n in range(300)])
        connection.commit()
        cursor = connection.execute("select id from t")
        assert cursor.fetchone() == (0,)
        wait_until(
            lambda: leases(pool) == {**none, TRANSACTION: 1, TABLE: 1, CURSOR: 1}, "three of them"
        )
        assert len(cursor.fetchall()) == 299
        connection.execute("pragma cache_size = 100")
    wait_until(lambda: leases(pool)[SETTING] == 1, "the setting")
    figures = pool.stats()
    assert all(pin["seconds"] > 0 for pin in figures["pins"].values())  # type: ignore[union-attr]
    assert "temporary table" in _pin_lines(figures, 100)[0].plain
    assert len(_pin_lines(figures, 40)[0].plain.rstrip()) <= 40
    assert _pins(figures) is not None


def test_where_a_driver_says_nothing_the_mode_of_the_connection_does(
    manager: PoolManager, sqlite_odbc: str
) -> None:
    pool = manager.pool("p", OdbcRecipe(sqlite_odbc), max_size=1, placement="host")
    with pool.checkout() as connection:
        connection.execute("select 1").fetchall()
        wait_until(lambda: leases(pool)[TRANSACTION] == 1, "the transaction")
        connection.commit()
        seconds = [pool.stats()["pins"][TRANSACTION]["seconds"] for _ in range(3)]  # type: ignore[index]
        wait_until(lambda: _ended(pool, seconds), "its end")


def _ended(pool: Any, seen: list[float]) -> bool:
    """Whether the seconds stand still."""
    seen.append(pool.stats()["pins"][TRANSACTION]["seconds"])
    return seen[-1] == seen[-2]


def test_other_pools_have_none(manager: PoolManager) -> None:
    pool = manager.pool("p", DbApiRecipe(sqlite3.connect, ":memory:"))
    with pool.checkout():
        assert pool.stats()["pins"] is None
