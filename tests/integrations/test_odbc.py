"""OdbcRecipe over real drivers: SQLite and PostgreSQL, used without a pool."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mppool.errors import ConfigurationError
from mppool.odbc import OdbcRecipe, driver_manager
from mppool.odbc.driver_manager import PrivateIni, without_pooling
from mppool.recipe import Opening
from tests.helpers import Fork, run_python, wait_until
from tests.integrations.postgresql import Database


@pytest.fixture(params=["sqlite_odbc", "postgresql"])
def connection_string(request: pytest.FixtureRequest) -> str:
    """Each real database in turn."""
    value = request.getfixturevalue(request.param)
    return value if isinstance(value, str) else str(value.connection_string)


def value(connection: Any, query: str) -> Any:
    """The one value that a query gives; ends no transaction."""
    return connection.execute(query).fetchone()[0]


def test_open_check_reset_close(connection_string: str) -> None:
    recipe = OdbcRecipe(connection_string)
    connection = recipe.open(Opening(0))
    recipe.configure(connection)
    assert value(connection, "select 42") == 42
    recipe.reset(connection)
    assert recipe.check(connection) is True
    recipe.close(connection)
    assert connection.closed
    recipe.close(connection)  # its user may have closed it already


def test_what_was_not_committed_is_rolled_back_on_release(connection_string: str) -> None:
    recipe = OdbcRecipe(connection_string)
    connection = recipe.open(Opening(0))
    connection.execute("create table thing (x int)")
    connection.commit()
    connection.execute("insert into thing values (1)")
    recipe.reset(connection)
    assert value(connection, "select count(*) from thing") == 0
    recipe.close(connection)


@pytest.mark.parametrize("mode", [True, False])
def test_autocommit_is_as_declared_after_each_lease(connection_string: str, mode: bool) -> None:
    recipe = OdbcRecipe(connection_string, autocommit=mode)
    connection = recipe.open(Opening(0))
    assert connection.autocommit is mode
    connection.autocommit = True
    connection.execute("create table thing (x int)")
    connection.autocommit = False
    connection.execute("insert into thing values (1)")
    recipe.reset(connection)
    assert connection.autocommit is mode
    assert value(connection, "select count(*) from thing") == 0
    recipe.close(connection)


def test_a_transaction_begun_by_a_statement_is_rolled_back_where_the_driver_notices(
    postgresql: Database,
) -> None:
    recipe = OdbcRecipe(postgresql.connection_string, autocommit=True)
    connection = recipe.open(Opening(0))
    connection.execute("create table thing (x int)")
    connection.execute("begin")
    connection.execute("insert into thing values (1)")
    recipe.reset(connection)
    assert value(connection, "select count(*) from thing") == 0
    recipe.close(connection)


@pytest.mark.parametrize("autocommit", [True, False])
def test_a_check_leaves_no_transaction_open(postgresql: Database, autocommit: bool) -> None:
    recipe = OdbcRecipe(postgresql.connection_string, autocommit=autocommit)
    connection = recipe.open(Opening(0))
    assert recipe.check(connection)
    wait_until(lambda: postgresql.states() == ["idle"], "the session to be idle, in no transaction")
    recipe.close(connection)
    wait_until(lambda: not postgresql.session_pids(), "the session to be gone")


def test_a_dead_session_is_unhealthy_and_closes_quietly(postgresql: Database) -> None:
    recipe = OdbcRecipe(postgresql.connection_string)
    connection = recipe.open(Opening(0))
    postgresql.end_sessions()
    assert not connection.closed  # pyodbc does not notice by itself
    with pytest.raises(ConnectionError, match="57P01"):
        recipe.check(connection)
    with pytest.raises(ConnectionError, match="08"):
        recipe.check(connection)
    recipe.close(connection)


def test_a_session_that_died_in_a_transaction_cannot_be_reset(postgresql: Database) -> None:
    recipe = OdbcRecipe(postgresql.connection_string)
    connection = recipe.open(Opening(0))
    connection.execute("select 1")
    postgresql.end_sessions()
    with pytest.raises(ConnectionError, match="57P01"):
        recipe.reset(connection)
    recipe.close(connection)


def test_a_connection_that_its_user_closed_cannot_be_given_back(connection_string: str) -> None:
    recipe = OdbcRecipe(connection_string)
    connection = recipe.open(Opening(0))
    connection.close()
    with pytest.raises(driver_manager.load().Error):
        recipe.reset(connection)
    assert recipe.check(connection) is False


def test_a_wrong_check_query_is_an_error_of_its_own(postgresql: Database) -> None:
    recipe = OdbcRecipe(postgresql.connection_string, check_query="select nonsense")
    connection = recipe.open(Opening(0))
    with pytest.raises(driver_manager.load().Error) as refused:
        recipe.check(connection)
    assert refused.value.args[0].startswith("42")
    recipe.close(connection)


def test_a_check_query_may_return_nothing(connection_string: str) -> None:
    recipe = OdbcRecipe(connection_string, check_query="create table if not exists thing (x int)")
    connection = recipe.open(Opening(0))
    assert recipe.check(connection)
    recipe.close(connection)


def test_postgresql_resets_no_sessions_and_is_asked_once(postgresql: Database) -> None:
    recipe = OdbcRecipe(postgresql.connection_string)
    connection = recipe.open(Opening(0))
    recipe.reset(connection)
    recipe.reset(connection)
    assert recipe.check(connection)
    recipe.close(connection)
    with pytest.raises(ConfigurationError, match="session_reset"):
        OdbcRecipe(postgresql.connection_string, session_reset=True).open(Opening(0))
    wait_until(lambda: not postgresql.session_pids(), "what was refused to be closed")


def test_attributes_to_be_set_are_asked_for_once_for_each_connection(sqlite_odbc: str) -> None:
    login_timeout_attribute, asked = 103, []

    def attributes() -> tuple[dict[int, int], None]:
        asked.append(login_timeout_attribute)
        return {login_timeout_attribute: 5}, None

    recipe = OdbcRecipe(sqlite_odbc, attrs_before=attributes)
    assert not asked
    for number in range(2):
        recipe.close(recipe.open(Opening(number)))
        assert len(asked) == number + 1


@pytest.mark.parametrize(
    "named", ["Driver=No Such Driver", "Driver=/no/such/driver.so", "DSN=nosuch"]
)
def test_a_wrong_driver_is_named_with_those_that_there_are(
    odbc_drivers: list[str], named: str
) -> None:
    with pytest.raises(driver_manager.load().Error) as refused:
        OdbcRecipe(f"{named};UID=bob;PWD=hunter2").open(Opening(0))
    message = str(refused.value)
    assert named in message
    assert refused.value.args[0] in ("01000", "IM002")
    assert f"[{refused.value.args[0]}]" in message
    assert all(driver in message for driver in odbc_drivers)
    assert "hunter2" not in message


def test_a_refused_login_tells_its_sqlstate_and_not_the_password(postgresql: Database) -> None:
    # PostgreSQL repeats the name of the database, so a password in the wrong place would be repeated.
    text = postgresql.connection_string.replace("PWD=unused", "PWD={hun;ter2}")
    text = text.replace(f"Database={postgresql.name}", "Database={hun;ter2}")
    with pytest.raises(driver_manager.load().Error) as refused:
        OdbcRecipe(text).open(Opening(0))
    assert refused.value.args[0] == "08001"
    assert "***" in str(refused.value)
    assert "ter2" not in str(refused.value)
    assert refused.value.__context__ is None


def test_opening_gives_up_when_the_caller_would(postgresql: Database) -> None:
    # A server that accepts and says nothing: only the login timeout ends that.
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        text = f"Driver=PostgreSQL Unicode;Server=127.0.0.1;Port={silent.getsockname()[1]};UID=x;Database=x"
        recipe = OdbcRecipe(text, login_timeout=30)
        began = time.monotonic()
        with pytest.raises(driver_manager.load().Error):
            recipe.open(Opening(0, timeout=0.5))
        # libpq takes whole seconds, and 1 for 2.
        assert time.monotonic() - began < 20


def test_each_process_has_sessions_of_its_own(postgresql: Database) -> None:
    recipe = OdbcRecipe(postgresql.connection_string)
    connection = recipe.open(Opening(0))
    mine = value(connection, "select pg_backend_pid()")

    def in_child() -> int:
        own = recipe.open(Opening(1))
        return int(value(own, "select pg_backend_pid()"))

    assert Fork(in_child).result() != mine
    assert value(connection, "select pg_backend_pid()") == mine
    recipe.close(connection)


POOLING_INI = """
[ODBC]
Pooling = Yes
[Pooled]
Driver = psqlodbcw.so
CPTimeout = 120
"""

THREE_SESSIONS = """
import logging, os, sys
logging.basicConfig(stream=sys.stdout, format="LOGGED %(message)s")
from mppool.odbc import OdbcRecipe
from mppool.recipe import Opening
recipe = OdbcRecipe("Driver=Pooled;Server=127.0.0.1;Port={port};Database={database};UID=postgres")
for _ in range(3):
    connection = recipe.open(Opening(0))
    print("SESSION", connection.execute("select pg_backend_pid()").fetchone()[0])
    recipe.close(connection)
