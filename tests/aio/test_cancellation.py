"""A cancellation at any await loses nothing: no resource, no slot, no place in the line."""

from __future__ import annotations

import asyncio
import contextlib
import random
import types
from collections.abc import Coroutine, Generator
from time import monotonic
from typing import Any

import pytest

from mppool import AsyncPool, PoolError
from mppool.base_manager import Manager
from tests.aio.things import CarefulRecipe, Thing, take_all, until
from tests.helpers import PATIENCE

SIZE = 2


@types.coroutine
def cancelled_at(
    place: int, coroutine: Coroutine[Any, Any, Any], reached: list[int]
) -> Generator[Any, Any, None]:
    """Run a coroutine in the current task, which is cancelled where it waits for the `place`-th time."""
    waits = 0
    try:
        value = coroutine.send(None)
        while True:
            if waits == place:
                reached.append(place)
                task = asyncio.current_task()
                assert task is not None
                task.cancel()  # carried out as soon as it waits
            waits += 1
            try:
                got = yield value
            except BaseException as error:
                value = coroutine.throw(error)
            else:
                value = coroutine.send(got)
    except StopIteration:
        return


async def at(place: int, coroutine: Coroutine[Any, Any, Any]) -> bool:
    """Whether it waited so often that it was cancelled there."""
    reached: list[int] = []

    async def run() -> None:
        await cancelled_at(place, coroutine, reached)

    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.ensure_future(run())
    return bool(reached)


async def nothing_is_lost(pool: AsyncPool[Thing], recipe: CarefulRecipe) -> None:
    """All that there may be can be had again, and nothing more is open."""
    leases = await take_all(pool, SIZE)
    assert all(not lease.resource.closed for lease in leases)
    await until(lambda: len(recipe.alive) == SIZE, "what was given up to be closed")
    assert recipe.most <= SIZE
    for lease in leases:
        await lease.release()


async def use(pool: AsyncPool[Thing]) -> None:
    async with pool.checkout(timeout=20) as thing:
        thing.touch()
        await asyncio.sleep(0)


@pytest.mark.parametrize("kind", ["cold", "warm", "waiting", "failing use"])
def test_cancelled_at_each_await(manager: Manager, kind: str) -> None:
    recipe = CarefulRecipe()
    pool: AsyncPool[Thing] = manager.apool("p", recipe, max_size=SIZE, check_idle_for=0.0)

    async def fail() -> None:
        with pytest.raises(ZeroDivisionError):
            async with pool.checkout(timeout=20):
                raise ZeroDivisionError

    async def main() -> None:
        place, goes_on = 0, True
        while goes_on:
            held = []
            if kind == "waiting":
                held = await take_all(pool, SIZE)
                for lease in held:
                    asyncio.get_running_loop().call_later(
                        0.01, lambda lease=lease: asyncio.ensure_future(lease.release())
                    )
            elif kind == "cold":
                await pool.close_idle()
            goes_on = await at(place, fail() if kind == "failing use" else use(pool))
            await until(lambda held=held: all(one.released for one in held), "the others to end")
            await nothing_is_lost(pool, recipe)
            place += 1
        assert place >= 3

    asyncio.run(main())
    assert not recipe.alive


def test_cancelled_at_random(manager: Manager) -> None:
    recipe = CarefulRecipe()
    pool: AsyncPool[Thing] = manager.apool("p", recipe, max_size=SIZE, check_idle_for=0.001)
    chance = random.Random(7)
    ends: list[str] = []

    async def user() -> None:
        try:
            async with pool.checkout(timeout=chance.choice([0, 0.001, 0.01, 20])) as thing:
                thing.touch()
                thing.users += 1
                assert thing.users == 1
                try:
                    await asyncio.sleep(chance.random() / 500)
                finally:
                    thing.users -= 1
            ends.append("served")
        except PoolError:
            ends.append("refused")
        except asyncio.CancelledError:
            ends.append("cancelled")

    async def main() -> None:
        running: set[asyncio.Task[None]] = set()
        began, number = monotonic(), 0
        # On a busy machine most are cancelled before their turn comes: until enough were served.
        while number < 1500 or (ends.count("served") <= 20 and monotonic() < began + PATIENCE):
            number += 1
            running.add(asyncio.ensure_future(user()))
            await asyncio.sleep(0)
            for task in [task for task in running if chance.random() < 0.05]:
                task.cancel()
            if len(running) > 30:
                _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait(running)
        await nothing_is_lost(pool, recipe)

    asyncio.run(main())
    # A task that is cancelled before its first step leaves no word.
    assert ends.count("served") > 20
    assert ends.count("cancelled") > 20
    assert not recipe.alive
