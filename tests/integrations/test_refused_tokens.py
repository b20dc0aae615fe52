"""A token that the database refuses does not stay; tokens that an operator has forgotten are used by nobody."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.identity import ClientSecretCredential, ManagedIdentityCredential

from mppool import ConfigurationError, OpenFailed, PoolManager
from mppool.odbc import OdbcRecipe
from tests.azure.conftest import _VARIABLES
from tests.azure.crowd import SCOPE
from tests.azure.endpoints import CLIENT, SECRET, TENANT, Answer, Endpoint, authority, serving
from tests.cli.test_commands import mppool
from tests.helpers import Fork, wait_until
from tests.tds.double import TdsDouble


@pytest.fixture
def msi(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """A managed identity endpoint as App Service has it."""
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with serving(Endpoint()) as endpoint:
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"{endpoint.url}/msi/token")
        monkeypatch.setenv("IDENTITY_HEADER", "header")
        yield endpoint


@pytest.fixture
def manager(runtime_dir: Path) -> Iterator[PoolManager]:
    made = PoolManager("test")
    yield made
    made.shutdown()


def use(pool: Any, **whose: Any) -> int:
    with pool.checkout(timeout=20.0, **whose) as connection:
        return int(connection.execute("SELECT spid").fetchval())


def served(pool: Any) -> bool:
    try:
        use(pool)
    except OpenFailed:
        return False
    return True


def test_the_next_attempt_after_a_refused_login_comes_with_another_token(
    manager: PoolManager, tds: TdsDouble, msi: Endpoint
) -> None:
    recipe = OdbcRecipe(tds.connection_string(), credential=ManagedIdentityCredential())
    pool = manager.pool("p", recipe, max_size=4)
    use(pool)
    (first,) = tds.sessions()
    assert first.token is not None
    tds.refuse(first.token)
    pool.reset()
    tds.wait_for_open(0)
    with pytest.raises(OpenFailed, match="28000"):
        use(pool)
    wait_until(lambda: served(pool), "a session with another token")
    assert msi.count == 2
    assert tds.open_sessions()[-1].token != first.token


def test_a_new_process_gets_the_new_token_too(
    manager: PoolManager, tds: TdsDouble, msi: Endpoint
) -> None:
    recipe = OdbcRecipe(tds.connection_string(), credential=ManagedIdentityCredential())
    pool = manager.pool("p", recipe, max_size=4, fail_fast=False)
    manager.start()
    tds.refuse()
    with pytest.raises(OpenFailed, match="28000"):
        pool.checkout(timeout=0)
    tds.accept()
    (refused,) = {session.token for session in tds.sessions()}
    tds.refuse(refused)
    Fork(lambda: use(pool)).result()
    assert msi.count == 2


def test_a_copy_that_a_fork_has_brought_is_refused_once(
    manager: PoolManager, tds: TdsDouble, msi: Endpoint, tmp_path: Path
) -> None:
    """The child uses its copy long after everybody else was told that the token is refused."""
    recipe = OdbcRecipe(tds.connection_string(), credential=ManagedIdentityCredential())
    pool = manager.pool("p", recipe, max_size=4, fail_fast=False)
    use(pool)
    (first,) = tds.sessions()
    assert first.token is not None

    def use_later() -> int:
        wait_until((tmp_path / "others know").exists, "the parent to have another token")
        return use(pool)

    child = Fork(use_later)
    tds.refuse(first.token)
    pool.reset()
    use(pool)
    (tmp_path / "others know").touch()
    child.result()
    assert msi.count == 2


def test_a_service_principal_is_asked_past_the_cache_of_azure_identity(
    manager: PoolManager, tds: TdsDouble, tmp_path: Path
) -> None:
    with authority(tmp_path) as (endpoint, certificate):
        options = {
            "authority": endpoint.url,
            "disable_instance_discovery": True,
            "connection_verify": certificate,
        }
        credential = ClientSecretCredential(TENANT, CLIENT, SECRET, **options)
        pool = manager.pool(
            "p", OdbcRecipe(tds.connection_string(), credential=credential), max_size=4
        )
        use(pool)
        (first,) = tds.sessions()
        assert first.token is not None
        tds.refuse(first.token)
        pool.reset()
        with pytest.raises(OpenFailed, match="28000"):
            use(pool)
        wait_until(lambda: served(pool), "a session with another token")
        assert endpoint.count == 2


def test_a_database_that_refuses_everybody_is_no_reason_to_storm_the_issuer(
    manager: PoolManager, tds: TdsDouble, msi: Endpoint
) -> None:
    recipe = OdbcRecipe(tds.connection_string(), credential=ManagedIdentityCredential())
    pool = manager.pool("p", recipe, max_size=4)
    manager.start()
    tds.refuse()

    def attempts() -> None:
        until = time.monotonic() + 3.0
        while time.monotonic() < until:
            assert not served(pool)
            time.sleep(0.02)

    for child in [Fork(attempts) for _ in range(3)]:
        child.result()
    assert tds.logins() >= 4
    assert msi.count <= 2


def test_a_token_that_was_refused_is_used_where_no_other_can_be_had(
    manager: PoolManager, tds: TdsDouble, msi: Endpoint
) -> None:
    recipe = OdbcRecipe(
        tds.connection_string(), credential=ManagedIdentityCredential(retry_total=0)
    )
    pool = manager.pool("p", recipe, max_size=4)
    use(pool)
    tds.refuse()
    pool.reset()
    with pytest.raises(OpenFailed, match="28000"):
        use(pool)
    tds.accept()
    msi.behaviour = lambda asked: Answer(500, {"statusCode": 500, "message": "down"})
    wait_until(lambda: served(pool), "a session with the token that there is")
    assert len({session.token for session in tds.sessions()}) == 1


def test_forgotten_tokens_are_used_by_no_process(manager: PoolManager, msi: Endpoint) -> None:
    manager.start()
    shared = manager.credential(ManagedIdentityCredential())
    old = shared.get_token(SCOPE).token

    def in_child() -> tuple[str, str]:
        before = shared.get_token(SCOPE).token
        wait_until(lambda: shared.get_token(SCOPE).token != before, "another token")
        return before, shared.get_token(SCOPE).token

    child = Fork(in_child)
    wait_until(lambda: len(manager.stats()["processes"]) == 2, "the child")
    done = mppool("forget-tokens", "test", "--identity", "msi:other")
    assert (done.returncode, shared.get_token(SCOPE).token) == (0, old)
    done = mppool("forget-tokens", "test")
    assert (done.returncode, done.stderr) == (0, "")
    before, after = child.result()
    assert before == old
    wait_until(lambda: shared.get_token(SCOPE).token == after, "the same token in the parent")
    assert msi.count == 2
    manager.forget_tokens("msi:system")
    assert shared.get_token(SCOPE).token != after
    assert msi.count == 3


def test_a_fetch_that_was_on_its_way_brings_what_is_forgotten(
    manager: PoolManager, msi: Endpoint
) -> None:
    manager.start()
    msi.behaviour = lambda asked: msi.hang(asked) if asked.number == 1 else asked.token()
    shared = manager.credential(ManagedIdentityCredential(retry_total=0))
    child = Fork(lambda: shared.get_token(SCOPE).token)
    wait_until(lambda: msi.count == 1, "the first request")
    manager.forget_tokens()
    new = shared.get_token(SCOPE).token
    msi.let_go.set()
    assert child.result() == new
    assert shared.get_token(SCOPE).token == new


def test_tokens_of_this_process_alone_are_forgotten_too(
    manager: PoolManager, msi: Endpoint
) -> None:
    from azure.identity import DefaultAzureCredential

    shared = manager.credential(DefaultAzureCredential())
    old = shared.get_token(SCOPE).token
    manager.forget_tokens()
    assert shared.get_token(SCOPE).token
    del old


@pytest.mark.parametrize("identity", ["", 7, b"msi"])
def test_an_identity_must_be_one(manager: PoolManager, identity: Any) -> None:
    with pytest.raises(ConfigurationError, match="identity="):
        manager.forget_tokens(identity)


def test_where_no_server_runs_none_is_started(manager: PoolManager) -> None:
    manager.forget_tokens()
    assert manager.server_pid is None
    assert mppool("forget-tokens", "test").returncode == 3
