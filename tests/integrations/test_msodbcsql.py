"""OdbcRecipe with access tokens, over Microsoft's own driver; the TDS double says which session had which."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mppool import (
    CheckoutTimeout,
    ConfigurationError,
    ConfigurationMismatch,
    InProcessManager,
    OpenFailed,
    PoolManager,
)
from mppool.azure import StaticToken, token_struct
from mppool.odbc import OdbcRecipe
from mppool.odbc.attributes import ACCESS_TOKEN
from tests.helpers import Fork, wait_until
from tests.secrecy import MARK
from tests.tds.double import EXPIRED, Seen, TdsDouble

HOUR = 3600.0


class Issuer:
    """A credential of the application's own class. It counts how often it is asked."""

    def __init__(self, *tokens: str, life: float = HOUR) -> None:
        self._tokens = list(tokens)
        self.life = life
        self.asked = 0

    def get_token(self, *scopes: str, **options: Any) -> Any:
        from azure.core.credentials import AccessToken

        assert scopes == ("https://database.windows.net/.default",)
        self.asked += 1
        token = self._tokens.pop(0) if len(self._tokens) > 1 else self._tokens[0]
        return AccessToken(f"{MARK} {token}", int(time.time() + self.life))


class Silent(Issuer):
    """Says nothing of when its tokens end."""

    def get_token(self, *scopes: str, **options: Any) -> Any:
        answer = super().get_token(*scopes, **options)
        return type("Answer", (), {"token": answer.token, "expires_on": None})()


@pytest.fixture(params=["one process", "many processes"])
def manager(request: pytest.FixtureRequest, runtime_dir: Path) -> Iterator[Any]:
    """Each kind of manager in turn."""
    if request.param == "one process":
        yield InProcessManager()
    else:
        made = PoolManager("test")
        yield made
        made.shutdown()


def use(pool: Any, said: str = "1", **whose: Any) -> int:
    """One checkout that says something to its session; the number of that."""
    with pool.checkout(**whose) as connection:
        connection.execute(f"SELECT '{said}'").fetchval()
        return int(connection.execute("SELECT spid").fetchval())


def brought(text: str, **more: Any) -> StaticToken:
    """A token of the application's own."""
    return StaticToken(f"{MARK} {text}", **more)


def bearer_of(session: Seen) -> str | None:
    """What the token of a session says, without the mark that all tokens of the tests bear."""
    return None if session.token is None else session.token.removeprefix(f"{MARK} ")


# --- whose session ----------------------------------------------------------------------------------


def test_each_identity_has_sessions_of_its_own(manager: Any, tds: TdsDouble) -> None:
    pool = manager.pool("p", OdbcRecipe(tds.connection_string(f"UID=sa;PWD={MARK}")), max_size=4)
    whose: list[dict[str, Any]] = [
        {"credential": brought("token of alice")},
        {"credential": brought("token of bob")},
        {"identity": "carol", "credential": Issuer("token of carol")},
        {},
    ]
    first = [use(pool, **one) for one in whose]
    assert len(set(first)) == 4
    assert [use(pool, **one) for one in whose] == first
    assert use(pool, identity="carol") == first[2]  # the name alone is enough for what is open
    seen = {session.number: session for session in tds.open_sessions()}
    assert [bearer_of(seen[number]) for number in first] == [
        "token of alice",
        "token of bob",
        "token of carol",
        None,
    ]
    # Where a token is used, user and password are taken out of the string: the driver refuses both at once.
    assert [seen[number].user for number in first] == ["", "", "", "sa"]
    assert pool.stats()["identities"] == 4
    pool.close()


def test_equal_tokens_are_one_identity_whatever_object_brings_them(
    manager: Any, tds: TdsDouble
) -> None:
    pool = manager.pool("p", OdbcRecipe(tds.connection_string()), max_size=4)
    first = use(pool, credential=brought("token"))
    assert use(pool, credential=brought("token")) == first
    assert use(pool, credential=brought("token ")) != first
    pool.close()


def test_a_credential_that_compares_equal_is_another_one(manager: Any, tds: TdsDouble) -> None:
    class Equal(StaticToken):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, Equal)

        def __hash__(self) -> int:
            return 7

    pool = manager.pool("p", OdbcRecipe(tds.connection_string()), max_size=4)
    alice, bob = Equal("alice"), Equal("bob")
    numbers = [use(pool, credential=one) for one in (alice, bob) * 3]
    assert len(set(numbers)) == 2
    assert numbers[:2] * 3 == numbers
    pool.close()


