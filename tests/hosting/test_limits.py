"""Lanes and budgets over hosts: as with workers, but what is shared between processes never moves."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from mppool import PoolManager
from mppool.errors import CheckoutTimeout, ConfigurationError, PoolError
from tests.helpers import PATIENCE, Fork, wait_until
from tests.hosting.things import Thing
from tests.processes.test_budgets import Flags


def flood(pool: Any, over: Flags, threads: int, lane: str | None) -> int:
    """Use the pool all the time, in several threads, until the flag is set; how often."""
    uses = [0] * threads

    def work(mine: int) -> None:
        while True:  # once at least, however late this process begins
            with pool.checkout(lane=lane) as thing:
                thing.slow(0.005)
            uses[mine] += 1
            if over[0]:
                return

    workers = [threading.Thread(target=work, args=(mine,)) for mine in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(uses)


def test_a_lane_gets_its_reserve_while_another_process_floods(manager: PoolManager) -> None:
    pool = manager.pool(
        "p", Thing, max_size=3, lanes={"web": 1}, placement="host", timeout=PATIENCE
    )
    over = Flags()
    floods = [Fork(lambda: flood(pool, over, 3, None)) for _ in range(2)]
    wait_until(lambda: pool.stats()["size"] == 3, "the idle reserve to be lent")
    wait_until(lambda: pool.stats()["waiting"] >= 2, "a flood")
    lease = pool.checkout(lane="web")
    lanes = pool.stats()["lanes"]
    assert lanes["web"]["in_use"] == 1
    assert lanes["web"]["reserved"] == 1

    lease.release()

    async def another() -> int:
        async with pool.acheckout(lane="web") as thing:
            found: int = await asyncio.to_thread(thing.echo, 5)
        return found

    assert asyncio.run(another()) == 5
    over.set(0)
    assert all(child.result() > 0 for child in floods)
    assert pool.stats()["counters"]["opened"] == 3


def test_what_is_reserved_for_others_is_not_had_while_they_wait(manager: PoolManager) -> None:
    pool = manager.pool(
        "p", Thing, max_size=2, lanes={"web": 1, "batch": 1}, placement="host", timeout=PATIENCE
    )
    batch = [pool.checkout(lane="batch") for _ in range(2)]  # the idle reserve is lent
    got: list[str] = []

    def take(lane: str) -> None:
        with pool.checkout(lane=lane) as thing:
            got.append(lane)
            wait_until(lambda: thing.echo(1) == 1, "an answer")

    threads = []
    for lane in ("batch", "web"):  # the flood was there first
        threads.append(threading.Thread(target=take, args=(lane,)))
        threads[-1].start()
        # In the books: before that it may hope for a release of its own process.
        wait_until(lambda: pool.stats()["lanes"][lane]["waiting"] == 1, "the line")  # noqa: B023
    batch[0].release()
    wait_until(lambda: bool(got), "the first of them")
    assert got[0] == "web"
    batch[1].release()
    for thread in threads:
        thread.join()
    with pytest.raises(ConfigurationError, match="its lanes are 'web', 'batch'"):
        pool.checkout(lane="other")
    with pytest.raises(ConfigurationError, match="has no lanes"):
        manager.pool("plain", Thing, placement="host").checkout(lane="web")


def test_what_is_kept_of_one_pool_is_taken_back_for_another_on_the_budget(
    manager: PoolManager,
) -> None:
    budget = manager.budget("db", 2)
    options: dict[str, Any] = {"budget": budget, "placement": "host", "timeout": PATIENCE}
    orders, reports = manager.pool("orders", Thing, **options), manager.pool("reports", Thing, **options)  # fmt: skip
    for lease in [reports.checkout() for _ in range(2)]:
        lease.release()  # both stay with this process while nobody waits
    leases = [orders.checkout() for _ in range(2)]
    assert [lease.resource.echo(1) for lease in leases] == [1, 1]
    assert budget.stats()["pools"] == {"orders": 2, "reports": 0}
    with pytest.raises(CheckoutTimeout):
        reports.checkout(timeout=0.05)
    leases[0].release()
    with reports.checkout() as thing:
        assert thing.echo(2) == 2
    leases[1].release()


def test_a_resource_in_a_host_cannot_be_detached(manager: PoolManager) -> None:
    pool = manager.pool("p", Thing, max_size=1, placement="host", timeout=PATIENCE)
    lease = pool.checkout()
    with pytest.raises(PoolError, match="lives in a host"):
        lease.detach()
    with pytest.raises(PoolError, match=r"call discard\(\)"):
        lease.closed()
    assert not lease.released
    lease.release()
