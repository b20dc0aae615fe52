"""The benchmark of asynchronous pools runs over a real PostgreSQL, beside asyncpg's own pool and psycopg's."""

from __future__ import annotations

import pytest

from benchmarks import __main__, asynchronous
from tests.integrations.postgresql import Database


def test_it_gives_both_tables(postgresql: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg_pool")
    url = f"postgresql://postgres@127.0.0.1:{postgresql.port}/{postgresql.name}"
    monkeypatch.setenv(asynchronous.VARIABLE, url)
    tables = __main__.main(["asynchronous", "--quick"])
    assert [table.name for table in tables] == ["asynchronous", "asynchronous contended"]
    for table in tables:
        assert set(table.samples) == {
            asynchronous.ASYNCPG,
            asynchronous.OURS_ASYNCPG,
            asynchronous.PSYCOPG,
            asynchronous.OURS_PSYCOPG,
        }
        assert all(min(samples) > 0 for samples in table.samples.values())
