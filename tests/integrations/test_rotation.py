"""A password that changes while several processes work: no request fails, and no key changes (row C10)."""

from __future__ import annotations

import fcntl
import os
import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from mppool import InProcessManager, OpenFailed, Pool, PoolManager, Recipe, Secret
from mppool.dbapi import DbApiRecipe
from mppool.mssql import MssqlRecipe
from mppool.odbc import OdbcRecipe
from mppool.psycopg import PsycopgRecipe
from tests.helpers import Fork, wait_until
from tests.integrations.postgresql import DRIVER, Database
from tests.secrecy import MARK, WATCH
from tests.tds.double import TdsDouble

WORKERS = int(os.environ.get("MPPOOL_TEST_WORKERS", "4"))


def locked_text_of(path: Path) -> str:
    """What is in the file when nobody writes it."""
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        return file.read()


class Vault:
    """A file with the password. Who reads it while it is being rotated waits."""

    def __init__(self, path: Path, database: Database) -> None:
        self.path = path
        self.database = database
        self.number = 1
        self.user = database.server.create_role(self.password)
        self.path.write_text(self.password)

    @property
    def password(self) -> str:
        return f"{MARK}-{self.number};'x'"

    def read(self) -> str:
        """The password as it is now."""
        return locked_text_of(self.path)

    def rotate(self) -> None:
        """Change it, at the database and here."""
        with self.path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self.number += 1
            quoted = self.password.replace("'", "''")
            self.database.server.query(f"alter role {self.user} password '{quoted}'")
            file.write(self.password)

    def drop(self) -> None:
        """Remove the user."""
        self.database.server.query(f"drop owned by {self.user}")
        self.database.server.query(f"drop role {self.user}")


def conninfo(vault: Vault) -> str:
    where = vault.database
    return f"host=127.0.0.1 port={where.port} dbname={where.name} user={vault.user}"


def psycopg_with_a_secret(vault: Vault) -> Recipe[Any]:
    return PsycopgRecipe(conninfo(vault), password=Secret(vault.read), autocommit=True)


def psycopg_with_a_callable_string(vault: Vault) -> Recipe[Any]:
    secret = Secret(vault.read)

    def string() -> str:
        quoted = secret().replace("\\", "\\\\").replace("'", "\\'")
        return f"{conninfo(vault)} password='{quoted}'"

    return PsycopgRecipe(string, autocommit=True)


def any_driver_with_a_callable(vault: Vault) -> Recipe[Any]:
    return DbApiRecipe(psycopg.connect, conninfo(vault), password=vault.read, autocommit=True)


def odbc_string(vault: Vault) -> str:
    where = vault.database
    return (
        f"Driver={DRIVER};Server=127.0.0.1;Port={where.port};Database={where.name};UID={vault.user}"
    )


def odbc_with_a_secret(vault: Vault) -> Recipe[Any]:
    return OdbcRecipe(odbc_string(vault), secrets={"PWD": Secret(vault.read)}, autocommit=True)


def odbc_with_a_callable_string(vault: Vault) -> Recipe[Any]:
    secret = Secret(vault.read)
    return OdbcRecipe(lambda: f"{odbc_string(vault)};PWD={{{secret()}}}", autocommit=True)


RECIPES = [
    psycopg_with_a_secret,
    psycopg_with_a_callable_string,
    any_driver_with_a_callable,
    odbc_with_a_secret,
    odbc_with_a_callable_string,
]


@pytest.fixture
def vault(postgresql: Database, tmp_path: Path) -> Iterator[Vault]:
    made = Vault(tmp_path / "password", postgresql)
    yield made
    wait_until(lambda: not postgresql.held(), "the end of all sessions")
    made.drop()
    WATCH.see_objects()


@pytest.fixture(params=RECIPES, ids=lambda make: make.__name__)
def recipe(request: pytest.FixtureRequest, vault: Vault) -> Recipe[Any]:
    made: Recipe[Any] = request.param(vault)
    return made