def test_a_credential_that_cannot_be_hashed_serves_too(manager: Any, tds: TdsDouble) -> None:
    class Unhashable(Issuer):
        __hash__ = None  # type: ignore[assignment]

    pool = manager.pool("p", OdbcRecipe(tds.connection_string()), max_size=4)
    credential = Unhashable("token")
    assert use(pool, credential=credential) == use(pool, credential=credential)
    pool.close()


def test_an_unknown_credential_is_asked_each_time_for_it_may_speak_for_somebody_else(
    manager: Any, tds: TdsDouble
) -> None:
    pool = manager.pool("p", OdbcRecipe(tds.connection_string()), max_size=4)
    credential = Issuer("alice", "bob", "alice", "alice")
    numbers = [use(pool, credential=credential) for _ in range(4)]
    assert numbers == [numbers[0], numbers[1], numbers[0], numbers[0]]
    assert numbers[0] != numbers[1]
    assert credential.asked == 4
    pool.close()


def test_no_token_is_fetched_where_a_session_lies_ready(manager: Any, tds: TdsDouble) -> None:
    pool = manager.pool("p", OdbcRecipe(tds.connection_string()), max_size=4)
    credential = Issuer("token")
    for _ in range(5):
        use(pool, identity="me", credential=credential)
    assert credential.asked == 1
    assert len(tds.sessions()) == 1
    pool.close()


def test_the_checkouts_credential_comes_before_the_recipes(manager: Any, tds: TdsDouble) -> None:
    recipe = OdbcRecipe(tds.connection_string(), credential=brought("own"))
    pool = manager.pool("p", recipe, max_size=4, min_size=1)
    assert pool.wait_ready(20.0)
    own = use(pool)
    other = use(pool, credential=brought("other"))
    named = use(pool, identity="named", credential=brought("other"))
    by_name = use(pool, identity="by name")
    tokens = {session.number: bearer_of(session) for session in tds.open_sessions()}
    assert [tokens[number] for number in (own, other, named, by_name)] == [
        "own",
        "other",
        "other",
        "own",
    ]
    assert len({own, other, named, by_name}) == 4
    assert use(pool) == own
    pool.close()


def test_min_size_of_a_credential_whose_identity_only_a_token_tells(
    manager: Any, tds: TdsDouble
) -> None:
    recipe = OdbcRecipe(tds.connection_string(), credential=Issuer("mine"))
    pool = manager.pool("p", recipe, max_size=4, min_size=2)
    assert pool.wait_ready(20.0)
    assert [bearer_of(session) for session in tds.wait_for_open(2)] == ["mine", "mine"]
    use(pool)
    keys = {resource["identity_key"] for resource in pool.stats()["resources"]}
    assert len(keys) == 1
    assert keys.pop().startswith("tok:")
    pool.close()


def test_another_credential_in_a_second_declaration_is_refused(tds: TdsDouble) -> None:
    manager = InProcessManager()
    string = tds.connection_string()
    alice = Issuer("alice")
    pool = manager.pool("p", OdbcRecipe(string, credential=alice))
    assert manager.pool("p", OdbcRecipe(string, credential=alice)).name == pool.name
    with pytest.raises(ConfigurationMismatch):
        manager.pool("p", OdbcRecipe(string, credential=Issuer("bob")))
    with pytest.raises(ConfigurationMismatch):
        manager.pool("p", OdbcRecipe(string))


def test_an_idle_session_of_somebody_else_makes_room(manager: Any, tds: TdsDouble) -> None:
    pool = manager.pool("p", OdbcRecipe(tds.connection_string()), max_size=2)
    for name in ("alice", "bob", "carol", "alice", "dave"):
        use(pool, name, identity=name, credential=brought(name))
        assert len(tds.open_sessions()) <= 3  # the double sees the end of one a moment later
    tds.wait_for_open(2)
    assert all(
        set(one.statements) <= {f"SELECT '{bearer_of(one)}'", "SELECT spid"}
        for one in tds.sessions()
    )
    with (
        pool.checkout(identity="erin", credential=brought("erin")),
        pool.checkout(identity="frank", credential=brought("frank")),
        pytest.raises(CheckoutTimeout),
    ):
        pool.checkout(0.05, identity="grace", credential=brought("grace"))
    pool.close()


