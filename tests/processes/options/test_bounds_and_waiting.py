"""max_size, min_size, max_per_identity, max_per_process, timeout, max_waiting, order, acheckout, hooks' numbers."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from mppool import CheckoutTimeout, Pool, PoolManager, TooManyWaiting
from tests.helpers import wait_until
from tests.processes.options.scene import Colleague, Scene

Declare = Callable[..., Pool[Any]]
Hire = Callable[..., Any]


def sizes(pool: Pool[Any]) -> dict[int, int]:
    """How many slots each process has."""
    return {p["pid"]: p["slots"] for p in pool.stats()["processes"] if p["slots"]}


def all_open(pool: Pool[Any]) -> bool:
    stats = pool.stats()
    return stats["opening"] == 0 and stats["size"] == stats["idle"] + stats["in_use"]


def test_max_size_is_over_all_processes_and_identities(declare: Declare, hire: Hire) -> None:
    pool = declare(max_size=3)
    one, two = hire(pool, 2)
    one.do("checkout", "a", identity="alice")
    one.do("checkout", "b")
    two.do("checkout", "c", identity="bob")
    with pytest.raises(CheckoutTimeout):
        two.do("checkout", "d", timeout=0.05)
    with pytest.raises(CheckoutTimeout, match="max_size=3"):
        pool.checkout(timeout=0)
    one.do("release", "b")
    two.do("checkout", "d", timeout=10)
    assert pool.stats()["size"] == 3


def test_max_per_identity(declare: Declare, hire: Hire) -> None:
    pool = declare(max_size=5, max_per_identity=2)
    one, two = hire(pool, 2)
    one.do("checkout", "a", identity="alice")
    two.do("checkout", "b", identity="alice")
    with pytest.raises(CheckoutTimeout):
        two.do("checkout", "c", identity="alice", timeout=0.05)
    two.do("checkout", "c", identity="bob", timeout=10)
    assert pool.stats()["identities"] == 2


def test_max_per_process(declare: Declare, hire: Hire) -> None:
    pool = declare(max_size=5, max_per_process=2)
    one, two = hire(pool, 2)
    one.do("checkout", "a")
    one.do("checkout", "b", identity="alice")
    with pytest.raises(CheckoutTimeout):
        one.do("checkout", "c", timeout=0.05)
    two.do("checkout", "c", timeout=10)
    assert sizes(pool) == {one.pid: 2, two.pid: 1}


def test_min_size_opens_nothing_before_anybody_wants_anything(
    declare: Declare, manager: PoolManager, scene: Scene
) -> None:
    pool = declare(min_size=2)
    assert manager.server_pid is None
    manager.start()
    assert pool.stats()["size"] == 0
    # The server has heard of the pool and of this process, and has not opened anything.
    assert scene.events() == []


def test_min_size_is_spread_over_the_processes_and_ready_is_waited_for(
    declare: Declare, hire: Hire, scene: Scene
) -> None:
    pool = declare(min_size=6)
    others = hire(pool, 2)
    for other in others:
        other.do("call", "wait_ready", 20)
    assert pool.wait_ready(20) is True
    # Two were there when the first wanted them; nobody has more than the server needed to give.
    assert sum(sizes(pool).values()) == 6
    assert scene.count("open") == 6
    for other in others:
        other.kill()
    wait_until(lambda: sizes(pool) == {os.getpid(): 6}, "what died to be opened here")
    assert pool.stats()["counters"]["died_with_process"] > 0


def test_min_size_is_spread_evenly_where_all_are_there(declare: Declare, hire: Hire) -> None:
    pool = declare(min_size=0)
    others = hire(pool, 2)
    for other in others:
        other.do("checkout")
        other.do("release")
    pool.resize(min_size=6)
    pool.wait_ready(20)
    assert sorted(sizes(pool).values()) == [2, 2, 2]


def test_min_size_is_refilled_after_wear_and_lifetime(declare: Declare, scene: Scene) -> None:
    pool = declare(min_size=2, max_uses=1, max_lifetime=0.5)
    pool.checkout().release()
    pool.wait_ready(20)
    wait_until(lambda: scene.count("open") >= 8, "the old ones to be replaced again and again")
    counters = pool.stats()["counters"]
    assert counters["worn_out"] == 1
    assert counters["expired_lifetime"] >= 4
    pool.wait_ready(20)


def test_creation_numbers_count_over_all_processes(declare: Declare, hire: Hire) -> None:
    pool = declare(max_size=4)
    one, two = hire(pool, 2)
    assert one.do("checkout", "a") == 0
    assert two.do("checkout", "b") == 1
    assert one.do("checkout", "c", identity="alice") == 2
    with pool.checkout() as thing:
        assert thing.number == 3


@pytest.mark.parametrize("timeout", [0, 0.2])
def test_the_timeout_of_the_pool_is_that_of_its_checkouts(
    declare: Declare, hire: Hire, manager: PoolManager, timeout: float
) -> None:
    pool = declare(max_size=1, timeout=timeout)
    manager.start()  # which may take longer than the timeout on a busy machine
    holder = hire(pool)
    holder.do("checkout", timeout=10)
    began = time.monotonic()
    with pytest.raises(CheckoutTimeout):
        pool.checkout()
    assert timeout <= time.monotonic() - began < timeout + 5.0
    assert pool.stats()["counters"]["timeouts"] == 1


def test_without_a_timeout_a_checkout_waits_for_ever(declare: Declare, hire: Hire) -> None:
    pool = declare(max_size=1, timeout=None)
    one, two = hire(pool, 2)
    one.do("checkout")
    two.tell("checkout")
    wait_until(lambda: pool.stats()["waiting"] == 1, "it to wait")
    one.do("release")
    assert two.answer() in (0, 1)


def test_max_waiting_is_over_all_processes(declare: Declare, hire: Hire) -> None:
    pool = declare(max_size=1, max_waiting=2)
    holder, one, two = hire(pool, 3)
    holder.do("checkout")
    one.tell("checkout")
    two.tell("checkout")
    wait_until(lambda: pool.stats()["waiting"] == 2, "two to wait")
    began = time.monotonic()
    with pytest.raises(TooManyWaiting, match="max_waiting"):
        pool.checkout(timeout=30)
    assert time.monotonic() - began < 20
    assert pool.stats()["counters"]["refused"] == 1
    holder.do("release")
    wait_until(lambda: pool.stats()["waiting"] == 1, "one of them to be served")


def test_waiters_of_several_processes_are_served_in_the_order_of_their_coming(
    declare: Declare, hire: Hire
) -> None:
    pool = declare(max_size=1)
    holder, *waiting = hire(pool, 4)
    holder.do("checkout")
    for number, colleague in enumerate(waiting):
        colleague.tell("checkout")
        wait_until(lambda n=number: pool.stats()["waiting"] == n + 1, "one more to wait")
    before: Colleague = holder
    for colleague in waiting:
        before.do("release")
        colleague.answer()
        before = colleague


@pytest.mark.parametrize(("order", "expected"), [("lifo", 2), ("fifo", 0)])
def test_order(declare: Declare, order: str, expected: int) -> None:
    pool = declare(max_size=3, order=order)
    leases = [pool.checkout() for _ in range(3)]
    for lease in leases:
        lease.release()
    with pool.checkout() as thing:
        assert thing.number == expected


def test_fifo_uses_all_alike_and_lifo_as_few_as_it_can(declare: Declare) -> None:
    pool = declare(max_size=3, order="fifo")
    for lease in [pool.checkout() for _ in range(3)]:
        lease.release()
    used: Counter[int] = Counter()
    for _ in range(9):
        with pool.checkout() as thing:
            used[thing.number] += 1
    assert set(used.values()) == {3}


def test_checking_out_asynchronously(declare: Declare, hire: Hire) -> None:
    pool = declare(max_size=1)
    holder = hire(pool)
    holder.do("checkout")

    async def main() -> list[str]:
        order = []

        async def wants() -> None:
            async with pool.acheckout(timeout=20) as thing:
                order.append(f"thing {thing.number}")

        waiting = asyncio.create_task(wants())
        while not pool.stats()["waiting"]:
            await asyncio.sleep(0.01)
        order.append("the loop goes on")
        await asyncio.to_thread(holder.do, "release")
        await waiting
        lease = await pool.acheckout()
        order.append(f"thing {lease.resource.number}")
        lease.release()
        return order

    assert asyncio.run(main()) == ["the loop goes on", "thing 1", "thing 1"]
