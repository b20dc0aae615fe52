"""Where the time comes from. The core never asks for it: it is told."""

from __future__ import annotations

import time
from collections.abc import Callable

# A clock is anything that gives seconds that never go backwards.
Clock = Callable[[], float]

monotonic: Clock = time.monotonic


class ManualClock:
    """A clock for tests that moves only when told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> float:
        """Move forward by `seconds` (not negative) and return the new time."""
        if seconds < 0:
            raise ValueError("a monotonic clock does not go backwards")
        self.now += seconds
        return self.now
