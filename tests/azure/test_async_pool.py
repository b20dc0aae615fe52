"""Credentials of asyncio in an AsyncPool: asked in the loop of the checkout, once for all, and never by a blocked loop."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from azure.identity.aio import ClientSecretCredential, ManagedIdentityCredential

from mppool import (
    AsyncPool,
    AsyncRecipe,
    ConfigurationError,
    OpenFailed,
    Opening,
    PoolManager,
    Recipe,
)
from tests.aio.things import until
from tests.azure.endpoints import CLIENT, MARK, SECRET, TENANT, Endpoint
from tests.azure.test_shared_async import AsyncIssuer
from tests.helpers import PATIENCE

SCOPE = "https://database.windows.net/.default"


class Session:
    """Something that was opened with a token."""

    def __init__(self, token: str) -> None:
        self.token = token


class SessionRecipe(AsyncRecipe[Session]):
    token_scope = SCOPE

    def __init__(self, credential: Any = None) -> None:
        self.credential = credential

    async def open(self, opening: Opening) -> Session:
        assert opening.token is not None
        await asyncio.sleep(0)
        return Session(opening.token.token_struct[4:].decode("utf-16-le"))


class LoopIssuer(AsyncIssuer):
    """Notes in which loop it was asked."""

    def __init__(self, pause: float = 0.0) -> None:
        super().__init__(pause)
        self.loops: list[asyncio.AbstractEventLoop] = []

    async def get_token_info(self, *scopes: str, options: Any = None) -> Any:
        self.loops.append(asyncio.get_running_loop())
        return await super().get_token_info(*scopes, options=options)


async def token_of(pool: AsyncPool[Session], **whose: Any) -> str:
    async with pool.checkout(timeout=PATIENCE, **whose) as session:
        return session.token


def test_it_is_asked_in_the_loop_of_the_checkout(manager: PoolManager) -> None:
    credential = LoopIssuer()
    pool = manager.apool("p", SessionRecipe(), max_size=4)

    async def main() -> None:
        whose: dict[str, Any] = {"credential": credential, "identity": "ann"}
        assert await token_of(pool, **whose) == f"{MARK}-1"
        assert await token_of(pool, **whose) == f"{MARK}-1"  # on the shelf: no token at all
        assert credential.loops == [asyncio.get_running_loop()]
        assert credential.threads == {threading.get_ident()}
        await pool.aclose()

    asyncio.run(main())


def test_one_fetch_serves_all_tasks_and_the_loop_goes_on(manager: PoolManager) -> None:
    credential = LoopIssuer(pause=0.05)
    pool = manager.apool("p", SessionRecipe(credential), max_size=4)
    turns: list[int] = []

    async def turn() -> None:
        while True:
            turns.append(1)
            await asyncio.sleep(0)

    async def main() -> None:
        heart = asyncio.ensure_future(turn())
        whose = {"identity": "ann"}
        tokens = await asyncio.gather(*(token_of(pool, **whose) for _ in range(20)))
        assert set(tokens) == {f"{MARK}-1"}
        heart.cancel()
        await pool.aclose()

    asyncio.run(main())
    assert len(credential.loops) == 1
    assert len(turns) > 20


def test_without_a_name_each_token_is_an_identity(manager: PoolManager) -> None:
    """Nobody knows whether the next token is the same one's: as in a Pool, it is asked for at each checkout."""
    credential = LoopIssuer()
    pool = manager.apool("p", SessionRecipe(), max_size=4)

    async def main() -> None:
        assert await token_of(pool, credential=credential) == f"{MARK}-1"
        assert await token_of(pool, credential=credential) == f"{MARK}-2"
        await pool.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["managed", "secret"])
