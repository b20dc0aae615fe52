"""Blob clients against Azurite: the real SDK, https, bearer tokens."""

from __future__ import annotations

import gc
import json
import os
import pickle
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential

import mppool.azure.blob
from mppool import ConfigurationError, InProcessManager, PoolManager, StaleLease
from mppool.azure import (
    BlobServicePool,
    ClientPool,
    StaticToken,
    blob_service,
    prune_idle_blob_service_clients,
    reset_blob_service_pool,
)
from tests.azure import azurite as emulator
from tests.azure.azurite import ACCOUNT, KEY, Azurite, Credential
from tests.azure.blobs import new_container, round_trip
from tests.helpers import ROOT, wait_until

# The first run on a machine installs Azurite.
pytestmark = pytest.mark.timeout(emulator.INSTALL_S + 60)


# --- one per credential and account -----------------------------------------------------------------------


def test_one_client_for_all_who_ask(
    pool: BlobServicePool, azurite: Azurite, credential: Credential
) -> None:
    client = pool.client(credential, azurite.url)
    assert client is pool.client(credential, azurite.url + "/")
    assert client is not pool.client(Credential(), azurite.url)
    container = new_container(client)
    assert round_trip(client, container.container_name, "a")
    assert pool.stats()["counters"]["checkouts"] == 3


def test_name_and_url_are_one_account(pool: BlobServicePool) -> None:
    token = StaticToken(emulator.token())
    client = pool.client(token, "shop")
    assert client.url == "https://shop.blob.core.windows.net/"
    assert client is pool.client(token, "HTTPS://SHOP.blob.core.windows.net/")
    assert client is pool.client(credential=token, account="shop")


