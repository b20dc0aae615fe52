"""Signatures that live briefly pile nothing up; what a credential's owner does reaches the clients that are held."""

from __future__ import annotations

import asyncio
import gc
import resource
import threading
import weakref
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from azure.core.credentials import AzureSasCredential
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas

from mppool import ConfigurationError, StaleLease
from mppool.azure import BlobServicePool
from mppool.azure.temporary import UNKEPT
from tests.azure import azurite as emulator
from tests.azure.azurite import ACCOUNT, KEY, Azurite, Credential
from tests.azure.blobs import new_container
from tests.helpers import wait_until

pytestmark = pytest.mark.timeout(emulator.INSTALL_S + 60)


def sas(minutes: float = 60.0, *, permission: str = "rwdlac") -> str:
    """A signature; another one for another time."""
    return str(
        generate_account_sas(
            ACCOUNT,
            KEY,
            resource_types=ResourceTypes(service=True, container=True, object=True),
            permission=AccountSasPermissions.from_string(permission),
            expiry=datetime.now(timezone.utc) + timedelta(minutes=minutes),
        )
    )


def signatures(number: int) -> list[str]:
    return [sas(60.0 + minute) for minute in range(number)]


@pytest.mark.parametrize("kind", [AzureSasCredential, str])
def test_a_signature_for_each_request_piles_up_neither_sockets_nor_clients(
    pool: BlobServicePool, azurite: Azurite, kind: Any
) -> None:
    container = new_container(pool.client(KEY, azurite.url)).container_name
    before = azurite.connections_of()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        for signature in signatures(300):
            client = pool.client(kind(signature), azurite.url)
            assert client.get_container_client(container).exists()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert azurite.connections_of() <= before + 10
    assert pool.stats()["idle"] <= 256


def test_the_client_that_was_not_asked_for_in_the_longest_time_goes(
    manager: Any, azurite: Azurite
) -> None:
    pool = BlobServicePool(manager, connection_verify=str(azurite.certificate), max_clients=3)
    many = signatures(3)
    kept = [pool.client(signature, azurite.url) for signature in many]
    assert pool.client(many[0], azurite.url) is kept[0]
    pool.client(sas(500), azurite.url)
    assert pool.client(many[0], azurite.url) is kept[0]
    assert pool.client(many[1], azurite.url) is not kept[1]
    assert kept[2].get_account_information()  # a caller that holds one goes on with it
    pool.reset()
    with pytest.raises(StaleLease):
        kept[2].get_account_information()


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "10"])
def test_bounds_must_be_numbers(manager: Any, value: Any) -> None:
    for option in ("connections", "max_clients"):
        with pytest.raises(ConfigurationError, match=option):
            BlobServicePool(manager, **{option: value})


def test_as_many_connections_as_are_asked_for(manager: Any, azurite: Azurite) -> None:
    pool = BlobServicePool(manager, connection_verify=str(azurite.certificate), connections=25)
    client = pool.client(KEY, azurite.url)
    container = new_container(client)
    barrier = threading.Barrier(25)

    def use() -> None:
        for _ in range(4):
            barrier.wait(30)
            container.exists()

    threads = [threading.Thread(target=use) for _ in range(25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert azurite.connections_of() > 10  # what requests would keep by itself
    assert (
        client._pipeline._transport.wire.inner.session.get_adapter("https://x")._pool_maxsize == 25
    )

    async def ask() -> int:
        made = pool.aclient(KEY, azurite.url)
        await made.get_account_information()
        return int(made._pipeline._transport.wire.inner.session.connector.limit_per_host)

    assert asyncio.run(ask()) == 25
    pool.reset()


def test_an_update_reaches_clients_that_are_held(pool: BlobServicePool, azurite: Azurite) -> None:
    name = new_container(pool.client(KEY, azurite.url)).container_name
    credential = AzureSasCredential(sas(permission="w"))
    client = pool.client(credential, azurite.url)
    container = client.get_container_client(name)
    with pytest.raises(HttpResponseError):
        list(container.list_blobs())
    credential.update(sas())
    assert list(container.list_blobs()) == []
    assert pool.client(credential, azurite.url).get_container_client(name).exists()


def test_an_update_of_one_credential_does_not_reach_another_ones_requests(
    pool: BlobServicePool, azurite: Azurite
) -> None:
    name = new_container(pool.client(KEY, azurite.url)).container_name
    signature = sas()
    alice, bob = AzureSasCredential(signature), AzureSasCredential(signature)
    client = pool.client(alice, azurite.url)
    assert pool.client(bob, azurite.url) is client
    alice.update(sas(permission="w"))
    assert list(client.get_container_client(name).list_blobs()) == []
    other = pool.client(alice, azurite.url)
    assert other is not client
    with pytest.raises(HttpResponseError):
        list(other.get_container_client(name).list_blobs())
    del alice, other
    assert pool.client(bob, azurite.url) is client


def test_the_secondary_endpoint_of_a_connection_string_is_kept(
    pool: BlobServicePool, azurite: Azurite
) -> None:
    secondary = f"{azurite.url}-secondary"
    string = (
        f"DefaultEndpointsProtocol=https;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={azurite.url};"
        f"BlobSecondaryEndpoint={secondary}"
    )
    client = pool.client_from_connection_string(string)
    assert client.secondary_endpoint.rstrip("/") == secondary
    assert client.primary_endpoint.rstrip("/") == azurite.url
    assert pool.client_from_connection_string(string) is client
    assert new_container(client).exists()
    without = pool.client_from_connection_string(string.partition(";BlobSecondary")[0])
    assert without is not client


# --- the line of every tutorial -------------------------------------------------------------------------------


can_tell = pytest.mark.skipif(not UNKEPT, reason="this Python does not say who keeps an object")


@can_tell
def test_a_credential_that_nobody_keeps_lives_as_long_as_its_client(
    pool: BlobServicePool, azurite: Azurite
) -> None:
    seen: list[weakref.ref[Any]] = []

    def credential() -> Credential:
        made = Credential()
        seen.append(weakref.ref(made))
        return made

    client = pool.client(credential(), azurite.url)
    container = pool.client(credential(), azurite.url).get_container_client("tutorial")
    gc.collect()
    assert new_container(client).exists()
    assert not container.exists()
    assert pool.stats()["idle"] == 0
    del client, container
    gc.collect()
    wait_until(lambda: azurite.connections_of() == 0, "closed connections")
    assert [one() for one in seen] == [None, None]


@can_tell
def test_also_in_asyncio(pool: BlobServicePool, azurite: Azurite) -> None:
    async def main() -> None:
        client = pool.aclient(Credential(), azurite.url)
        gc.collect()
        async with client:
            assert not await client.get_container_client("tutorial").exists()

    asyncio.run(main())


def test_one_that_somebody_keeps_has_one_client(pool: BlobServicePool, azurite: Azurite) -> None:
    class Holder:
        credential = Credential()

    kept = [Credential()]
    assert pool.client(kept[0], azurite.url) is pool.client(kept[0], azurite.url)
    assert pool.client(Holder.credential, azurite.url) is pool.client(
        Holder.credential, azurite.url
    )
