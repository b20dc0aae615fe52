"""Tests that each need a database of their own, of which there are three on this machine."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mppool import Pool

DATABASES = [f"shop_test_{number}" for number in range(3)]


@pytest.fixture(scope="session")
def databases(mppool_one_of: Callable[..., Pool[str]]) -> Pool[str]:
    return mppool_one_of("databases", DATABASES)


@pytest.fixture
def database(databases: Pool[str]) -> Iterator[sqlite3.Connection]:
    """An empty database that nobody else uses meanwhile, in whatever process or tox environment."""
    with databases.checkout() as name:
        path = Path(tempfile.gettempdir()) / f"{name}.db"
        with closing(sqlite3.connect(path, timeout=0)) as connection:
            connection.executescript(
                "DROP TABLE IF EXISTS orders; CREATE TABLE orders (pieces INTEGER);"
            )
            yield connection


@pytest.mark.parametrize("pieces", range(10))
def test_order(database: sqlite3.Connection, pieces: int) -> None:
    with database:
        database.execute("INSERT INTO orders VALUES (?)", [pieces])
    assert database.execute("SELECT pieces FROM orders").fetchall() == [(pieces,)]


@pytest.mark.parametrize("days", range(10))
def test_report(database: sqlite3.Connection, days: int) -> None:
    with database:
        database.executemany("INSERT INTO orders VALUES (?)", [(day,) for day in range(days)])
    assert database.execute("SELECT count(*) FROM orders").fetchall() == [(days,)]
