"""What one user sets does not stay for the next; what `open` has left comes back after each lease."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mppool import InProcessManager, LeaseReleased, OpenFailed, PoolError
from mppool.odbc import OdbcRecipe, driver_manager
from tests.tds.double import TdsDouble

SQL_INTEGER, SQL_VARCHAR = 4, 12


@pytest.fixture
def manager() -> Iterator[InProcessManager]:
    made = InProcessManager()
    yield made
    made.shutdown()


class Overridden(OdbcRecipe):
    """A user's recipe that sets what it wants in `open`, as pyodbc's documentation shows it."""

    def open(self, opening: Any) -> Any:
        connection = super().open(opening)
        connection.autocommit = True
        connection.timeout = 7
        connection.maxwrite = 1000
        connection.add_output_converter(SQL_INTEGER, lambda raw: 42)
        return connection


class Configured(OdbcRecipe):
    def configure(self, connection: Any) -> None:
        connection.autocommit = True
        connection.timeout = 7
        connection.maxwrite = 1000
        connection.add_output_converter(SQL_INTEGER, lambda raw: 42)


@pytest.mark.parametrize("recipe", [Overridden, Configured])
def test_what_open_has_left_is_put_back(
    sqlite_odbc: str, manager: InProcessManager, recipe: type[OdbcRecipe]
) -> None:
    pool = manager.pool("p", recipe(sqlite_odbc), max_size=1)
    for _ in range(3):
        with pool.checkout() as connection:
            assert (connection.autocommit, connection.timeout, connection.maxwrite) == (
                True,
                7,
                1000,
            )
            assert connection.get_output_converter(SQL_INTEGER) is not None
            assert connection.get_output_converter(SQL_VARCHAR) is None
            connection.execute("create table if not exists written (n integer)")
            connection.execute("insert into written values (1)")
            connection.autocommit = False
            connection.timeout = 1
            connection.maxwrite = 300
            connection.clear_output_converters()
            connection.add_output_converter(SQL_VARCHAR, lambda raw: "mine")
    with pool.checkout() as connection:
        connection.clear_output_converters()
        assert connection.execute("select count(*) from written").fetchval() == 3
    assert pool.stats()["counters"]["opened"] == 1


def test_converters_maxwrite_and_encodings_of_one_user_do_not_reach_the_next(
    sqlite_odbc: str, manager: InProcessManager
) -> None:
    module = driver_manager.load()
    pool = manager.pool("p", OdbcRecipe(sqlite_odbc, autocommit=True), max_size=1)
    with pool.checkout() as connection:
        connection.add_output_converter(SQL_VARCHAR, lambda raw: "alice's")
        connection.maxwrite = 300
        connection.setdecoding(module.SQL_CHAR, encoding="latin-1")
        connection.setdecoding(module.SQL_WCHAR, encoding="latin-1", ctype=module.SQL_CHAR)
        connection.setencoding("latin-1")
    with pool.checkout() as connection:
        assert connection.execute("select ?", "ä€ö").fetchval() == "ä€ö"
        assert connection.maxwrite == 0
    assert pool.stats()["counters"]["opened"] == 1


def test_on_connect_and_query_timeout(sqlite_odbc: str, manager: InProcessManager) -> None:
    recipe = OdbcRecipe(
        sqlite_odbc,
        query_timeout=9,
        on_connect=["create temp table mine (n)", "insert into mine values (5)"],
    )
    pool = manager.pool("p", recipe, max_size=1)
    for _ in range(2):
        with pool.checkout() as connection:
            assert connection.timeout == 9
            assert connection.execute("select n from mine").fetchval() == 5
            connection.timeout = 0

    def set_up(connection: Any) -> None:
        connection.setdecoding(driver_manager.load().SQL_CHAR, encoding="latin-1")
        connection.setdecoding(driver_manager.load().SQL_WCHAR, encoding="latin-1")
        connection.maxwrite = 777

    pool = manager.pool("q", OdbcRecipe(sqlite_odbc, on_connect=set_up), max_size=1)
    with pool.checkout() as connection:
        mojibake = connection.execute("select 'ä'").fetchval()
        connection.setdecoding(driver_manager.load().SQL_CHAR, encoding="utf-8")
        connection.maxwrite = 0
    with pool.checkout() as connection:
        assert connection.execute("select 'ä'").fetchval() == mojibake != "ä"
        assert connection.maxwrite == 777


@pytest.mark.parametrize("what", ["select nonsense from nowhere", lambda connection: 1 / 0])
def test_an_on_connect_that_fails_is_a_failed_opening(
    sqlite_odbc: str, manager: InProcessManager, what: Any
) -> None:
    pool = manager.pool("p", OdbcRecipe(sqlite_odbc, on_connect=what), max_size=1)
    with pytest.raises(OpenFailed):
        pool.checkout()


def test_on_connect_comes_again_after_a_session_reset(
    tds: TdsDouble, manager: InProcessManager
) -> None:
    statement = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED"
    string = tds.connection_string("UID=app;PWD=secret;")
    pool = manager.pool("p", OdbcRecipe(string, on_connect=statement), max_size=1)
    for _ in range(2):
        with pool.checkout() as connection:
            connection.execute("SELECT 1").fetchall()
    (session,) = tds.sessions()
    assert session.statements == [statement, "SELECT 1", statement, "SELECT 1", statement]
    assert session.resets == [2, 4]


# --- transactions that are begun by statement ---------------------------------------------------------------


def test_a_transaction_begun_by_a_statement_holds_no_locks_while_idle(
    sqlite_odbc: str, manager: InProcessManager
) -> None:
    string = sqlite_odbc.replace("Timeout=5000", "Timeout=100")
    pool = manager.pool("p", OdbcRecipe(string, autocommit=True), max_size=2)
    first, second = pool.checkout(), pool.checkout()
    first.resource.execute("create table t (n integer)")
    first.resource.execute("BEGIN IMMEDIATE")
    first.resource.execute("insert into t values (1)")
    first.release()
    second.resource.execute("insert into t values (2)")
    assert second.resource.execute("select count(*) from t").fetchval() == 1
    second.release()
    assert pool.stats()["counters"]["opened"] == 2


def test_on_sql_server_it_is_ended_at_the_release_together_with_the_reset(
    tds: TdsDouble, manager: InProcessManager
) -> None:
    string = tds.connection_string("UID=app;PWD=secret;")
    pool = manager.pool("p", OdbcRecipe(string, autocommit=True), max_size=1)
    with pool.checkout() as connection:
        connection.execute("BEGIN TRANSACTION")
    (session,) = tds.sessions()
    assert session.statements == ["BEGIN TRANSACTION", "IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION"]
    assert session.resets == [1]
    quiet = OdbcRecipe(string, autocommit=True, ends_transactions=False)
    with manager.pool("q", quiet, max_size=1).checkout() as connection:
        connection.execute("SELECT 1").fetchall()
    assert tds.sessions()[-1].statements == ["SELECT 1"]


def test_without_autocommit_nothing_is_sent(tds: TdsDouble, manager: InProcessManager) -> None:
    string = tds.connection_string("UID=app;PWD=secret;")
    with manager.pool("p", OdbcRecipe(string), max_size=1).checkout() as connection:
        connection.execute("SELECT 1").fetchall()
    (session,) = tds.sessions()
    assert session.statements == ["SELECT 1"]


# --- guard=True -----------------------------------------------------------------------------------------------


def test_a_guarded_connection_and_its_cursors_are_dead_after_the_release(
    sqlite_odbc: str, manager: InProcessManager
) -> None:
    module = driver_manager.load()
    pool = manager.pool("p", OdbcRecipe(sqlite_odbc), max_size=1, guard=True)
    with pool.checkout() as connection:
        assert isinstance(connection, module.Connection)
        cursor = connection.cursor()
        execute = cursor.execute
        assert cursor.execute("select 1 union select 2").fetchone()[0] == 1
        assert cursor.connection is connection
        assert [row[0] for row in connection.execute("select 3")] == [3]
        with connection:
            pass
        rows = iter(cursor)
    for use in (
        lambda: connection.execute("select 1"),
        lambda: connection.autocommit,
        lambda: setattr(connection, "timeout", 1),
        lambda: execute("select 1"),
        lambda: cursor.fetchone(),
        lambda: next(rows),
        lambda: connection.__enter__(),
    ):
        with pytest.raises(LeaseReleased):
            use()
    assert "given back" in repr(connection)
    assert pool.stats()["counters"]["opened"] == 1
    lease = pool.checkout()
    assert lease.resource is lease.resource
    lease.release()
    with pytest.raises(LeaseReleased):
        lease.resource  # noqa: B018


@pytest.mark.parametrize(
    "change",
    [
        lambda connection: connection.execute("PRAGMA case_sensitive_like = 1"),
        lambda connection: connection.cursor().execute("/* mine */ create temp table t (n)"),
        lambda connection: connection.set_attr(108, 1),
    ],
    ids=["a setting", "a temporary table", "an attribute"],
)
def test_what_cannot_be_put_back_closes_a_guarded_connection(
    sqlite_odbc: str, manager: InProcessManager, change: Any
) -> None:
    pool = manager.pool("p", OdbcRecipe(sqlite_odbc), max_size=1, guard=True)
    with pool.checkout() as connection:
        connection.execute("select 1").fetchall()
        connection.timeout = 5
    assert pool.stats()["counters"]["opened"] == 1
    with pool.checkout() as connection:
        change(connection)
    with pool.checkout() as connection:
        assert connection.timeout == 0
    counters = pool.stats()["counters"]
    assert (counters["opened"], pool.stats()["size"]) == (2, 1)


def test_encodings_that_nobody_knows_close_a_guarded_connection(
    sqlite_odbc: str, manager: InProcessManager
) -> None:
    pool = manager.pool("p", Overridden(sqlite_odbc), max_size=1, guard=True)
    with pool.checkout() as connection:
        connection.setencoding("latin-1")
    with pool.checkout():
        pass
    assert pool.stats()["counters"]["opened"] == 2


def test_on_sql_server_only_what_the_reset_does_not_cover_closes_it(
    tds: TdsDouble, manager: InProcessManager
) -> None:
    string = tds.connection_string("UID=app;PWD=secret;")
    pool = manager.pool("p", OdbcRecipe(string), max_size=1, guard=True)
    for statement in ("SET LANGUAGE German", "UPDATE t SET n = 1", "SELECT 1"):
        with pool.checkout() as connection:
            connection.execute(statement)
    assert len(tds.sessions()) == 1
    with pool.checkout() as connection:
        connection.execute("set transaction  isolation level serializable")
    with pool.checkout():
        pass
    assert len(tds.sessions()) == 2


def test_a_guard_is_not_pickled_and_asyncio_gets_one_too(
    sqlite_odbc: str, manager: InProcessManager
) -> None:
    import asyncio
    import pickle

    pool = manager.pool("p", OdbcRecipe(sqlite_odbc), max_size=1, guard=True)

    async def use() -> Any:
        async with pool.acheckout() as connection:
            assert connection.execute("select 7").fetchval() == 7
            with pytest.raises(PoolError, match="cannot be pickled"):
                pickle.dumps(connection)
            return connection

    connection = asyncio.run(use())
    with pytest.raises(LeaseReleased):
        connection.cursor()


def test_a_guard_costs_little(sqlite_odbc: str, manager: InProcessManager) -> None:
    """Counted in calls, for time says more about the machine."""
    calls = []
    for guard in (False, True):
        pool = manager.pool(f"p{guard}", OdbcRecipe(sqlite_odbc), max_size=1, guard=guard)
        with pool.checkout() as connection:
            connection.execute("select 1").fetchval()
        counted: list[str] = []
        sys.setprofile(lambda frame, event, argument, into=counted: into.append(event))
        try:
            with pool.checkout() as connection:
                connection.execute("select 1").fetchval()
        finally:
            sys.setprofile(None)
        calls.append(sum(event in ("call", "c_call") for event in counted))
    assert calls[1] - calls[0] < 150


# --- beside a token -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "section", ["", "Trusted_Connection=Yes", "Authentication=ActiveDirectoryIntegrated"]
)
@pytest.mark.parametrize("own", ["", "Trusted_Connection=No;", "Authentication=SqlPassword;UID=x;"])
def test_a_data_source_beside_a_token(
    tds: TdsDouble,
    manager: InProcessManager,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    section: str,
    own: str,
) -> None:
    from mppool.azure import StaticToken

    ini = tmp_path / "odbc.ini"
    ini.write_text(
        f"[shop{tds.port}]\nDriver={tds.driver}\nServer=127.0.0.1,{tds.port}\nEncrypt=yes\n"
        f"TrustServerCertificate=yes\n{section}\n"
    )
    monkeypatch.setenv("ODBCINI", str(ini))
    recipe = OdbcRecipe(f"DSN=shop{tds.port};{own}", credential=StaticToken("a token"))
    with manager.pool("p", recipe, max_size=1).checkout() as connection:
        connection.execute("SELECT 1").fetchall()
    (session,) = tds.sessions()
    assert session.token == "a token"
