"""What a thread does for a task."""

from __future__ import annotations

import asyncio

from mppool.process.executor import BackgroundExecutor
from mppool.worker.in_thread import in_thread
from tests.helpers import wait_until


def test_a_result_that_came_just_before_the_loop_ended_is_taken_back() -> None:
    """Its thread has gone, and its task is finalized without having heard of it."""
    chores = BackgroundExecutor("t")
    taken_back: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        told = len(loop._ready)  # type: ignore[attr-defined]
        work = in_thread(chores, lambda: 7, taken_back.append)
        work.send(None)
        # The loop is told, and does not run meanwhile.
        wait_until(lambda: len(loop._ready) > told, "the thread to have told the loop")  # type: ignore[attr-defined]
        wait_until(lambda: not chores._begun, "the thread to have gone")
        work.close()

    asyncio.run(main())
    wait_until(lambda: taken_back, "the result to be taken back")
    assert taken_back == [7]
