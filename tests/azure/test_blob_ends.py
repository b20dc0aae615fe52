"""Blob clients are gone when they should be, and not before."""

from __future__ import annotations

import gc
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mppool import ConfigurationError, InProcessManager, PoolManager, StaleLease
from mppool.azure import BlobServicePool
from tests.azure import azurite as emulator
from tests.azure.azurite import KEY, Azurite, Credential
from tests.azure.blobs import new_container, round_trip
from tests.helpers import wait_until

# The first run on a machine installs Azurite.
pytestmark = pytest.mark.timeout(emulator.INSTALL_S + 60)


def test_a_collected_credential_closes_its_clients(pool: BlobServicePool, azurite: Azurite) -> None:
    """Without the pool being asked, although a derived client is still held."""
    credential = Credential()
    container = new_container(pool.client(credential, azurite.url))
    assert round_trip(pool.client(credential, azurite.url), container.container_name, "a")
    assert azurite.connections_of() > 0
    del credential
    wait_until(lambda: azurite.connections_of() == 0, "closed connections")
    assert pool.stats()["idle"] == 0
    with pytest.raises(StaleLease, match="garbage-collected"):
        container.get_container_properties()


def test_also_those_that_were_let_go(pool: BlobServicePool, azurite: Azurite) -> None:
    credential = Credential()
    container = new_container(pool.client(credential, azurite.url))
    assert pool.prune_idle(0) == 1
    assert container.exists()
    del credential
    wait_until(lambda: azurite.connections_of() == 0, "closed connections")
    with pytest.raises(StaleLease, match="garbage-collected"):
        container.exists()


def test_without_a_server(azurite: Azurite) -> None:
    with InProcessManager() as local:
        pool = BlobServicePool(local, connection_verify=str(azurite.certificate), idle_ttl=0.2)
        credential = Credential()
        assert new_container(pool.client(credential, azurite.url)).exists()
        wait_until(lambda: azurite.connections_of() == 0, "the sweep")
        assert new_container(pool.client(credential, azurite.url)).exists()
        del credential
        wait_until(lambda: azurite.connections_of() == 0, "closed connections")
        pool.reset()


def test_the_pool_keeps_no_credential_alive(pool: BlobServicePool, azurite: Azurite) -> None:
    credential = Credential()
    client = pool.client(credential, azurite.url)
    new_container(client)
    gone = weakref.ref(credential)
    del credential
    assert gone() is None  # at once, by its reference count
    with pytest.raises(StaleLease):
        client.get_service_properties()


def test_a_recycled_id_never_finds_the_old_client(pool: BlobServicePool) -> None:
    """Whether the finalizer's note has been taken in or not."""
    recycled = 0
    credential = Credential()
    for _ in range(300):
        client, address = pool.client(credential, "shop"), id(credential)
        del credential
        credential = Credential()
        recycled += id(credential) == address
        assert pool.client(credential, "shop") is not client
    assert recycled > 100


def test_a_recycled_id_while_another_thread_takes_the_note_in(pool: BlobServicePool) -> None:
    """It has taken the note, and not yet forgotten the client: the address alone would find it."""
    recycled = 0
    credential = Credential()
    for _ in range(300):
        client, address = pool.client(credential, "shop"), id(credential)
        assert pool.client(credential, "shop") is client
        del credential
        pool.clients.notes.clear()
        credential = Credential()
        recycled += id(credential) == address
        assert pool.client(credential, "shop") is not client
    assert recycled  # how often is the allocator's business


def test_what_the_finalizer_does_while_a_lock_is_held(pool: BlobServicePool) -> None:
    """Hazard 15: it only notes, so a collection inside the pool's own critical section does no harm."""
    credential = Credential()
    pool.client(credential, "shop")
    with pool.clients.lock:
        del credential
        gc.collect()
        assert len(pool.clients.entries) == 1
    wait_until(lambda: pool.stats()["idle"] == 0, "a client that is forgotten")
    assert not pool.clients.owners


def test_a_credential_that_cannot_be_referred_to_weakly(
    pool: BlobServicePool, azurite: Azurite
) -> None:
    class Slotted:
        __slots__ = ()

        def get_token(self, *scopes: str, **options: Any) -> Any:
            return Credential().get_token()

    credential = Slotted()
    client = pool.client(credential, azurite.url)
    assert client is pool.client(credential, azurite.url)
    address = id(credential)
    del credential
    others = [Slotted() for _ in range(100)]
    assert address not in {id(other) for other in others}  # it is kept, so nobody can pass for it
    assert new_container(client)
    assert pool.prune_idle(0) == 1


