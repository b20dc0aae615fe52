"""One fetch for all processes, with azure-identity's own credentials in front of local endpoints."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from azure.identity import (
    ClientSecretCredential,
    ManagedIdentityCredential,
    WorkloadIdentityCredential,
)

from mppool import PoolManager
from tests.azure.crowd import SCOPE, crowd, slowly
from tests.azure.endpoints import CLIENT, MARK, SECRET, TENANT, Endpoint
from tests.helpers import Fork, wait_until


def options_of(entra: tuple[Endpoint, str]) -> dict[str, Any]:
    endpoint, certificate = entra
    return {
        "authority": endpoint.url,
        "disable_instance_discovery": True,
        "connection_verify": certificate,
    }


def test_6_processes_of_4_threads_make_one_request(msi: Endpoint, manager: PoolManager) -> None:
    msi.behaviour = slowly
    shared = manager.credential(ManagedIdentityCredential())
    tokens = crowd(lambda: shared.get_token(SCOPE).token, processes=6, threads=4)
    assert msi.count == 1
    assert len(set(tokens)) == 1
    # For contrast, the same with azure-identity alone.
    alone = ManagedIdentityCredential()
    crowd(lambda: alone.get_token(SCOPE).token, processes=6, threads=4)
    assert msi.count - 1 >= 6


def test_imds(imds: Endpoint, manager: PoolManager) -> None:
    imds.behaviour = slowly
    shared = manager.credential(ManagedIdentityCredential(client_id=CLIENT))
    tokens = crowd(lambda: shared.get_token(SCOPE).token, processes=3, threads=2)
    assert imds.count == 1
    assert imds.asked[0].fields["client_id"] == CLIENT
    assert len(set(tokens)) == 1


@pytest.mark.parametrize("kind", ["secret", "workload"])
def test_applications(
    kind: str, entra: tuple[Endpoint, str], manager: PoolManager, tmp_path: Path
) -> None:
    endpoint, _ = entra
    endpoint.behaviour = slowly
    assertion = tmp_path / "assertion"
    assertion.write_text("an assertion of Kubernetes")
    credential: Any
    if kind == "secret":
        credential = ClientSecretCredential(TENANT, CLIENT, SECRET, **options_of(entra))
    else:
        credential = WorkloadIdentityCredential(
            tenant_id=TENANT,
            client_id=CLIENT,
            token_file_path=str(assertion),
            **options_of(entra),
        )
    shared = manager.credential(credential)
    tokens = crowd(lambda: shared.get_token(SCOPE).token, processes=6, threads=2)
    assert endpoint.count == 1
    assert len(set(tokens)) == 1
    with shared:
        assert shared.get_token(SCOPE).token == tokens[0]


def test_8_processes_refresh_a_short_token_once(msi: Endpoint, manager: PoolManager) -> None:
    """Tokens of 302 s are never reused by managed identity alone: ten calls, ten requests. Here they live 4 s
    and are refreshed after 2."""
    msi.behaviour = lambda asked: asked.token(4)
    shared = manager.credential(ManagedIdentityCredential())

    def use() -> tuple[int, set[str]]:
        calls, seen = 0, set()
        until = time.monotonic() + 5.0
        while time.monotonic() < until:
            seen.add(shared.get_token(SCOPE).token)
            calls += 1
            time.sleep(0.01)
        return calls, seen

    began = time.monotonic()
    results = crowd(use, processes=8)
    took = time.monotonic() - began
    calls = sum(calls for calls, _ in results)
    tokens = set().union(*(seen for _, seen in results))
    assert calls > 8 * 50
    assert 2 <= msi.count <= took / 2 + 2, f"{msi.count} requests for {calls} calls in {took} s"
    assert len(tokens) <= msi.count


def test_a_token_of_302_seconds_is_fetched_once(msi: Endpoint, manager: PoolManager) -> None:
    msi.behaviour = lambda asked: asked.token(302)
    shared = manager.credential(ManagedIdentityCredential())
    crowd(lambda: [shared.get_token(SCOPE).token for _ in range(200)], processes=8)
    assert msi.count == 1
    alone = ManagedIdentityCredential()
    for _ in range(10):
        alone.get_token(SCOPE)
    msi.behaviour = lambda asked: asked.token(299)
    alone = ManagedIdentityCredential()
    before = msi.count
    for _ in range(10):
        alone.get_token(SCOPE)
    assert msi.count - before == 10  # for contrast


def test_another_process_takes_over_when_the_appointed_one_is_killed(
    msi: Endpoint, manager: PoolManager
) -> None:
    msi.behaviour = lambda asked: msi.hang(asked) if asked.number == 1 else asked.token()
    shared = manager.credential(ManagedIdentityCredential(retry_total=0))
    killed = Fork(lambda: shared.get_token(SCOPE).token)
    wait_until(lambda: msi.count == 1, "the first request")
    waiting = Fork(lambda: shared.get_token(SCOPE).token)
    wait_until(lambda: manager.stats()["tokens"][0]["waiting"] == 1, "somebody waits")
    began = time.monotonic()
    os.kill(killed.pid, signal.SIGKILL)
    assert waiting.result() == f"{MARK}.2.{'x' * 80}"
    assert time.monotonic() - began < 5.0
    killed.kill()
    os.close(killed._reading)


def test_a_stopped_process_is_replaced_when_patience_ends(
    msi: Endpoint, manager: PoolManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mppool.credentials.source.FETCH_PATIENCE_S", 0.5)
    msi.behaviour = lambda asked: msi.hang(asked) if asked.number == 1 else asked.token()
    shared = manager.credential(ManagedIdentityCredential(retry_total=0))
    stopped = Fork(lambda: shared.get_token(SCOPE).token)
    wait_until(lambda: msi.count == 1, "the first request")
    os.kill(stopped.pid, signal.SIGSTOP)
    assert shared.get_token(SCOPE).token.startswith(f"{MARK}.2.")
    stopped.kill()
    os.close(stopped._reading)


def test_throttling_is_remembered_by_all(entra: tuple[Endpoint, str], manager: PoolManager) -> None:
    endpoint, _ = entra
    endpoint.behaviour = lambda asked: asked.refusal(429, Retry_After="30")
    options = {**options_of(entra), "retry_total": 0}
    shared = manager.credential(ClientSecretCredential(TENANT, CLIENT, SECRET, **options))
    results = crowd(lambda: shared.get_token(SCOPE).token, processes=4, threads=2)
    again = crowd(lambda: shared.get_token(SCOPE).token, processes=4, threads=2)
    assert endpoint.count == 1
    assert all("ClientAuthenticationError" in result for result in results + again)
    assert all("not to be tried again for" in result for result in again)
    assert SECRET not in repr(results + again)


def test_a_challenge_in_all_processes_at_once_makes_one_request(
    entra: tuple[Endpoint, str], manager: PoolManager
) -> None:
    endpoint, _ = entra
    endpoint.behaviour = slowly
    shared = manager.credential(ClientSecretCredential(TENANT, CLIENT, SECRET, **options_of(entra)))
    claims = '{"access_token":{"nbf":{"essential":true,"value":"1604106651"}}}'

    def use() -> tuple[str, str, str]:
        first = shared.get_token(SCOPE, enable_cae=True).token
        time.sleep(0.3)
        second = shared.get_token(SCOPE, claims=claims, enable_cae=True).token
        return first, second, shared.get_token(SCOPE, enable_cae=True).token

    results = crowd(use, processes=4, threads=3)
    assert endpoint.count == 2
    ((first, second, third),) = set(results)
    assert first != second
    assert second == third
    assert "1604106651" in endpoint.asked[1].fields["claims"]


def test_a_credential_that_was_used_before_the_fork_shares_no_connection(
    msi: Endpoint, manager: PoolManager
) -> None:
    """A connection that is kept alive and used by several processes gives them each other's answers."""
    shared = manager.credential(ManagedIdentityCredential())
    shared.get_token("https://first/.default")

    def use() -> list[tuple[str, str]]:
        mine = []
        for number in range(10):
            scope = f"https://{os.getpid()}-{number}"
            mine.append((scope, shared.get_token(f"{scope}/.default").token))
        return mine

    results = [one for some in crowd(use, processes=4) for one in some]
    by_number = {asked.number: asked.resource for asked in msi.asked}
    for scope, token in results:
        assert by_number[int(token.split(".")[1])] == scope


