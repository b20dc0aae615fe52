"""What a real database says of its own limit and of its sessions, in advice and in `mppool doctor`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest
from sqlalchemy import create_engine

from mppool import InProcessManager, PoolManager
from mppool.cli.doctor import examine
from mppool.dbapi import DbApiRecipe
from mppool.integrations.sqlalchemy import shared_pool
from mppool.mssql import MssqlRecipe
from mppool.odbc import OdbcRecipe
from mppool.psycopg import PsycopgRecipe
from tests.helpers import wait_until
from tests.integrations.postgresql import Database
from tests.tds.double import TdsDouble

MANY = 5000
"""More than any of these databases lets in."""


def conninfo(database: Database) -> str:
    return f"host=127.0.0.1 port={database.port} dbname={database.name} user=postgres"


RECIPES: dict[str, Callable[[Database], Any]] = {
    "psycopg": lambda database: PsycopgRecipe(conninfo(database)),
    "any": lambda database: DbApiRecipe(psycopg.connect, conninfo(database)),
    "odbc": lambda database: OdbcRecipe(database.connection_string),
}


@pytest.mark.parametrize("kind", RECIPES)
def test_postgresql_says_what_it_lets_in_and_whose_sessions_there_are(
    kind: str, postgresql: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGAPPNAME", raising=False)
    with InProcessManager(f"s{os.urandom(4).hex()}") as manager:
        pool = manager.pool("orders", RECIPES[kind](postgresql), max_size=MANY)
        assert pool.advice() == []  # nothing is opened for it
        with pool.checkout(), pool.checkout():
            pass
        (advice,) = pool.advice()
        said = pool.stats()["database"]
        assert said is not None
        assert advice["about"] == "max_size"
        assert f"lets in {said['limit']} sessions" in advice["text"]
        assert said["sessions"] >= 2
        # ODBC's driver for PostgreSQL is told no label.
        assert said["ours"] == (None if kind == "odbc" else 2)
        with pool.checkout() as connection:
            assert connection.execute("select 42").fetchone()[0] == 42  # as it was


def test_mariadb_says_what_it_lets_in(mariadb_server: dict[str, Any]) -> None:
    with InProcessManager() as manager:
        where = {**mariadb_server, "host": "127.0.0.1"}
        where.pop("keeper", None)
        recipe = DbApiRecipe(pymysql.connect, **where)
        pool = manager.pool("orders", recipe, max_size=MANY)
        with pool.checkout():
            pass
        (advice,) = pool.advice()
        assert "the database lets in" in advice["text"]
        assert pool.stats()["database"]["ours"] is None  # type: ignore[index]


def sql_server_recipe(kind: str, tds: TdsDouble) -> OdbcRecipe | MssqlRecipe:
    if kind == "odbc":
        return OdbcRecipe(tds.connection_string("UID=sa;PWD=any"))
    where = f"Server=127.0.0.1,{tds.port};Encrypt=yes;TrustServerCertificate=yes"
    return MssqlRecipe(f"{where};UID=sa;PWD=any")


@pytest.mark.parametrize("kind", ["odbc", "mssql"])
def test_sql_server_says_what_it_lets_in_and_whose_sessions_there_are(
    kind: str, tds: TdsDouble
) -> None:
    """Through Microsoft's driver. The double counts its sessions, and takes its limit as it was set."""
    with InProcessManager("shop") as manager, InProcessManager("bank") as other:
        pool = manager.pool("orders", sql_server_recipe(kind, tds), max_size=20)
        accounts = other.pool("accounts", sql_server_recipe(kind, tds), max_size=20)
        with pool.checkout(), accounts.checkout(), accounts.checkout(), accounts.checkout():
            pass
        # Nothing is set, so that it is 0: SQL Server lets in 32,767 then.
        assert pool.advice() == []
        # mssql-python reserves the name of the application: its sessions bear no label.
        ours = 1 if kind == "odbc" else None
        said = {"limit": 32767, "sessions": 4, "ours": ours}
        assert pool.stats()["database"] == said
        tds.limit(15)
        (advice,) = pool.advice()
        assert advice["about"] == "max_size"
        assert "the database lets in 15 sessions, and max_size is 20" in advice["text"]
        tds.limit(22)
        (advice,) = pool.advice()
        assert "3 of the 4 sessions at the database are not this pool's" in advice["text"]
        assert pool.stats()["database"] == said | {"limit": 22}
        # Without VIEW SERVER STATE a user sees its own session: no advice is better than a wrong one.
        tds.limit(22, may_see_all=False)
        assert pool.advice() == []
        with pool.checkout() as connection:  # as it was
            cursor = connection.cursor()
            cursor.execute("SELECT 42")
            assert cursor.fetchone()[0] == 42
            cursor.close()


def test_doctor_asks_the_processes_that_have_a_connection(
    postgresql: Database, tmp_path: Path
) -> None:
    with PoolManager("shop", runtime_dir=tmp_path / "run") as manager:
        url = f"postgresql+psycopg://postgres@127.0.0.1:{postgresql.port}/{postgresql.name}"
        engine = create_engine(
            url, poolclass=shared_pool(manager, "orders"), pool_size=MANY, max_overflow=0
        )
        with engine.connect():
            pass

        def advised() -> list[str]:
            found = list(examine(os.fspath(tmp_path / "run")))
            return [one.text for one in found if one.subject == "pool orders, max_size"]

        # A busy machine may not hear in time; the next one is told what the database said.
        (text,) = wait_until(advised, "the database's limit", interval=0.2)
        assert "the database lets in" in text
        engine.dispose()


def test_what_the_database_does_not_tell_is_no_advice(sqlite_odbc: str) -> None:
    with InProcessManager() as manager:
        pool = manager.pool("orders", OdbcRecipe(sqlite_odbc), max_size=MANY)
        with pool.checkout():
            pass
        assert pool.advice() == []
        assert pool.stats()["database"] is None