def work(recipe: Recipe[Any], stop: Path, count: Path) -> int:
    """Requests, each with a session of its own, until somebody says stop. How many there were."""
    pool = PoolManager("shop").pool("orders", recipe, max_size=3, max_uses=1, fail_fast=True)
    number = 0
    while not stop.exists():
        with pool.checkout(timeout=60) as connection:
            assert connection.execute("select 1").fetchone()[0] == 1
        number += 1
        count.write_text(str(number))
    return number


def rotate_while_they_work(
    recipe: Recipe[Any], vault: Vault, directory: Path, *, workers: int, changes: int
) -> tuple[list[int], int]:
    """Processes work, and the password changes. How many requests each had, and how many logins failed.

    A request that fails raises.
    """
    key = recipe.fingerprint()
    stop = directory / "stop"
    counts = [directory / f"count-{number}" for number in range(workers)]
    processes = [Fork(work, recipe, stop, count) for count in counts]

    def done() -> list[int]:
        return [int(count.read_text() or 0) if count.exists() else 0 for count in counts]

    def wait_for_more(before: list[int]) -> None:
        wait_until(
            lambda: all(now >= then + 3 for now, then in zip(done(), before, strict=True)),
            "three more requests of each worker",
            timeout=120,
        )

    wait_for_more([0] * workers)
    for _ in range(changes):
        vault.rotate()
        wait_for_more(done())
    figures = PoolManager("shop").stats()["pools"]["orders"]
    stop.touch()
    requests = [process.result(timeout=60) for process in processes]
    assert figures["breaker"] == "closed"
    assert recipe.fingerprint() == key
    PoolManager("shop").shutdown()
    return requests, figures["counters"]["open_failed"]


def test_a_changed_password_fails_no_request(
    recipe: Recipe[Any], vault: Vault, tmp_path: Path, runtime_dir: Path
) -> None:
    requests, failed = rotate_while_they_work(recipe, vault, tmp_path, workers=WORKERS, changes=3)
    assert min(requests) >= 3 * 4  # three before, and after each change
    assert failed == 0


def test_a_changed_password_fails_no_request_of_sixteen_workers(
    vault: Vault, tmp_path: Path, runtime_dir: Path
) -> None:
    recipe = psycopg_with_a_secret(vault)
    requests, failed = rotate_while_they_work(recipe, vault, tmp_path, workers=16, changes=2)
    assert len(requests) == 16
    assert min(requests) >= 3 * 3
    assert failed == 0


