"""Access tokens on their way to the driver, without a driver."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mppool.azure import StaticToken, TokenInfo, token_struct
from mppool.errors import ConfigurationError
from mppool.odbc import OdbcRecipe, attributes, driver_manager
from mppool.odbc.connection_string import joined, parse
from mppool.recipe import Opening

STRING = (
    "Driver={ODBC Driver 18 for SQL Server};Server=a,1433;UID=sa;PWD={a;b}}c};"
    "authentication=ActiveDirectoryInteractive;Trusted_Connection=yes;App=shop"
)


class FakeDriver:
    """Stands for pyodbc."""

    class Error(Exception):
        pass

    def __init__(self, refusal: str = "") -> None:
        self.refusal = refusal
        self.strings: list[str] = []
        self.attributes: list[dict[int, Any]] = []

    def connect(self, string: str, *, attrs_before: Any, **keywords: Any) -> Any:
        self.strings.append(string)
        self.attributes.append(attrs_before)
        if self.refusal:
            raise self.Error("28000", self.refusal)
        return object()


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver()
    monkeypatch.setattr(driver_manager, "load", lambda: fake)
    return fake


def with_token(token: str) -> Opening:
    return Opening(0, "me", TokenInfo(token_struct(token), None))


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[A-Za-z][A-Za-z ]{0,8}[A-Za-z]", fullmatch=True),
            st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12),
        ),
        min_size=1,
    )
)
def test_what_is_joined_is_parsed_to_the_same(pieces: list[tuple[str, str]]) -> None:
    assert parse(joined(pieces)) == pieces


def test_without_a_token_the_string_is_as_it_was(driver: FakeDriver) -> None:
    OdbcRecipe(STRING).open(Opening(0))
    assert driver.strings == [STRING]
    assert driver.attributes == [None]


def test_what_the_driver_refuses_beside_a_token_is_taken_out(driver: FakeDriver) -> None:
    recipe = OdbcRecipe(STRING, attrs_before={103: 5})
    recipe.open(with_token("token"))
    assert driver.strings == ["Driver=ODBC Driver 18 for SQL Server;Server=a,1433;App=shop"]
    assert driver.attributes == [{103: 5, 1256: token_struct("token")}]


def test_a_token_of_attrs_before_is_a_token_too(driver: FakeDriver) -> None:
    OdbcRecipe(STRING, attrs_before={1256: token_struct("mine")}).open(Opening(0))
    assert "UID" not in driver.strings[0]
    # Somebody else's token counts for more than the recipe's: the connection will be theirs.
    OdbcRecipe(STRING, attrs_before={1256: token_struct("mine")}).open(with_token("his"))
    assert driver.attributes[1] == {1256: token_struct("his")}


def test_each_connection_gets_bytes_of_its_own(driver: FakeDriver) -> None:
    opening = with_token("token")
    recipe = OdbcRecipe(STRING)
    recipe.open(opening)
    recipe.open(opening)
    one, other = (attributes[1256] for attributes in driver.attributes)
    assert one == other == opening.token.token_struct
    assert type(one) is bytes
    assert one is not other
    assert one is not opening.token.token_struct


def test_where_the_driver_manager_pools_the_strings_differ(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_manager, "keeps_closed_sessions", lambda: True)
    recipe = OdbcRecipe(STRING)
    for token in ("alice", "bob", "alice"):
        recipe.open(with_token(token))
    assert driver.strings[0] == driver.strings[2] != driver.strings[1]
    assert driver.strings[0].count("APP=mppool-") == 1
    assert "App=shop" not in driver.strings[0]
    assert "alice" not in driver.strings[0]


def test_a_driver_that_repeats_the_token_is_cut_short(driver: FakeDriver) -> None:
    driver.refusal = "cannot log in with the-very-token here"
    with pytest.raises(driver.Error) as refused:
        OdbcRecipe(STRING).open(with_token("the-very-token"))
    assert refused.value.args == ("28000", "cannot log in with *** here")
    assert refused.value.__context__ is None


@pytest.mark.parametrize(
    "structure",
    [
        b"",
        "token",
        bytearray(b"\2\0\0\0a"),
        struct.pack("<I", 0),
        struct.pack("<I", 6) + "to".encode("utf-16-le"),
        token_struct("token")[:-1],
        token_struct("token") + b"\0\0",
        struct.pack("<I", 6) + "t\0k".encode("utf-16-le"),
        struct.pack("<I", 2) + b"\0\xd8",
        struct.pack("<I", 65538) + b"a\0" * 32769,
        None,
        7,
    ],
)
def test_what_is_no_token_structure_never_reaches_the_driver(
    driver: FakeDriver, structure: Any
) -> None:
    with pytest.raises(ConfigurationError, match="1256") as refused:
        OdbcRecipe(STRING).open(Opening(0, "me", TokenInfo(structure, None)))
    assert driver.strings == []
    assert len(str(refused.value)) < 400
    with pytest.raises(ConfigurationError, match="1256"):
        OdbcRecipe(STRING, attrs_before={1256: structure})


def test_the_largest_token_is_one(driver: FakeDriver) -> None:
    OdbcRecipe(STRING).open(with_token("a" * 32768))
    assert len(driver.attributes[0][1256]) == 65540


@pytest.mark.parametrize("expires_on", ["soon", True, float("nan"), float("inf"), b"1"])
def test_an_end_that_is_no_time_is_refused(driver: FakeDriver, expires_on: Any) -> None:
    recipe = OdbcRecipe(STRING, attrs_before=lambda: ({}, expires_on))
    with pytest.raises(ConfigurationError, match="expires_on"):
        recipe.open(Opening(0))


def test_the_fingerprint_tells_whose_credential_it_is() -> None:
    class Known:
        def __init__(self, name: str) -> None:
            self.name = name

        def mppool_identity(self) -> str:
            return self.name

        def get_token(self, *scopes: str) -> Any:
            raise AssertionError("nobody wants a token")

    made = [OdbcRecipe(STRING), *(OdbcRecipe(STRING, credential=Known(n)) for n in "ab")]
    assert len({recipe.fingerprint() for recipe in made}) == 3
    again = OdbcRecipe(STRING, credential=Known("a"))
    assert again.fingerprint() == made[1].fingerprint()


def test_no_secret_is_shown() -> None:
    recipe = OdbcRecipe(STRING, credential=StaticToken("secret-token"))
    shown = repr(recipe) + recipe.fingerprint() + attributes.mark_of(token_struct("secret-token"))
    assert "secret" not in shown
