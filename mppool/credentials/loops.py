"""Asynchronous clients end with their event loop: what they have open can be closed in it only.

asyncio.run, uvloop and the web servers tell asynchronous generators that their loop is about to end
(`loop.shutdown_asyncgens`). So one such generator waits for that in each loop that has clients; nobody
needs to close anything.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from mppool.logs import Log

if TYPE_CHECKING:

    class Closable(Protocol):
        """What is to be closed in a loop."""

        inner: Any


log = Log("mppool")

LOOP_OVER = "this client is closed: the event loop that it was made in is over; ask the pool in the one that runs"


class LoopEnd:
    """Calls `over`, in the running loop, when that is about to end, and closes what `over` gives."""

    def __init__(self, over: Callable[[], Sequence[Closable]]) -> None:
        self.loop = weakref.ref(asyncio.get_running_loop())
        # Held here: a generator that is garbage is ended at once.
        self._waiting = _wait_for_end(over)
        start = self._waiting.asend(None)
        try:
            start.send(None)  # as far as its `yield`, which waits for nothing
        except StopIteration:
            return

    def has_passed(self) -> bool:
        """Whether the loop is over, without having said so."""
        loop = self.loop()
        return loop is None or loop.is_closed()


async def _wait_for_end(over: Callable[[], Sequence[Closable]]) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        for wire in over():
            try:
                await wire.inner.close()
            except Exception:
                log.exception("connections of an asynchronous client could not be closed")
