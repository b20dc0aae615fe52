"""What an event loop has done in a thread. Imported only where asyncio is used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mppool.logs import Log
from mppool.process.executor import BackgroundExecutor

log = Log("mppool")


async def done_in_thread(threads: BackgroundExecutor, function: Callable[[], None]) -> None:
    """Have it done, and wait for that. A task that is cancelled meanwhile has it done all the same."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle() -> None:
        if not done.done():
            done.set_result(None)

    def chore() -> None:
        try:
            function()
        finally:
            try:
                loop.call_soon_threadsafe(settle)
            except RuntimeError:
                log.debug("the event loop was closed before a lease had been given back")

    threads.add(chore)
    await asyncio.shield(done)
