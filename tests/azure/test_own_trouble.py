"""One process's own trouble is not everybody's: the others get their token within one fetch."""

from __future__ import annotations

import time
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError
from azure.identity import ClientSecretCredential, ManagedIdentityCredential

from mppool import PoolManager
from mppool.azure import StaticToken
from tests.azure.crowd import SCOPE, crowd
from tests.azure.endpoints import CLIENT, SECRET, TENANT, Answer, Asked, Endpoint
from tests.helpers import Fork, wait_until

OLD = "an-old-secret"


class Application:
    """What stands for one service principal in all processes, and works in some of them."""

    def __init__(self, error: BaseException | None = None, takes: float = 0.0) -> None:
        self.error = error
        self.takes = takes
        self.asked = 0

    def mppool_identity(self) -> str:
        return "secret:t:c"

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        self.asked += 1
        time.sleep(self.takes)
        if self.error is not None:
            raise self.error
        return AccessToken("a token", int(time.time()) + 3600)


SOON_S = 10.0
"""Who has to wait until the failures of others are forgotten waits for longer than that."""


def asks(
    manager: PoolManager,
    credential: Any,
    *,
    times: int = 12,
    every: float = 0.25,
    timeout: float = SOON_S,
) -> Any:
    """How often a process got a token, and after how many seconds the first time."""
    shared = manager.credential(credential)

    def use() -> tuple[int, float]:
        began, got, first = time.monotonic(), 0, -1.0
        for _ in range(times):
            try:
                shared.get_token(SCOPE, timeout=timeout)
                got += 1
                first = time.monotonic() - began if first < 0 else first
            except Exception:  # that is what is counted
                time.sleep(every)
                continue
            time.sleep(every)
        return got, first

    return use


TROUBLES = [
    ClientAuthenticationError(message="AADSTS7000215: Invalid client secret provided"),
    TypeError("a transport that is not ours"),
    OSError(24, "Too many open files"),
    ServiceRequestError("the proxy refuses"),
]


@pytest.mark.parametrize("error", TROUBLES, ids=[type(error).__name__ for error in TROUBLES])
def test_the_healthy_process_gets_its_token(error: Exception, manager: PoolManager) -> None:
    manager.start()
    bad = Fork(asks(manager, Application(error), timeout=1.0))
    time.sleep(0.1)
    got, first = Fork(asks(manager, Application())).result()
    assert got >= 11
    assert first < SOON_S
    bad.result()


def test_it_does_so_where_the_others_fail_slowly(manager: PoolManager) -> None:
    manager.start()
    slow = Application(ServiceRequestError("timed out"), takes=0.8)
    bad = [Fork(asks(manager, slow, timeout=1.0)) for _ in range(3)]
    wait_until(lambda: any(t["waiting"] for t in manager.stats()["tokens"]), "somebody waits")
    got, first = Fork(asks(manager, Application(), times=8)).result()
    assert got >= 4
    assert first < SOON_S
    for one in bad:
        one.result()


def test_who_fails_gets_what_another_process_fetches_meanwhile(manager: PoolManager) -> None:
    manager.start()
    slow = manager.credential(Application(ServiceRequestError("timed out"), takes=3.0))
    bad = Fork(lambda: slow.get_token(SCOPE).token)
    wait_until(lambda: bool(manager.stats()["tokens"]), "it is appointed")
    good = Fork(lambda: manager.credential(Application()).get_token(SCOPE).token)
    assert good.result() == "a token"
    assert bad.result() == "a token"


def test_all_wait_when_all_have_failed(manager: PoolManager) -> None:
    manager.start()
    bad = Application(ClientAuthenticationError(message="no"))

    def use() -> int:
        for _ in range(10):
            with pytest.raises(ClientAuthenticationError):
                manager.credential(bad).get_token(SCOPE)
        return bad.asked

    assert sum(crowd(use, processes=3)) == 3


def test_an_old_secret_during_a_rotation(entra: tuple[Endpoint, str], manager: PoolManager) -> None:
    endpoint, certificate = entra

    def behaviour(asked: Asked) -> Answer:
        if asked.fields["client_secret"] == OLD:
            return Answer(401, {"error": "invalid_client", "error_description": "AADSTS7000215"})
        return asked.token()

    endpoint.behaviour = behaviour
    options = {
        "authority": endpoint.url,
        "disable_instance_discovery": True,
        "connection_verify": certificate,
    }
    old = ClientSecretCredential(TENANT, CLIENT, OLD, **options)
    new = ClientSecretCredential(TENANT, CLIENT, SECRET, **options)
    bad = Fork(asks(manager, old, timeout=1.0))
    time.sleep(0.3)
    got, first = Fork(asks(manager, new)).result()
    assert got >= 11
    assert first < SOON_S
    assert bad.result()[0] >= 6  # it is given what the others have fetched


def test_a_managed_identity_that_is_throttled_is_asked_once_for_all(
    imds: Endpoint, manager: PoolManager
) -> None:
    imds.behaviour = lambda asked: asked.refusal(429, Retry_After="30")
    shared = manager.credential(ManagedIdentityCredential(retry_total=0))
    results = crowd(lambda: shared.get_token(SCOPE).token, processes=4, threads=2)
    assert imds.count == 1
    assert all("ClientAuthentication" in one or "Unavailable" in one for one in results)


def test_app_service_that_is_throttled_is_asked_once_for_all(
    msi: Endpoint, manager: PoolManager
) -> None:
    msi.behaviour = lambda asked: Answer(429, {"statusCode": 429, "message": "too many"})
    shared = manager.credential(ManagedIdentityCredential(retry_total=0))
    crowd(lambda: shared.get_token(SCOPE).token, processes=4, threads=2)
    assert msi.count == 1


def test_a_token_of_the_application_is_its_own(manager: PoolManager) -> None:
    assert manager.credential(StaticToken("brought")).get_token(SCOPE).token == "brought"
