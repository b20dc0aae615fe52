"""`acheckout` over hosts: tasks wait for their turn, and the loop goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from mppool import PoolManager
from mppool.errors import CheckoutTimeout
from tests.helpers import PATIENCE
from tests.hosting.test_tokens import Issuer
from tests.hosting.things import Refused, Thing, WithToken


def test_tasks_share_a_resource_and_the_loop_goes_on(manager: PoolManager) -> None:
    pool = manager.pool("p", Thing, max_size=1, placement="host", timeout=PATIENCE)

    async def use(number: int) -> Any:
        async with pool.acheckout() as thing:
            await asyncio.sleep(0)  # others run while this one has it
            return await asyncio.to_thread(thing.echo, number)

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*(use(number) for number in range(12)))

    assert asyncio.run(all_of_them()) == list(range(12))
    assert pool.stats()["counters"]["opened"] == 1
    with pool.checkout() as thing:  # a thread has the same afterwards
        assert thing.echo(1) == 1


def test_a_timeout_and_a_task_that_is_cancelled_leave_nothing_behind(manager: PoolManager) -> None:
    pool = manager.pool("p", Thing, max_size=1, placement="host", timeout=PATIENCE)

    async def main() -> None:
        lease = await pool.acheckout()
        with pytest.raises(CheckoutTimeout):
            await pool.acheckout(timeout=0.05)
        waiting = asyncio.ensure_future(pool.acheckout().__aenter__())
        while not any(stream._pending for stream in list(pool.streams._all)):
            await asyncio.sleep(0.005)  # it is on its way
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        lease.release()
        async with pool.acheckout() as thing:
            assert thing.echo(2) == 2

    asyncio.run(main())


def test_an_exception_in_the_block_has_the_resource_looked_at(manager: PoolManager) -> None:
    pool = manager.pool("p", Thing, max_size=1, placement="host", timeout=PATIENCE)

    async def main() -> None:
        lease = await pool.acheckout(label="job")

        async def fails() -> None:
            async with lease as thing:
                thing.value = 9
                thing.fail(1)

        with pytest.raises(Refused):
            await fails()
        async with pool.acheckout() as thing:
            assert thing.value == 9

    asyncio.run(main())


def test_a_host_that_wants_a_token_gets_it_while_the_loop_goes_on(
    manager: PoolManager, tmp_path: Path
) -> None:
    refused = tmp_path / "refused"
    refused.write_text("")
    recipe = WithToken(str(refused), Issuer("a1"))
    pool = manager.pool("p", recipe, max_size=1, placement="host", timeout=PATIENCE)

    async def main() -> Any:
        async with pool.acheckout() as thing:
            return thing["token"]

    assert asyncio.run(main()) == "a1"
