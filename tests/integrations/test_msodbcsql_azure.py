"""Azure-identity's own credentials in front of local endpoints, Microsoft's driver in front of the TDS double."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mppool import PoolManager
from mppool.odbc import OdbcRecipe
from tests.azure.conftest import _VARIABLES
from tests.azure.endpoints import Asked, Endpoint, authority, serving
from tests.helpers import Fork, wait_until
from tests.secrecy import MARK
from tests.tds.double import TdsDouble

TENANT = "11111111-2222-3333-4444-555555555555"


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
    with pool.checkout(**whose) as connection:
        return int(connection.execute("SELECT spid").fetchval())


def test_processes_and_threads_that_start_cold_ask_once(
    manager: PoolManager, tds: TdsDouble, msi: Endpoint
) -> None:
    """Six processes with four threads each, all at once; a token for each identity, and no more."""
    from azure.identity import ManagedIdentityCredential

    pool = manager.pool("p", OdbcRecipe(tds.connection_string()), max_size=24)
    manager.start()
    client = "99999999-8888-7777-6666-555555555555"

    def in_child() -> int:
        system, user = ManagedIdentityCredential(), ManagedIdentityCredential(client_id=client)
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda n: use(pool, credential=user if n % 2 else system), range(8)))
        return 0

    for child in [Fork(in_child) for _ in range(6)]:
        child.result(40.0)
    assert msi.count == 2
    tokens = {session.token for session in tds.sessions()}
    assert len(tokens) == 2
    keys = {resource["identity_key"] for resource in pool.stats()["resources"]}
    assert keys <= {"msi:system", f"msi:{client}"}


def test_a_session_is_found_without_a_token(
    manager: PoolManager, tds: TdsDouble, msi: Endpoint
) -> None:
    from azure.identity import ManagedIdentityCredential

    recipe = OdbcRecipe(tds.connection_string(), credential=ManagedIdentityCredential())
    pool = manager.pool("p", recipe, max_size=4, min_size=1)
    assert pool.wait_ready(20.0)
    number = use(pool)
    for _ in range(5):
        assert use(pool) == use(pool, credential=ManagedIdentityCredential()) == number
    assert msi.count == 1
    assert pool.stats()["resources"][0]["identity_key"] == "msi:system"
    pool.close()  # else it is filled up to `min_size` again, in vain, while other tests run


def test_rotation_reaches_all_sessions(manager: PoolManager, tds: TdsDouble, msi: Endpoint) -> None:
    from azure.identity import ManagedIdentityCredential

    msi.behaviour = lambda asked: asked.token(200 if asked.number == 1 else 7200)
    pool = manager.pool("p", OdbcRecipe(tds.connection_string()), max_size=4)
    credential = ManagedIdentityCredential()
    leases = [pool.checkout(credential=credential) for _ in range(3)]
    for lease in leases:
        lease.release()
    use(pool, credential=credential)
    (session,) = tds.wait_for_open(1)
    assert session.token is not None
    assert session.token.split(".")[1] == "2"
    assert msi.count == 2
    for _ in range(3):
        assert use(pool, credential=credential) == session.number
    assert msi.count == 2


def test_a_throttled_endpoint_is_nobodys_problem_while_the_token_is_valid(
    manager: PoolManager, tds: TdsDouble, msi: Endpoint
) -> None:
    from azure.identity import ManagedIdentityCredential

    def answer(asked: Asked) -> Any:
        return asked.token(250) if asked.number == 1 else asked.refusal(429, Retry_After="60")

    msi.behaviour = answer
    pool = manager.pool("p", OdbcRecipe(tds.connection_string()), max_size=4)
    # It tries again by itself after a 429, for seconds.
    credential = ManagedIdentityCredential(retry_total=0)
    number = use(pool, credential=credential)
    for _ in range(5):
        assert use(pool, credential=credential) == number
    assert msi.count <= 3


def test_two_applications_of_one_tenant(
    manager: PoolManager, tds: TdsDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from azure.identity import ClientSecretCredential

    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with authority(tmp_path) as (endpoint, certificate):

        def application(client: str, secret: str) -> Any:
            return ClientSecretCredential(
                TENANT,
                client,
                secret,
                authority=endpoint.url,
                disable_instance_discovery=True,
                connection_verify=certificate,
            )

        pool = manager.pool("p", OdbcRecipe(tds.connection_string()), max_size=4)
        one = use(pool, credential=application("application-one", f"{MARK} first"))
        # Its secret was rotated: the same application.
        assert use(pool, credential=application("application-one", f"{MARK} second")) == one
        assert use(pool, credential=application("application-two", f"{MARK} first")) != one
        assert endpoint.count == 2
        pool.close()


def test_the_default_credential_is_keyed_by_its_token(
    manager: PoolManager, tds: TdsDouble, msi: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    from azure.identity import DefaultAzureCredential

    pool = manager.pool("p", OdbcRecipe(tds.connection_string()), max_size=4)
    credential = DefaultAzureCredential()
    number = use(pool, credential=credential)
    assert [use(pool, credential=credential) for _ in range(4)] == [number] * 4
    assert msi.count == 1
    (key,) = (resource["identity_key"] for resource in pool.stats()["resources"])
    assert key.startswith("tok:")
    credential.close()


def test_a_shared_credential_in_a_pool(manager: PoolManager, tds: TdsDouble, msi: Endpoint) -> None:
    """The same tokens for Azure's clients and for connections."""
    from azure.identity import ManagedIdentityCredential

    pool = manager.pool("p", OdbcRecipe(tds.connection_string()), max_size=4)
    shared = manager.credential(ManagedIdentityCredential())
    token = shared.get_token("https://database.windows.net/.default").token
    number = use(pool, credential=shared)
    assert use(pool, credential=ManagedIdentityCredential()) == number
    wait_until(lambda: tds.open_sessions(), "the session")
    assert tds.open_sessions()[0].token == token
    assert msi.count == 1
