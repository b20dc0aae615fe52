"""The shared credential for asyncio."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from azure.core.credentials import AccessToken, AccessTokenInfo
from azure.core.credentials_async import AsyncSupportsTokenInfo, AsyncTokenCredential
from azure.core.exceptions import ClientAuthenticationError
from azure.identity.aio import ClientSecretCredential, ManagedIdentityCredential

from mppool import InProcessManager, PoolManager
from mppool.azure import StaticToken, identity_of
from mppool.credentials.credential_loops import CredentialLoops
from mppool.credentials.shared_async import LoopEnded
from mppool.errors import ConfigurationError, PoolClosed
from tests.azure.crowd import SCOPE, crowd
from tests.azure.endpoints import CLIENT, MARK, SECRET, TENANT, Endpoint
from tests.azure.test_shared import Issuer
from tests.helpers import wait_until

HOUR = 3600


class AsyncIssuer:
    """Counts, and takes its time."""

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause
        self.asked: list[dict[str, Any]] = []
        self.threads: set[int] = set()
        self.closed = 0
        self.refresh_in: float | None = None

    async def get_token_info(self, *scopes: str, options: Any = None) -> AccessTokenInfo:
        self.asked.append({"scopes": scopes, **(options or {})})
        self.threads.add(threading.get_ident())
        number = len(self.asked)
        await asyncio.sleep(self.pause)
        now = int(time.time())
        refresh_on = None if self.refresh_in is None else int(now + self.refresh_in)
        return AccessTokenInfo(f"{MARK}-{number}", now + HOUR, refresh_on=refresh_on)

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        info = await self.get_token_info(*scopes, options=options)
        return AccessToken(info.token, info.expires_on)

    async def close(self) -> None:
        self.closed += 1


@pytest.fixture
def local() -> Iterator[InProcessManager]:
    with InProcessManager() as manager:
        yield manager


def test_it_is_what_azure_clients_want(local: InProcessManager) -> None:
    shared = local.async_credential(AsyncIssuer())
    assert isinstance(shared, AsyncTokenCredential)
    assert isinstance(shared, AsyncSupportsTokenInfo)


@pytest.mark.parametrize("identity", [None, "me"])
@pytest.mark.parametrize("kind", [AsyncIssuer, Issuer])
def test_tasks_make_one_fetch(local: InProcessManager, identity: str | None, kind: Any) -> None:
    issuer = kind()
    if kind is AsyncIssuer:
        issuer.pause = 0.1
    else:
        issuer.before = lambda number: time.sleep(0.1)

    async def main() -> list[str]:
        async with local.async_credential(issuer, identity=identity) as shared:
            tokens = await asyncio.gather(*(shared.get_token(SCOPE) for _ in range(200)))
            info = await shared.get_token_info(SCOPE)
            return [*(token.token for token in tokens), info.token]

    assert set(asyncio.run(main())) == {f"{MARK}-1"}
    assert len(issuer.asked) == 1
    assert issuer.closed == 1


def test_an_asynchronous_credential_is_asked_in_its_own_loop(local: InProcessManager) -> None:
    issuer = AsyncIssuer()

    async def main() -> None:
        await local.async_credential(issuer).get_token(SCOPE)

    asyncio.run(main())
    assert issuer.threads == {threading.get_ident()}


def test_the_loop_is_not_blocked_and_its_executor_is_not_needed(local: InProcessManager) -> None:
    """A credential that needs the executor must not find it full of those who wait for it."""

    class NeedsExecutor(AsyncIssuer):
        async def get_token_info(self, *scopes: str, options: Any = None) -> AccessTokenInfo:
            await asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.05)
            return await super().get_token_info(*scopes, options=options)

    shared = local.async_credential(NeedsExecutor(), identity="me")

    async def main() -> int:
        ticks = 0
        scopes = [f"https://{number}/.default" for number in range(40)]
        fetching = asyncio.gather(*(shared.get_token(scope) for scope in scopes))
        while not fetching.done():
            ticks += 1
            await asyncio.sleep(0.005)
        assert len({token.token for token in await fetching}) == 40
        return ticks

    assert asyncio.run(asyncio.wait_for(main(), 20)) > 5


def test_a_task_that_is_cancelled_ends_no_other(local: InProcessManager) -> None:
    issuer = AsyncIssuer(0.2)
    shared = local.async_credential(issuer, identity="me")

    async def main() -> None:
        first = asyncio.ensure_future(shared.get_token(SCOPE))
        second = asyncio.ensure_future(shared.get_token(SCOPE))
        await asyncio.sleep(0.05)
        first.cancel()
        assert (await second).token == f"{MARK}-1"
        assert first.cancelled()

    asyncio.run(main())
    assert len(issuer.asked) == 1


def test_a_loop_that_ends_in_the_middle_of_a_fetch_costs_the_next_one_nothing(
    local: InProcessManager,
) -> None:
    slow, quick = AsyncIssuer(30.0), AsyncIssuer()

    async def give_up() -> None:
        waiting = local.async_credential(slow, identity="me").get_token(SCOPE)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(waiting, 0.2)

    asyncio.run(give_up())
    began = time.monotonic()

    async def main() -> str:
        return (await local.async_credential(quick, identity="me").get_token(SCOPE)).token

    assert asyncio.run(main()) == f"{MARK}-1"
    assert time.monotonic() - began < 10.0


def test_a_challenge(local: InProcessManager) -> None:
    issuer = AsyncIssuer()
    shared = local.async_credential(issuer, identity="me")

    async def main() -> list[str]:
        first = await shared.get_token(SCOPE)
        options: Any = {"claims": "C", "enable_cae": False}
        second = await shared.get_token_info(SCOPE, options=options)
        third = await shared.get_token(SCOPE)
        return [first.token, second.token, third.token]

    assert asyncio.run(main()) == [f"{MARK}-1", f"{MARK}-2", f"{MARK}-2"]
    assert issuer.asked[1]["claims"] == "C"


def test_a_refresh_goes_on_in_the_background(
    local: InProcessManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mppool.core.tokens.REFRESH_AGAIN_S", 0.3)
    monkeypatch.setattr("mppool.tokens.cache.ASK_AGAIN_S", 0.05)
    issuer = AsyncIssuer()
    issuer.refresh_in = 1
    shared = local.async_credential(issuer, identity="me")

    async def main() -> None:
        deadline = time.monotonic() + 10
        while (await shared.get_token(SCOPE)).token == f"{MARK}-1":
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert len(issuer.asked) == 2

    asyncio.run(main())


def test_a_refresh_in_a_loop_that_has_ended_is_left_to_others(
    local: InProcessManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mppool.core.tokens.REFRESH_AGAIN_S", 0.1)
    monkeypatch.setattr("mppool.tokens.cache.ASK_AGAIN_S", 0.05)
    issuer = AsyncIssuer()
    issuer.refresh_in = 1
    shared = local.async_credential(issuer, identity="me")

    async def ask() -> str:
        return (await shared.get_token(SCOPE)).token

    with caplog.at_level(logging.DEBUG, "mppool"):
        assert asyncio.run(ask()) == f"{MARK}-1"
        time.sleep(1.1)
        assert asyncio.run(ask()) == f"{MARK}-1"  # its loop ends at once, and with it the refresh
        wait_until(
            lambda: len(issuer.asked) > 1 or "could not be refreshed" in caplog.text, "the refresh"
        )
    assert asyncio.run(ask()).startswith(MARK)


def test_errors_pass_through(local: InProcessManager) -> None:
    class Failing(AsyncIssuer):
        async def get_token_info(self, *scopes: str, options: Any = None) -> AccessTokenInfo:
            self.asked.append({})
            raise ClientAuthenticationError(message="no")

    issuer = Failing()
    shared = local.async_credential(issuer, identity="me")

    async def main() -> list[Any]:
        first = await asyncio.gather(
            *(shared.get_token(SCOPE) for _ in range(5)), return_exceptions=True
        )
        return [*first, *await asyncio.gather(shared.get_token(SCOPE), return_exceptions=True)]

    errors = asyncio.run(main())
    assert all(isinstance(error, ClientAuthenticationError) for error in errors)
    assert len(issuer.asked) == 1


def test_a_brought_token_and_options_nobody_knows(local: InProcessManager) -> None:
    issuer = AsyncIssuer()

    async def main() -> list[str]:
        brought = await local.async_credential(StaticToken("brought", 5)).get_token(SCOPE)
        shared = local.async_credential(issuer)
        bound = await shared.get_token(SCOPE, pop={})
        options: Any = {"pop": {}}
        info = await shared.get_token_info(SCOPE, options=options)
        return [brought.token, bound.token, info.token]

    assert asyncio.run(main()) == ["brought", f"{MARK}-1", f"{MARK}-2"]


@pytest.mark.parametrize("kind", [AsyncIssuer, Issuer])
def test_closing(local: InProcessManager, kind: Any) -> None:
    issuer = kind()
    shared = local.async_credential(issuer)

    async def main() -> None:
        await shared.close()
        await shared.close()
        with pytest.raises(PoolClosed):
            await shared.get_token(SCOPE)

    asyncio.run(main())
    assert issuer.closed == 1


def test_bad_arguments(local: InProcessManager) -> None:
    shared = local.async_credential(AsyncIssuer())

    async def main() -> None:
        for scopes in ((), ("",), (7,)):
            with pytest.raises(ConfigurationError):
                await shared.get_token(*scopes)  # type: ignore[arg-type]

    asyncio.run(main())


def test_asking_a_loop_that_was_closed_says_so(local: InProcessManager) -> None:
    from mppool.credentials.shared_async import _ask_in_loop

    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(LoopEnded):
        _ask_in_loop(
            loop,
            CredentialLoops(),
            AsyncIssuer(),
            (SCOPE,),
            claims="",
            tenant_id="",
            enable_cae=False,
            may_prompt=True,
        )


def test_azures_own_asynchronous_credentials_make_one_request(
    msi: Endpoint, entra: tuple[Endpoint, str], manager: PoolManager
) -> None:
    endpoint, certificate = entra

    def use() -> list[str]:
        async def main() -> list[str]:
            secret = ClientSecretCredential(
                TENANT,
                CLIENT,
                SECRET,
                authority=endpoint.url,
                disable_instance_discovery=True,
                connection_verify=certificate,
            )
            managed = manager.async_credential(ManagedIdentityCredential())
            async with managed, manager.async_credential(secret) as application:
                assert identity_of(managed) == "msi:system"
                asked = [managed.get_token(SCOPE), application.get_token(SCOPE)] * 4
                return [token.token for token in await asyncio.gather(*asked)]

        return asyncio.run(main())

    results = crowd(use, processes=4)
    assert msi.count == 1, results
    assert endpoint.count == 1, results
    assert len({tuple(tokens) for tokens in results}) == 1


@pytest.mark.parametrize("kind", ["managed identity", "client secret"])
def test_one_credential_in_one_event_loop_after_the_other_and_in_two_at_once(
    msi: Endpoint, entra: tuple[Endpoint, str], manager: PoolManager, kind: str
) -> None:
    """azure.identity.aio belongs to the loop that used it first; in another one it answers nothing."""
    endpoint = msi if kind == "managed identity" else entra[0]
    made: Any
    if kind == "managed identity":
        made = ManagedIdentityCredential(retry_total=0)
    else:
        made = ClientSecretCredential(
            TENANT,
            CLIENT,
            SECRET,
            authority=entra[0].url,
            disable_instance_discovery=True,
            connection_verify=entra[1],
        )
    shared = manager.async_credential(made)
    tokens: list[str] = []

    async def use(number: int) -> None:
        for part in range(3):
            scope = f"https://resource-{number}-{part}/.default"
            tokens.append((await asyncio.wait_for(shared.get_token(scope), 10)).token)

    async def use_and_close_the_original(number: int) -> None:
        await use(number)
        await made.close()

    asyncio.run(use_and_close_the_original(1))
    asyncio.run(use(2))
    asyncio.run(use(3))
    threads = [threading.Thread(target=asyncio.run, args=(use(number),)) for number in (4, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(set(tokens)) == 15
    assert endpoint.count == 15
    assert all(place.is_over() for place in shared._loops._places)


def test_closing_closes_the_copies_of_all_loops(msi: Endpoint, manager: PoolManager) -> None:
    made = ManagedIdentityCredential(retry_total=0)
    shared = manager.async_credential(made)

    async def use(scope: str) -> None:
        await shared.get_token(scope)

    async def last() -> None:
        await use("https://second/.default")
        (copy,) = [place for place in shared._loops._places if place.is_copy]
        assert copy.inner is not made
        await shared.close()
        assert not shared._loops._places
        with pytest.raises(PoolClosed):
            await shared.get_token("https://third/.default")

    async def first() -> None:
        await use("https://first/.default")
        await made.close()

    asyncio.run(first())
    asyncio.run(last())