def test_thirty_two_askers_build_one_client(
    pool: BlobServicePool, credential: Credential, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also, while one client is being built, others are to be had at once."""
    ready, release = threading.Event(), threading.Event()
    factory, made = pool.factory, []

    def slow(target: str, **arguments: Any) -> Any:
        ready.set()
        assert release.wait(20)
        made.append(target)
        return factory(target, **arguments)

    other = pool.client(credential, "other")
    monkeypatch.setattr(pool, "factory", slow)
    with ThreadPoolExecutor(32) as threads:
        asked = [threads.submit(pool.client, credential, "shop") for _ in range(32)]
        assert ready.wait(20)
        assert pool.client(credential, "other") is other
        wait_until(lambda: pool.stats()["waiting"] == 31, "31 threads that wait")
        release.set()
        clients = {id(one.result()) for one in asked}
    assert len(clients) == 1
    assert made == ["https://shop.blob.core.windows.net"]


def test_a_factory_that_fails_fails_for_each_and_is_tried_again(
    pool: BlobServicePool, credential: Credential, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory = pool.factory
    with monkeypatch.context() as patch:
        patch.setattr(pool, "factory", lambda *_, **__: (_ for _ in ()).throw(KeyError("no")))
        for _ in range(2):
            with pytest.raises(KeyError):
                pool.client(credential, "shop")
    assert pool.factory is factory
    assert pool.client(credential, "shop") is pool.client(credential, "shop")
    assert pool.stats()["counters"]["open_failed"] == 2


def test_all_clients_share_tokens(
    manager: PoolManager, azurite: Azurite, runtime_dir: Path
) -> None:
    class Named(Credential):
        def mppool_identity(self) -> str:
            return "somebody"

    pools = [BlobServicePool(manager, connection_verify=str(azurite.certificate)) for _ in range(3)]
    named = Named()
    container = new_container(pools[0].client(named, azurite.url)).container_name
    for pool in pools:
        assert round_trip(pool.client(named, azurite.url), container, "a")
    assert named.asked == 1
    for pool in pools:
        pool.reset()


def test_a_burst_on_a_cold_client_asks_for_one_token(
    pool: BlobServicePool, azurite: Azurite
) -> None:
    class Slow(Credential):
        def get_token(self, *scopes: str, **options: Any) -> Any:
            time.sleep(0.2)
            return super().get_token(*scopes, **options)

    credential = Slow()
    container = new_container(pool.client(KEY, azurite.url)).container_name
    derived = pool.client(credential, azurite.url).get_container_client(container)
    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(lambda _: derived.exists(), range(16)))
    assert credential.asked == 1


def test_a_credential_that_shares_already(
    pool: BlobServicePool, manager: PoolManager, azurite: Azurite, credential: Credential
) -> None:
    shared = manager.credential(credential)
    assert new_container(pool.client(shared, azurite.url)).exists()
    assert shared.get_token("https://storage.azure.com/.default").token
    assert credential.asked == 1
    brought = StaticToken(emulator.token())
    assert new_container(pool.client(brought, azurite.url)).exists()


@pytest.mark.parametrize("kind", ["str", "named", "sas", "sas text"])
def test_keys(pool: BlobServicePool, azurite: Azurite, kind: str) -> None:
    credential = key_credential(kind)
    client = pool.client(credential, azurite.url)
    assert client is pool.client(key_credential(kind, like=credential), azurite.url)
    container = new_container(client)
    assert round_trip(client, container.container_name, "a")
    shown = json.dumps(pool.stats()) + repr(pool) + repr(client)
    assert KEY not in shown
    assert "sig=" not in shown
    with pytest.raises(TypeError, match="does not leave"):
        pickle.dumps(client)


def key_credential(kind: str, like: Any = None) -> Any:
    if kind == "str":
        return KEY + ""
    if kind == "named":
        return AzureNamedKeyCredential(ACCOUNT, KEY)
    if like is not None:
        return AzureSasCredential(like.signature) if kind == "sas" else str(like)
    from datetime import datetime, timedelta, timezone

    from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas

    sas = generate_account_sas(
        ACCOUNT,
        KEY,
        ResourceTypes(service=True, container=True, object=True),
        AccountSasPermissions(read=True, write=True, create=True, list=True),
        datetime.now(timezone.utc) + timedelta(hours=1),
    )
    return AzureSasCredential(sas) if kind == "sas" else sas


def test_a_rotated_key_has_another_client(pool: BlobServicePool) -> None:
    credential = AzureNamedKeyCredential("shop", "b25l")
    first = pool.client(credential, "shop")
    credential.update("shop", "dHdv")
    assert pool.client(credential, "shop") is not first
    credential.update("shop", "b25l")
    assert pool.client(credential, "shop") is first


def test_connection_string(pool: BlobServicePool, azurite: Azurite) -> None:
    client = pool.client_from_connection_string(azurite.connection_string)
    assert client is pool.client_from_connection_string(azurite.connection_string)
    assert client is pool.client(AzureNamedKeyCredential(ACCOUNT, KEY), azurite.url)
    assert round_trip(client, new_container(client).container_name, "a")


@pytest.mark.parametrize(
    ("credential", "account"),
    [
        (None, "shop"),
        (Credential, "shop"),
        (3, "shop"),
        ("", "shop"),
        (Credential(), "no account"),
        (Credential(), ""),
        (Credential(), "ftp://shop.blob.core.windows.net"),
        (Credential(), "https://shop.blob.core.windows.net/?sig=hidden"),
        (Credential(), "https://user:hidden@shop.blob.core.windows.net"),
        (Credential(), "http://shop.blob.core.windows.net"),
        (Credential(), None),
        (Credential(), ["shop"]),
        (emulator.AsyncCredential(), "shop"),
    ],
)
def test_bad_use_says_what_is_allowed(pool: BlobServicePool, credential: Any, account: Any) -> None:
    with pytest.raises(ConfigurationError) as raised:
        pool.client(credential, account)
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    "text", ["", "AccountName=shop", "AccountKey=hidden", "hidden", "a=hidden;;"]
)
def test_bad_connection_strings_are_not_shown(pool: BlobServicePool, text: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        pool.client_from_connection_string(text)
    assert "hidden" not in str(raised.value)


# --- reset, and the default pool --------------------------------------------------------------------------


def test_reset_closes_and_forgets_everything(
    pool: BlobServicePool, azurite: Azurite, credential: Credential
) -> None:
    finalizers = len(weakref.finalize._registry)  # type: ignore[attr-defined]
    client = pool.client(credential, azurite.url)
    container = new_container(client)
    pool.reset()
    assert azurite.connections_of() == 0
    assert pool.stats()["size"] == 0
    with pytest.raises(StaleLease, match="reset"):
        container.exists()
    again = pool.client(credential, azurite.url)
    assert again is not client
    assert again.get_container_client(container.container_name).exists()
    pool.reset()
    del client, container, again
    gc.collect()
    assert len(weakref.finalize._registry) <= finalizers + 1  # type: ignore[attr-defined]


def test_module_functions(
    runtime_dir: Path, azurite: Azurite, credential: Credential, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(azurite.certificate))
    try:
        assert prune_idle_blob_service_clients() == 0
        client = blob_service(credential, azurite.url)
        assert client is blob_service(credential, azurite.url)
        assert round_trip(client, new_container(client).container_name, "a")
        assert prune_idle_blob_service_clients(idle_ttl_seconds=3600) == 0
        assert prune_idle_blob_service_clients(idle_ttl_seconds=0) == 1
        assert blob_service(credential, azurite.url) is not client
    finally:
        reset_blob_service_pool()
    assert mppool.azure.blob._default.pool is None
    with pytest.raises(StaleLease):
        client.get_service_properties()
    PoolManager(mppool.azure.blob.DEFAULT_MANAGER).shutdown()


def test_statistics_have_the_shape_of_pools(pool: BlobServicePool, credential: Credential) -> None:
    with InProcessManager() as local:
        of_a_pool = local.pool("shape", object)
        with of_a_pool.checkout():
            shape = of_a_pool.stats()
    pool.client(credential, "shop")
    stats = pool.stats()
    json.dumps(stats)
    required = {"name", "placement", "max_size", "min_size", "size", "opening", "in_use", "idle"}
    assert required | {"waiting", "breaker", "counters", "histograms"} <= set(shape) & set(stats)
    assert set(shape["counters"]) <= set(stats["counters"])
    assert set(shape["histograms"]) == set(stats["histograms"])
    only_of_leases = {"stale", "label", "thread"}
    for part in ("processes", "resources"):
        assert set(shape[part][0]) - only_of_leases <= set(stats[part][0])


def test_a_pool_that_is_dropped_leaves_nothing(manager: PoolManager, azurite: Azurite) -> None:
    credential = Credential()
    pool = BlobServicePool(manager, connection_verify=str(azurite.certificate))
    container = new_container(pool.client(credential, azurite.url))
    clients = weakref.ref(pool.clients)
    del pool
    gc.collect()
    assert container.exists()
    del container
    wait_until(lambda: azurite.connections_of() == 0, "closed connections")
    wait_until(lambda: gc.collect() >= 0 and clients() is None, "the end of what the pool had")


def test_a_pool_pickles_without_clients(pool: BlobServicePool) -> None:
    pool.client(KEY, "shop")
    again = pickle.loads(pickle.dumps(pool))
    assert again.stats()["size"] == 0
    assert KEY.encode() not in pickle.dumps(pool)


# --- other clients ----------------------------------------------------------------------------------------


def test_another_client_class(
    manager: PoolManager, azurite: Azurite, credential: Credential
) -> None:
    """Whatever takes azure-core's transport; here the SDK's clients of single containers."""
    from azure.storage.blob import ContainerClient

    def container_client(url: str, *, credential: Any, transport: Any) -> ContainerClient:
        return ContainerClient.from_container_url(url, credential=credential, transport=transport)

    verify = {"connection_verify": str(azurite.certificate)}
    pool = ClientPool(manager, container_client, name="containers", transport_options=verify)
    container = pool.client(credential, f"{azurite.url}/c{os.urandom(8).hex()}")
    container.create_container()
    assert container.exists()
    del container
    assert pool.prune_idle(0) == 1
    wait_until(lambda: azurite.connections_of() == 0, "closed connections")
    pool.reset()


def test_clients_that_are_not_azure_cores(manager: PoolManager) -> None:
    class Other:
        """As of Service Bus: it takes the credential, and closes itself when it is garbage."""

        def __init__(self, target: str, credential: Any) -> None:
            self.credential = credential

    pool = ClientPool(manager, lambda target, *, credential, transport: Other(target, credential))
    credential = Credential()
    client = pool.client(credential, "amqps://shop")
    assert client is pool.client(credential, "amqps://shop")
    assert client.credential.get_token("a scope").token
    gone = weakref.ref(client)
    del client, credential
    wait_until(lambda: gone() is None, "the end of the client")
    wait_until(lambda: pool.stats()["size"] == 0, "nothing that is open")
    assert not pool.clients.owners
    pool.reset()


def test_the_example(runtime_dir: Path, azurite: Azurite) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "blob_workers.py")],
        env={
            **os.environ,
            "BLOB_CONNECTION_STRING": azurite.connection_string,
            "REQUESTS_CA_BUNDLE": str(azurite.certificate),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("20 blobs in example-")
    assert done.stderr == ""
