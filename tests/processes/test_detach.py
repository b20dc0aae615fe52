"""Lease.detach: the resource is the caller's, its slot is taken until the caller has closed it, or its process ends."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from mppool import (
    CheckoutTimeout,
    InProcessManager,
    LeaseReleased,
    PoolError,
    PoolManager,
    StaleLease,
)
from mppool.worker.audit import close_lost
from tests.helpers import Fork, wait_until
from tests.processes.async_witness import AsyncSessionRecipe
from tests.processes.witness import Witness

Forks = Callable[..., Fork]


def can_be_had(pool: Any, timeout: float = 10.0) -> bool:
    try:
        with pool.checkout(timeout=timeout) as session:
            return bool(session.ask("mine"))
    except CheckoutTimeout:
        return False


def test_the_slot_is_taken_until_the_caller_has_closed_the_resource(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=1)
    lease = pool.checkout(timeout=10)
    session = lease.detach()
    assert session.ask("detached")
    assert not fork(can_be_had, pool, 0.2).result()
    assert not can_be_had(pool, 0.0)
    figures = pool.stats()
    assert (figures["size"], figures["in_use"], figures["idle"]) == (1, 1, 0)
    assert [one["state"] for one in figures["resources"]] == ["detached"]
    session.close()
    lease.closed()
    assert fork(can_be_had, pool).result()
    lease.closed()  # again it does nothing
    assert witness.figures()["peak"] == 1
    assert pool.stats()["counters"]["double_releases"] == 0


def test_the_lease_is_over(manager: PoolManager, witness: Witness) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=1)
    lease = pool.checkout(timeout=10)
    with lease:
        session = lease.detach()
    assert lease.released
    assert "detached" in repr(lease)
    with pytest.raises(LeaseReleased, match=r"what detach\(\) returned"):
        lease.detach()
    with pytest.raises(LeaseReleased, match=r"what detach\(\) returned"):
        lease.resource  # noqa: B018  # it raises
    lease.release()
    lease.discard()
    assert session.ask("nobody has closed it")
    assert pool.stats()["counters"]["double_releases"] == 0
    session.close()
    lease.closed()


def test_a_lease_that_was_not_detached_has_nothing_to_be_closed(
    manager: PoolManager, witness: Witness
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=1)
    lease = pool.checkout(timeout=10)
    with pytest.raises(PoolError, match=r"call discard\(\)"):
        lease.closed()
    lease.release()
    with pytest.raises(LeaseReleased):
        lease.detach()


def test_nothing_of_the_pool_ends_what_was_detached(manager: PoolManager, witness: Witness) -> None:
    """Neither its age, a reset, a drain, nor the pool's end."""
    pool = manager.pool(
        "p", witness.recipe(), max_size=2, max_lifetime=0.1, max_lease_kill=0.1, check_interval=0.1
    )
    lease = pool.checkout(timeout=10)
    session = lease.detach()
    pool.reset()
    assert pool.drain(0.0) == 1
    time.sleep(0.3)
    other = pool.checkout(timeout=10)
    wait_until(lambda: pool.stats()["counters"]["killed"] == 1, "the other lease to be killed")
    with pytest.raises(StaleLease):
        other.detach()
    other.release()
    pool.close()
    manager.close()
    assert session.ask("still there")
    session.close()


def test_it_ends_with_its_process(manager: PoolManager, witness: Witness, fork: Forks) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=1)

    def detach_and_wait() -> None:
        leases.append(pool.checkout(timeout=10))
        leases[0].detach()
        os.write(writing, b"1")
        signal.pause()

    leases: list[Any] = []
    reading, writing = os.pipe()
    child = fork(detach_and_wait)
    assert os.read(reading, 1) == b"1"
    assert not can_be_had(pool, 0.2)
    child.kill()
    assert can_be_had(pool)
    assert witness.figures()["peak"] == 1
    os.close(reading)
    os.close(writing)


def test_a_server_that_is_killed_forgets_nothing(
    manager: PoolManager, witness: Witness, fork: Forks
) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=1)
    lease = pool.checkout(timeout=10)
    session = lease.detach()
    server = manager.server_pid
    assert server is not None
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: manager.server_pid not in {server, None}, "the next server")
    assert not fork(can_be_had, pool, 0.5).result()
    session.close()
    lease.closed()
    assert fork(can_be_had, pool).result()
    assert witness.figures()["peak"] == 1


def test_a_forked_child_frees_nothing(manager: PoolManager, witness: Witness, fork: Forks) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=1)
    lease = pool.checkout(timeout=10)
    session = lease.detach()
    fork(lease.closed).result()
    assert not fork(can_be_had, pool, 0.2).result()
    assert session.ask("still there")
    session.close()
    lease.closed()
    assert can_be_had(pool)


def test_who_waits_here_is_served_when_it_is_closed(manager: PoolManager, witness: Witness) -> None:
    async def main() -> None:
        pool = manager.pool("p", witness.recipe(), max_size=1)
        lease = await pool.acheckout(timeout=10)
        session = lease.detach()
        waiting = asyncio.create_task(take(pool))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        session.close()
        lease.closed()
        await waiting

    async def take(pool: Any) -> None:
        async with pool.acheckout(timeout=10) as session:
            session.ask("mine")

    asyncio.run(main())
    assert witness.figures()["peak"] == 1


def test_a_resource_of_an_event_loop(manager: PoolManager, witness: Witness) -> None:
    async def main() -> None:
        pool = manager.apool("p", AsyncSessionRecipe(witness.path), max_size=1)
        lease = await pool.checkout(timeout=10)
        with pytest.raises(PoolError, match=r"await discard\(\)"):
            lease.closed()
        session = lease.detach()
        assert "detached" in repr(lease)
        with pytest.raises(LeaseReleased, match=r"what detach\(\) returned"):
            lease.resource  # noqa: B018  # it raises
        with pytest.raises(CheckoutTimeout):
            await pool.checkout(timeout=0.1)
        await session.ask()
        await lease.release()
        session.sock.close()
        lease.closed()
        async with pool.checkout(timeout=10) as another:
            await another.ask()
        assert (await pool.stats())["counters"]["double_releases"] == 0

    asyncio.run(main())
    assert witness.figures()["peak"] == 1


def test_a_guarded_lease_gives_the_resource_itself(manager: PoolManager, witness: Witness) -> None:
    pool = manager.pool("p", witness.recipe(), max_size=1, guard=True)
    lease = pool.checkout(timeout=10)
    session = lease.detach()
    assert "Guard" not in type(session).__name__
    assert session.ask("mine")
    session.close()
    lease.closed()
    assert can_be_had(pool)


def test_a_manager_in_one_process_has_the_same() -> None:
    with InProcessManager() as local:
        pool = local.pool("p", list, max_size=1)
        lease = pool.checkout()
        lease.detach().append(1)
        with pytest.raises(CheckoutTimeout):
            pool.checkout(timeout=0.0)
        lease.closed()
        with pool.checkout(timeout=0.0) as resource:
            assert resource == []


def test_what_was_detached_is_not_taken_for_lost(manager: PoolManager, witness: Witness) -> None:
    """A forgotten lease only takes its slot: the audit, which closes what nobody holds after an interrupt, leaves it alone."""
    pool = manager.pool("p", witness.recipe(), max_size=2)
    session = pool.checkout(timeout=10).detach()  # the lease is gone
    gc.collect()
    member = pool._local.member
    assert close_lost(member, member.inventory) == 0
    assert session.ask("still there")
    assert pool.stats()["size"] == 1
    session.close()
