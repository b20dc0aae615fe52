"""Loops that end in the middle of something: who is told, and how loudly. Found by tests/simulation."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest

from mppool import AsyncPool, CheckoutTimeout
from mppool.aio import bridge
from mppool.base_manager import Manager
from mppool.recipe import LoopIsOver, Opening
from tests.aio.things import CarefulRecipe, Thing, ThingRecipe, take_all, until
from tests.helpers import wait_until


def test_a_checkout_that_the_collector_ends_raises_nothing(manager: Manager) -> None:
    """It does so in another context than the one in which the task ran."""
    pool: AsyncPool[Thing] = manager.apool("p", ThingRecipe(), max_size=1)

    async def check_out() -> None:
        await pool.checkout(timeout=None)

    async def main() -> tuple[Any, Any]:
        lease, waiting = await pool.checkout(), check_out()
        task = asyncio.ensure_future(waiting)
        line = pool._local.idle.line
        await until(lambda: list(line.all_waiters()), "the task to wait")
        return lease, (waiting, task)

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    lease, (waiting, task) = loop.run_until_complete(main())
    loop.close()
    waiting.close()
    del lease, task


def test_min_size_that_a_loop_leaves_half_open_is_no_error(
    manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "mppool")
    recipe = ThingRecipe()
    recipe.pause = 3600.0
    pool: AsyncPool[Thing] = manager.apool("p", recipe, max_size=1, min_size=1)

    async def main() -> None:
        with pytest.raises(CheckoutTimeout):
            await pool.wait_ready(timeout=0.0)
        await until(lambda: recipe.alive, "an opening")

    asyncio.run(main())
    wait_until(lambda: "ended while it opened" in caplog.text, "the opening to be given up")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_hook_that_the_collector_ends_says_that_its_loop_is_over() -> None:
    async def hook() -> None:
        await asyncio.sleep(0)

    home: Any = SimpleNamespace(loop=SimpleNamespace(is_closed=lambda: True))
    handed = bridge._Handed(home, hook, None)
    running = handed._run()
    running.send(None)
    running.close()
    with pytest.raises(LoopIsOver):
        handed.wait(None)


def test_what_was_being_given_back_when_its_loop_was_closed_is_not_lost(manager: Manager) -> None:
    """The task that was to give it back has not even begun."""
    recipe = CarefulRecipe()
    pool: AsyncPool[Thing] = manager.apool("p", recipe, max_size=1)

    async def main() -> None:
        (await pool.checkout()).release_soon()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    left = asyncio.all_tasks(loop)
    loop.close()
    asyncio.run(take_all(pool, 1))  # type: ignore[arg-type]
    assert recipe.most == 1
    for task in left:
        task.get_coro().close()


def test_what_reaches_its_end_while_it_is_reset_does_not_outlive_it(manager: Manager) -> None:
    """The housekeeper looks at that instant, and does not find it on the shelf."""
    closed: list[Thing] = []

    async def open_thing(opening: Opening) -> Thing:
        return Thing()

    async def reset(thing: Thing) -> None:
        (entry,) = pool._local.entries()
        entry.retire_at = monotonic()

    pool: AsyncPool[Thing] = manager.apool(
        "p", open_thing, reset=reset, close=closed.append, max_idle=None
    )

    async def main() -> None:
        async with pool.checkout() as thing:
            pass
        await until(lambda: closed == [thing], "it to be closed")

    asyncio.run(main())