def test_azures_own_classes_are_known_without_a_token(
    kind: str, manager: PoolManager, msi: Endpoint, entra: tuple[Endpoint, str]
) -> None:
    endpoint = msi if kind == "managed" else entra[0]

    def made() -> Any:
        if kind == "managed":
            return ManagedIdentityCredential()
        return ClientSecretCredential(
            TENANT,
            CLIENT,
            SECRET,
            authority=entra[0].url,
            disable_instance_discovery=True,
            connection_verify=entra[1],
        )

    async def main() -> None:
        async with made() as credential:
            pool = manager.apool("p", SessionRecipe(credential), max_size=4)
            first = await token_of(pool)
            async with pool.checkout(timeout=PATIENCE), pool.checkout(timeout=PATIENCE) as other:
                assert other.token == first
            assert endpoint.count == 1
            (key,) = {one["identity_key"] for one in (await pool.stats())["resources"]}
            assert key.startswith("msi:" if kind == "managed" else "secret:")
            await pool.aclose()

    asyncio.run(main())


def test_near_its_end_another_token_replaces_the_session(manager: PoolManager) -> None:
    class Short(LoopIssuer):
        async def get_token_info(self, *scopes: str, options: Any = None) -> Any:
            info = await super().get_token_info(*scopes, options=options)
            # The first one is near its end.
            left = 200 if len(self.asked) == 1 else 3600
            return type(info)(info.token, int(time.time()) + left)

    credential = Short()
    pool = manager.apool("p", SessionRecipe(credential), max_size=2)

    async def main() -> None:
        assert await token_of(pool, identity="ann") == f"{MARK}-1"
        assert await token_of(pool, identity="ann") == f"{MARK}-2"
        assert (await pool.stats())["counters"]["reopened"] == 1
        await pool.aclose()

    asyncio.run(main())


def test_min_size_is_opened_with_its_tokens(manager: PoolManager) -> None:
    class Named(LoopIssuer):
        def mppool_identity(self) -> str:
            return "ann"

    credential = Named()
    pool = manager.apool("p", SessionRecipe(credential), max_size=4, min_size=2)

    async def main() -> None:
        assert await pool.wait_ready(PATIENCE)
        assert credential.loops == [asyncio.get_running_loop()]
        await pool.aclose()

    asyncio.run(main())


def test_what_it_raises_fails_the_checkout(manager: PoolManager) -> None:
    class Broken(LoopIssuer):
        async def get_token_info(self, *scopes: str, options: Any = None) -> Any:
            raise RuntimeError("the issuer is down")

    pool = manager.apool("p", SessionRecipe(Broken()), max_size=4)

    async def main() -> None:
        with pytest.raises(OpenFailed, match="the issuer is down"):
            await token_of(pool)
        with pytest.raises(OpenFailed, match="the issuer is down"):
            await token_of(pool, identity="ann")
        await pool.aclose()

    asyncio.run(main())


def test_a_cancelled_checkout_leaves_the_fetch_to_others(manager: PoolManager) -> None:
    credential = LoopIssuer(pause=0.05)
    pool = manager.apool("p", SessionRecipe(credential), max_size=4)

    async def main() -> None:
        leaving = asyncio.ensure_future(token_of(pool, identity="ann"))
        await until(lambda: bool(credential.loops), "the fetch")
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert await token_of(pool, identity="ann") == f"{MARK}-1"
        await pool.aclose()

    asyncio.run(main())


def test_each_loop_asks_for_itself(manager: PoolManager) -> None:
    credential = LoopIssuer()
    pool = manager.apool("p", SessionRecipe(), max_size=4)

    async def main(identity: str) -> asyncio.AbstractEventLoop:
        await token_of(pool, credential=credential, identity=identity)
        return asyncio.get_running_loop()

    assert [asyncio.run(main("ann")), asyncio.run(main("bob"))] == credential.loops


def test_a_pool_of_threads_refuses_it_and_names_the_way(manager: PoolManager) -> None:
    class Blocking:
        pass

    class BlockingRecipe(Recipe[Blocking]):
        token_scope = SCOPE

        def open(self, opening: Opening) -> Blocking:
            return Blocking()

    pool = manager.pool("p", BlockingRecipe())
    with pytest.raises(ConfigurationError, match=r"asynchronous credential.*manager\.apool"):
        pool.checkout(credential=AsyncIssuer())