def test_tokens_survive_the_process_that_fetched_them(msi: Endpoint, manager: PoolManager) -> None:
    shared = manager.credential(ManagedIdentityCredential())
    fetched = Fork(lambda: shared.get_token(SCOPE).token).result()
    assert Fork(lambda: shared.get_token(SCOPE).token).result() == fetched
    assert msi.count == 1


def test_a_server_that_dies_costs_one_fetch_at_most(msi: Endpoint, manager: PoolManager) -> None:
    shared = manager.credential(ManagedIdentityCredential())
    first = shared.get_token(SCOPE).token
    pid = manager.server_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: manager.server_pid != pid, "the end of the server")
    assert shared.get_token(SCOPE).token == first
    tokens = crowd(lambda: shared.get_token(SCOPE).token, processes=2, threads=2)
    assert set(tokens) == {first}
    assert msi.count == 1


def test_refresh_on_is_kept_for_all(entra: tuple[Endpoint, str], manager: PoolManager) -> None:
    endpoint, _ = entra
    endpoint.behaviour = lambda asked: asked.token(3600, refresh_in=1800)
    shared = manager.credential(ClientSecretCredential(TENANT, CLIENT, SECRET, **options_of(entra)))

    def ask() -> tuple[int, int | None]:
        info = shared.get_token_info(SCOPE)
        return info.expires_on, info.refresh_on

    said = {Fork(ask).result() for _ in range(3)}
    ((expires_on, refresh_on),) = said
    assert refresh_on is not None
    assert abs(expires_on - refresh_on - 1800) <= 1
    assert endpoint.count == 1
