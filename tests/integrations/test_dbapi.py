"""DbApiRecipe and PsycopgRecipe over real drivers: sqlite3, psycopg and PostgreSQL, PyMySQL and MariaDB."""

from __future__ import annotations

import pickle
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mppool import ConfigurationError, InProcessManager, OpenFailed, Pool, PoolManager
from mppool.dbapi import DbApiRecipe
from mppool.psycopg import PsycopgRecipe
from tests.helpers import wait_until
from tests.integrations.postgresql import Database
from tests.secrecy import MARK, WATCH


class Bed:
    """A driver over a database of this test's own, and how its sessions are ended from outside."""

    def __init__(
        self, recipe: Callable[..., DbApiRecipe], kill: Callable[[Any], None] | None, module: Any
    ) -> None:
        self.recipe = recipe
        self.kill = kill
        self.module = module


def psycopg_bed(database: Database, kind: str) -> Bed:
    import psycopg

    where = (
        f"host=127.0.0.1 port={database.port} dbname={database.name} user=postgres password={MARK}"
    )

    def make(**options: Any) -> DbApiRecipe:
        if kind == "psycopg":
            return PsycopgRecipe(where, **options)
        return DbApiRecipe(psycopg.connect, where, **options)

    return Bed(make, lambda _: database.end_sessions(), psycopg)


def mariadb_bed(address: dict[str, Any]) -> Bed:
    import pymysql

    where = {**address, "host": "127.0.0.1", "database": "shop"}
    where.pop("keeper", None)

    def kill(connection: Any) -> None:
        admin = pymysql.connect(**where)
        with admin.cursor() as cursor:
            cursor.execute(f"KILL {connection.thread_id()}")
        admin.close()

    return Bed(lambda **options: DbApiRecipe(pymysql.connect, **where, **options), kill, pymysql)


@pytest.fixture(params=["sqlite3", "psycopg", "any with psycopg", "pymysql"])
def bed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bed]:
    """Each driver in turn."""
    if request.param == "sqlite3":
        path = tmp_path / "shop.db"
        yield Bed(lambda **more: DbApiRecipe(sqlite3.connect, path, **more), None, sqlite3)
    elif request.param == "pymysql":
        yield mariadb_bed(request.getfixturevalue("mariadb_server"))
    else:
        yield psycopg_bed(request.getfixturevalue("postgresql"), request.param)
    WATCH.see_objects()


def run(connection: Any, statement: str) -> Any:
    cursor = connection.cursor()
    cursor.execute(statement)
    rows = cursor.fetchall() if cursor.description else None
    cursor.close()
    return rows


def fresh_table(pool: Pool[Any]) -> None:
    with pool.checkout() as connection:
        run(connection, "DROP TABLE IF EXISTS orders")
        run(connection, "CREATE TABLE orders (id INTEGER)")
        connection.commit()


def test_what_was_not_committed_is_rolled_back(bed: Bed) -> None:
    pool = InProcessManager().pool("shop", bed.recipe(), max_size=1)
    fresh_table(pool)
    with pool.checkout() as connection:
        run(connection, "INSERT INTO orders VALUES (1)")
    with pool.checkout() as connection:
        assert run(connection, "SELECT count(*) FROM orders")[0][0] == 0
        run(connection, "INSERT INTO orders VALUES (2)")
        connection.commit()
    with pool.checkout() as connection:
        assert run(connection, "SELECT count(*) FROM orders")[0][0] == 1
    assert pool.stats()["counters"]["opened"] == 1
    pool.close()


def test_the_autocommit_mode_is_put_back(bed: Bed) -> None:
    from mppool.dbapi import autocommit

    for wanted in (None, True, False):
        pool = InProcessManager().pool(
            "shop", bed.recipe(**({} if wanted is None else {"autocommit": wanted}))
        )
        with pool.checkout() as connection:
            before = autocommit.read(connection)
            other = not before if isinstance(before, bool) else before[1] is not None
            autocommit.write(connection, other)
            assert autocommit.read(connection) != before
        with pool.checkout() as again:
            assert again is connection
            assert autocommit.read(again) == before
            if wanted is not None and isinstance(before, bool):
                assert before is wanted
        pool.close()


