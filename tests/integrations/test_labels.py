"""A session says at its database for whom it is: application, pool and process (row A20)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from mppool import InProcessManager, Recipe
from mppool.dbapi import DbApiRecipe
from mppool.odbc import OdbcRecipe
from mppool.psycopg import PsycopgRecipe
from tests.integrations.postgresql import Database
from tests.integrations.test_msodbcsql import brought
from tests.tds.double import TdsDouble

LABEL = f"shop/orders/{os.getpid()}"


def conninfo(database: Database) -> str:
    return f"host=127.0.0.1 port={database.port} dbname={database.name} user=postgres"


def name_at_postgresql(recipe: Recipe[Any], pool: str = "orders") -> str:
    manager = InProcessManager("shop")
    with manager.pool(pool, recipe).checkout() as connection:
        name: str = connection.execute("show application_name").fetchone()[0]
    manager.close()
    return name


RECIPES: list[Callable[..., Recipe[Any]]] = [
    PsycopgRecipe,
    lambda string, **more: DbApiRecipe(psycopg.connect, string, **more),
]


@pytest.mark.parametrize("make", RECIPES, ids=["psycopg", "any with psycopg"])
def test_postgresql_shows_application_pool_and_process(
    make: Callable[..., Recipe[Any]], postgresql: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGAPPNAME", raising=False)
    where = conninfo(postgresql)
    assert name_at_postgresql(make(where)) == LABEL
    assert name_at_postgresql(make(where, label_sessions=False)) == ""
    assert name_at_postgresql(make(where, application_name="mine")) == "mine"
    assert name_at_postgresql(make(f"{where} application_name=mine")) == "mine"
    monkeypatch.setenv("PGAPPNAME", "mine")
    assert name_at_postgresql(make(where)) == "mine"


def test_of_a_long_label_the_process_is_left(
    postgresql: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGAPPNAME", raising=False)
    name = name_at_postgresql(PsycopgRecipe(conninfo(postgresql)), "p" * 64)
    assert len(name) == 63
    assert name.endswith(f"p/{os.getpid()}")


def names_at_sql_server(tds: TdsDouble, recipe: OdbcRecipe, **whose: Any) -> list[str]:
    manager = InProcessManager("shop")
    with manager.pool("orders", recipe).checkout(**whose):
        names = [session.application for session in tds.open_sessions()]
    manager.close()
    tds.wait_for_open(0)
    return names


def test_sql_server_shows_application_pool_and_process(tds: TdsDouble) -> None:
    string = tds.connection_string()
    assert names_at_sql_server(tds, OdbcRecipe(string)) == [LABEL]
    assert names_at_sql_server(tds, OdbcRecipe(string), credential=brought("alice")) == [LABEL]
    assert names_at_sql_server(tds, OdbcRecipe(f"{string};APP=mine;")) == ["mine"]
    assert LABEL not in names_at_sql_server(tds, OdbcRecipe(string, label_sessions=False))


def test_other_drivers_are_told_nothing(sqlite_odbc: str) -> None:
    manager = InProcessManager("shop")
    with manager.pool("orders", OdbcRecipe(sqlite_odbc)).checkout() as connection:
        assert connection.execute("select 1").fetchone()[0] == 1
    manager.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda **more: OdbcRecipe("Driver=x", **more),
        lambda **more: DbApiRecipe(psycopg.connect, **more),
    ],
)
def test_the_option_is_checked(make: Callable[..., Recipe[Any]]) -> None:
    with pytest.raises(ValueError, match="label_sessions is 'no'; allowed are True and False"):
        make(label_sessions="no")