def test_what_was_opened_with_the_old_password_ends_soon_and_not_at_once(
    recipe: Recipe[Any], vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mppool.worker.opening.LOGIN_CHANGE_S", 0.2)
    manager = InProcessManager()
    pool = manager.pool("orders", recipe, max_size=4)
    with pool.checkout() as old:
        old_pid = old.execute("select pg_backend_pid()").fetchone()[0]
        vault.rotate()
        with pool.checkout() as other:  # refused once, asked again
            new_pid = other.execute("select pg_backend_pid()").fetchone()[0]
        # It is in use, and goes on until it is released.
        assert old.execute("select pg_backend_pid()").fetchone()[0] == old_pid
    wait_until(lambda: vault.database.session_pids() == {new_pid}, "the end of the old session")
    assert pool.stats()["counters"]["open_failed"] == 0
    manager.close()


def test_a_password_that_stays_wrong_fails_and_is_asked_for_once_more(
    vault: Vault, runtime_dir: Path
) -> None:
    asked: list[int] = []

    def wrong() -> str:
        asked.append(1)
        return f"{MARK}-wrong"

    pool = InProcessManager().pool(
        "orders", PsycopgRecipe(conninfo(vault), password=Secret(wrong)), max_size=1
    )
    with pytest.raises(OpenFailed, match="password authentication failed"):
        pool.checkout(timeout=5)
    assert len(asked) == 2
    assert pool.stats()["counters"]["open_failed"] == 1


def test_a_database_that_is_down_costs_no_second_look_at_the_vault() -> None:
    asked: list[int] = []

    def secret() -> str:
        asked.append(1)
        return f"{MARK}-any"

    recipe = PsycopgRecipe("host=127.0.0.1 port=1 user=nobody", password=Secret(secret))
    with pytest.raises(OpenFailed):
        InProcessManager().pool("orders", recipe).checkout(timeout=5)
    assert len(asked) == 1


def use_once(recipe: Recipe[Any]) -> None:
    manager = InProcessManager()
    with manager.pool("orders", recipe, max_size=1).checkout() as connection:
        assert connection.execute("select 1").fetchone()[0] == 1
    manager.close()


def test_a_recipe_pickles_without_its_password(vault: Vault) -> None:
    read = Secret(partial(locked_text_of, vault.path))
    for recipe in (
        PsycopgRecipe(conninfo(vault), password=read),
        OdbcRecipe(odbc_string(vault), secrets={"PWD": read}),
    ):
        use_once(recipe)
        pickled = pickle.dumps(recipe)
        assert MARK.encode() not in pickled
        copy = pickle.loads(pickled)
        assert copy.fingerprint() == recipe.fingerprint()
        use_once(copy)


class Rotating:
    """A password for the database that a test has in its hands."""

    def __init__(self) -> None:
        self.number = 1
        self.asked = 0

    @property
    def now(self) -> str:
        return f"{MARK}-{self.number}"

    def fetch(self) -> str:
        self.asked += 1
        return self.now


def session_ids(pool: Pool[Any], statement: str) -> list[Any]:
    """Of two connections that are lent at the same time."""
    found = []
    with pool.checkout() as one, pool.checkout() as other:
        for connection in (one, other):
            cursor = connection.cursor()
            cursor.execute(statement)
            found.append(cursor.fetchone()[0])
            cursor.close()
    return found


@pytest.mark.parametrize("kind", ["pyodbc", "mssql-python"])
def test_error_18456_of_sql_server_asks_once_more(
    kind: str, tds: TdsDouble, microsoft_driver: str
) -> None:
    password = Rotating()
    tds.expect_password("sa", password.now)
    where = f"Server=127.0.0.1,{tds.port};Encrypt=yes;TrustServerCertificate=yes;UID=sa"
    secrets = {"PWD": Secret(password.fetch)}
    recipe: Recipe[Any]
    if kind == "pyodbc":
        recipe = OdbcRecipe(f"Driver={microsoft_driver};{where}", secrets=secrets)
    else:
        recipe = MssqlRecipe(where, secrets=secrets)
    manager = InProcessManager()
    pool = manager.pool("orders", recipe, max_size=4, max_uses=1)
    for rounds in range(1, 4):
        assert len(set(session_ids(pool, "SELECT spid"))) == 2
        assert password.asked == rounds
        password.number += 1
        tds.expect_password("sa", password.now)
    assert pool.stats()["counters"]["open_failed"] == 0
    manager.close()


def test_error_1045_of_mariadb_asks_once_more(mariadb_server: dict[str, Any]) -> None:
    import pymysql

    where = {**mariadb_server, "host": "127.0.0.1"}
    where.pop("keeper", None)
    admin = pymysql.connect(**where, autocommit=True)
    user = f"user_{os.getpid()}"
    password = Rotating()
    with admin.cursor() as cursor:
        cursor.execute(f"create user {user}@'%' identified by '{password.now}'")
    whose = {**where, "user": user, "password": Secret(password.fetch)}
    manager = InProcessManager()
    pool = manager.pool("orders", DbApiRecipe(pymysql.connect, **whose), max_size=4, max_uses=1)
    for rounds in range(1, 4):
        assert len(set(session_ids(pool, "select connection_id()"))) == 2
        assert password.asked == rounds
        password.number += 1
        with admin.cursor() as cursor:
            cursor.execute(f"alter user {user}@'%' identified by '{password.now}'")
    assert pool.stats()["counters"]["open_failed"] == 0
    manager.close()
    with admin.cursor() as cursor:
        cursor.execute(f"drop user {user}@'%'")
    admin.close()