# --- what a session goes through --------------------------------------------------------------------


def test_a_session_is_reset_before_anybody_else_uses_it(manager: Any, tds: TdsDouble) -> None:
    pool = manager.pool("p", OdbcRecipe(tds.connection_string()), max_size=1)
    me = brought("me")
    with pool.checkout(credential=me) as connection:
        connection.execute("INSERT nothing")
    use(pool, credential=me)
    (session,) = tds.open_sessions()
    assert session.transactions[:2] == ["begin", "rollback"]
    assert session.resets == [1]
    pool.close()


def test_a_killed_session_is_replaced_and_nobody_notices(manager: Any, tds: TdsDouble) -> None:
    pool = manager.pool("p", OdbcRecipe(tds.connection_string()), max_size=2, check_idle_for=0.0)
    me = brought("me")
    first = use(pool, credential=me)
    tds.kill(first)
    assert use(pool, credential=me) != first
    assert [bearer_of(session) for session in tds.sessions()] == ["me", "me"]
    pool.close()


def test_a_child_gets_a_session_of_its_own(runtime_dir: Path, tds: TdsDouble) -> None:
    manager = PoolManager("test")
    pool = manager.pool("p", OdbcRecipe(tds.connection_string()), max_size=6)
    me = brought("me")
    issuer = Issuer("named")
    mine = [use(pool, credential=me), use(pool, identity="named", credential=issuer)]

    def in_child() -> list[int]:
        return [use(pool, credential=me), use(pool, identity="named", credential=issuer)]

    children = [Fork(in_child) for _ in range(2)]
    theirs = [number for child in children for number in child.result()]
    assert [use(pool, credential=me), use(pool, identity="named", credential=issuer)] == mine
    assert not set(mine) & set(theirs)
    assert {bearer_of(session) for session in tds.sessions()} == {"me", "named"}
    pool.close()
    manager.shutdown()


# --- tokens that end --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Issuer, Silent])
def test_near_its_end_another_token_replaces_the_session(
    manager: Any, tds: TdsDouble, kind: type[Issuer]
) -> None:
    pool = manager.pool("p", OdbcRecipe(tds.connection_string()), max_size=4)
    credential = kind("old", "new", life=200.0)
    me: dict[str, Any] = {"identity": "me", "credential": credential}
    with pool.checkout(**me), pool.checkout(**me), pool.checkout(**me):
        assert credential.asked == 1
    # Three lie idle with the old token.
    use(pool, "again", **me)
    assert credential.asked == 2  # one fetch finds out, and the same token opens
    (left,) = tds.wait_for_open(1)
    assert bearer_of(left) == "new"
    assert pool.stats()["counters"]["reopened"] == 1
    # The new one is as near to its end, but the issuer is left in peace for a while.
    for _ in range(3):
        assert use(pool, **me) == left.number
    assert credential.asked == 2
    pool.close()


def test_what_is_lent_with_the_old_token_is_closed_at_its_release(
    manager: Any, tds: TdsDouble
) -> None:
    pool = manager.pool("p", OdbcRecipe(tds.connection_string()), max_size=4)
    me: dict[str, Any] = {"identity": "me", "credential": Issuer("old", "new", life=200.0)}
    with pool.checkout(**me) as lent:
        with pool.checkout(**me):
            pass
        use(pool, "again", **me)  # the idle one is found to be old, and replaced
        lent.execute("goes on")
    (left,) = tds.wait_for_open(1)
    assert bearer_of(left) == "new"
    pool.close()


def test_near_its_end_the_same_token_goes_on(manager: Any, tds: TdsDouble) -> None:
    pool = manager.pool("p", OdbcRecipe(tds.connection_string()), max_size=4, check_idle_for=0.0)
    credential = Issuer("same", life=100.0)
    first = use(pool, identity="me", credential=credential)
    credential.life = HOUR
    assert use(pool, identity="me", credential=credential) == first
    assert credential.asked == 2
    (session,) = tds.open_sessions()
    # Checked and reset as always.
    assert "SELECT 1" in session.statements
    assert len(session.resets) >= 1
    for _ in range(3):
        use(pool, identity="me", credential=credential)
    assert credential.asked == 2  # the new expiry was noted
    assert pool.stats()["counters"]["reopened"] == 0
    pool.close()


