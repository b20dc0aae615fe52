"""One timer of an event loop, for the earliest of many instants."""

from __future__ import annotations

import math
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class OneTimer:
    """Used in its loop alone. at: when it rings; infinity: it does not."""

    __slots__ = ("_handle", "_look", "_loop", "at")

    def __init__(self, loop: asyncio.AbstractEventLoop, look: Callable[[], None]) -> None:
        """look: called when it rings. It sets the timer again where something is left to wait for."""
        self._loop = loop
        self._look = look
        self._handle: asyncio.TimerHandle | None = None
        self.at = math.inf

    def ring_at(self, instant: float) -> None:
        """It rings then, not when it was set for before."""
        if self._handle is not None:
            self._handle.cancel()
        self.at = instant
        self._handle = self._loop.call_later(max(0.0, instant - monotonic()), self._ring)

    def cancel(self) -> None:
        """It does not ring."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle, self.at = None, math.inf

    def _ring(self) -> None:
        self._handle, self.at = None, math.inf
        self._look()
