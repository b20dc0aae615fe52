"""Asynchronous blob clients against Azurite: each belongs to the event loop in which it was asked for."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import weakref
from typing import Any

import pytest
from azure.identity.aio import ManagedIdentityCredential

from mppool import ConfigurationError, PoolManager, StaleLease
from mppool.azure import BlobServicePool, ClientPool
from tests.azure import azurite as emulator
from tests.azure.azurite import KEY, AsyncCredential, Azurite, Credential
from tests.azure.endpoints import Endpoint
from tests.helpers import Fork

# The first run on a machine installs Azurite.
pytestmark = pytest.mark.timeout(emulator.INSTALL_S + 60)


async def new_container(client: Any) -> Any:
    return await client.create_container(f"c{os.urandom(8).hex()}")


async def round_trip(container: Any, name: str) -> bool:
    blob = container.get_blob_client(name)
    await blob.upload_blob(name.encode() * 100, overwrite=True)
    downloaded = await blob.download_blob()
    return bool(await downloaded.readall() == name.encode() * 100)


async def wait(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("kind", [AsyncCredential, Credential, lambda: KEY])
def test_round_trips_and_nothing_left_when_the_loop_ends(
    pool: BlobServicePool, azurite: Azurite, kind: Any
) -> None:
    """asyncio.run is enough: no `async with`, no close; and no ResourceWarning (warnings are errors)."""
    credential = kind()

    async def main() -> None:
        client = pool.aclient(credential, azurite.url)
        assert client is pool.aclient(credential, azurite.url)
        async with client:
            container = await new_container(client)
        assert await round_trip(container, "a")
        assert azurite.connections_of() == 1  # one request after the other needs one connection
        done = await asyncio.gather(*(round_trip(container, f"blob-{n}") for n in range(20)))
        assert all(done)

    for _ in range(2):
        asyncio.run(main())
        assert azurite.connections_of() == 0
        gc.collect()
    assert pool.stats()["size"] == 0


def test_each_loop_has_its_own(pool: BlobServicePool, azurite: Azurite) -> None:
    credential = AsyncCredential()

    async def first() -> Any:
        return pool.aclient(credential, azurite.url)

    async def second(other: Any) -> None:
        assert pool.aclient(credential, azurite.url) is not other
        with pytest.raises(StaleLease, match="event loop"):
            await other.get_service_properties()

    asyncio.run(second(asyncio.run(first())))


def test_azures_own_asynchronous_credential_serves_clients_in_loop_after_loop(
    msi: Endpoint, pool: BlobServicePool, azurite: Azurite, manager: PoolManager
) -> None:
    """It belongs to the loop that used it first; the clients of every other one use a copy."""
    msi.behaviour = lambda asked: asked.token(access_token=emulator.token())
    credential = ManagedIdentityCredential(retry_total=0)
    done: list[bool] = []

    async def use() -> None:
        container = await new_container(pool.aclient(credential, azurite.url))
        done.append(await round_trip(container, "a"))

    async def use_and_close() -> None:
        await use()
        await credential.close()  # the application's business; copies are closed with their loops

    for number in (1, 2, 3):
        asyncio.run(use_and_close() if number == 1 else use())
        assert msi.count == number
        manager.forget_tokens()  # so that the next loop needs the credential itself
    threads = [threading.Thread(target=asyncio.run, args=(use(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert done == [True] * 5
    assert azurite.connections_of() == 0


def test_without_a_loop(pool: BlobServicePool) -> None:
    with pytest.raises(ConfigurationError, match="event loop"):
        pool.aclient(KEY, "shop")


def test_a_collected_credential_closes_its_clients(pool: BlobServicePool, azurite: Azurite) -> None:
    async def main() -> None:
        credential = AsyncCredential()
        gone = weakref.ref(credential)
        container = await new_container(pool.aclient(credential, azurite.url))
        assert azurite.connections_of() > 0
        del credential
        await wait(lambda: gone() is None)
        await wait(lambda: azurite.connections_of() == 0)
        with pytest.raises(StaleLease, match="garbage-collected"):
            await container.exists()

    asyncio.run(main())


def test_prune_and_reset(pool: BlobServicePool, azurite: Azurite) -> None:
    async def main() -> None:
        container = await new_container(pool.aclient(KEY, azurite.url))
        assert pool.prune_idle(0) == 1
        assert await container.exists()
        del container
        await wait(lambda: azurite.connections_of() == 0)
        container = await new_container(pool.aclient(KEY, azurite.url))
        pool.reset()
        with pytest.raises(StaleLease, match="reset"):
            await container.exists()
        await wait(lambda: azurite.connections_of() == 0)

    asyncio.run(main())


def test_loops_that_end_without_a_word(pool: BlobServicePool) -> None:
    """Nobody has told asynchronous generators, as asyncio.run does: the next one who asks finds out."""

    async def ask() -> None:
        pool.aclient(KEY, "shop")

    for _ in range(20):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(ask())
        loop.close()
    assert len(pool.clients.loops) == 1
    assert pool.stats()["size"] == 1


def test_a_reset_in_another_thread(pool: BlobServicePool, azurite: Azurite) -> None:
    async def main() -> None:
        await pool.aclient(KEY, azurite.url).get_service_properties()
        assert azurite.connections_of() == 1
        await asyncio.to_thread(pool.reset)
        await wait(lambda: azurite.connections_of() == 0)

    asyncio.run(main())


def test_a_child_starts_with_none(pool: BlobServicePool, azurite: Azurite) -> None:
    async def child() -> bool:
        assert pool.stats()["size"] == 0
        return await round_trip(await new_container(pool.aclient(KEY, azurite.url)), "a")

    async def main() -> None:
        container = await new_container(pool.aclient(KEY, azurite.url))
        held = azurite.connections_of()
        forked = Fork(_without_loop, child)
        assert await asyncio.to_thread(forked.result)
        assert azurite.connections_of() == held
        assert await container.exists()

    asyncio.run(main())


def test_a_child_that_drops_its_parents_clients(manager: PoolManager, azurite: Azurite) -> None:
    """Closing them there would take the parent's sockets out of the selector that both share."""
    box: list[Any] = [
        BlobServicePool(manager, connection_verify=str(azurite.certificate), retry_total=0)
    ]

    def drop() -> bool:
        box.clear()
        return gc.collect() >= 0

    async def main() -> None:
        client = box[0].aclient(KEY, azurite.url)
        box.append(await new_container(client))
        del client
        held = azurite.connections_of()
        assert await asyncio.to_thread(Fork(drop).result)
        assert await asyncio.wait_for(round_trip(box[1], "a"), 10)
        assert azurite.connections_of() == held
        box[0].reset()  # just before the loop ends

    asyncio.run(main())


def _without_loop(function: Any) -> Any:
    asyncio._set_running_loop(None)
    return asyncio.run(function())


def test_a_pool_without_asynchronous_clients(manager: PoolManager) -> None:
    async def main() -> None:
        with pytest.raises(ConfigurationError, match="async_factory"):
            ClientPool(manager, lambda target, **_: target).aclient(KEY, "shop")

    asyncio.run(main())