def test_a_failing_issuer_is_nobodys_problem_while_the_token_is_valid(
    manager: Any, tds: TdsDouble, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Issuer):
        def get_token(self, *scopes: str, **options: Any) -> Any:
            if self.asked:
                self.asked += 1
                raise OSError("the endpoint is down")
            return super().get_token(*scopes, **options)

    pool = manager.pool("p", OdbcRecipe(tds.connection_string()), max_size=4)
    credential = Broken("token", life=100.0)
    first = use(pool, identity="me", credential=credential)
    assert use(pool, identity="me", credential=credential) == first
    assert credential.asked == 2
    assert "the endpoint is down" in caplog.text
    pool.close()


def test_idle_siblings_in_other_processes_go_with_the_old_token(
    runtime_dir: Path, tds: TdsDouble
) -> None:
    manager = PoolManager("test")
    pool = manager.pool("p", OdbcRecipe(tds.connection_string()), max_size=6)
    credential = Issuer("old", "new", life=200.0)

    def in_child() -> list[int]:
        # It has a session with the shared token, and leaves it idle.
        use(pool, identity="me", credential=credential)
        wait_until(
            lambda: os.getpid() not in holders(), "the idle session in this process to be closed"
        )
        return holders()

    def holders() -> list[int]:
        return [resource["pid"] for resource in pool.stats()["resources"]]

    with pool.checkout(identity="me", credential=credential):
        child = Fork(in_child)
        tds.wait_for_open(2)
    wait_until(lambda: pool.stats()["idle"] == 2, "both sessions to lie idle")
    use(pool, identity="me", credential=credential)
    assert child.pid not in child.result()
    assert [bearer_of(session) for session in tds.wait_for_open(1)] == ["new"]
    assert [bearer_of(session) for session in tds.sessions()] == ["old", "old", "new"]
    pool.close()
    manager.shutdown()


def test_the_life_of_a_brought_token_is_the_applications_business(
    manager: Any, tds: TdsDouble
) -> None:
    pool = manager.pool("p", OdbcRecipe(tds.connection_string()), max_size=4)
    me = brought("mine", expires_on=time.time() - 10)
    assert len({use(pool, credential=me) for _ in range(3)}) == 1
    assert len({use(pool, identity="x", credential=me) for _ in range(3)}) == 1
    pool.close()


def test_a_brought_token_that_the_server_refuses(manager: Any, tds: TdsDouble) -> None:
    tds.refuse(f"{MARK} stale-token-of-mine", EXPIRED)
    pool = manager.pool("p", OdbcRecipe(tds.connection_string()), max_size=4)
    with pytest.raises(OpenFailed, match="Token is expired") as refused:
        pool.checkout(credential=brought("stale-token-of-mine"))
    assert "28000" in str(refused.value)
    assert "18456" in str(refused.value)
    assert "stale-token-of-mine" not in str(refused.value)
    # It blocks nobody else.
    use(pool, credential=brought("good"))
    pool.close()


# --- attrs_before -----------------------------------------------------------------------------------


def test_attrs_before_is_called_only_when_a_connection_is_opened(
    manager: Any, tds: TdsDouble
) -> None:
    calls: list[int] = []

    def attributes() -> tuple[dict[int, bytes], float]:
        calls.append(1)
        return {ACCESS_TOKEN: token_struct(f"{MARK} brought {len(calls)}")}, time.time() + HOUR

    recipe = OdbcRecipe(tds.connection_string(f"UID=sa;PWD={MARK}"), attrs_before=attributes)
    pool = manager.pool("p", recipe, max_size=2)
    assert not calls
    assert use(pool) == use(pool)
    assert len(calls) == 1
    (session,) = tds.open_sessions()
    assert (bearer_of(session), session.user) == ("brought 1", "")
    pool.close()


def test_attrs_before_that_say_when_they_end_are_replaced_in_time(
    manager: Any, tds: TdsDouble
) -> None:
    lives = [301.0, 10.0]

    def attributes() -> tuple[dict[int, bytes], float]:
        return {ACCESS_TOKEN: token_struct(f"{MARK} brought")}, time.time() + lives.pop(0)

    pool = manager.pool("p", OdbcRecipe(tds.connection_string(), attrs_before=attributes))
    first = use(pool)
    second = wait_until(lambda: {use(pool)} - {first}, "another session").pop()
    # The application had nothing newer: it is not asked again and again.
    assert use(pool) == use(pool) == second
    pool.close()


