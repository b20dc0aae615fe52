"""The double itself, seen through Microsoft's driver."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from mppool.odbc import driver_manager
from tests.tds.double import EXPIRED, TdsDouble

TOKEN = 1256


def structure(token: str) -> bytes:
    encoded = token.encode("utf-16-le")
    return struct.pack("<I", len(encoded)) + encoded


def connect(string: str, token: str | None = None, **keywords: Any) -> Any:
    attributes = None if token is None else {TOKEN: structure(token)}
    return driver_manager.load().connect(string, attrs_before=attributes, **keywords)


@pytest.mark.parametrize("strict", [False, True], ids=["TLS within PRELOGIN", "Encrypt=strict"])
def test_a_token_arrives_verbatim(tds: TdsDouble, strict: bool) -> None:
    string = tds.strict_connection_string() if strict else tds.connection_string()
    connection = connect(string, "token-of-alicé", autocommit=True)
    assert connection.execute("SELECT 7").fetchval() == 7
    assert connection.execute("SELECT 'wörter'").fetchval() == "wörter"
    (session,) = tds.open_sessions()
    assert connection.execute("SELECT spid").fetchval() == session.number
    assert session.token == "token-of-alicé"
    assert session.statements == ["SELECT 7", "SELECT 'wörter'"]
    connection.close()
    tds.wait_for_open(0)


def test_a_long_token_and_a_long_statement_span_packets(tds: TdsDouble) -> None:
    token = "t" * 30000
    connection = connect(tds.connection_string(), token, autocommit=True)
    text = "x" * 4000
    assert connection.execute(f"SELECT '{text}'").fetchval() == text
    assert tds.open_sessions()[0].token == token
    connection.close()


def test_a_login_with_a_password(tds: TdsDouble) -> None:
    tds.expect_password("sa", "s€cret")
    connection = connect(tds.connection_string("UID=sa;PWD=s€cret;APP=shop"))
    (session,) = tds.open_sessions()
    assert (session.user, session.token, session.application) == ("sa", None, "shop")
    connection.close()
    with pytest.raises(driver_manager.load().Error, match="18456"):
        connect(tds.connection_string("UID=sa;PWD=wrong"))


def test_transactions_and_resets_are_recorded(tds: TdsDouble) -> None:
    connection = connect(tds.connection_string(), "alice")
    connection.execute("INSERT nothing")
    connection.rollback()
    connection.set_attr(116, 1)
    assert connection.execute("SELECT 1").fetchval() == 1
    connection.commit()
    (session,) = tds.open_sessions()
    assert session.transactions == ["begin", "rollback", "begin", "commit"]
    assert session.resets == [1]
    connection.close()


def test_an_error_and_a_killed_session(tds: TdsDouble) -> None:
    error = driver_manager.load().Error
    connection = connect(tds.connection_string(), "alice", autocommit=True)
    with pytest.raises(error, match="as ordered"):
        connection.execute("FAIL")
    assert connection.execute("SELECT 1").fetchval() == 1
    tds.kill(tds.open_sessions()[0].number)
    with pytest.raises(error) as lost:
        connection.execute("SELECT 1")
    assert lost.value.args[0] == "08S01"
    connection.close()


def test_a_refused_token(tds: TdsDouble) -> None:
    tds.refuse("bob", EXPIRED)
    with pytest.raises(driver_manager.load().InterfaceError, match="Token is expired") as refused:
        connect(tds.connection_string(), "bob")
    assert refused.value.args[0] == "28000"
    tds.accept("bob")
    connect(tds.connection_string(), "bob").close()
    assert [session.accepted for session in tds.sessions()] == [False, True]


def test_a_statement_that_takes_too_long_is_interrupted(tds: TdsDouble) -> None:
    connection = connect(tds.connection_string(), "alice", autocommit=True)
    connection.timeout = 1
    with pytest.raises(driver_manager.load().Error) as timed_out:
        connection.execute("SLEEP 1.3")
    assert timed_out.value.args[0] == "HYT00"
    connection.close()