def test_a_thousand_credentials_come_and_go(pool: BlobServicePool, azurite: Azurite) -> None:
    key = pool.client(KEY, azurite.url)
    container = new_container(key).container_name

    def use(number: int) -> bool:
        credential = Credential()
        client = pool.client(credential, azurite.url)
        if number % 20:
            return bool(client)
        return round_trip(client, container, f"blob-{number}")

    for number in range(50):  # what is made once is made now
        assert use(number)
    wait_until(lambda: pool.stats()["size"] == 1, "only the client of the key")
    gc.collect()
    before, connections = len(gc.get_objects()), azurite.connections_of()
    for number in range(1000):
        assert use(number)
    wait_until(lambda: pool.stats()["size"] == 1, "only the client of the key")
    wait_until(lambda: azurite.connections_of() <= connections, "closed connections")
    gc.collect()
    assert len(gc.get_objects()) - before < 2000
    assert not pool.clients.owners
    assert len(pool.clients.wires) == 1


# --- idle clients -----------------------------------------------------------------------------------------


def test_prune_lets_go_of_what_is_idle(
    pool: BlobServicePool, azurite: Azurite, credential: Credential
) -> None:
    container = new_container(pool.client(credential, azurite.url)).container_name
    assert pool.prune_idle(60) == 0
    assert pool.prune_idle(0) == 1
    wait_until(lambda: azurite.connections_of() == 0, "closed connections")
    assert round_trip(pool.client(credential, azurite.url), container, "a")
    assert pool.stats()["counters"]["expired_idle"] == 1


def test_a_client_in_somebodys_hands_is_not_closed_under_him(
    pool: BlobServicePool, azurite: Azurite, credential: Credential
) -> None:
    container = new_container(pool.client(credential, azurite.url))
    assert pool.prune_idle(0) == 1
    assert pool.stats()["in_use"] == 1
    container.upload_blob("a", b"a")  # a derived client: the service client itself is garbage
    blob = container.get_blob_client("a")
    del container
    gc.collect()
    assert blob.download_blob().readall() == b"a"
    del blob
    wait_until(lambda: azurite.connections_of() == 0, "closed connections")
    assert pool.stats()["size"] == 0


def test_with_blocks_and_close_of_one_user_do_not_disturb_others(
    pool: BlobServicePool, azurite: Azurite, credential: Credential
) -> None:
    with pool.client(credential, azurite.url) as client:
        container = new_container(client)
    client.close()
    assert container.exists()
    assert pool.client(credential, azurite.url) is client


def test_prune_under_load_fails_no_request(pool: BlobServicePool, azurite: Azurite) -> None:
    credentials = [Credential() for _ in range(3)]
    container = new_container(pool.client(credentials[0], azurite.url)).container_name

    def work(number: int) -> int:
        done = 0
        while done < 3 or pruned < 20:
            client = pool.client(credentials[(number + done) % 3], azurite.url)
            assert round_trip(client, container, f"{number}-{done % 5}")
            done += 1
        return done

    pruned = 0
    with ThreadPoolExecutor(6) as threads:
        working = [threads.submit(work, number) for number in range(6)]
        while not all(one.done() for one in working):
            pruned += pool.prune_idle(0)
            time.sleep(0.005)
        assert min(one.result() for one in working) >= 3
    assert pruned >= 20


def test_the_sweep_comes_by_itself(
    manager: PoolManager, azurite: Azurite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLOB_SERVICE_POOL_IDLE_TTL_SECONDS", "0.5")
    pool = BlobServicePool(manager, connection_verify=str(azurite.certificate))
    new_container(pool.client(KEY, azurite.url))
    wait_until(lambda: azurite.connections_of() == 0, "closed connections")
    assert pool.stats()["size"] == 0
    assert manager.server_pid is None  # a key needs no token, so no server


@pytest.mark.parametrize("text", ["", "soon", "-1", "0", "nan", "inf", "1e999"])
def test_bad_idle_times_are_refused_at_first_use(
    pool: BlobServicePool, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("BLOB_SERVICE_POOL_IDLE_TTL_SECONDS", text)
    with pytest.raises(ConfigurationError, match="BLOB_SERVICE_POOL_IDLE_TTL_SECONDS"):
        pool.client(KEY, "shop")
    monkeypatch.delenv("BLOB_SERVICE_POOL_IDLE_TTL_SECONDS")
    assert pool.client(KEY, "shop")


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "1", True])
def test_bad_idle_times_as_arguments(manager: PoolManager, value: Any) -> None:
    with pytest.raises(ConfigurationError, match="idle_ttl"):
        BlobServicePool(manager, idle_ttl=value)
    with pytest.raises(ConfigurationError, match="idle_ttl"):
        BlobServicePool(manager).prune_idle(value)
