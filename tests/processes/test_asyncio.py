"""acheckout: an event loop that waits, releases and cancels."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mppool import CheckoutTimeout, ConfigurationError, InProcessManager, Pool
from tests.helpers import wait_until

MANY = 200
"""More tasks than there were ever threads for them."""


class Thing:
    def __init__(self) -> None:
        self.resets = 0


def reset(thing: Thing) -> None:
    thing.resets += 1


@pytest.fixture
def manager() -> Any:
    with InProcessManager() as made:
        yield made


def in_small_loop(main: Any, workers: int = 2) -> Any:
    async def run() -> Any:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(workers))
        return await main()

    return asyncio.run(run())


def test_waiting_checkouts_do_not_starve_the_release_that_they_wait_for(
    manager: InProcessManager,
) -> None:
    pool: Pool[Thing] = manager.pool("p", Thing, max_size=1, reset=reset)

    async def use() -> None:
        async with pool.acheckout(timeout=20):
            await asyncio.sleep(0.01)

    async def main() -> None:
        await asyncio.gather(*(use() for _ in range(8)))

    in_small_loop(main)
    with pool.checkout(timeout=0) as thing:
        assert thing.resets == 8


def test_a_task_that_is_cancelled_gives_back_whatever_it_still_gets(
    manager: InProcessManager,
) -> None:
    pool: Pool[Thing] = manager.pool("p", Thing, max_size=1, reset=reset)

    async def main() -> None:
        lease = await pool.acheckout()
        waiting = asyncio.ensure_future(asyncio.wait_for(pool.acheckout(timeout=5), 0.05))
        with pytest.raises(asyncio.TimeoutError):
            await waiting
        lease.release()

    in_small_loop(main)
    assert wait_until(lambda: pool.stats()["idle"] == 1, "the resource to be given back")
    pool.checkout(timeout=0).release()


def test_what_an_exception_ended_is_checked_before_it_is_lent_again(
    manager: InProcessManager,
) -> None:
    pool: Pool[Thing] = manager.pool("p", Thing, max_size=1, check=lambda thing: False)

    async def main() -> Thing:
        with pytest.raises(ZeroDivisionError):
            async with pool.acheckout() as thing:
                raise ZeroDivisionError
        return thing

    broken = in_small_loop(main)
    assert pool.checkout(timeout=5).resource is not broken


def test_the_in_process_manager_has_the_same_interface(manager: InProcessManager) -> None:
    with pytest.raises(ConfigurationError, match="register is not offered"):
        manager.register("Thing", Thing)
    with pytest.raises(ConfigurationError, match="initializer"):
        manager.start(print)
    with pytest.raises(ConfigurationError, match="no server"):
        manager.get_server()


def test_those_who_hold_a_resource_can_use_the_executor_while_many_wait(
    manager: InProcessManager,
) -> None:
    pool: Pool[Thing] = manager.pool("p", Thing, max_size=1)

    async def use() -> None:
        async with pool.acheckout(timeout=20):
            await asyncio.to_thread(time.sleep, 0.001)

    async def main() -> None:
        await asyncio.wait_for(asyncio.gather(*(use() for _ in range(20))), 20)

    in_small_loop(main)
    assert pool.stats()["counters"]["checkouts"] == 20


def test_a_timeout_is_kept_while_many_wait(
    manager: InProcessManager,
) -> None:
    pool: Pool[Thing] = manager.pool("p", Thing, max_size=1)

    async def late(timeout: float) -> float:
        began = time.monotonic()
        with pytest.raises(CheckoutTimeout):
            await pool.acheckout(timeout=timeout)
        return time.monotonic() - began

    async def main() -> list[float]:
        async with pool.acheckout():
            patient = [asyncio.ensure_future(pool.acheckout(timeout=20)) for _ in range(MANY)]
            await asyncio.to_thread(
                wait_until, lambda: pool.stats()["waiting"] == MANY, "all tasks to wait"
            )
            took = await asyncio.gather(*(late(timeout) for timeout in (0, 0.2, 0.2, 0.4)))
            for task in patient:
                task.cancel()
        await asyncio.wait(patient)
        return took

    for took, timeout in zip(in_small_loop(main), (0, 0.2, 0.2, 0.4), strict=True):
        assert timeout <= took < timeout + 10
    assert pool.stats()["counters"]["timeouts"] == 4
    assert wait_until(
        lambda: pool.stats()["waiting"] == pool.stats()["in_use"] == 0, "all to leave"
    )


def test_cancelled_checkouts_take_nothing(
    manager: InProcessManager,
) -> None:
    pool: Pool[Thing] = manager.pool("p", Thing, max_size=1)

    async def main() -> None:
        async with pool.acheckout():
            tasks = [asyncio.ensure_future(pool.acheckout(timeout=None)) for _ in range(MANY)]
            await asyncio.to_thread(
                wait_until, lambda: pool.stats()["waiting"] == MANY, "all tasks to wait"
            )
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    in_small_loop(main)
    wait_until(lambda: pool.stats()["waiting"] == pool.stats()["in_use"] == 0, "all to leave")
    assert pool.stats()["counters"]["checkouts"] == 1


def test_waiting_takes_no_thread(manager: InProcessManager) -> None:
    pool: Pool[Thing] = manager.pool("p", Thing, max_size=1)

    async def main() -> None:
        async with pool.acheckout():
            before = threading.active_count()
            tasks = [asyncio.ensure_future(pool.acheckout(timeout=None)) for _ in range(MANY)]
            await asyncio.to_thread(
                wait_until, lambda: pool.stats()["waiting"] == MANY, "all tasks to wait"
            )
            assert threading.active_count() < before + 10
        for task in tasks:
            (await task).release()

    in_small_loop(main)


def test_a_bad_timeout_is_refused_at_once(manager: InProcessManager) -> None:
    pool: Pool[Thing] = manager.pool("p", Thing)
    with pytest.raises(ConfigurationError, match="timeout=-1"):
        pool.acheckout(timeout=-1)


def test_what_ends_at_its_release_is_closed_outside_of_the_loop(manager: InProcessManager) -> None:
    closed_in: list[threading.Thread] = []

    def close(thing: Thing) -> None:
        closed_in.append(threading.current_thread())

    pool: Pool[Thing] = manager.pool("p", Thing, max_size=1, close=close)

    async def main() -> None:
        async with pool.acheckout():
            pool.reset()

    in_small_loop(main)
    wait_until(lambda: closed_in, "the close")
    assert closed_in != [threading.current_thread()]


def test_what_has_to_be_closed_from_the_instant_of_its_release_on_is_not_closed_in_the_loop(
    manager: InProcessManager,
) -> None:
    """Found by the simulation: the pool was closed between two looks whether the release is nothing but an append."""

    class Closing(list[Any]):
        def pop(self, *index: Any) -> Any:
            pool.close()
            return super().pop(*index)

    def close(_: object) -> None:
        closed_in.append(asyncio._get_running_loop())

    async def main() -> None:
        lease = await pool.acheckout()
        lease._held = Closing(lease._held)
        async with lease:
            pass

    closed_in: list[Any] = []
    pool = manager.pool("p", object, close=close, max_size=1)
    asyncio.run(main())
    assert closed_in == [None]
