"""MssqlRecipe: mssql-python against the TDS double, which says whose token each session was opened with."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest

from mppool import CheckoutTimeout, ConfigurationError, InProcessManager, OpenFailed, PoolManager
from mppool.azure import token_struct
from mppool.mssql import MssqlRecipe
from tests.helpers import Fork, wait_until
from tests.integrations.test_msodbcsql import HOUR, Issuer, bearer_of, brought, manager
from tests.secrecy import MARK
from tests.tds.double import TdsDouble

__all__ = ["manager"]

mssql_python = pytest.importorskip("mssql_python")


def string_of(tds: TdsDouble, more: str = "") -> str:
    """mssql-python brings its own driver, and refuses to be told one."""
    return f"Server=127.0.0.1,{tds.port};Encrypt=yes;TrustServerCertificate=yes;{more}"


def value(connection: Any, statement: str) -> Any:
    cursor = connection.cursor()
    cursor.execute(statement)
    row = cursor.fetchone()
    cursor.close()
    return row[0]


def use(pool: Any, said: str = "1", **whose: Any) -> int:
    """One checkout that says something to its session; the number of that."""
    with pool.checkout(**whose) as connection:
        value(connection, f"SELECT '{said}'")
        return int(value(connection, "SELECT spid"))


def test_each_identity_has_sessions_of_its_own(manager: Any, tds: TdsDouble) -> None:
    pool = manager.pool("p", MssqlRecipe(string_of(tds, f"UID=sa;PWD={MARK}")), max_size=4)
    whose: list[dict[str, Any]] = [
        {"credential": brought("alice")},
        {"credential": brought("bob")},
        {"identity": "carol", "credential": Issuer("carol")},
        {},
    ]
    first = [use(pool, **one) for one in whose]
    assert len(set(first)) == 4
    assert [use(pool, **one) for one in whose] == first
    seen = {session.number: session for session in tds.open_sessions()}
    assert [bearer_of(seen[number]) for number in first] == ["alice", "bob", "carol", None]
    # Where a token is used, user and password are taken out of the string.
    assert [seen[number].user for number in first] == ["", "", "", "sa"]
    pool.close()


def test_no_token_is_fetched_where_a_session_lies_ready(manager: Any, tds: TdsDouble) -> None:
    pool = manager.pool("p", MssqlRecipe(string_of(tds)), max_size=4)
    credential = Issuer("token")
    for _ in range(4):
        use(pool, identity="me", credential=credential)
    assert (credential.asked, len(tds.sessions())) == (1, 1)
    pool.close()


def test_near_its_end_another_token_replaces_the_sessions(manager: Any, tds: TdsDouble) -> None:
    pool = manager.pool("p", MssqlRecipe(string_of(tds)), max_size=4)
    me: dict[str, Any] = {"identity": "me", "credential": Issuer("old", "new", life=200.0)}
    with pool.checkout(**me), pool.checkout(**me):
        pass
    use(pool, "again", **me)
    (left,) = tds.wait_for_open(1)
    assert bearer_of(left) == "new"
    assert pool.stats()["counters"]["reopened"] == 1
    pool.close()


def test_near_its_end_the_same_token_goes_on(manager: Any, tds: TdsDouble) -> None:
    pool = manager.pool("p", MssqlRecipe(string_of(tds)), max_size=4)
    credential = Issuer("same", life=100.0)
    first = use(pool, identity="me", credential=credential)
    credential.life = HOUR
    assert use(pool, identity="me", credential=credential) == first
    assert credential.asked == 2
    pool.close()


def test_an_idle_identity_makes_room_and_the_cap_holds(manager: Any, tds: TdsDouble) -> None:
    pool = manager.pool("p", MssqlRecipe(string_of(tds)), max_size=2)
    for name in ("alice", "bob", "carol"):
        use(pool, name, identity=name, credential=brought(name))
    tds.wait_for_open(2)
    with (
        pool.checkout(identity="erin", credential=brought("erin")),
        pool.checkout(identity="frank", credential=brought("frank")),
        pytest.raises(CheckoutTimeout),
    ):
        pool.checkout(0.05, identity="grace", credential=brought("grace"))
    pool.close()


def test_what_is_left_behind_is_rolled_back(manager: Any, tds: TdsDouble) -> None:
    pool = manager.pool("p", MssqlRecipe(string_of(tds)), max_size=1)
    with pool.checkout() as connection:
        value(connection, "SELECT 1")
        connection.timeout = 7
    with pool.checkout() as connection:
        connection.autocommit = True
    with pool.checkout() as connection:
        assert (connection.timeout, connection.autocommit) == (0, False)
    (session,) = tds.open_sessions()
    assert session.transactions[:2] == ["begin", "rollback"]
    pool.close()


def test_a_killed_session_is_replaced_with_all_as_old(manager: Any, tds: TdsDouble) -> None:
    pool = manager.pool("p", MssqlRecipe(string_of(tds)), max_size=2, check_idle_for=0.0)
    with pool.checkout(), pool.checkout():
        pass
    tds.kill()
    use(pool)
    assert pool.stats()["counters"]["checks"] == 1
    tds.wait_for_open(1)
    pool.close()


def test_the_drivers_own_pooling_is_off_also_where_the_application_turned_it_on(
    tds: TdsDouble, caplog: pytest.LogCaptureFixture
) -> None:
    mssql_python.pooling(enabled=True)
    try:
        pool = InProcessManager().pool("p", MssqlRecipe(string_of(tds)), max_size=1)
        with caplog.at_level(logging.WARNING, "mppool.mssql"):
            use(pool, credential=brought("alice"))
            # The thread that opens logs when it has handed over what it opened.
            wait_until(lambda: "own pooling" in caplog.text, "the warning")
        assert not mssql_python.PoolingManager.is_enabled()
        pool.close()
        tds.wait_for_open(0)
    finally:
        mssql_python.pooling(enabled=False)


def test_a_child_gets_a_session_of_its_own(runtime_dir: Any, tds: TdsDouble) -> None:
    manager = PoolManager("test")
    pool = manager.pool("p", MssqlRecipe(string_of(tds)), max_size=3)
    me = brought("me")
    mine = use(pool, credential=me)
    assert Fork(lambda: use(pool, credential=me)).result() != mine
    assert use(pool, credential=me) == mine
    pool.close()
    manager.shutdown()


def test_a_refused_login_is_told_without_the_token(tds: TdsDouble) -> None:
    tds.refuse(f"{MARK} alice", f"Login failed with {MARK} alice.")
    pool = InProcessManager().pool("p", MssqlRecipe(string_of(tds)))
    with pytest.raises(OpenFailed, match="Login failed"):
        pool.checkout(timeout=0, credential=brought("alice"))
    with pytest.raises(OpenFailed) as caught:
        InProcessManager().pool(
            "q", MssqlRecipe(f"Server=127.0.0.1,1;PWD={MARK};UID=sa;Foo=1")
        ).checkout()
    assert MARK not in str(caught.value.__cause__)


def test_attrs_before_brings_a_token_of_the_application(tds: TdsDouble) -> None:
    recipe = MssqlRecipe(string_of(tds), attrs_before={1256: token_struct(f"{MARK} own")})
    pool = InProcessManager().pool("p", recipe)
    use(pool)
    assert [bearer_of(session) for session in tds.open_sessions()] == ["own"]
    pool.close()


def test_what_cannot_work_is_refused_at_once() -> None:
    for string, what in (("Driver=x;Server=y", "names a Driver"), (1, "give a str")):
        with pytest.raises(ConfigurationError, match=what):
            MssqlRecipe(string)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="login_timeout"):
        MssqlRecipe("Server=y", login_timeout=-1)
    with pytest.raises(ConfigurationError, match="1256"):
        MssqlRecipe("Server=y", attrs_before={1256: b"abc"})


def test_a_token_that_the_database_refuses_is_replaced(manager: Any, tds: TdsDouble) -> None:
    pool = manager.pool("p", MssqlRecipe(string_of(tds)), max_size=2)
    issuer = Issuer("revoked", "new")
    tds.refuse(f"{MARK} revoked")
    for _ in range(20):
        try:
            use(pool, identity="me", credential=issuer)
            break
        except OpenFailed:
            time.sleep(0.1)
    assert [bearer_of(session) for session in tds.open_sessions()] == ["new"]
    pool.close()


SQL_CHAR = 1


class Overridden(MssqlRecipe):
    """A user's recipe that sets what it wants in `open`."""

    def open(self, opening: Any) -> Any:
        connection = super().open(opening)
        connection.setautocommit(True)
        connection.timeout = 7
        connection.add_output_converter(4, lambda raw: 42)
        return connection