def test_a_dead_session_is_replaced_and_with_it_all_that_are_as_old(bed: Bed) -> None:
    if bed.kill is None:
        pytest.skip("nobody can end a session of sqlite3 from outside")
    pool = InProcessManager().pool("shop", bed.recipe(), check_idle_for=0.0)
    with pool.checkout() as one, pool.checkout() as other:
        pass
    bed.kill(one)
    bed.kill(other)
    with pool.checkout() as connection:
        assert run(connection, "SELECT 1")[0][0] == 1
    counters = pool.stats()["counters"]
    assert counters["unhealthy"] == 1
    wait_until(lambda: pool.stats()["size"] == 1, "the other one to go without a check of its own")
    assert pool.stats()["counters"]["checks"] == 1
    pool.close()


def test_a_session_that_dies_in_use_is_not_given_to_anybody(bed: Bed) -> None:
    if bed.kill is None:
        pytest.skip("nobody can end a session of sqlite3 from outside")
    pool = InProcessManager().pool("shop", bed.recipe(), max_size=1)

    def use() -> None:
        with pool.checkout() as connection:
            assert bed.kill is not None
            bed.kill(connection)
            time.sleep(0.05)
            run(connection, "SELECT 1")

    with pytest.raises(bed.module.Error):
        use()
    with pool.checkout() as connection:
        assert run(connection, "SELECT 1")[0][0] == 1
    pool.close()


def test_a_bad_check_query_says_nothing_about_the_connection(bed: Bed) -> None:
    recipe = bed.recipe(check_query="SELECT * FROM no_such_table_at_all")
    pool = InProcessManager().pool("shop", recipe, check_idle_for=0.0)
    with pool.checkout():
        pass
    with pool.checkout():
        pass
    counters = pool.stats()["counters"]
    # sqlite3 calls a missing table an OperationalError, like a broken file.
    assert counters["check_errors"] + counters["unhealthy"] == 1
    pool.close()


def test_a_running_statement_is_cancelled(bed: Bed) -> None:
    slow = {
        "sqlite3": "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n",
        "psycopg": "SELECT pg_sleep(60)",
    }.get(bed.module.__name__)
    recipe = bed.recipe()
    pool = InProcessManager().pool("shop", recipe, max_size=1)
    with pool.checkout() as connection:
        if slow is None:
            assert not recipe.cancel(connection)  # PyMySQL knows no way
            return
        ended = threading.Event()

        def cancel() -> None:
            while not ended.wait(0.05):
                recipe.cancel(connection)

        thread = threading.Thread(target=cancel)
        thread.start()
        with pytest.raises(bed.module.Error):
            run(connection, slow)
        ended.set()
        thread.join()
        connection.rollback()
        assert run(connection, "SELECT 1")[0][0] == 1
    pool.close()


def test_a_recipe_pickles_and_opens_the_same(bed: Bed) -> None:
    recipe = bed.recipe()
    again = pickle.loads(pickle.dumps(recipe))
    assert again.fingerprint() == recipe.fingerprint()
    with InProcessManager().pool("shop", again).checkout() as connection:
        assert run(connection, "SELECT 1")[0][0] == 1


def test_the_cap_holds_over_processes_as_postgresql_counts(
    postgresql: Database, runtime_dir: Path
) -> None:
    import multiprocessing

    manager = PoolManager("test")
    where = f"host=127.0.0.1 port={postgresql.port} dbname={postgresql.name} user=postgres"
    pool = manager.pool("shop", PsycopgRecipe(where), max_size=2)
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as workers:
        counts = workers.map(_count_sessions, [pool] * 12)
    assert max(counts) <= 2
    manager.shutdown()


def _count_sessions(pool: Pool[Any]) -> int:
    with pool.checkout(timeout=20) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        ).fetchone()
        return int(row[0])


def test_psycopg_discards_what_a_session_was_told_where_asked_to(postgresql: Database) -> None:
    where = f"host=127.0.0.1 port={postgresql.port} dbname={postgresql.name} user=postgres"
    for discard in (False, True):
        pool = InProcessManager().pool("shop", PsycopgRecipe(where, discard=discard))
        with pool.checkout() as connection:
            connection.execute("SET application_name = 'mine'")
            connection.commit()
        with pool.checkout() as connection:
            (name,) = connection.execute("SHOW application_name").fetchone()
            assert (name == "mine") is not discard
        pool.close()


