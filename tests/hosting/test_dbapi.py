"""PEP 249 connections: the same questions, directly and in a host, have the same answers."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from mppool import PoolManager
from mppool.dbapi import DbApiRecipe
from mppool.odbc import OdbcRecipe, driver_manager
from mppool.psycopg import PsycopgRecipe
from mppool.recipe import Opening, Recipe
from tests.hosting.transcript import transcript
from tests.integrations.postgresql import Database
from tests.tds.double import TdsDouble

SQLITE = {
    "whole": "int", "text": "text", "number": "real", "bytes": "blob",
}  # fmt: skip
POSTGRESQL = {
    "whole": "bigint", "text": "text", "number": "float8", "bytes": "bytea", "exact": "numeric", "stamp": "timestamp",
    "zoned": "timestamptz", "day": "date", "hour": "time", "guid": "uuid", "yes": "boolean",
}  # fmt: skip
PSQLODBC = {name: kind for name, kind in POSTGRESQL.items() if name not in ("zoned", "guid")}


def compared(
    manager: PoolManager, recipe: Recipe[Any], mark: str, types: dict[str, str], *besides: str
) -> tuple[list[Any], list[Any]]:
    """The answers of a connection of this process, and those of one in a host. besides: what is not asked."""
    connection = recipe.open(Opening(0))
    try:
        direct = transcript(connection, mark, types, besides)
    finally:
        connection.close()
    pool = manager.pool("compared", recipe, placement="host", max_size=1)
    with pool.checkout(timeout=60) as connection:
        hosted = transcript(connection, mark, types, besides)
    return direct, hosted


def test_sqlite3(manager: PoolManager, tmp_path: Path) -> None:
    direct, hosted = compared(
        manager, DbApiRecipe(sqlite3.connect, str(tmp_path / "a.db")), "?", SQLITE
    )
    assert hosted == direct


def test_sqlite_over_odbc(manager: PoolManager, sqlite_odbc: str) -> None:
    direct, hosted = compared(manager, OdbcRecipe(sqlite_odbc), "?", SQLITE)
    assert hosted == direct


def test_postgresql_over_odbc(manager: PoolManager, postgresql: Database) -> None:
    direct, hosted = compared(manager, OdbcRecipe(postgresql.connection_string), "?", PSQLODBC)
    assert hosted == direct


def test_psycopg(manager: PoolManager, postgresql: Database) -> None:
    where = f"host=127.0.0.1 port={postgresql.server.port} dbname={postgresql.name} user=postgres"
    direct, hosted = compared(manager, PsycopgRecipe(where), "%s", POSTGRESQL)
    assert hosted == direct


def test_mariadb(manager: PoolManager, mariadb_server: dict[str, Any]) -> None:
    import pymysql

    types = {
        **SQLITE,
        "whole": "bigint",
        "number": "double",
        "exact": "decimal(60, 5)",
        "day": "date",
    }
    types = {name: kind for name, kind in types.items() if name != "bytes"}
    recipe = DbApiRecipe(
        pymysql.connect,
        host="127.0.0.1",
        port=mariadb_server["port"],
        user=mariadb_server["user"],
        password=mariadb_server["password"],
        database="mysql",
        charset="utf8mb4",
    )
    # PyMySQL goes on giving rows of a closed cursor; of a hosted one some have been read ahead.
    direct, hosted = compared(manager, recipe, "%s", types, "cursor_closed_early")
    assert hosted == direct


def test_rows_by_name(manager: PoolManager, sqlite_odbc: str, tmp_path: Path) -> None:
    pool = manager.pool("odbc", OdbcRecipe(sqlite_odbc), placement="host")
    with pool.checkout() as connection:
        row = connection.execute("select 1 as one, 'x' as two").fetchone()
        assert (row.one, row.two, row[1], row[-1], tuple(row)) == (1, "x", "x", "x", (1, "x"))
        assert [column[0] for column in row.cursor_description] == ["one", "two"]
        with pytest.raises(AttributeError):
            row.three  # noqa: B018
        assert connection.execute("select 5").fetchval() == 5
    named = manager.pool(
        "rows", DbApiRecipe(sqlite3.connect, str(tmp_path / "a.db")), placement="host"
    )
    with named.checkout() as connection:
        assert connection.execute("select 1 as one").fetchone() == (1,)


def test_wide_rows_come_a_few_at_a_time(manager: PoolManager, tmp_path: Path) -> None:
    recipe = DbApiRecipe(sqlite3.connect, str(tmp_path / "a.db"))
    pool = manager.pool("p", recipe, placement="host")
    with pool.checkout() as connection:
        connection.execute("create table t (id integer, data blob)")
        blobs = [(number, bytes([number]) * 50_000) for number in range(70)]
        connection.executemany("insert into t values (?, ?)", blobs)
        cursor = connection.execute("select id, data from t order by id")
        assert (cursor.fetchone(), len(cursor._result.rows)) == (blobs[0], 8)
        assert cursor.fetchmany(30) == blobs[1:31]
        assert list(cursor) == blobs[31:]


class WithRows(DbApiRecipe):
    def configure(self, connection: Any) -> None:
        connection.row_factory = sqlite3.Row


def test_rows_by_key(manager: PoolManager, tmp_path: Path) -> None:
    pool = manager.pool("p", WithRows(sqlite3.connect, str(tmp_path / "a.db")), placement="host")
    with pool.checkout() as connection:
        (row,) = connection.execute("select 1 as One, 2 as two").fetchall()
        assert (row["One"], row["one"], row[1], row.keys()) == (1, 1, 2, ["One", "two"])
        with pytest.raises(IndexError):
            row["three"]


def test_what_pyodbc_has_beyond_pep_249(manager: PoolManager, postgresql: Database) -> None:
    pool = manager.pool("p", OdbcRecipe(postgresql.connection_string), placement="host")
    with pool.checkout() as connection:
        assert connection.autocommit is False
        connection.autocommit = True
        assert connection.autocommit is True
        connection.autocommit = False
        cursor = connection.cursor()
        cursor.fast_executemany = True
        cursor.execute("create temporary table t (id int, name varchar(20))")
        cursor.executemany("insert into t values (?, ?)", [(n, str(n)) for n in range(5000)])
        assert cursor.execute("select count(*) from t").fetchval() == 5000
        with pytest.raises(driver_manager.load().ProgrammingError) as caught:
            cursor.execute("select * from nowhere")
        assert caught.value.args[0] == "42P01"
        assert not cursor.messages
        connection.rollback()
        assert connection.getinfo(driver_manager.load().SQL_DBMS_NAME) == "PostgreSQL"
        connection.execute("create table shown (id int)")
        assert [row.table_name for row in cursor.tables(table="shown")] == ["shown"]
        with connection:
            connection.execute("create temporary table u (id int)")
        assert connection.execute("select count(*) from u").fetchone()[0] == 0


def test_microsofts_driver(manager: PoolManager, tds: TdsDouble) -> None:
    recipe = OdbcRecipe(tds.connection_string("UID=alice;PWD=x"))
    direct = recipe.open(Opening(0))
    pool = manager.pool("p", recipe, placement="host", max_size=1)
    with pool.checkout() as hosted:
        for connection in (direct, hosted):
            row = connection.execute("SELECT 1").fetchone()
            assert row[0] == 1
            connection.autocommit = True
            assert connection.execute("SELECT 1").fetchval() == 1
    direct.close()
