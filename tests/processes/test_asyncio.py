"""acheckout: an event loop that waits, releases and cancels."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mppool import ConfigurationError, InProcessManager, Pool
from tests.helpers import wait_until


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
        async with pool.acheckout(timeout=5):
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