def test_a_refused_login_is_told_without_secrets() -> None:
    import pymysql

    recipe = DbApiRecipe(
        pymysql.connect,
        host="127.0.0.1",
        port=1,
        user="shop",
        password=f"{MARK}!",
        database=f"{MARK}!",
    )
    with pytest.raises(OpenFailed, match="OperationalError") as caught:
        InProcessManager().pool("shop", recipe).checkout(timeout=5)
    assert isinstance(caught.value.__cause__, pymysql.OperationalError)


def test_oracledb_as_far_as_it_goes_without_a_server() -> None:
    import oracledb

    recipe = DbApiRecipe(
        oracledb.connect, user="shop", password=f"{MARK}!", dsn="127.0.0.1:1/shop",
        check_query="SELECT 1 FROM dual",
    )  # fmt: skip
    assert recipe.module is oracledb
    with pytest.raises(OpenFailed, match="DPY-6005"):
        InProcessManager().pool("shop", recipe).checkout(timeout=10)
    WATCH.see_objects()


def test_an_error_of_oracledb_says_whether_the_session_is_dead() -> None:
    from mppool.dbapi.sessions import is_dead

    def error(code: str) -> Exception:
        details = type("Details", (), {"full_code": code})()
        return Exception(details)

    assert is_dead(error("DPY-4011"), None)
    assert is_dead(error("ORA-03113"), None)
    assert not is_dead(error("ORA-00942"), None)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("not callable",), "driver's function"),
        ((lambda: None,), "module="),
        ((sqlite3,), "connect is the module sqlite3"),
        ((sqlite3.connect(":memory:"),), "connect is an open connection"),
        ((sqlite3.connect, 1), None),
    ],
)
def test_what_cannot_work_is_refused_at_once(arguments: Any, what: str | None) -> None:
    if what is None:
        with pytest.raises(ConfigurationError, match="check_query"):
            DbApiRecipe(*arguments, check_query=" ")
        with pytest.raises(ConfigurationError, match="autocommit"):
            DbApiRecipe(*arguments, autocommit="yes")  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="not a PEP 249 module"):
            DbApiRecipe(*arguments, module=threading)
    else:
        with pytest.raises(ConfigurationError, match=what):
            DbApiRecipe(*arguments)


def test_psycopg_refuses_what_libpq_would() -> None:
    with pytest.raises(ConfigurationError, match="cannot be understood") as caught:
        PsycopgRecipe(f"host=db {MARK}")
    assert MARK not in str(caught.value)
    with pytest.raises(ConfigurationError, match="login_timeout"):
        PsycopgRecipe("host=db", login_timeout=0)


def test_different_arguments_have_different_fingerprints() -> None:
    seen = {
        DbApiRecipe(sqlite3.connect, "a").fingerprint(),
        DbApiRecipe(sqlite3.connect, "b").fingerprint(),
        DbApiRecipe(sqlite3.connect, "a", timeout=1).fingerprint(),
        DbApiRecipe(sqlite3.connect, "a", timeout=2).fingerprint(),
        PsycopgRecipe("dbname=a").fingerprint(),
    }
    assert len(seen) == 5


def locals_of(error: BaseException | None) -> str:
    """What reporters that show local variables would show."""
    seen = []
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            if "tests" not in trace.tb_frame.f_code.co_filename:
                seen.append(repr(trace.tb_frame.f_locals))
            trace = trace.tb_next
        error = error.__cause__
    return "\n".join(seen)


def test_a_failed_opening_keeps_no_secret_in_its_frames() -> None:
    import pymysql
    import sqlalchemy

    from mppool.integrations.sqlalchemy import shared_pool

    recipes = [
        DbApiRecipe(pymysql.connect, host="127.0.0.1", port=1, user="shop", password=f"{MARK}!"),
        PsycopgRecipe(f"host=127.0.0.1 port=1 user=shop password={MARK}"),
    ]
    for recipe in recipes:
        with pytest.raises(OpenFailed) as caught:
            InProcessManager().pool("shop", recipe).checkout(timeout=5)
        assert MARK not in locals_of(caught.value)
    engine = sqlalchemy.create_engine(
        f"postgresql+psycopg://shop:{MARK}@127.0.0.1:1/x",
        poolclass=shared_pool(InProcessManager(), "p"),
    )
    with pytest.raises(sqlalchemy.exc.OperationalError) as refused:
        engine.connect()
    assert MARK not in locals_of(refused.value)