# --- bad use ----------------------------------------------------------------------------------------


class Answers:
    """A credential that gives whatever it was made with."""

    def __init__(self, token: Any, expires_on: Any = 4e9) -> None:
        self._answer = type("Answer", (), {"token": token, "expires_on": expires_on})()

    def get_token(self, *scopes: str, **options: Any) -> Any:
        return self._answer


@pytest.mark.parametrize(
    "token", ["", " ", "to\0ken", "x" * 40000, b"bytes", 7, None, "\ud800"], ids=repr
)
@pytest.mark.parametrize("identity", [None, "me"])
def test_what_is_no_token_never_reaches_the_driver(
    tds: TdsDouble, token: Any, identity: str | None
) -> None:
    pool = InProcessManager().pool("p", OdbcRecipe(tds.connection_string()), max_size=1)
    with pytest.raises((ConfigurationError, OpenFailed), match="token") as refused:
        pool.checkout(identity=identity, credential=Answers(token))
    assert "x" * 50 not in str(refused.value)
    assert tds.sessions() == []
    assert use(pool, credential=brought("good")) > 0
    pool.close()


@pytest.mark.parametrize("structure", [b"abc", "text", b"\4\0\0\0ab", b"\2\0\0\0\0\0"])
def test_a_token_structure_of_a_foreign_kind_is_checked_too(tds: TdsDouble, structure: Any) -> None:
    recipe = OdbcRecipe(tds.connection_string(), attrs_before=lambda: {ACCESS_TOKEN: structure})
    pool = InProcessManager().pool("p", recipe)
    with pytest.raises(OpenFailed, match="1256"):
        pool.checkout()
    assert tds.sessions() == []


@pytest.mark.parametrize("credential", [object(), "token", b"token", 7, StaticToken, Issuer])
def test_what_is_no_credential_is_refused(tds: TdsDouble, credential: Any) -> None:
    pool = InProcessManager().pool("p", OdbcRecipe(tds.connection_string()))
    with pytest.raises(ConfigurationError, match="credential"):
        pool.checkout(credential=credential)
    with pytest.raises(ConfigurationError, match="credential"):
        OdbcRecipe(tds.connection_string(), credential=credential)


def test_a_credential_for_a_recipe_that_wants_no_token(tds: TdsDouble) -> None:
    pool = InProcessManager().pool("p", object)
    with pytest.raises(ConfigurationError, match="token_scope"):
        pool.checkout(credential=brought("x"))


def test_two_tokens_at_once_are_refused(tds: TdsDouble) -> None:
    with pytest.raises(ConfigurationError, match="1256"):
        OdbcRecipe(
            tds.connection_string(),
            credential=brought("one"),
            attrs_before={ACCESS_TOKEN: token_struct("other")},
        )


# --- storms -----------------------------------------------------------------------------------------


def test_a_refused_login_is_no_storm(runtime_dir: Path, tds: TdsDouble) -> None:
    """Four processes with four threads each, all refused, for a second: so many attempts as back-offs allow."""
    tds.refuse("*", "Login failed for user 'somebody'.")
    manager = PoolManager("test")
    pool = manager.pool("p", OdbcRecipe(tds.connection_string()), max_size=16)
    manager.start()

    def attempts() -> int:
        failed = 0

        def fail() -> None:
            nonlocal failed
            with pytest.raises(OpenFailed, match="18456"):
                pool.checkout(identity="me", credential=brought("refused"))
            failed += 1

        def one() -> None:
            fail()
            ends = time.monotonic() + 1.0  # from the first on: a busy machine may be late to begin
            while time.monotonic() < ends:
                fail()

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda _: one(), range(4)))
        return failed

    children = [Fork(attempts) for _ in range(4)]
    failed = sum(child.result(30.0) for child in children)
    # At first as many as there are threads may be under way at once; from then on one probe at a time,
    # at 0.05 s or more, then 0.1 s, 0.2 s, ...
    assert tds.logins() <= 16 + 8
    assert failed > tds.logins()
    tds.accept("*")
    wait_until(lambda: _can_log_in(pool), "the back-off to pass")
    pool.close()
    manager.shutdown()


def _can_log_in(pool: Any) -> bool:
    try:
        use(pool, identity="me", credential=brought("refused"))
    except OpenFailed:
        return False
    return True
