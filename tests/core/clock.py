"""A clock for tests of the core: the core never asks for the time, it is told."""

from __future__ import annotations


class ManualClock:
    """Moves only when told to. Seconds."""

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