def test_what_open_has_left_is_put_back(manager: Any, tds: TdsDouble) -> None:
    pool = manager.pool("p", Overridden(string_of(tds)), max_size=1)
    for _ in range(3):
        with pool.checkout() as connection:
            assert (connection.autocommit, connection.timeout) == (True, 7)
            assert connection.get_output_converter(4) is not None
            assert connection.getdecoding(SQL_CHAR)["encoding"] != "cp1251"
            connection.setautocommit(False)
            connection.timeout = 1
            connection.clear_output_converters()
            connection.setdecoding(SQL_CHAR, encoding="cp1251")
    (session,) = tds.sessions()
    assert session.open


def test_a_transaction_begun_by_a_statement_is_ended(manager: Any, tds: TdsDouble) -> None:
    pool = manager.pool("p", MssqlRecipe(string_of(tds), autocommit=True), max_size=1)
    with pool.checkout() as connection:
        connection.cursor().execute("BEGIN TRANSACTION")
    (session,) = tds.sessions()
    assert session.statements[-1] == "IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION"


def test_what_stays_closes_a_guarded_connection(manager: Any, tds: TdsDouble) -> None:
    pool = manager.pool("p", MssqlRecipe(string_of(tds)), max_size=1, guard=True)
    with pool.checkout() as connection:
        value(connection, "SELECT 1")
    with pool.checkout() as connection:
        connection.cursor().execute("SET LOCK_TIMEOUT 5")
    with pool.checkout():
        pass
    assert len(tds.sessions()) == 2
