"""Blob clients and forks: a child starts with none, and closes none of its parent's."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from typing import Any

import pytest

from mppool import PoolManager
from mppool.azure import BlobServicePool
from tests.azure import azurite as emulator
from tests.azure.azurite import KEY, Azurite, Credential
from tests.azure.blobs import content_of, new_container, round_trip
from tests.helpers import Fork

# The first run on a machine installs Azurite.
pytestmark = pytest.mark.timeout(emulator.INSTALL_S + 60)


def test_four_forked_workers_after_the_parent_used_its_client(
    manager: PoolManager, azurite: Azurite, credential: Credential
) -> None:
    """200 distinct blobs, every byte right; and the parent's client goes on, on its own connections.

    Without retries, which would hide that somebody else has read the answer.
    """
    pool = BlobServicePool(manager, connection_verify=str(azurite.certificate), retry_total=0)
    client = pool.client(credential, azurite.url)
    container = new_container(client).container_name
    assert round_trip(client, container, "parent")
    held = azurite.connections_of()

    def work(worker: int) -> tuple[int, int]:
        assert pool.stats()["size"] == 0  # it starts with none
        mine = pool.client(credential, azurite.url)
        assert mine is not client
        right = sum(round_trip(mine, container, f"{worker}-{number}") for number in range(25))
        # The parent's client, kept in a variable, works here too: on a connection of this process.
        connections = azurite.connections_of()
        assert round_trip(client, container, f"{worker}-25")
        assert azurite.connections_of() == connections + 1
        right += sum(round_trip(client, container, f"{worker}-{n}") for n in range(25, 50))
        pool.reset()
        return right, pool.stats()["size"]

    workers = [Fork(work, worker) for worker in range(4)]
    while True:
        assert round_trip(client, container, "parent")
        if all(worker._has_ended() for worker in workers):
            break
    assert [worker.result() for worker in workers] == [(50, 0)] * 4
    assert azurite.connections_of() == held
    names = {blob.name for blob in client.get_container_client(container).list_blobs()}
    assert len(names) == 201
    for name in sorted(names):
        downloaded = client.get_blob_client(container, name).download_blob().readall()
        assert downloaded == content_of(name)
    pool.reset()


def test_a_child_closes_none_of_its_parents(
    pool: BlobServicePool, azurite: Azurite, credential: Credential
) -> None:
    client = pool.client(credential, azurite.url)
    container = new_container(client)
    assert pool.prune_idle(0) == 1  # so that only these variables hold it
    held = azurite.connections_of()
    box = [credential, client, container]

    def drop() -> int:
        nonlocal client, container, credential
        box.clear()
        del client, container, credential
        gc.collect()
        pool.prune_idle(0)
        pool.reset()
        return 0

    assert Fork(drop).result() == 0
    assert azurite.connections_of() == held
    assert container.exists()
    assert azurite.connections_of() == held
    assert json.dumps(pool.stats())


def test_a_fork_while_a_client_is_being_built(
    pool: BlobServicePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, release = threading.Event(), threading.Event()
    factory = pool.factory

    def slow(target: str, **arguments: Any) -> Any:
        started.set()
        assert release.wait(20)
        return factory(target, **arguments)

    monkeypatch.setattr(pool, "factory", slow)
    builder = threading.Thread(target=pool.client, args=(KEY, "shop"))
    builder.start()
    assert started.wait(20)
    monkeypatch.setattr(pool, "factory", factory)
    assert Fork(lambda: bool(pool.client(KEY, "shop"))).result()
    release.set()
    builder.join()
    assert pool.client(KEY, "shop")


def test_what_a_parent_has_open_is_never_finalized_in_a_child(
    manager: PoolManager,
) -> None:
    pools = [BlobServicePool(manager)]
    pools[0].client(KEY, "shop")
    parents = weakref.ref(pools[0].clients)

    def drop() -> bool:
        pools.clear()
        gc.collect()
        return parents() is not None

    assert Fork(drop).result()
    pools.pop().reset()
    assert not pools


def test_what_a_parents_user_drops_in_a_child_is_not_finalized_there(manager: PoolManager) -> None:
    """A client that the pool has let go of, and that only a variable holds at the fork."""
    pools = [BlobServicePool(manager)]
    held = [pools[0].client(KEY, "shop")]
    assert pools[0].prune_idle(0) == 1
    (session,) = [weakref.ref(wire.inner) for wire in pools[0].clients.wires]

    def drop() -> bool:
        held.clear()
        pools.clear()
        gc.collect()
        return session() is not None

    assert Fork(drop).result()
    held.clear()
    pools.pop().reset()
