"""OdbcRecipe without a database: what it refuses, what it shows, and how it treats a driver."""

from __future__ import annotations

import pickle
import struct
from typing import Any

import pytest

from mppool.errors import ConfigurationError
from mppool.odbc import OdbcRecipe, driver_manager
from mppool.recipe import Opening
from tests.helpers import run_python

SQLITE = "Driver=SQLite3;Database=shop.db"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"connection_string": 1}, "connection string is a int"),
        ({"connection_string": ""}, "neither Driver nor DSN"),
        ({"connection_string": "Database=x"}, "neither Driver nor DSN"),
        ({"credential": object()}, "credential"),
        ({"autocommit": 1}, "autocommit is 1"),
        ({"login_timeout": 0}, "login_timeout is 0"),
        ({"login_timeout": True}, "login_timeout is True"),
        ({"login_timeout": "1"}, "login_timeout is '1'"),
        ({"login_timeout": float("nan")}, "login_timeout is nan"),
        ({"session_reset": "yes"}, "session_reset is 'yes'"),
        ({"session_reset": 1}, "session_reset is 1"),
        ({"check_query": ""}, "check_query is ''"),
        ({"attrs_before": 7}, "attrs_before"),
        ({"attrs_before": {"1256": b""}}, "attrs_before"),
        ({"attrs_before": {103: 1.5}}, "attribute 103 is a float"),
    ],
)
def test_bad_arguments_are_refused_at_declaration(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        OdbcRecipe(**{"connection_string": SQLITE, **arguments})
    assert named in str(refused.value)


@pytest.mark.parametrize(
    "structure",
    [
        b"abc",
        "token",
        struct.pack("<I", 6) + b"to",
        struct.pack("<I", 0),
        struct.pack("<I", 3) + b"tok",
    ],
)
def test_a_malformed_access_token_never_reaches_the_driver(structure: object) -> None:
    with pytest.raises(ConfigurationError, match="1256"):
        OdbcRecipe(SQLITE, attrs_before={1256: structure})


def test_a_well_formed_access_token_is_accepted_and_not_shown() -> None:
    token = "tok".encode("utf-16-le")
    recipe = OdbcRecipe(SQLITE, attrs_before={1256: struct.pack("<I", len(token)) + token})
    assert "t\\x00o" not in repr(recipe) + recipe.fingerprint()


def test_repr_and_fingerprint_hold_no_secret() -> None:
    recipe = OdbcRecipe(SQLITE + ";UID=bob;PWD={hun;ter2}")
    assert repr(recipe) == (
        "OdbcRecipe('Driver=SQLite3;Database=shop.db;UID=bob;PWD=***', autocommit=False)"
    )
    assert "hun" not in recipe.fingerprint()


def test_the_fingerprint_tells_what_is_opened() -> None:
    def token() -> dict[int, int]:
        return {}

    recipes = [
        OdbcRecipe(SQLITE),
        OdbcRecipe(SQLITE + ";PWD=x"),
        OdbcRecipe(SQLITE, attrs_before={103: 1}),
        OdbcRecipe(SQLITE, attrs_before={103: 2}),
        OdbcRecipe(SQLITE, attrs_before=token),
    ]
    assert len({recipe.fingerprint() for recipe in recipes}) == len(recipes)
    assert OdbcRecipe(SQLITE, autocommit=True).fingerprint() == OdbcRecipe(SQLITE).fingerprint()


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    there = run_python(
        f"from mppool.odbc import OdbcRecipe; print(OdbcRecipe({SQLITE!r}, attrs_before={{2: 'b', 1: 'a'}}).fingerprint())"
    )
    here = OdbcRecipe(SQLITE, attrs_before={1: "a", 2: "b"}).fingerprint()
    assert there.stdout.strip() == here


def test_a_recipe_pickles() -> None:
    recipe = OdbcRecipe(SQLITE + ";PWD=hunter2", autocommit=True, attrs_before={103: 1})
    copy = pickle.loads(pickle.dumps(recipe))
    assert vars(copy).keys() == vars(recipe).keys()
    assert (copy.fingerprint(), repr(copy)) == (recipe.fingerprint(), repr(recipe))


def test_declaring_imports_no_pyodbc() -> None:
    run_python(
        f"import sys; from mppool.odbc import OdbcRecipe; OdbcRecipe({SQLITE!r}); assert 'pyodbc' not in sys.modules"
    )


def test_a_missing_pyodbc_is_named_with_its_extra() -> None:
    run_python(
        f"""
import sys
sys.modules["pyodbc"] = None  # the import system's way to say: not there
from mppool import errors
from mppool.odbc import OdbcRecipe
from mppool.recipe import Opening
try:
    OdbcRecipe({SQLITE!r}).open(Opening(0))
except errors.ConfigurationError as error:
    assert "mppool[odbc]" in str(error) and "unixodbc" in str(error), error
else:
    raise AssertionError("not refused")
"""
    )


# --- how a driver is treated ------------------------------------------------------------------------


class DriverError(Exception):
    """Stands for pyodbc.Error."""


class FakeOdbc:
    """Stands for pyodbc: remembers how it was called, and refuses what it is told to refuse."""

    Error = DriverError

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.refused: dict[str, DriverError] = {}
        self.closed = False
        self.timeout = 0
        self._autocommit = False

    def connect(self, text: str, **options: Any) -> FakeOdbc:
        self._record("connect", options)
        self._autocommit = options["autocommit"]
        return self

    @property
    def autocommit(self) -> bool:
        return self._autocommit

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        self._record("autocommit", value)
        self._autocommit = value

    def rollback(self) -> None:
        self._record("rollback")

    def set_attr(self, number: int, value: int) -> None:
        self._record("set_attr", number, value)

    def close(self) -> None:
        self._record("close")
        self.closed = True

    def _record(self, *call: Any) -> None:
        self.calls.append(call)
        if call[0] in self.refused:
            raise self.refused[call[0]]


@pytest.fixture
def odbc(monkeypatch: pytest.MonkeyPatch) -> FakeOdbc:
    fake = FakeOdbc()
    monkeypatch.setattr(driver_manager, "load", lambda: fake)
    return fake


UNKNOWN = DriverError("HYC00", "[HYC00] optional feature not implemented")


def test_release_rolls_back_before_it_touches_autocommit(odbc: FakeOdbc) -> None:
    recipe = OdbcRecipe(SQLITE, autocommit=True)
    connection: Any = recipe.open(Opening(0))
    connection.autocommit = False
    connection.timeout = 7
    odbc.calls.clear()
    recipe.reset(connection)
    # Turning autocommit on would commit what the caller had left open.
    assert odbc.calls == [("rollback",), ("autocommit", True), ("set_attr", 116, 1)]
    assert connection.timeout == 0


def test_a_driver_that_resets_no_sessions_is_asked_once(odbc: FakeOdbc) -> None:
    recipe = OdbcRecipe(SQLITE)
    connection = recipe.open(Opening(0))
    odbc.refused["set_attr"] = UNKNOWN
    recipe.reset(connection)
    recipe.reset(connection)
    assert odbc.calls.count(("set_attr", 116, 1)) == 1


def test_a_session_that_cannot_be_reset_now_is_not_given_to_the_next(odbc: FakeOdbc) -> None:
    recipe = OdbcRecipe(SQLITE)
    connection = recipe.open(Opening(0))
    odbc.refused["set_attr"] = DriverError("HY010", "[HY010] a cursor has unread results")
    with pytest.raises(DriverError):
        recipe.reset(connection)
    del odbc.refused["set_attr"]
    recipe.reset(connection)
    assert odbc.calls.count(("set_attr", 116, 1)) == 2


def test_without_session_reset_the_driver_is_never_asked(odbc: FakeOdbc) -> None:
    recipe = OdbcRecipe(SQLITE, session_reset=False)
    recipe.reset(recipe.open(Opening(0)))
    assert ("set_attr", 116, 1) not in odbc.calls


def test_who_insists_on_session_reset_is_told_at_opening(odbc: FakeOdbc) -> None:
    recipe = OdbcRecipe(SQLITE, session_reset=True)
    recipe.reset(recipe.open(Opening(0)))
    odbc.refused["set_attr"] = UNKNOWN
    for _ in range(2):
        odbc.closed = False
        with pytest.raises(ConfigurationError, match="session_reset"):
            recipe.open(Opening(0))
        assert odbc.closed


@pytest.mark.parametrize(
    ("login_timeout", "left", "seconds"),
    [
        (15, None, 15),
        (15, 3.2, 4),
        (15, 0.01, 1),
        (2.5, 30.0, 3),
        (None, None, 0),
        (None, 1.5, 2),
        (15, -1.0, 1),
    ],
)
def test_the_login_timeout_is_capped_by_what_the_caller_has_left(
    odbc: FakeOdbc, login_timeout: float | None, left: float | None, seconds: int
) -> None:
    OdbcRecipe(SQLITE, login_timeout=login_timeout).open(Opening(0, timeout=left))
    assert odbc.calls[0][1]["timeout"] == seconds


def test_attributes_from_a_callable_are_fetched_at_each_opening_only(odbc: FakeOdbc) -> None:
    answers: list[Any] = [{103: 1}, ({103: 2}, 1e9), ({103: 3}, None)]
    recipe = OdbcRecipe(SQLITE, attrs_before=lambda: answers.pop(0))
    assert len(answers) == 3
    for expected in (1, 2, 3):
        recipe.reset(recipe.open(Opening(0)))
        connects = [call[1]["attrs_before"] for call in odbc.calls if call[0] == "connect"]
        assert connects[-1] == {103: expected}


@pytest.mark.parametrize("answer", [None, ({},), {1256: b"abc"}, ({"x": 1}, None)])
def test_a_callable_that_returns_something_else_is_refused(odbc: FakeOdbc, answer: object) -> None:
    recipe: Any = OdbcRecipe(SQLITE, attrs_before=lambda: answer)  # type: ignore[arg-type,return-value]
    with pytest.raises(ConfigurationError, match="attrs_before"):
        recipe.open(Opening(0))
    assert odbc.calls == []


def test_a_refused_login_keeps_its_sqlstate_and_loses_the_password(odbc: FakeOdbc) -> None:
    original = DriverError("28000", "[28000] Login failed for 'bob' with hunter2 (18456)")
    odbc.refused["connect"] = original
    with pytest.raises(DriverError) as refused:
        OdbcRecipe(SQLITE + ";UID=bob;PWD=hunter2").open(Opening(0))
    assert refused.value.args == ("28000", "[28000] Login failed for 'bob' with *** (18456)")
    # Nothing leads back to the original, which still holds the password.
    assert refused.value.__context__ is None
    assert refused.value.__cause__ is None


# --- checks -----------------------------------------------------------------------------------------


class FakeCursor:
    """Executes, with the timeout that the connection has just then."""

    description = None

    def __init__(self, odbc: FakeOdbc) -> None:
        self._odbc = odbc

    def execute(self, query: str) -> None:
        self._odbc._record("execute", self._odbc.timeout)

    def close(self) -> None:
        """Nothing is to be done."""


@pytest.fixture
def checked(odbc: FakeOdbc, monkeypatch: pytest.MonkeyPatch) -> FakeOdbc:
    monkeypatch.setattr(FakeOdbc, "cursor", lambda self: FakeCursor(self), raising=False)
    return odbc


@pytest.mark.parametrize(("seconds", "told"), [(0.2, 1), (1.0, 1), (5.0, 4), (7.5, 7)])
@pytest.mark.parametrize("before", [0, 60])
def test_a_bounded_check_tells_the_driver_and_restores_what_it_found(
    checked: FakeOdbc, seconds: float, told: int, before: int
) -> None:
    recipe = OdbcRecipe(SQLITE)
    connection: Any = recipe.open(Opening(0))
    connection.timeout = before
    assert recipe.check_within(connection, seconds)
    assert ("execute", told) in checked.calls
    assert connection.timeout == before


@pytest.mark.parametrize("state", ["HYT00", "HYT01"])
def test_a_check_without_an_answer_says_more_than_no(checked: FakeOdbc, state: str) -> None:
    recipe = OdbcRecipe(SQLITE)
    connection: Any = recipe.open(Opening(0))
    checked.refused["execute"] = DriverError(state, f"[{state}] query timeout expired")
    with pytest.raises(TimeoutError):
        recipe.check_within(connection, 5.0)
    assert connection.timeout == 0
    assert not recipe.check(connection)  # nobody has told the driver how long it may take


@pytest.mark.parametrize(
    "state",
    ["08S01", "08003", "57P01", "IMC01", "IMC02", "IMC03", "IMC04", "IMC05", "IMC06"],
)
def test_states_that_say_that_the_session_is_dead(checked: FakeOdbc, state: str) -> None:
    recipe = OdbcRecipe(SQLITE)
    connection: Any = recipe.open(Opening(0))
    checked.refused["execute"] = DriverError(state, f"[{state}] gone")
    for check in (recipe.check, lambda c: recipe.check_within(c, 5.0)):
        with pytest.raises(ConnectionError):
            check(connection)


def test_a_driver_that_cannot_be_told_is_checked_all_the_same(
    checked: FakeOdbc, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = OdbcRecipe(SQLITE)
    connection: Any = recipe.open(Opening(0))

    def refuse(self: FakeOdbc, seconds: int) -> None:
        raise UNKNOWN

    monkeypatch.setattr(FakeOdbc, "timeout", property(lambda self: 0, refuse), raising=False)
    assert recipe.check_within(connection, 5.0)
    assert ("execute", 0) in checked.calls