import pyodbc
assert type(pyodbc) is type(sys) and pyodbc.pooling is False
print("ENVIRONMENT", os.environ["ODBCSYSINI"], os.environ.get("ODBCINSTINI"))
"""


@pytest.fixture
def pooling_directory(tmp_path: Path) -> Iterator[Path]:
    """An ODBCSYSINI with the driver manager's pooling on."""
    (tmp_path / "odbcinst.ini").write_text(POOLING_INI)
    yield tmp_path
    # Private copies are shared by processes and stay; that of a directory that is gone need not.
    shutil.rmtree(PrivateIni(tmp_path, without_pooling(POOLING_INI)).directory)


def _three_sessions(postgresql: Database, directory: Path, first: str = "") -> list[str]:
    code = first + THREE_SESSIONS.format(port=postgresql.port, database=postgresql.name)
    return run_python(code, environment={"ODBCSYSINI": str(directory)}).stdout.splitlines()


def test_the_driver_manager_keeps_no_sessions(
    postgresql: Database, pooling_directory: Path
) -> None:
    lines = _three_sessions(postgresql, pooling_directory)
    assert len({line for line in lines if line.startswith("SESSION")}) == 3
    # What other code in the process, and its children, see is untouched.
    assert lines[-1] == f"ENVIRONMENT {pooling_directory} None"
    assert not any(line.startswith("LOGGED") for line in lines)


def test_who_used_odbc_before_is_warned_that_sessions_are_kept(
    postgresql: Database, pooling_directory: Path
) -> None:
    lines = _three_sessions(
        postgresql, pooling_directory, first="import pyodbc; pyodbc.drivers()\n"
    )
    assert len({line for line in lines if line.startswith("SESSION")}) == 1
    warnings = [line for line in lines if line.startswith("LOGGED")]
    assert len(warnings) == 1
    assert str(pooling_directory / "odbcinst.ini") in warnings[0]


def test_merely_importing_pyodbc_before_is_early_enough(
    postgresql: Database, pooling_directory: Path
) -> None:
    lines = _three_sessions(postgresql, pooling_directory, first="import pyodbc\n")
    assert len({line for line in lines if line.startswith("SESSION")}) == 3
