"""The grammar of connection strings, and that no secret in one is ever shown."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mppool.errors import ConfigurationError
from mppool.odbc.connection_string import HIDDEN, Scrubber, is_secret, parse, shown


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("Driver=SQLite3;Database=a.db", [("Driver", "SQLite3"), ("Database", "a.db")]),
        (
            " Driver = {SQLite3} ; ;; Database= a.db ;",
            [("Driver", "SQLite3"), ("Database", "a.db")],
        ),
        ("PWD={a;b}}c=d};UID=bob", [("PWD", "a;b}c=d"), ("UID", "bob")]),
        ("PWD={}}}", [("PWD", "}")]),
        ("PWD={};x=y", [("PWD", ""), ("x", "y")]),
        ("PWD=a=b;x=", [("PWD", "a=b"), ("x", "")]),
        ("PWD=a{b;x=y", [("PWD", "a{b"), ("x", "y")]),
    ],
)
def test_what_a_connection_string_means(text: str, pieces: list[tuple[str, str]]) -> None:
    assert parse(text) == pieces


@pytest.mark.parametrize(
    "text",
    [
        "Driver=SQLite3;PWD=hunter2;tail4",  # an unquoted `;` in a password
        "Driver=SQLite3;PWD={hunter2",
        "Driver=SQLite3;PWD={hunter2}tail4;x=y",
        "Driver=SQLite3;PWD={hunter2}}",
        "Driver=SQLite3;=hunter2",
        "Driver=SQLite3;PWD=hunter2\0",
    ],
)
def test_what_is_no_connection_string_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse(text)
    assert "hunter2" not in str(refused.value)
    assert "tail4" not in str(refused.value)


def test_secrets_are_told_by_keyword() -> None:
    for keyword in (
        "PWD",
        "pwd",
        "Password",
        "SSL Password",
        "TrustStorePassword",
        "client_secret",
        "AccessToken",
    ):
        assert is_secret(keyword), keyword
    for keyword in ("UID", "Driver", "Server", "KeepAlive", "SSLmode", "APP"):
        assert not is_secret(keyword), keyword


def test_what_is_shown_has_no_secret_and_still_parses() -> None:
    pieces = parse("Driver=SQLite3;Database={a;b};UID=bob;PWD={x}};y}")
    assert shown(pieces) == f"Driver=SQLite3;Database={{a;b}};UID=bob;PWD={HIDDEN}"
    assert parse(shown(pieces))[:3] == pieces[:3]


def test_a_secret_in_a_message_is_hidden_in_every_form() -> None:
    scrubber = Scrubber(parse("Driver=X;UID=bob;PWD={hun}};ter}"))
    for message in (
        "cannot use 'hun};ter' as a password",
        "in Driver=X;PWD={hun}};ter};UID={bob}",
        "cut off: PWD={hun}};t",
        "cut off: password = hun};",
    ):
        scrubbed = scrubber.scrub(message)
        assert "hun}" not in scrubbed, scrubbed
        assert HIDDEN in scrubbed


def test_a_secret_in_its_written_form_is_hidden_whole() -> None:
    scrubber = Scrubber(parse("Driver=X;PWD={ab}}cd};TrustStorePassword=abcdef;KeyPassword=abcd"))
    assert scrubber.scrub("<ab}}cd> <ab}cd> <abcdef> <abcd>") == " ".join([f"<{HIDDEN}>"] * 4)


def test_a_very_short_secret_does_not_riddle_the_words_around_it() -> None:
    scrubber = Scrubber(parse("Driver=X;PWD=a"))
    assert scrubber.scrub("cannot load a driver") == f"cannot load {HIDDEN} driver"


def test_a_message_without_secrets_stays_as_it_is() -> None:
    message = "[28000] Login failed for user 'bob'. (18456) (SQLDriverConnect)"
    assert Scrubber(parse("Driver=X;UID=bob;PWD=hunter2")).scrub(message) == message


def test_the_scrubber_does_not_show_what_it_hides() -> None:
    assert "hunter2" not in repr(Scrubber(parse("Driver=X;PWD=hunter2")))


_texts = st.text(string.ascii_letters + string.digits + "{}=; '%", min_size=1, max_size=20)


@given(_texts.filter(lambda text: len(text.strip()) > 3))
def test_every_password_in_braces_comes_back_and_is_hidden(password: str) -> None:
    quoted = "{" + password.replace("}", "}}") + "}"
    pieces = parse(f"Driver=X;PWD={quoted};Database=shop")
    assert pieces == [("Driver", "X"), ("PWD", password), ("Database", "shop")]
    assert Scrubber(pieces).scrub(f"<{password}>") == f"<{HIDDEN}>"
    assert shown(pieces) == f"Driver=X;PWD={HIDDEN};Database=shop"
