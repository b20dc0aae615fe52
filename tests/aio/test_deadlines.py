"""One timer of a loop for all of its waiting tasks."""

from __future__ import annotations

import asyncio
import math
from time import monotonic

from mppool.worker.deadlines import _SPARE, Deadlines

LATER_S = 3600.0


async def waits(deadlines: Deadlines, future: asyncio.Future[None], until: float) -> str:
    """What a waiting task does."""
    deadlines.begins(future, until)
    try:
        await future
    except asyncio.CancelledError:
        return "cancelled"
    return "woken"


def test_each_is_woken_at_its_own_instant_whatever_order_they_come_in() -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        deadlines, began = Deadlines(loop), monotonic()
        order: list[float] = []

        async def one(after: float) -> None:
            assert await waits(deadlines, loop.create_future(), began + after) == "woken"
            assert monotonic() >= began + after, "not before its time"
            order.append(after)

        await asyncio.gather(*(one(after) for after in (0.05, 0.01, 0.09, 0.03, 0.07)))
        assert order == sorted(order)
        deadlines.tidy_up()
        assert deadlines._timer.at == math.inf
        assert not deadlines._heap

    asyncio.run(scene())


def test_nothing_is_left_of_those_that_were_answered_or_cancelled() -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        deadlines = Deadlines(loop)
        one_more = asyncio.create_task(
            waits(deadlines, loop.create_future(), monotonic() + LATER_S)
        )
        await asyncio.sleep(0)
        for number in range(10 * _SPARE):
            future: asyncio.Future[None] = loop.create_future()
            task = asyncio.create_task(waits(deadlines, future, monotonic() + LATER_S))
            await asyncio.sleep(0)
            if number % 2:
                future.set_result(None)
            else:
                task.cancel()
            assert await task == ("woken" if number % 2 else "cancelled")
        assert len(deadlines._heap) <= 2 + _SPARE + 1, "what is over does not pile up"
        deadlines.tidy_up()
        assert len(deadlines._heap) == 1
        assert deadlines._timer.at < math.inf
        one_more.cancel()
        await one_more
        deadlines.tidy_up()
        assert deadlines._timer.at == math.inf, "nothing wakes where nobody waits"
        assert not deadlines._heap

    asyncio.run(scene())


def test_a_task_that_was_finalized_keeps_no_other_from_its_deadline() -> None:
    """Its future stays until its instant."""

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        deadlines = Deadlines(loop)
        deadlines.begins(loop.create_future(), monotonic() + 0.02)
        assert await waits(deadlines, loop.create_future(), monotonic() + 0.01) == "woken"
        assert await waits(deadlines, loop.create_future(), monotonic() + 0.05) == "woken"
        deadlines.tidy_up()
        assert deadlines._timer.at == math.inf

    asyncio.run(scene())
